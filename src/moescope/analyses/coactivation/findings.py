"""Finding about co-activation: the pair of experts selected together most, on held-out documents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Claim, KeyNumber, chance_of, interval_of, row
from moescope.results.text import number

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _coactivation(results: Results) -> Claim | None:
    layers = results.table("coactivation")
    if layers is None or layers.empty:
        return None
    # The layer is selected on the same half of the documents as the pair: one test, whatever the number of layers.
    known = layers[layers["top_excess_selection_half"].notna()]
    if known.empty:
        return None
    best = row(known, known["top_excess_selection_half"].idxmax())
    pair = f"{best['top_expert']} and {best['top_other_expert']} of layer {best['layer']}"
    text = (
        f"The pair with the largest excess over independent routing on the selection half of the documents, among "
        f"{int(layers['num_pairs'].sum()):,} pairs: experts {pair}."
    )
    if not math.isnan(best["top_lift"]):
        text += (
            f" On held-out documents its lift is {number(best['top_lift'])} "
            f"({interval_of(best['top_lift_ci_low'], best['top_lift_ci_high'])}); independent routing: "
            f"{number(best['top_lift_chance'])}."
        )
    if not math.isnan(best["top_p_value"]):
        text = text[:-1] + f" ({chance_of(best['top_p_value'])})."
    return Claim(
        "coactivation",
        shown=f"Experts {pair} are selected together more often than under independent routing",
        not_shown="No pair of experts is shown to be selected together more often than under independent routing",
        not_testable="Co-activation is not testable with this sample",
        text=text,
        p_value=best["top_p_value"],
    )


FINDINGS: list[Callable[[Results], Claim | None]] = [_coactivation]

KEY_NUMBERS = [
    KeyNumber("coactivation", "lift_q95", "lift, 95th percentile", "co-activation, over pairs of experts", lead=False)
]
