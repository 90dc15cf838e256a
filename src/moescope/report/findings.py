"""What a run found, in sentences computed from its tables. A table that is missing brings no sentence.

Every sentence says how sure it is, or what chance alone would give. Specialists were chosen on one half of the
documents and are shown as measured on the other, since a maximum over thousands of cells flatters itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pandas as pd

from moescope.report import cause_findings, expert_findings, output_findings, weight_findings
from moescope.report.finding import MOST_NAMED, Finding, count_of, interval_of, names_of, row
from moescope.report.keynumbers import ALL, pooled
from moescope.report.views import number, percent

if TYPE_CHECKING:
    from moescope.report.folder import Results

SPECIALIST_LIFT = 2.0
"""A domain has a specialist if even the lower end of the lift of its best expert is at least this."""
READINGS = {"input": "the token read", "predicted": "the token predicted", "next": "the token that comes next"}
RARE = 0.1
ALIKE = 0.01
"""Normalized entropies that differ by less are not ranked."""


def find(results: Results) -> list[Finding]:
    """All findings that the tables of a folder give, the most telling first."""
    return [finding for make in _FINDINGS if (finding := make(results)) is not None]


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


def _least_sure(results: Results) -> Finding | None:
    frame, every = results.table("router_entropy"), pooled(results, "router_entropy")
    if frame is None or every is None or every.empty:
        return None
    column = "normalized_entropy_mean"
    most, least = row(every, every[column].idxmax()), row(every, every[column].idxmin())
    text = (
        f"Its entropy there is {percent(most[column])} of the most there could be "
        f"({number(most['entropy_mean'])} nats, mean over {count_of(most['num_tokens'], 'token')}), and its first "
        f"choice gets {percent(most['top1_probability_mean'])} of the probability."
    )
    alike = most[column] - least[column] < ALIKE
    if len(every) > 1 and not alike:
        first = percent(least["top1_probability_mean"])
        text += f" It is surest at layer {least['layer']}: {percent(least[column])}, first choice {first}."
    by_domain = frame[frame["domain"] != ALL].groupby("domain", sort=False)[column].mean()
    if len(by_domain) > 1 and by_domain.max() - by_domain.min() >= ALIKE:
        text += (
            f" Of the domains, {by_domain.idxmax()} leaves it least sure ({percent(by_domain.max())}), "
            f"{by_domain.idxmin()} surest ({percent(by_domain.min())}){', mean over layers' if len(every) > 1 else ''}."
        )
    if len(every) == 1:
        return Finding("entropy", f"How sure the router is at layer {most['layer']}", text)
    if alike:
        title = "The router is as sure at one layer as at another"
        return Finding("entropy", title, f"Within {percent(ALIKE, 0)}; take layer {most['layer']}. {text}")
    return Finding("entropy", f"The router is least sure at layer {most['layer']}", text)


def _vocabulary(results: Results) -> Finding | None:
    frame = results.table("vocabulary")
    if frame is None or frame.empty:
        return None
    name, chance = "vocabulary_specialization", "vocabulary_specialization_independent"
    # The first ranks listed are top-K; those alone, where a model has K of 1, are top-1.
    frame = frame[(frame["ranks"] == frame["ranks"].iloc[0]) & frame[name].notna() & frame[chance].notna()]
    if frame.empty:
        return None
    excess = frame[name] - frame[chance]
    best = row(frame, excess.idxmax())
    means = excess.groupby(frame["reading"]).mean()
    text = (
        f"At layer {best['layer']} a token type's own expert gets {percent(best[name])} of its occurrences, where "
        f"independent routing at the same counts would give {percent(best[chance])} (mean over "
        f"{count_of(best['num_types'], 'token type')} seen at least {best['min_count']} times, by "
        f"{READINGS[best['reading']]})."
    )
    if len(means) > 1:
        listed = ", ".join(
            f"{words} {percent(means[reading])}" for reading, words in READINGS.items() if reading in means
        )
        over = ", mean over layers" if len(set(frame["layer"])) > 1 else ""
        text += f" Excess over independent routing{over}: {listed}."
    if means.max() <= 0:
        return Finding("vocabulary", "Experts do not specialise in token types", text)
    return Finding("vocabulary", f"Experts follow {READINGS[str(means.idxmax())]}", text)


def _coactivation(results: Results) -> Finding | None:
    pairs, layers = results.table("coactivation_pairs"), results.table("coactivation")
    if pairs is None or layers is None or pairs.empty:
        return None
    best = row(pairs, pairs["lift"].idxmax())
    times = number(best["num_together"] / best["num_together_independent"])
    text = (
        f"{count_of(best['num_together'], 'token')} of {best['num_tokens']:,} select both, {times} times the "
        f"{number(best['num_together_independent'])} that independent routing would bring together. Of the tokens of "
        f"expert {best['expert']}, {percent(best['coactivation'])} select expert {best['other_expert']} too. The "
        f"highest lift of {int(layers['num_pairs'].sum()):,} pairs, so a description of this sample, not an estimate."
    )
    title = f"Experts {best['expert']} and {best['other_expert']} of layer {best['layer']} are selected together"
    return Finding("coactivation", title, text)


def _paths(results: Results) -> Finding | None:
    frame = results.table("paths")
    if frame is None or frame.empty:
        return None
    excess = (frame["top1_nmi"] - frame["top1_nmi_independent"]).dropna()
    if excess.empty:
        return None
    best, least = row(frame, excess.idxmax()), row(frame, excess.idxmin())
    text = (
        f"Normalized mutual information of the first-ranked experts: {number(best['top1_nmi'])}, where shuffled tokens "
        f"give {number(best['top1_nmi_independent'])}."
    )
    title = f"The expert at layer {best['layer']} tells the one at layer {best['next_layer']}"
    if len(excess) == 1:
        return Finding("paths", title, text)
    text += (
        f" Least between layers {least['layer']} and {least['next_layer']}: {number(least['top1_nmi'])} "
        f"({number(least['top1_nmi_independent'])})."
    )
    return Finding("paths", f"{title} best", text)


def _saturation(results: Results) -> Finding | None:
    frame = results.table("saturation")
    if frame is None or not frame["topk_saturation"].notna().any():
        return None
    means = frame.groupby("checkpoint", sort=False)[
        ["topk_saturation", "topk_saturation_chance", "top1_saturation"]
    ].mean()
    best = str(means["topk_saturation"].idxmax())
    share, chance, first = means.loc[best]
    layers = frame[frame["checkpoint"] == best].groupby("layer")["topk_saturation"].mean()
    over = "" if len(layers) == 1 else ", mean over layers"
    text = (
        f"{percent(share)} of the experts it selects are those the final model selects{over}; chance is "
        f"{percent(chance)}. Of the first-ranked alone, {percent(first)}."
    )
    if len(layers) > 1:
        text += (
            f" Most at layer {layers.idxmax()} ({percent(layers.max())}), least at layer {layers.idxmin()} "
            f"({percent(layers.min())})."
        )
    if len(means) > 1:
        first_of = str(means.index[0])
        text += f" At {first_of}: {percent(means.loc[first_of, 'topk_saturation'])}."
    return Finding("saturation", f"Nearest to the final router is {best}", text)


_FINDINGS: list[Callable[[Results], Finding | None]] = [
    _most_specialised,
    _domains_with_specialists,
    _information,
    _load,
    _least_sure,
    _vocabulary,
    _coactivation,
    _paths,
    _saturation,
    *expert_findings.FINDINGS,
    *output_findings.FINDINGS,
    *weight_findings.FINDINGS,
    *cause_findings.FINDINGS,
]
