"""Findings of the atlas from tables made by hand: topic, numbers, verdict."""

import math

import pandas as pd
import pytest

from moescope.analyses.atlas.findings import ceiling
from moescope.analyses.finding import find
from moescope.analyses.words import caption, definitions
from tests.report.folders import results
from tests.report.tables import NAN


def top(**changes: list) -> pd.DataFrame:
    columns = {
        "domain": ["law", "law", "verse"],
        "rank": [0, 1, 0],
        "layer": [7, 1, 1],
        "expert": [3, 2, 0],
        "num_tokens": [300, 300, 280],
        "num_documents": [11, 11, 10],
        "delta_loss_measured": [0.05, 0.2, 0.011],
        "delta_loss_measured_ci_low": [0.02, 0.1, -0.004],
        "delta_loss_measured_ci_high": [0.09, 0.3, 0.02],
        "p_value": [0.001, 0.001, 0.2],
        "delta_loss_estimate": [0.035, 0.1, 0.01],
        "delta_loss_estimate_ci_low": [0.015, 0.05, -0.001],
        "delta_loss_estimate_ci_high": [0.06, 0.2, 0.015],
        "delta_loss_control": [0.003, 0.004, 0.002],
        "delta_loss_control_q05": [-0.001, -0.002, -0.003],
        "delta_loss_control_q95": [0.01, 0.02, 0.03],
        "num_controls": [20, 20, 20],
        "method": ["gradient"] * 3,
        "selection_half_delta_loss": [0.06, 0.05, 0.04],
        "selection_half_ci_low": [0.03, 0.02, 0.01],
        "loss": [2.5, 2.5, 3.0],
    }
    return pd.DataFrame(columns | changes)


def relations(
    measured: float = 0.6,
    p_value: float = 0.001,
    halves: float = 0.2,
    lead: tuple[float, float, float, float] = (0.4, -0.1, 0.9, 0.06),
) -> pd.DataFrame:
    none = (NAN,) * 4
    rows = [
        ("ablated", "gradient", "all layers", 24, 0.8, 0.6, 0.9, 0.001, *none),
        ("ablated", "first order", "all layers", 24, 0.5, 0.1, 0.7, 0.01, *none),
        ("ablated", "selection frequency", "all layers", 24, 0.2, -0.2, 0.5, 0.4, *lead),
        ("ablated", "saliency", "all layers", 24, measured, measured - 0.3, measured + 0.2, p_value, *none),
        ("gradient", "selection frequency", "within layers", 1024, 0.05, -0.01, 0.11, 0.1, 0.3, 0.24, 0.36, 1e-9),
        ("gradient", "saliency", "within layers", 1024, 0.35, 0.29, 0.41, 0.001, *none),
        ("gradient", "effect on other documents", "within layers", 1024, halves, 0.14, 0.26, 0.001, *none),
        ("gradient", "domain specialization", "within domains", 2048, 0.17, 0.16, 0.18, 0.001, *none),
        ("gradient", "lift", "within domains", 2048, 0.16, 0.15, 0.17, 0.001, *none),
    ]
    columns = ["effect", "predictor", "scope", "num", "rank_correlation", "ci_low", "ci_high", "p_value"]
    return pd.DataFrame(rows, columns=[*columns, "lead", "lead_ci_low", "lead_ci_high", "lead_p_value"])


def ablated() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "layer": [1, 7, 7],
            "expert": [0, 1, 2],
            "num_tokens": [900] * 3,
            "num_documents": [12] * 3,
            "delta_loss": [0.01, 0.02, 0.04],
            "delta_loss_gradient": [0.005, 0.012, 0.018],
        }
    )


def test_the_expert_with_the_largest_effect():
    (finding,) = find(results({"atlas_top": top()}))
    assert (finding.topic, finding.verdict) == ("atlas", "shown")
    assert finding.title == "Ablating expert 3 of layer 7 raises the loss on law"
    # The measured effect with its interval first, then the estimate; the loss, the controls, n; then other domains.
    numbers = ("0.0500", "0.0200 to 0.0900", "2.50", "0.0350", "20 random experts", "0.00300", "-0.00100 to 0.0100")
    places = [finding.text.index(number) for number in numbers]
    assert places == sorted(places)
    assert "300 tokens of 11 documents" in finding.text
    assert "In 1 of 2 domains the measured interval of the domain's first expert excludes 0: law" in finding.text
    assert "in 1 the lower end of its estimate exceeds 95 % of its controls" in finding.text
    assert "the estimate is 74 % of the measured effect" in finding.text  # .045 of .061


def test_the_domain_is_the_selection_halfs():
    # On the evaluation half, law has the larger effect and the higher lower end.
    frame = top(selection_half_ci_low=[0.01, 0.02, 0.04])
    (finding,) = find(results({"atlas_top": frame}))
    assert finding.verdict == "not shown"
    assert finding.title == "Ablating expert 0 of layer 1, ranked first, is not shown to raise the loss on verse"
    unknown = top(selection_half_ci_low=[NAN] * 3, selection_half_delta_loss=[0.01, 0.02, 0.04])
    assert "verse" in find(results({"atlas_top": unknown}))[0].title


def test_no_effect_is_shown():
    (finding,) = find(results({"atlas_top": top(p_value=[0.06, 0.001, 0.001])}))
    assert (finding.topic, finding.verdict) == ("atlas", "not shown")
    unknown = {f"delta_loss_measured_ci_{end}": [NAN] * 3 for end in ("low", "high")}
    (untested,) = find(results({"atlas_top": top(**unknown, p_value=[NAN] * 3)}))
    assert untested.verdict == "not testable"
    assert "too few documents for an interval" in untested.text


def test_effects_that_are_all_measured():
    (finding,) = find(results({"atlas_top": top(method=["exact"] * 3)}))
    assert finding.verdict == "shown"
    assert "by this estimate" not in finding.text and "measured 0.00300 on average" in finding.text


def test_whether_routing_statistics_predict_the_effect():
    finding, _ = find(results({"atlas_relations": relations()}))
    assert (finding.topic, finding.verdict) == ("atlas", "shown")
    assert finding.title == "Saliency predicts the measured effect of ablation"
    # Measured first, the estimate second.
    parts = (
        "24 experts drawn at random from all layers: selection frequency 0.20 (-0.20 to 0.50); saliency 0.60",
        "estimated by gradient, over 1,024 experts",
        "selection frequency 0.050 (-0.010 to 0.11); saliency 0.35 (0.29 to 0.41)",
    )
    places = [finding.text.index(part) for part in parts]
    assert places == sorted(places)
    assert "0.20 (0.14 to 0.26)" in finding.text
    assert "0.58" in finding.text  # sqrt(2 * 0.2 / 1.2)
    assert "lift 0.16 (0.15 to 0.17), domain specialization 0.17 (0.16 to 0.18)" in finding.text
    noise, _ = find(results({"atlas_relations": relations(halves=-0.05)}))
    assert "exceed" not in noise.text


def test_what_predicts_is_found_among_several():
    # Two statistics, two claims: .013 counts four times.
    chance, _ = find(results({"atlas_relations": relations(p_value=0.013)}))
    assert chance.verdict == "not shown" and chance.title.startswith("No routing statistic is shown to predict")
    enough, _ = find(results({"atlas_relations": relations(p_value=0.012)}))
    assert enough.verdict == "shown"
    (estimated,) = find(results({"atlas_relations": relations().iloc[4:]}))
    assert estimated.verdict == "not testable" and "num_exact" in estimated.text


def test_the_best_predictor_only_if_its_lead_excludes_0():
    _, unsure = find(results({"atlas_relations": relations()}))
    assert unsure.verdict == "not shown" and unsure.title.endswith("better than all others")
    # Measured first, the estimate second.
    measured = "For the measured Δ loss: saliency 0.60 (0.30 to 0.80); its lead over selection frequency, in size: 0.40"
    assert unsure.text.startswith(f"{measured} (95 % interval -0.10 to 0.90, paired over experts).")
    assert "For the estimate: saliency 0.35 (0.29 to 0.41); its lead over selection frequency" in unsure.text
    _, best = find(results({"atlas_relations": relations(lead=(0.4, 0.1, 0.7, 0.004))}))
    assert (best.title, best.verdict) == ("Saliency is the best predictor of the measured effect of ablation", "shown")
    _, unknown = find(results({"atlas_relations": relations(lead=(NAN,) * 4)}))
    assert unknown.verdict == "not testable"


def test_the_ceiling_is_what_parallel_halves_give():
    # Two halves with noise of equal spread: r = s2 / (s2 + 2 n2); the whole with the truth: sqrt(s2 / (s2 + n2)).
    signal, noise = 3.0, 2.0
    assert ceiling(signal / (signal + 2 * noise)) == pytest.approx(math.sqrt(signal / (signal + noise)))


@pytest.mark.parametrize(
    ("low", "p_value", "verdict"),
    [(0.75, 0.001, "shown"), (0.6, 0.001, "shown"), (-0.1, 0.2, "not shown"), (NAN, NAN, "not testable")],
)
def test_how_well_the_gradient_agrees(low, p_value, verdict):
    frame = relations()
    frame.loc[0, ["ci_low", "p_value"]] = low, p_value
    finding = find(results({"atlas_ablated": ablated(), "atlas_relations": frame}))[-1]
    assert (finding.topic, finding.verdict) == ("atlas", verdict)
    assert "3 experts" in finding.text
    assert "900 tokens" in finding.text
    assert "rank correlation 0.800" in finding.text
    assert "50 %" in finding.text
    assert "0.50 (0.10 to 0.70)" in finding.text
    assert ("roughly" in finding.title) == (low == 0.6)


def test_words():
    assert "nats per token" in definitions("atlas")["Δ loss"]
    assert "measured by ablation" in caption("atlas_top")
    for name in ("experts", "domains", "top", "ablated", "relations"):
        assert caption(f"atlas_{name}") != f"Atlas {name}."
