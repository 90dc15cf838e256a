"""What the toy question finds."""

from __future__ import annotations

from collections.abc import Callable

from moescope.analyses.finding import Claim, Fact
from moescope.results.reading import Results


def _differ(results: Results) -> Claim | None:
    frame = results.table("toy")
    if frame is None:
        return None
    return Claim(
        "toy",
        shown="Layers saw different numbers of tokens",
        not_shown="Layers are not shown to see different numbers of tokens",
        not_testable="Numbers of tokens are not testable",
        text=f"From {int(frame['num_steps'].min())} to {int(frame['num_steps'].max())} steps.",
        p_value=0.0 if frame["num_steps"].nunique() > 1 else 1.0,
    )


def _counted(results: Results) -> Fact | None:
    frame = results.table("toy")
    if frame is None:
        return None
    return Fact("toy", "Tokens were counted", f"{int(frame['num_steps'].max())} steps.")


FINDINGS: list[Callable[[Results], Claim | None]] = [_differ]

FACTS: list[Callable[[Results], Fact | None]] = [_counted]
