"""`python -m trimtab`."""

import sys

from .cli import main

if __name__ == "__main__":  # a process that training starts to make data imports this file again
    sys.exit(main())
