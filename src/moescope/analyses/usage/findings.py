"""What a run found: usage."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, MOST_NAMED, count_of, interval_of, names_of, pooled, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

SPECIALIST_LIFT = 2.0
"""A domain has a specialist if even the lower end of the lift of its best expert is at least this."""
RARE = 0.1


def best_of_domains(results: Results) -> pd.DataFrame | None:
    """For each domain the expert of any layer that stood out most on half 0, as measured on half 1; the best first."""
    frame = results.table("specialists")
    if frame is None or frame.empty:
        return None
    # On half 1 there may be no document of a small domain.
    frame = frame[frame["num_tokens"] > 0].sort_values("place")
    return None if frame.empty else frame.drop_duplicates("domain").reset_index(drop=True)


def _most_specialised(results: Results) -> Finding | None:
    frame = best_of_domains(results)
    if frame is None:
        return None
    # The first of those whose interval is known, if any is: how many documents there are says nothing for or against.
    known = frame.index[frame["lift_ci_low"].notna()]
    best = row(frame, known[0] if len(known) else 0)
    who = f"expert {best['expert']} of layer {best['layer']}"
    share, lift = percent(best["domain_specialization"]), number(best["lift"])
    measured = (
        f"On documents that had no say in choosing it, it is selected for {share} of the tokens of {best['domain']} "
        f"({interval_of(best['ci_low'], best['ci_high'], share=True)}), {lift} times its mean over all domains "
        f"({interval_of(best['lift_ci_low'], best['lift_ci_high'])}); uniform routing would give it "
        f"{percent(best['uniform_baseline'])}. Measured on {count_of(best['num_tokens'], 'token')} of "
        f"{count_of(best['num_documents'], 'document')}."
    )
    if best["lift_ci_low"] <= 1 or best["lift"] <= 1:
        title = "No expert stands out for a domain"
        return Finding("usage", title, f"The likeliest is {who}, for {best['domain']}. {measured}")
    return Finding("usage", f"The most specialised expert is {who}, for {best['domain']}", measured)


def _domains_with_specialists(results: Results) -> Finding | None:
    frame = best_of_domains(results)
    if frame is None:
        return None
    known = frame[frame["lift_ci_low"].notna()]
    if known.empty:
        return None
    own = known[known["lift_ci_low"] >= SPECIALIST_LIFT]
    without = known[known["lift_ci_low"] < SPECIALIST_LIFT]
    text = (
        f"That is, an expert selected for it at least {number(SPECIALIST_LIFT)} times as often as for the mean domain, "
        "even at the lower end of the 95 % interval, on documents that had no say in choosing it."
    )
    different = len(own.drop_duplicates(["layer", "expert"]))
    if different < len(own):
        text += f" Some serve more than one domain: they are {count_of(different, 'expert')}."
    if len(own) and len(without):
        text += f" None such for {names_of(without['domain'].tolist())}."
    if len(frame) > len(known):
        text += f" {count_of(len(frame) - len(known), 'domain')} had too few documents to tell."
    verb = "has" if len(own) == 1 else "have"
    return Finding("usage", f"{len(own)} of {len(known)} domains {verb} a specialist", text)


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
        f"At layer {best['layer']} the selected experts tell {percent(best[excess])} of what there is to know about a "
        f"token's domain, beyond chance: {bits} of {number(best['domain_entropy'])} bits, where shuffled documents "
        f"give {mean} (95 % range {low} to {high})."
    )
    above = int((frame["mutual_information"] > frame["mutual_information_null_high"]).sum())
    if len(frame) > 1:
        text += f" Least at layer {least['layer']}: {percent(least[excess])}."
        text += f" Above chance at {above} of {len(frame)} layers."
    if not above:
        return Finding("usage", "Experts tell nothing about the domain that chance would not", text)
    if len(frame) == 1:
        return Finding("usage", f"The experts of layer {best['layer']} tell domains apart", text)
    return Finding("usage", f"Experts tell most about the domain at layer {best['layer']}", text)


def _load(results: Results) -> Finding | None:
    frame = pooled(results, "usage")
    if frame is None or frame.empty:
        return None
    fair = results.manifest.num_experts_per_token / results.manifest.num_experts
    frequency = frame["selection_frequency"]
    dead, rare = frame[frame["num_selected"] == 0], frame[(frame["num_selected"] > 0) & (frequency < RARE * fair)]
    busiest = row(frame, frequency.idxmax())
    text = (
        f"The busiest, expert {busiest['expert']} of layer {busiest['layer']}, takes "
        f"{percent(busiest['selection_frequency'])} of all tokens "
        f"({interval_of(busiest['ci_low'], busiest['ci_high'], share=True)}), "
        f"{number(busiest['selection_frequency'] / fair)} times its fair share of {percent(fair)}. "
        f"{count_of(len(rare), 'expert') if len(rare) else 'No expert'} in use {'get' if len(rare) > 1 else 'gets'} "
        "less than a tenth of a fair share."
    )
    if dead.empty:
        return Finding("usage", f"None of {len(frame):,} experts is dead", text)
    named = [f"layer {layer}: {names_of(group['expert'].tolist())}" for layer, group in dead.groupby("layer")]
    shown = "; ".join(named[:MOST_NAMED]) + ("; ..." if len(named) > MOST_NAMED else "")
    return Finding("usage", f"{len(dead):,} of {len(frame):,} experts were never selected", f"{shown}. {text}")


FINDINGS: list[Callable[[Results], Finding | None]] = [_most_specialised, _domains_with_specialists, _information, _load]
