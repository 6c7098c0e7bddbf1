"""The house keeps its shape: packages are listed, imports point down, nothing heavy is imported early."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = {
    "errors": 0,
    "home": 1,
    "arguments": 1,
    "yaml_text": 1,
    "native": 1,
    "tools": 2,
    "steering": 2,
    "models": 3,
    "agent": 4,
    "evals": 5,
    "cli": 6,
}
CODE = [
    p
    for p in sorted(ROOT.rglob("*.py"))
    if not {"tests", ".venv", "build"} & set(p.relative_to(ROOT).parts) and not p.name.startswith(".")
]


def test_every_folder_with_code_is_packaged() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {p.parent.relative_to(ROOT) for p in CODE}
    names = {".".join(("trimtab", *f.parts)) for f in folders}
    assert names == set(listed["packages"])
    assert {n: "/".join(n.split(".")[1:]) or "." for n in names} == listed["package-dir"]


@pytest.mark.parametrize("path", CODE, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    parts = path.relative_to(ROOT).with_suffix("").parts
    mine = FLOORS.get(parts[0])
    if mine is None or parts[0] == "cli":
        return
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            assert not any(a.name.split(".")[0] == "trimtab" for a in node.names), (
                f"absolute import, line {node.lineno}"
            )
        if not isinstance(node, ast.ImportFrom):
            continue
        assert (node.module or "").split(".")[0] != "trimtab", f"absolute import, line {node.lineno}"
        if node.level == 0:
            continue
        base = list(parts[: len(parts) - node.level])
        target = [*base, *(node.module or "").split(".")] if node.module else base
        tops = [target[0]] if target and target[0] else [a.name for a in node.names]
        for top in tops:
            theirs = FLOORS.get(top)
            same = top == parts[0]
            assert theirs is None or same or theirs < mine, f"{top} is not below {parts[0]}, line {node.lineno}"


def _without_types(tree: ast.Module) -> ast.Module:
    """The module without its `if TYPE_CHECKING:` blocks, which import nothing when it runs."""
    tree.body = [n for n in tree.body if not (isinstance(n, ast.If) and "TYPE_CHECKING" in ast.dump(n.test))]
    return tree


def test_only_one_module_knows_langgraph_and_one_folder_vllm() -> None:
    for path in CODE:
        for node in ast.walk(_without_types(ast.parse(path.read_text()))):
            names = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom) and node.level == 0
                else []
            )
            where = path.relative_to(ROOT)
            for name in names:
                if name.split(".")[0] == "langgraph":
                    assert where == Path("agent/graph.py"), where
                if name.split(".")[0] == "vllm":
                    assert where.parts[:2] == ("steering", "vllm"), where


@pytest.mark.parametrize("module", ["trimtab", "trimtab.cli"])
def test_nothing_heavy_is_imported_early(module: str) -> None:
    code = (
        f"import {module}, sys; print(*[m for m in ('torch', 'transformers', 'vllm', 'langgraph', 'sklearn', 'pint', "
        "'matplotlib', 'pydantic', 'httpx', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
