"""What the README shows is run as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from trimtab.cli import build_parser
from trimtab.steering.document import parse_document

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_ten_lines_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    # From a file, because tools are made from source that can be read.
    file = tmp_path / "ten_lines.py"
    file.write_text(code)
    scope: dict[str, object] = {"__name__": "ten_lines"}
    exec(compile(code, str(file), "exec"), scope)
    out = capsys.readouterr().out
    result = scope["result"]
    assert [s.tool for s in result.steps if s.kind == "tool"] == ["find_stock"]  # type: ignore[attr-defined]
    assert "The stock of maple is 42" in out


def test_every_command_it_shows_exists() -> None:
    text = README.replace("\\\n", " ")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.S)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.split("\n")]
    commands = [line for line in lines if line.startswith("trimtab ")]
    assert len(commands) >= 8
    for line in commands:
        build_parser().parse_args(shlex.split(line)[1:])


def test_the_profiles_that_the_documentation_shows_are_read() -> None:
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "profiles.md").read_text(), re.S)
    documents = [parse_document(text, "docs/profiles.md") for text in shown]
    assert len(documents) >= 3
    kinds = {entry.kind for document in documents for entry in document.interventions}
    assert {"add", "ablate"} <= kinds


def test_every_file_it_names_exists() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
