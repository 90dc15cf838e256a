"""What a run found: entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, pooled, row
from moescope.measures.constants import ALL
from moescope.results.text import number, percent

if TYPE_CHECKING:
    from moescope.results.reading import Results

ALIKE = 0.01
"""Normalized entropies that differ by less are not ranked."""


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


FINDINGS: list[Callable[[Results], Finding | None]] = [_least_sure]
