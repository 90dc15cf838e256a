"""Finding about co-activation: the pair of highest lift."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, count_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _coactivation(results: Results) -> Finding | None:
    pairs, layers = results.table("coactivation_pairs"), results.table("coactivation")
    if pairs is None or layers is None or pairs.empty:
        return None
    best = row(pairs, pairs["lift"].idxmax())
    times = number(best["num_together"] / best["num_together_chance"])
    text = (
        f"{count_of(best['num_together'], 'token')} of {best['num_tokens']:,} select both, {times} times the "
        f"{number(best['num_together_chance'])} expected under independent routing. Of the tokens routed to "
        f"expert {best['expert']}, {percent(best['coactivation'])} are also routed to expert {best['other_expert']}. "
        f"The highest lift of {int(layers['num_pairs'].sum()):,} pairs, selected and measured on the same data: a "
        "description of this sample, not an estimate."
    )
    title = f"Co-activation is highest for experts {best['expert']} and {best['other_expert']} of layer {best['layer']}"
    return Finding("coactivation", title, text, "not testable")


FINDINGS: list[Callable[[Results], Finding | None]] = [_coactivation]

KEY_NUMBERS = [
    KeyNumber("coactivation", "lift_q95", "lift, 95th percentile", "co-activation, over pairs of experts", lead=False)
]
