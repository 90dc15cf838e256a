"""Imports go down only, types included; rooms on one floor do not import each other; there is no circle of files."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "moescope"
MOST_ARROWS = 60
MOST_LINES = 400

# From the ground up; rooms in one tuple are on one floor.
FLOORS = [
    ("errors", "measures"),
    ("records", "context"),
    ("models", "corpora", "statistics", "traces"),
    ("one_pass", "figures", "results"),
    ("interventions",),
    ("analyses",),
    ("run",),
    ("report",),
    ("cli",),
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
FILES = sorted(SOURCE.rglob("*.py"))
MODULES = {
    ".".join(("moescope", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in FILES
}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


@cache
def imported(path: Path) -> frozenset[str]:
    """Modules of ours that a file names, at run time or for types: the module itself where a name of it is taken."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {
            name if name in MODULES else name.rpartition(".")[0] for name in names if name.startswith("moescope.")
        }
    return frozenset(found & set(MODULES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down_only(path: Path):
    room = room_of(path)
    if room == "__init__":
        return
    assert room in FLOOR_OF, f"{room} has no floor in the picture"
    for other in {room_of(MODULES[module]) for module in imported(path)} - {room, "__init__"}:
        assert FLOOR_OF[other] < FLOOR_OF[room], f"{room}/{path.name} imports {other}, which is not below it"


def test_there_is_no_circle_of_files():
    # A package's __init__ that hands out names of its files is no part of one: the files do not import it.
    seen: dict[str, int] = {}

    def visit(module: str, way: tuple[str, ...]) -> None:
        if module in way:
            pytest.fail(" -> ".join((*way[way.index(module) :], module)))
        if module in seen:
            return
        for other in sorted(imported(MODULES[module])):
            visit(other, (*way, module))
        seen[module] = 1

    for module in MODULES:
        visit(module, ())


def test_few_arrows_lead_from_room_to_room():
    arrows = {
        (room_of(path), room_of(MODULES[module]))
        for path in FILES
        for module in imported(path)
        if "__init__" not in (room_of(path), room_of(MODULES[module]))
    }
    assert len({(one, other) for one, other in arrows if one != other}) <= MOST_ARROWS


def test_analyses_has_no_flat_file_but_what_all_questions_share():
    flat = {path.name for path in (SOURCE / "analyses").glob("*.py")}
    assert flat == {"__init__.py", "base.py", "registry.py", "finding.py", "sizes.py", "words.py"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_file_needs_more_than_400_lines(path: Path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_the_registry_costs_no_torch():
    code = "import sys, moescope, moescope.analyses.registry as r; r.names(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
