"""Published routing counts of OLMoE-1B-7B-0924; tests that need them are skipped where they are not at hand.

They are not part of the project. They are looked for in the folder that
MOESCOPE_GOLDEN names, else in `shared/golden` beside the checkout.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest

DEFAULT = Path(__file__).parents[2] / "shared" / "golden"


@cache
def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def golden() -> dict[str, np.ndarray]:
    """The arrays by name; skips the test that asks if there are none."""
    path = Path(os.environ.get("MOESCOPE_GOLDEN") or DEFAULT) / "olmoe-0924-routing.npz"
    if not path.is_file():
        pytest.skip(f"no published counts at {path}")
    return _load(path)
