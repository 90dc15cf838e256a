"""Fact about router confidence: where entropy is highest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Fact, Finding, KeyNumber, count_of, named_with_ties, pooled, row
from moescope.measures.constants import ALL
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _entropy(results: Results) -> Fact | None:
    frame, every = results.table("router_entropy"), pooled(results, "router_entropy")
    if frame is None or every is None or every.empty:
        return None
    column = "normalized_entropy_mean"
    most, least = row(every, every[column].idxmax()), row(every, every[column].idxmin())
    text = (
        f"Mean entropy at layer {most['layer']} is {number(most['entropy_mean'])} nats, {percent(most[column])} of the "
        f"maximum ln E (n = {count_of(most['num_tokens'], 'token')}), and the mean top-1 probability "
        f"{percent(most['top1_probability_mean'])}."
    )
    tied = every["layer"][every["layer_tied"]].tolist()
    if len(every) > 1 and len(tied) < len(every):
        top1 = percent(least["top1_probability_mean"])
        text += f" Lowest at layer {least['layer']}: {percent(least[column])}, top-1 probability {top1}."
    domains = frame[frame["domain"] != ALL]
    by_domain = domains.groupby("domain", sort=False)[column].mean()
    alike = domains.drop_duplicates("domain").query("domain_tied")["domain"].tolist()
    if len(by_domain) > 1 and len(alike) < len(by_domain):
        over = ", mean over layers" if len(every) > 1 else ""
        text += (
            f" By domain{over}: highest in {named_with_ties(alike)} ({percent(by_domain.max())}), "
            f"lowest {percent(by_domain.min())} ({by_domain.idxmin()})."
        )
    if len(every) == 1:
        title = f"Router entropy at layer {most['layer']} is {percent(most[column])} of its maximum"
    elif len(tied) == len(every):
        title = "Router entropy is not distinguishable between layers"
    else:
        title = f"Router entropy is highest at {named_with_ties(tied, 'layer')}"
    return Fact("entropy", title, text)


FINDINGS: list[Callable[[Results], Finding | None]] = []

FACTS: list[Callable[[Results], Fact | None]] = [_entropy]

KEY_NUMBERS = [
    KeyNumber("router_entropy", "normalized_entropy_mean", "router entropy", "share of ln E, its maximum", share=True),
    KeyNumber(
        "router_entropy", "top1_probability_mean", "top-1 probability", "probability of the first rank", share=True
    ),
]
