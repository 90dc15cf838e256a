"""What a run found: atlas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, count_of, interval_of, names_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

STRONG = 0.7
"""Rank correlations from here on foretell; those whose interval holds 0 do not."""
ROUTING = ("selection frequency", "weight", "highest lift", "saliency", "total saliency")


def _needed(results: Results) -> Finding | None:
    frame = results.table("atlas_top")
    if frame is None or frame.empty:
        return None
    frame = frame[(frame["place"] == 0) & frame["delta_loss"].notna()]
    if frame.empty:
        return None
    # The surest is named, not the largest: whose interval is unknown comes last.
    order = frame.assign(sure=frame["ci_low"].fillna(-1e9)).sort_values(["sure", "delta_loss"], ascending=False)
    best = row(frame, order.index[0])
    who = f"expert {best['expert']} of layer {best['layer']}"
    text = (
        f"Without it the loss on {best['domain']} would rise by {number(best['delta_loss'])} nats per token "
        f"({interval_of(best['ci_low'], best['ci_high'])}; the loss is {number(best['loss'])}), on documents that had "
        f"no say in choosing it. {count_of(best['num_controls'], 'random expert')} of its layer that the domain uses "
        f"as often: {number(best['control_delta_loss'])} on average, 5 to 95 % of them "
        f"{number(best['control_quantile_05'])} to {number(best['control_quantile_95'])}. Measured on "
        f"{count_of(best['num_tokens'], 'token')} of {count_of(best['num_documents'], 'document')}."
    )
    known = frame[frame["ci_low"].notna()]
    beyond = known[known["ci_low"] > known["control_quantile_95"]]
    if len(known) > 1:
        text += (
            f" In {len(beyond)} of {count_of(len(known), 'domain')} even the lower end for the domain's own expert "
            "lies above 95 % of such others"
        )
        text += f": {names_of(beyond['domain'].tolist())}." if len(beyond) else "."
    if not best["ci_low"] > 0:
        return Finding(
            "atlas", "No domain surely needs one expert", f"The likeliest is {who}, for {best['domain']}. {text}"
        )
    return Finding("atlas", f"{best['domain']} needs {who} most", text)


def _foretold(results: Results) -> Finding | None:
    frame = results.table("atlas_relations")
    if frame is None or frame.empty:
        return None
    main = str(frame["effect"].iloc[-1])
    within = frame[(frame["effect"] == main) & (frame["scope"] == "within layers")].set_index("predictor")
    routing = within[within.index.isin(ROUTING) & within["rank_correlation"].notna()]
    if routing.empty:
        return None
    best = routing["rank_correlation"].abs().idxmax()
    value = float(routing["rank_correlation"][best])
    parts = [f"{name} {_correlation(routing.loc[name])}" for name in routing.index]
    text = (
        f"Rank correlation with Δ loss over the experts of a layer, mean over layers: {'; '.join(parts)}. "
        f"From {count_of(routing['num'].iloc[0], 'expert')}."
    )
    real = frame[(frame["effect"] == "ablated") & (frame["predictor"] == best)]
    if main != "ablated" and not real.empty:
        # The estimate by gradient has the weights in it, as some of these statistics have: real ablations have not.
        text += (
            f" With the Δ loss of the {count_of(real['num'].iloc[0], 'expert')} ablated for real, over all layers: "
            f"{best} {_correlation(real.iloc[0])}."
        )
    other = "effect on other documents"
    if other in within.index:
        halves = float(within["rank_correlation"][other])
        text += (
            f" An expert's Δ loss on one half of the documents foretells that on the other half by "
            f"{_correlation(within.loc[other])}"
        )
        # Spearman and Brown: what half a sample foretells says how much of the whole one's spread is no noise.
        text += f": a sample's noise would hide all beyond about {number(ceiling(halves), 2)}." if halves > 0 else "."
    domains = frame[(frame["effect"] == main) & (frame["scope"] == "within domains")].set_index("predictor")
    if "lift" in domains.index:
        text += (
            f" Within a domain, over all experts: lift {_correlation(domains.loc['lift'])}, domain specialization "
            f"{_correlation(domains.loc['domain specialization'])}."
        )
    if routing["ci_high"][best] < STRONG and value < STRONG:
        return Finding("atlas", "Routing statistics say little about which experts matter", text)
    return Finding("atlas", f"{str(best).capitalize()} foretells best which experts matter", text)


def _agreement(results: Results) -> Finding | None:
    frame, relations = results.table("atlas_ablated"), results.table("atlas_relations")
    if frame is None or relations is None or len(frame) < 2:
        return None
    rows = relations[(relations["effect"] == "ablated") & (relations["predictor"] == "gradient")]
    if rows.empty or rows["rank_correlation"].isna().all():
        return None
    found = row(rows, rows.index[0])
    ratio = frame["gradient_delta_loss"].sum() / frame["delta_loss"].sum()
    slope = relations[(relations["effect"] == "ablated") & (relations["predictor"] == "first order")]
    text = (
        f"{count_of(len(frame), 'expert')} were ablated for real on {count_of(frame['num_tokens'].iloc[0], 'token')}: "
        f"rank correlation {number(found['rank_correlation'])} "
        f"({interval_of(found['ci_low'], found['ci_high'])}). Over all of them the estimate is {percent(ratio, 0)} "
        "of what was measured."
    )
    if not slope.empty:
        text += f" Its first-order part alone: {_correlation(slope.iloc[0])}."
    if found["ci_low"] >= STRONG:
        return Finding("atlas", "The gradient ranks experts as real ablations do", text)
    if found["ci_low"] > 0:
        return Finding("atlas", "The gradient ranks experts roughly as real ablations do", text)
    return Finding("atlas", "The gradient may not rank experts as real ablations do", text)


def ceiling(halves: float) -> float:
    """The correlation that the true effects would have with the measured ones, `sqrt(2 r / (1 + r))`.

    `r` is the correlation of two halves (Spearman 1910, Brown 1910); of ranks it holds about.
    """
    return math.sqrt(2 * halves / (1 + halves))


def _correlation(found: pd.Series) -> str:
    return f"{number(float(found['rank_correlation']), 2)} ({_ends(found)})"


def _ends(found: pd.Series) -> str:
    return f"{number(float(found['ci_low']), 2)} to {number(float(found['ci_high']), 2)}"


FINDINGS: list[Callable[[Results], Finding | None]] = [_needed, _foretold, _agreement]
