"""Findings about usage: specialists, domain information, load."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import (
    MOST_NAMED,
    Claim,
    Fact,
    KeyNumber,
    chance_of,
    count_of,
    interval_of,
    named_with_ties,
    names_of,
    pooled,
    row,
)
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

SPECIALIST_LIFT = 2.0
"""A domain has a specialist if even the lower end of the lift of its best expert is at least this."""
RARE = 0.1
"""Share of uniform load below which an expert counts as rarely selected."""


def best_of_domains(results: Results) -> pd.DataFrame | None:
    """For each domain the expert of any layer ranked first on half 0, as measured on half 1; the highest rank first."""
    frame = results.table("specialists")
    if frame is None or frame.empty:
        return None
    # On half 1 there may be no document of a small domain.
    frame = frame[frame["num_tokens"] > 0].sort_values("rank")
    return None if frame.empty else frame.drop_duplicates("domain").reset_index(drop=True)


def _most_specialized(results: Results) -> Claim | None:
    frame = best_of_domains(results)
    if frame is None:
        return None
    # Ranked on the selection half, by the lower end of the lift's interval there: one test on the evaluation half.
    best = row(frame, 0)
    expert = f"expert {best['expert']} of layer {best['layer']}"
    text = (
        f"Of all experts and domains, {expert} for {best['domain']} has the highest lower end of the lift's CI on the "
        f"selection half. On held-out documents (evaluation half) it is selected for "
        f"{percent(best['domain_specialization'])} of the tokens of {best['domain']} "
        f"({interval_of(best['ci_low'], best['ci_high'], share=True)}), {number(best['lift'])} times its mean over all "
        f"domains ({interval_of(best['lift_ci_low'], best['lift_ci_high'])}{_p(best['lift_p_value'])}); uniform "
        f"routing: {percent(best['uniform_baseline'])}. n = {count_of(best['num_tokens'], 'token')} of "
        f"{count_of(best['num_documents'], 'document')}."
    )
    known = frame[frame["lift_ci_low"].notna()]
    if len(known):
        text += _specialists(frame, known)
    return Claim(
        "usage",
        shown=f"The most specialized expert is {expert}, for {best['domain']}",
        not_shown="No expert is shown to be specialized in a domain",
        not_testable="Whether an expert is specialized in a domain is not testable with this sample",
        text=text,
        p_value=best["lift_p_value"],
    )


def _specialists(frame: pd.DataFrame, known: pd.DataFrame) -> str:
    """How many domains have a specialist, and which have none."""
    has = known["lift_ci_low"] >= SPECIALIST_LIFT
    text = (
        f" The lower end of the lift's CI of the domain's best expert is at least {number(SPECIALIST_LIFT)} in "
        f"{int(has.sum())} of {count_of(len(known), 'domain')}"
    )
    different = len(known[has].drop_duplicates(["layer", "expert"]))
    text += f" ({count_of(different, 'different expert')})." if different < has.sum() else "."
    if has.any() and not has.all():
        text += f" Not in {names_of(known['domain'][~has].tolist())}."
    if len(frame) > len(known):
        text += f" Too few documents for an interval in {count_of(len(frame) - len(known), 'more domain')}."
    return text


def _p(p_value: float) -> str:
    return "" if math.isnan(p_value) else f"; {chance_of(p_value)}"


def _information(results: Results) -> Claim | None:
    frame = results.table("usage_information")
    if frame is None or frame.empty or "set_information" not in frame.columns:
        return None
    tested = frame[frame["set_information"].notna()]
    best = row(frame, tested["set_information"].idxmax() if len(tested) else frame.index[0])
    # Each layer's p-value is of the highest layer among permutations: the smallest is that of any layer.
    p_value = float(frame["set_information_p_value"].min())
    layers = frame["layer"][frame["set_information_tied"]].tolist()
    num_selected = results.manifest.num_experts_per_token
    text = ""
    if len(tested):
        what = f"the set of {num_selected} selected experts" if num_selected > 1 else "the selected expert"
        text = (
            f"At layer {best['layer']} {what} of a token carries {number(best['set_information'])} bits about its "
            f"domain (a lower bound; {interval_of(best['set_information_ci_low'], best['set_information_ci_high'])}; "
            f"{percent(best['set_information_share'])} of the domain's entropy), by a linear probe fitted on half of "
            "the documents and evaluated on the others. Documents' labels permuted: mean "
            f"{number(best['set_information_null_mean'])}, 95 % range {number(best['set_information_null_low'])} to "
            f"{number(best['set_information_null_high'])} ({chance_of(p_value)} for any layer)."
        )
        if len(tested) > 1:
            least = row(tested, tested["set_information"].idxmin())
            text += f" Lowest at layer {least['layer']}: {number(least['set_information'])} bits."
    if num_selected > 1 and not math.isnan(best["mutual_information"]):
        text += (
            f" One of the {num_selected}, drawn at random: {number(best['mutual_information'])} bits (null mean "
            f"{number(best['mutual_information_null_mean'])})."
        )
    where = named_with_ties(layers, "layer") if layers else f"layer {best['layer']}"
    return Claim(
        "usage",
        shown=f"Routing carries domain information{', most' if len(frame) > 1 else ''} at {where}",
        not_shown="Routing is not shown to carry domain information above chance",
        not_testable="Domain information of routing is not testable with this sample",
        text=text.strip(),
        p_value=p_value,
    )


def _load(results: Results) -> Fact | None:
    frame = pooled(results, "usage")
    if frame is None or frame.empty:
        return None
    uniform = results.manifest.num_experts_per_token / results.manifest.num_experts
    frequency = frame["selection_frequency"]
    unused = frame[frame["num_selected"] == 0]
    rare = frame[(frame["num_selected"] > 0) & (frequency < RARE * uniform)]
    busiest = row(frame, frequency.idxmax())
    text = (
        f"The most frequently selected, expert {busiest['expert']} of layer {busiest['layer']}, is selected for "
        f"{percent(busiest['selection_frequency'])} of all tokens "
        f"({interval_of(busiest['ci_low'], busiest['ci_high'], share=True)}), "
        f"{number(busiest['selection_frequency'] / uniform)} times uniform routing ({percent(uniform)}). "
        f"{count_of(len(rare), 'expert') if len(rare) else 'No expert'} in use {'are' if len(rare) > 1 else 'is'} "
        f"selected less than {percent(RARE, 0)} as often as under uniform routing."
    )
    if unused.empty:
        return Fact("usage", f"All {len(frame):,} experts are selected", text)
    named = [f"layer {layer}: {names_of(group['expert'].tolist())}" for layer, group in unused.groupby("layer")]
    listed = "; ".join(named[:MOST_NAMED]) + ("; ..." if len(named) > MOST_NAMED else "")
    return Fact("usage", f"{len(unused):,} of {len(frame):,} experts were never selected", f"{listed}. {text}")


FINDINGS: list[Callable[[Results], Claim | None]] = [_most_specialized, _information]

FACTS: list[Callable[[Results], Fact | None]] = [_load]

KEY_NUMBERS = [
    KeyNumber("usage_load", "max_violation", "MaxVio", "highest load over the layer's mean, minus 1; balanced: 0"),
    KeyNumber("usage_load", "num_unused_experts", "never selected", "experts that no token selected", total=True),
    KeyNumber(
        "usage_information",
        "mutual_information_share_excess",
        "domain information",
        "mutual information of expert and domain above its null, share of H(domain)",
        share=True,
    ),
]
