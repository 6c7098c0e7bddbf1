"""`python -m trimtab`."""

import sys

from .cli import main

sys.exit(main())
