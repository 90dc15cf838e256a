"""One file per question. `names` lists them and `find` brings one, by file name.

Listing reads the files' text and imports none of them, so that a help page costs no torch.
"""

from __future__ import annotations

import ast
import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from moescope.errors import UsageError

if TYPE_CHECKING:
    from moescope.analyses.base import Analysis


@cache
def summaries() -> dict[str, str]:
    """Every analysis' name and the first line of its file's docstring, in alphabetical order."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        if any(isinstance(base, ast.Name) and base.id == "Analysis" for node in classes for base in node.bases):
            found[path.stem] = (ast.get_docstring(tree) or "").split("\n")[0]
    return found


def names() -> list[str]:
    """The names of all analyses that one forward pass can feed."""
    return list(summaries())


def find(name: str) -> Analysis:
    """The analysis of that name.

    Raises:
        UsageError: There is none; says which there are.
    """
    from moescope.analyses.base import Analysis

    if name not in names():
        raise UsageError(f"there is no analysis named {name!r}", expected=f"one of {', '.join(names())}")
    module = importlib.import_module(f"moescope.analyses.{name}")
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Analysis)]
    return next(kind() for kind in kinds if kind.__module__ == module.__name__)
