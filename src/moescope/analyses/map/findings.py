"""Finding of map: whether an output's nearest neighbors recover its expert and its domain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, interval_of, row
from moescope.results.text import percent

if TYPE_CHECKING:
    from moescope.results.reading import Results


def _recovered(results: Results) -> Finding | None:
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
    domain = row(frame, frame["domain_accuracy"].idxmax())
    several = domain["domain_chance"] < 1
    above = domain["domain_ci_low"] > domain["domain_chance"]
    where = f" at layer {domain['layer']}, the highest" if len(frame) > 1 else ""
    if several:
        text += (
            f" They recover the domain of {percent(domain['domain_accuracy'])} "
            f"({interval_of(domain['domain_ci_low'], domain['domain_ci_high'], share=True)}; chance "
            f"{percent(domain['domain_chance'])}){where}."
        )
    if best["expert_ci_low"] > best["expert_chance"]:
        title = "Nearest outputs recover the expert above chance"
        if several:
            domain_excess = domain["domain_accuracy"] - domain["domain_chance"]
            expert_excess = best["expert_accuracy"] - best["expert_chance"]
            title += ", the domain less so" if above and domain_excess < expert_excess else ""
            title += ", but not the domain" if not above else ""
        return Finding("map", title, text, "shown")
    title = "Nearest outputs do not recover the expert above chance (95 % CI)"
    return Finding("map", title, text, "not testable" if math.isnan(best["expert_ci_low"]) else "not shown")


FINDINGS: list[Callable[[Results], Finding | None]] = [_recovered]
