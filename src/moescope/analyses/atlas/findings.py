"""Findings of the causal atlas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Finding, Verdict, count_of, interval_of, names_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

STRONG = 0.7
"""Rank correlations from here on are called strong."""
ROUTING = ("selection frequency", "weight", "highest lift", "saliency", "total saliency")


def _largest_effect(results: Results) -> Finding | None:
    frame = results.table("atlas_top")
    if frame is None or frame.empty:
        return None
    frame = frame[(frame["rank"] == 0) & frame["delta_loss"].notna()]
    if frame.empty:
        return None
    # By the lower end of the interval, not by the effect; experts without an interval come last.
    order = frame.assign(low=frame["ci_low"].fillna(-1e9)).sort_values(["low", "delta_loss"], ascending=False)
    best = row(frame, order.index[0])
    expert = f"expert {best['expert']} of layer {best['layer']}"
    text = (
        f"Without it the loss on {best['domain']} rises by {number(best['delta_loss'])} nats per token "
        f"({interval_of(best['ci_low'], best['ci_high'])}; the loss is {number(best['loss'])}), on held-out documents "
        f"(evaluation half). {count_of(best['num_controls'], 'random expert')} of its layer that the domain selects "
        f"about as often: {number(best['delta_loss_control'])} on average, 5 to 95 % of them "
        f"{number(best['delta_loss_control_q05'])} to {number(best['delta_loss_control_q95'])}. "
        f"n = {count_of(best['num_tokens'], 'token')} of {count_of(best['num_documents'], 'document')}."
    )
    known = frame[frame["ci_low"].notna()]
    beyond = known[known["ci_low"] > known["delta_loss_control_q95"]]
    if len(known) > 1:
        text += (
            f" In {len(beyond)} of {count_of(len(known), 'domain')} the lower end for the domain's expert exceeds 95 % "
            "of such experts"
        )
        text += f": {names_of(beyond['domain'].tolist())}." if len(beyond) else "."
    if best["ci_low"] > 0:
        return Finding("atlas", f"The loss on {best['domain']} rises most without {expert}", text, "shown")
    verdict: Verdict = "not testable" if math.isnan(best["ci_low"]) else "not shown"
    title = "For no domain is the loss shown to rise without one expert"
    return Finding("atlas", title, f"The candidate ranked first is {expert}, for {best['domain']}. {text}", verdict)


def _predictors(results: Results) -> Finding | None:
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
        f"n = {count_of(routing['num'].iloc[0], 'expert')}."
    )
    exact = frame[(frame["effect"] == "ablated") & (frame["predictor"] == best)]
    if main != "ablated" and not exact.empty:
        # The estimate by gradient contains the weights, as some of these statistics do; exact ablations do not.
        text += (
            f" With the Δ loss of the {count_of(exact['num'].iloc[0], 'expert')} ablated exactly, over all layers: "
            f"{best} {_correlation(exact.iloc[0])}."
        )
    other = "effect on other documents"
    if other in within.index:
        halves = float(within["rank_correlation"][other])
        text += (
            f" An expert's Δ loss on one half of the documents predicts that on the other half with "
            f"{_correlation(within.loc[other])}"
        )
        # Spearman and Brown: the correlation of two halves bounds that with the whole sample.
        text += f": no predictor can exceed about {number(ceiling(halves), 2)} on this sample." if halves > 0 else "."
    domains = frame[(frame["effect"] == main) & (frame["scope"] == "within domains")].set_index("predictor")
    if "lift" in domains.index:
        text += (
            f" Within a domain, over all experts: lift {_correlation(domains.loc['lift'])}, domain specialization "
            f"{_correlation(domains.loc['domain specialization'])}."
        )
    if math.isnan(routing["ci_high"][best]):
        title = "How well routing statistics predict the effect of ablation has no interval"
        return Finding("atlas", title, text, "not testable")
    if routing["ci_high"][best] < STRONG and value < STRONG:
        return Finding("atlas", "No routing statistic predicts the effect of ablation well", text, "not shown")
    return Finding("atlas", f"{str(best).capitalize()} predicts the effect of ablation best", text, "shown")


def _agreement(results: Results) -> Finding | None:
    frame, relations = results.table("atlas_ablated"), results.table("atlas_relations")
    if frame is None or relations is None or len(frame) < 2:
        return None
    rows = relations[(relations["effect"] == "ablated") & (relations["predictor"] == "gradient")]
    if rows.empty or rows["rank_correlation"].isna().all():
        return None
    found = row(rows, rows.index[0])
    ratio = frame["delta_loss_gradient"].sum() / frame["delta_loss"].sum()
    first_order = relations[(relations["effect"] == "ablated") & (relations["predictor"] == "first order")]
    text = (
        f"{count_of(len(frame), 'expert')} were ablated exactly on {count_of(frame['num_tokens'].iloc[0], 'token')}: "
        f"rank correlation {number(found['rank_correlation'])} "
        f"({interval_of(found['ci_low'], found['ci_high'])}). Summed over all of them the estimate is "
        f"{percent(ratio, 0)} of the exact effect."
    )
    if not first_order.empty:
        text += f" First-order term alone: {_correlation(first_order.iloc[0])}."
    if found["ci_low"] > 0:
        how = "" if found["ci_low"] >= STRONG else " roughly"
        return Finding("atlas", f"The gradient ranks experts{how} as exact ablation does", text, "shown")
    verdict: Verdict = "not testable" if math.isnan(found["ci_low"]) else "not shown"
    return Finding("atlas", "The gradient is not shown to rank experts as exact ablation does", text, verdict)


def ceiling(halves: float) -> float:
    """The correlation of the true effects with the measured ones, `sqrt(2 r / (1 + r))`.

    `r` is the correlation of two halves (Spearman 1910, Brown 1910); for ranks it is an approximation.
    """
    return math.sqrt(2 * halves / (1 + halves))


def _correlation(found: pd.Series) -> str:
    return f"{number(float(found['rank_correlation']), 2)} ({_ends(found)})"


def _ends(found: pd.Series) -> str:
    return f"{number(float(found['ci_low']), 2)} to {number(float(found['ci_high']), 2)}"


FINDINGS: list[Callable[[Results], Finding | None]] = [_largest_effect, _predictors, _agreement]
