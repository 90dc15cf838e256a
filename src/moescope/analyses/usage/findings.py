"""Findings about usage: specialists, domain information, load."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import (
    MOST_NAMED,
    Finding,
    KeyNumber,
    Verdict,
    count_of,
    interval_of,
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


def _most_specialized(results: Results) -> Finding | None:
    frame = best_of_domains(results)
    if frame is None:
        return None
    # The first whose interval is known, if any is: too few documents are no evidence for or against.
    known = frame.index[frame["lift_ci_low"].notna()]
    best = row(frame, known[0] if len(known) else 0)
    expert = f"expert {best['expert']} of layer {best['layer']}"
    share, lift = percent(best["domain_specialization"]), number(best["lift"])
    measured = (
        f"On held-out documents (evaluation half), it is selected for {share} of the tokens of {best['domain']} "
        f"({interval_of(best['ci_low'], best['ci_high'], share=True)}), {lift} times its mean over all domains "
        f"({interval_of(best['lift_ci_low'], best['lift_ci_high'])}); uniform routing: "
        f"{percent(best['uniform_baseline'])}. n = {count_of(best['num_tokens'], 'token')} of "
        f"{count_of(best['num_documents'], 'document')}."
    )
    if best["lift_ci_low"] <= 1 or best["lift"] <= 1:
        text = f"The candidate ranked first is {expert}, for {best['domain']}. {measured}"
        return Finding("usage", "No expert is shown to be specialized in a domain", text, "not shown")
    verdict: Verdict = "not testable" if math.isnan(best["lift_ci_low"]) else "shown"
    return Finding("usage", f"The most specialized expert is {expert}, for {best['domain']}", measured, verdict)


def _domains_with_specialists(results: Results) -> Finding | None:
    frame = best_of_domains(results)
    if frame is None:
        return None
    known = frame[frame["lift_ci_low"].notna()]
    if known.empty:
        return None
    specialists = known[known["lift_ci_low"] >= SPECIALIST_LIFT]
    without = known[known["lift_ci_low"] < SPECIALIST_LIFT]
    text = (
        f"A specialist's lift for the domain is at least {number(SPECIALIST_LIFT)} at the lower end of its 95 % CI, on "
        "held-out documents (evaluation half)."
    )
    different = len(specialists.drop_duplicates(["layer", "expert"]))
    if different < len(specialists):
        text += f" Some experts are the specialist of several domains: {count_of(different, 'different expert')}."
    if len(specialists) and len(without):
        text += f" No specialist for {names_of(without['domain'].tolist())}."
    if len(frame) > len(known):
        text += f" Too few documents for an interval in {count_of(len(frame) - len(known), 'more domain')}."
    verb = "has" if len(specialists) == 1 else "have"
    title = f"{len(specialists)} of {len(known)} domains {verb} a specialist"
    return Finding("usage", title, text, "shown" if len(specialists) else "not shown")


def _information(results: Results) -> Finding | None:
    frame = results.table("usage_information")
    excess = "mutual_information_share_excess"
    if frame is None or not frame[excess].notna().any():
        return None
    best, least = row(frame, frame[excess].idxmax()), row(frame, frame[excess].idxmin())
    bits, mean, low, high = (
        number(best[f"mutual_information{ending}"]) for ending in ("", "_null_mean", "_null_low", "_null_high")
    )
    text = (
        f"At layer {best['layer']} the mutual information of expert and domain is {bits} bits (null, documents' labels "
        f"drawn at random: mean {mean}, 95 % range {low} to {high}). Its excess over the null's mean is "
        f"{percent(best[excess])} of the domain's entropy of {number(best['domain_entropy'])} bits."
    )
    above = int((frame["mutual_information"] > frame["mutual_information_null_high"]).sum())
    if len(frame) > 1:
        text += f" Lowest at layer {least['layer']}: {percent(least[excess])}."
        text += f" Above the null's range at {above} of {len(frame)} layers."
    if not above:
        title = "Routing is not shown to carry domain information above chance"
        return Finding("usage", title, text, "not shown")
    if len(frame) == 1:
        title = f"Routing at layer {best['layer']} carries domain information"
        return Finding("usage", title, text, "shown")
    title = f"Routing carries most domain information at layer {best['layer']}"
    return Finding("usage", title, text, "shown")


def _load(results: Results) -> Finding | None:
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
        return Finding("usage", f"All {len(frame):,} experts are selected", text, "shown")
    named = [f"layer {layer}: {names_of(group['expert'].tolist())}" for layer, group in unused.groupby("layer")]
    listed = "; ".join(named[:MOST_NAMED]) + ("; ..." if len(named) > MOST_NAMED else "")
    title = f"{len(unused):,} of {len(frame):,} experts were never selected"
    return Finding("usage", title, f"{listed}. {text}", "shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [
    _most_specialized,
    _domains_with_specialists,
    _information,
    _load,
]

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
