"""Findings of the causal atlas."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from moescope.analyses.finding import Claim, count_of, interval_of, names_of, row
from moescope.results.text import number, percent

if TYPE_CHECKING:
    import pandas as pd

    from moescope.results.reading import Results

STRONG = 0.7
"""Rank correlations from here on are called strong."""
ABLATED = "A test needs at least four experts that are drawn at random and ablated (`num_exact`)."
ROUTING = ("selection frequency", "weight", "highest lift", "saliency", "total saliency")


def _largest_effect(results: Results) -> Claim | None:
    frame = results.table("atlas_top")
    if frame is None or frame.empty:
        return None
    frame = frame[(frame["rank"] == 0) & frame["delta_loss_measured"].notna()]
    if frame.empty:
        return None
    # Domain and expert by the selection half alone, among domains with enough documents on the other for a test.
    testable = frame[frame["p_value"].notna()]
    best = row(frame, in_order_of_selection(frame if testable.empty else testable).index[0])
    expert = f"expert {best['expert']} of layer {best['layer']}"
    estimated = best["method"] == "gradient"
    measured = interval_of(best["delta_loss_measured_ci_low"], best["delta_loss_measured_ci_high"])
    text = (
        f"Measured on held-out documents (evaluation half): ablating {expert} changes the loss on {best['domain']} by "
        f"{number(best['delta_loss_measured'])} nats per token ({measured}; the loss is {number(best['loss'])}; n: "
        f"{count_of(best['num_tokens'], 'token')} of {count_of(best['num_documents'], 'document')}). Estimated by "
        f"gradient on the same documents: {number(best['delta_loss_estimate'])} "
        f"({interval_of(best['delta_loss_estimate_ci_low'], best['delta_loss_estimate_ci_high'])}). Expert and domain "
        f"were chosen on the selection half{' by this estimate' if estimated else ''}. "
        f"{count_of(best['num_controls'], 'random expert')} of its layer that the domain selects about as often: "
        f"{'estimate' if estimated else 'measured'} {number(best['delta_loss_control'])} on average, 5 to 95 % of them "
        f"{number(best['delta_loss_control_q05'])} to {number(best['delta_loss_control_q95'])}."
    )
    text += _other_domains(frame, estimated)
    return Claim(
        "atlas",
        shown=f"Ablating {expert} raises the loss on {best['domain']}",
        not_shown=f"Ablating {expert}, ranked first, is not shown to raise the loss on {best['domain']}",
        text=text,
        p_value=float(best["p_value"]),
        not_testable="Whether ablating one expert raises the loss on a domain is not testable",
    )


def in_order_of_selection(top: pd.DataFrame) -> pd.DataFrame:
    """Rows of `atlas_top` by what the selection half says of them: the lower end of the interval, then the effect."""
    low = top["selection_half_ci_low"].fillna(-math.inf)
    return top.assign(low=low).sort_values(["low", "selection_half_delta_loss"], ascending=False, kind="stable")


def _other_domains(frame: pd.DataFrame, estimated: bool) -> str:
    """How the experts named first for each domain fare, and how far the estimate is from what was measured."""
    known = frame[frame["delta_loss_measured_ci_low"].notna()]
    if len(known) < 2:
        return ""
    above = known[known["delta_loss_measured_ci_low"] > 0]
    compared = "delta_loss_estimate_ci_low" if estimated else "delta_loss_measured_ci_low"
    beyond = known[known[compared] > known["delta_loss_control_q95"]]
    text = (
        f" In {len(above)} of {count_of(len(known), 'domain')} the measured interval of the domain's first expert "
        f"excludes 0{': ' if len(above) else ''}{names_of(above['domain'].tolist())}; in {len(beyond)} the lower end "
        f"of its {'estimate' if estimated else 'interval'} exceeds 95 % of its controls."
    )
    total = known["delta_loss_measured"].sum()
    if estimated and total > 0:
        text += (
            f" Summed over these experts the estimate is {percent(known['delta_loss_estimate'].sum() / total, 0)} of "
            "the measured effect."
        )
    return text


def _predictors(results: Results) -> Claim | None:
    frame = results.table("atlas_relations")
    if frame is None or frame.empty:
        return None
    main, measured, estimated = _by_effect(frame)
    if measured.empty and estimated.empty:
        return None
    parts = []
    if not measured.empty:
        where = "within layers (mean over layers)" if main == "ablated" else "drawn at random from all layers"
        parts.append(f"Rank correlation with the measured Δ loss over {_listed(measured, where)}")
    if not estimated.empty:
        # The estimate by gradient contains the weights, as some of these statistics do; exact ablations do not.
        parts.append(
            f"{'Rank correlation w' if measured.empty else 'W'}ith the Δ loss estimated by gradient, over "
            f"{_listed(estimated, 'within layers (mean over layers)')}"
        )
    text = " ".join(parts) + _other_documents(frame, main)
    best = "" if measured.empty else measured["rank_correlation"].abs().idxmax()
    # The best of several: each could have been it by chance.
    p_value = math.nan if measured.empty else min(1.0, len(measured) * float(measured["p_value"][best]))
    return Claim(
        "atlas",
        shown=f"{str(best).capitalize()} predicts the measured effect of ablation",
        not_shown="No routing statistic is shown to predict the measured effect of ablation",
        text=text,
        p_value=p_value,
        not_testable="Whether routing statistics predict the measured effect of ablation is not testable",
        needed=ABLATED,
    )


def _best_predictor(results: Results) -> Claim | None:
    frame = results.table("atlas_relations")
    if frame is None or frame.empty:
        return None
    _, measured, estimated = _by_effect(frame)
    if len(measured) < 2:
        return None
    best = measured["rank_correlation"].abs().idxmax()
    # It must lead each of the others, and any of them could have been the best.
    others = measured["lead_p_value"].drop(best)
    p_value = math.nan if others.isna().any() else min(1.0, len(others) * float(others.max()))
    text = f"For the measured Δ loss: {_lead(measured)}"
    if not estimated.empty:
        text += f" For the estimate: {_lead(estimated)}"
    return Claim(
        "atlas",
        shown=f"{str(best).capitalize()} is the best predictor of the measured effect of ablation",
        not_shown="No routing statistic is shown to predict the measured effect of ablation better than all others",
        text=text,
        p_value=p_value,
        not_testable="Which routing statistic predicts the measured effect of ablation best is not testable",
        needed=ABLATED,
    )


def _by_effect(frame: pd.DataFrame) -> tuple[str, pd.DataFrame, pd.DataFrame]:
    """The atlas' own effect, and the correlations of routing statistics with the measured and the estimated one."""
    main = str(frame["effect"].iloc[-1])
    measured = _routing(frame, "ablated", "within layers" if main == "ablated" else "all layers")
    return main, measured, _routing(frame, "gradient", "within layers")


def _routing(frame: pd.DataFrame, effect: str, scope: str) -> pd.DataFrame:
    """The correlations of routing statistics with one effect, by predictor."""
    rows = frame[(frame["effect"] == effect) & (frame["scope"] == scope)].set_index("predictor")
    return rows[rows.index.isin(ROUTING) & rows["rank_correlation"].notna()]


def _listed(routing: pd.DataFrame, where: str) -> str:
    """All correlations of routing statistics with one effect."""
    names = "; ".join(f"{name} {_correlation(routing.loc[name])}" for name in routing.index)
    return f"{count_of(routing['num'].iloc[0], 'expert')} {where}: {names}."


def _lead(routing: pd.DataFrame) -> str:
    """The best predictor, and its lead over the one with the lowest lower end of that lead."""
    best = routing["rank_correlation"].abs().idxmax()
    text = f"{best} {_correlation(routing.loc[best])}"
    leads = routing.drop(best)
    leads = leads[leads["lead"].notna()]
    if leads.empty:
        return f"{text}."
    other = leads["lead_ci_low"].idxmin() if leads["lead_ci_low"].notna().any() else leads["lead"].idxmin()
    of = leads.loc[other]
    return (
        f"{text}; its lead over {other}, in size: {number(float(of['lead']), 2)} (95 % interval "
        f"{number(float(of['lead_ci_low']), 2)} to {number(float(of['lead_ci_high']), 2)}, paired over experts)."
    )


def _other_documents(frame: pd.DataFrame, main: str) -> str:
    """How well an effect predicts itself on other documents, and correlations within domains."""
    text = ""
    rows = frame[(frame["effect"] == main) & (frame["predictor"] == "effect on other documents")].set_index("scope")
    if "within layers" in rows.index:
        halves = float(rows["rank_correlation"]["within layers"])
        which = "estimated" if main == "gradient" else "measured"
        text = (
            f" An expert's {which} Δ loss on one half of the documents predicts that on the other half with "
            f"{_correlation(rows.loc['within layers'])}"
        )
        # Spearman and Brown: the correlation of two halves bounds that with the whole sample.
        text += f": no predictor can exceed about {number(ceiling(halves), 2)} on this sample." if halves > 0 else "."
    domains = frame[(frame["effect"] == main) & (frame["scope"] == "within domains")].set_index("predictor")
    if "lift" in domains.index:
        text += (
            f" Within a domain, over all experts: lift {_correlation(domains.loc['lift'])}, domain specialization "
            f"{_correlation(domains.loc['domain specialization'])}."
        )
    return text


def _agreement(results: Results) -> Claim | None:
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
    # Of a correlation above 0: half of the two-sided share of permutations.
    p_value = found["p_value"] / 2 if found["rank_correlation"] > 0 else 1.0
    how = "" if found["ci_low"] >= STRONG else " roughly"
    return Claim(
        "atlas",
        shown=f"The gradient ranks experts{how} as exact ablation does",
        not_shown="The gradient is not shown to rank experts as exact ablation does",
        text=text,
        p_value=p_value,
        not_testable="Whether the gradient ranks experts as exact ablation does is not testable",
        needed=ABLATED,
    )


def ceiling(halves: float) -> float:
    """The correlation of the true effects with the measured ones, `sqrt(2 r / (1 + r))`.

    `r` is the correlation of two halves (Spearman 1910, Brown 1910); for ranks it is an approximation.
    """
    return math.sqrt(2 * halves / (1 + halves))


def _correlation(found: pd.Series) -> str:
    return f"{number(float(found['rank_correlation']), 2)} ({_ends(found)})"


def _ends(found: pd.Series) -> str:
    return f"{number(float(found['ci_low']), 2)} to {number(float(found['ci_high']), 2)}"


FINDINGS: list[Callable[[Results], Claim | None]] = [_largest_effect, _predictors, _best_predictor, _agreement]
