"""What the toy question finds."""

from __future__ import annotations

from collections.abc import Callable

from moescope.analyses.finding import Finding
from moescope.results.reading import Results


def _counted(results: Results) -> Finding | None:
    frame = results.table("toy")
    if frame is None:
        return None
    return Finding("toy", "Tokens were counted", f"{int(frame['num_steps'].max())} steps.", "shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [_counted]
