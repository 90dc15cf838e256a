"""Tables of tokens that were read, of those the model wrote, and of both: one table with a column `phase`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

ALL_PHASES = "all"
PHASE = "phase"


def by_phase(of_phase: Mapping[str, Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    """Puts the tables of all phases below each other, with the phase after `domain`, else after `layer`, else first.

    Args:
        of_phase: Tables by phase, then by name; `ALL_PHASES` has every table.
    """
    import pandas as pd

    together = {}
    for name in of_phase[ALL_PHASES]:
        parts = []
        for phase, frames in of_phase.items():
            if name in frames:
                part = frames[name].copy()
                part.insert(_place(part), PHASE, phase)
                parts.append(part)
        filled = [part for part in parts if len(part)] or parts[:1]
        together[name] = pd.concat(filled, ignore_index=True)
    return together


def of_all(frame: pd.DataFrame) -> pd.DataFrame:
    """A table's rows of all tokens, without the column: what is said and drawn of a run is of all its tokens."""
    if PHASE not in frame.columns:
        return frame
    return frame[frame[PHASE] == ALL_PHASES].drop(columns=PHASE).reset_index(drop=True)


def _place(frame: pd.DataFrame) -> int:
    columns = list(frame.columns)
    return next((columns.index(name) + 1 for name in ("domain", "layer") if name in columns), 0)
