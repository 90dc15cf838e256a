"""Imports go down only, rooms on one floor do not import each other, and a help page costs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "moescope"

# From the ground up; rooms in one tuple are on one floor.
FLOORS = [
    ("records", "errors"),
    ("models", "corpora", "statistics"),
    ("one_pass", "figures", "results"),
    ("interventions",),
    ("analyses",),
    ("run",),
    ("report",),
    ("cli",),
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def type_checking_only(tree: ast.Module) -> set[ast.stmt]:
    """Statements that only a type checker sees; a type may be named from anywhere above the ground."""
    hidden: set[ast.stmt] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            hidden.update(child for statement in node.body for child in ast.walk(statement))
    return hidden


def imported_rooms(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = type_checking_only(tree)
    modules: list[str] = []
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return {parts[1] for module in modules if (parts := module.split("."))[0] == "moescope" and len(parts) > 1}


FILES = sorted(SOURCE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOOR_OF, f"{room} has no floor in the picture"
    for other in imported_rooms(path) - {room}:
        assert other in FLOOR_OF or other == "__version__", f"{path.name} imports moescope.{other}, which has no floor"
        if other in FLOOR_OF:
            assert FLOOR_OF[other] < FLOOR_OF[room], f"{room}/{path.name} imports {other}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_needs_more_than_400_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_importing_moescope_costs_no_torch():
    code = "import sys, moescope, moescope.analyses as a; a.summaries(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
