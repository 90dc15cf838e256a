"""Fact of map: whether an output's nearest neighbors recover its expert and its domain."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Fact, Finding, count_of, interval_of, row
from moescope.measures.neighbors import MIN_LABEL_DOCUMENTS
from moescope.results.text import percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _recovered(results: Results) -> Fact | None:
    frame = results.table("map_quality")
    if frame is None or not frame["expert_accuracy"].notna().any():
        return None
    frame = frame[frame["expert_accuracy"].notna()]
    best, least = row(frame, frame["expert_accuracy"].idxmax()), row(frame, frame["expert_accuracy"].idxmin())
    text = (
        f"At layer {best['layer']} the nearest outputs of other documents recover the expert of "
        f"{percent(best['expert_accuracy'])} of {count_of(best['num_judged'], 'output')} "
        f"({interval_of(best['expert_ci_low'], best['expert_ci_high'], share=True)}; chance "
        f"{percent(best['expert_chance'])})"
    )
    text += f"; at layer {least['layer']}, {percent(least['expert_accuracy'])}." if len(frame) > 1 else "."
    judged = frame[frame["domain_accuracy"].notna()]
    if judged.empty:
        text += f" Domains are not testable: fewer than two have {MIN_LABEL_DOCUMENTS} documents among these outputs."
    else:
        domain = row(judged, judged["domain_accuracy"].idxmax())
        where = f" at layer {domain['layer']}, the highest" if len(frame) > 1 else ""
        text += (
            f" They recover the domain of {percent(domain['domain_accuracy'])} "
            f"({interval_of(domain['domain_ci_low'], domain['domain_ci_high'], share=True)}; chance "
            f"{percent(domain['domain_chance'])}){where}."
        )
    return Fact("map", f"Nearest outputs recover the expert of {percent(best['expert_accuracy'])} of outputs", text)


FINDINGS: list[Callable[[Results], Finding | None]] = []

FACTS: list[Callable[[Results], Fact | None]] = [_recovered]
