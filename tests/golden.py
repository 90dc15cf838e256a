"""Published routing counts of OLMoE-1B-7B-0924.

`expert_counts` reads the part that is in the repository (tests/data/olmoe). The larger arrays of the same publication,
top-1 counts and token counts among them, are not part of the project: they are looked for in the folder that
MOESCOPE_GOLDEN names, else in `shared/golden` beside the checkout, and a test that needs them is skipped without them.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

EXPERT_COUNTS = Path(__file__).parent / "data" / "olmoe" / "expert_counts.csv"
LAYERS = [0, 7, 15]
DOMAINS = ["github", "arxiv", "book"]
NUM_EXPERTS = 64
NUM_TOKENS = 208_896  # of each domain

DEFAULT = Path(__file__).parents[2] / "shared" / "golden"


def expert_counts() -> np.ndarray:
    """Token-expert assignments under top-8 routing, int64, shape (3 layers, 3 domains, 64 experts)."""
    frame = pd.read_csv(EXPERT_COUNTS).set_index(["layer", "domain", "expert"])
    cells = pd.MultiIndex.from_product([LAYERS, DOMAINS, range(NUM_EXPERTS)])
    counts = frame["num_selected"].reindex(cells).to_numpy().astype(np.int64, casting="safe")
    return counts.reshape(len(LAYERS), len(DOMAINS), NUM_EXPERTS)


@cache
def _load(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return dict(arrays)


def golden() -> dict[str, np.ndarray]:
    """The larger arrays by name; skips the test that asks if there are none."""
    path = Path(os.environ.get("MOESCOPE_GOLDEN") or DEFAULT) / "olmoe-0924-routing.npz"
    if not path.is_file():
        pytest.skip(f"no published counts at {path}")
    return _load(path)
