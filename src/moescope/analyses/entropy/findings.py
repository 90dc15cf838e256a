"""Finding about router confidence: where entropy is highest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, KeyNumber, count_of, pooled, row
from moescope.measures.constants import ALL
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

EQUAL = 0.01
"""Normalized entropies that differ by less are not ranked."""


def _highest_entropy(results: Results) -> Finding | None:
    frame, every = results.table("router_entropy"), pooled(results, "router_entropy")
    if frame is None or every is None or every.empty:
        return None
    column = "normalized_entropy_mean"
    most, least = row(every, every[column].idxmax()), row(every, every[column].idxmin())
    text = (
        f"Mean entropy there is {number(most['entropy_mean'])} nats, {percent(most[column])} of the maximum ln E "
        f"(n = {count_of(most['num_tokens'], 'token')}), and the mean top-1 probability "
        f"{percent(most['top1_probability_mean'])}."
    )
    equal = most[column] - least[column] < EQUAL
    if len(every) > 1 and not equal:
        top1 = percent(least["top1_probability_mean"])
        text += f" Lowest at layer {least['layer']}: {percent(least[column])}, top-1 probability {top1}."
    by_domain = frame[frame["domain"] != ALL].groupby("domain", sort=False)[column].mean()
    if len(by_domain) > 1 and by_domain.max() - by_domain.min() >= EQUAL:
        over = ", mean over layers" if len(every) > 1 else ""
        text += (
            f" By domain{over}: highest in {by_domain.idxmax()} ({percent(by_domain.max())}), lowest in "
            f"{by_domain.idxmin()} ({percent(by_domain.min())})."
        )
    if len(every) == 1:
        return Finding("entropy", f"Router entropy at layer {most['layer']}", text, "not testable")
    if equal:
        title = "Router entropy is similar at all layers"
        text = f"Within {percent(EQUAL, 0)} of ln E; highest at layer {most['layer']}. {text}"
        return Finding("entropy", title, text, "not shown")
    return Finding("entropy", f"Router entropy is highest at layer {most['layer']}", text, "not testable")


FINDINGS: list[Callable[[Results], Finding | None]] = [_highest_entropy]

KEY_NUMBERS = [
    KeyNumber("router_entropy", "normalized_entropy_mean", "router entropy", "share of ln E, its maximum", share=True),
    KeyNumber(
        "router_entropy", "top1_probability_mean", "top-1 probability", "probability of the first rank", share=True
    ),
]
