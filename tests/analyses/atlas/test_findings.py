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
        "delta_loss": [0.05, 0.2, 0.011],
        "ci_low": [0.02, 0.1, -0.004],
        "ci_high": [0.09, 0.3, 0.02],
        "delta_loss_control": [0.003, 0.004, 0.002],
        "delta_loss_control_q05": [-0.001, -0.002, -0.003],
        "delta_loss_control_q95": [0.01, 0.02, 0.03],
        "num_controls": [20, 20, 20],
        "selection_half_delta_loss": [0.06, 0.05, 0.04],
        "loss": [2.5, 2.5, 3.0],
    }
    return pd.DataFrame(columns | changes)


def relations(saliency: float = 0.35, halves: float = 0.2) -> pd.DataFrame:
    rows = [
        ("ablated", "gradient", "all layers", 24, 0.8, 0.6, 0.9),
        ("ablated", "first order", "all layers", 24, 0.5, 0.1, 0.7),
        ("ablated", "saliency", "all layers", 24, 0.6, 0.3, 0.8),
        ("gradient", "selection frequency", "within layers", 1024, 0.05, -0.01, 0.11),
        ("gradient", "saliency", "within layers", 1024, saliency, saliency - 0.06, saliency + 0.06),
        ("gradient", "effect on other documents", "within layers", 1024, halves, 0.14, 0.26),
        ("gradient", "domain specialization", "within domains", 2048, 0.17, 0.16, 0.18),
        ("gradient", "lift", "within domains", 2048, 0.16, 0.15, 0.17),
    ]
    columns = ["effect", "predictor", "scope", "num", "rank_correlation", "ci_low", "ci_high"]
    return pd.DataFrame(rows, columns=columns)


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
    assert "law" in finding.title
    assert "expert 3 of layer 7" in finding.title
    # The effect with its interval, the loss, the controls, n; then domains whose expert exceeds its controls.
    numbers = ("0.0500", "0.0200 to 0.0900", "2.50", "20 random experts", "0.00300", "-0.00100 to 0.0100")
    assert all(number in finding.text for number in numbers)
    assert "300 tokens of 11 documents" in finding.text
    assert "In 1 of 2 domains" in finding.text
    assert finding.text.endswith(": law.")


def test_no_effect_is_shown():
    (finding,) = find(results({"atlas_top": top(ci_low=[-0.01, 0.1, -0.004])}))
    assert (finding.topic, finding.verdict) == ("atlas", "not shown")
    (untested,) = find(results({"atlas_top": top(ci_low=[NAN] * 3, ci_high=[NAN] * 3)}))
    assert untested.verdict == "not testable"
    assert "too few documents for an interval" in untested.text


def test_whether_routing_statistics_predict_the_effect():
    (finding,) = find(results({"atlas_relations": relations()}))
    assert (finding.topic, finding.verdict) == ("atlas", "not shown")
    assert "selection frequency 0.050 (-0.010 to 0.11); saliency 0.35 (0.29 to 0.41)" in finding.text
    assert "24 experts" in finding.text
    assert "saliency 0.60 (0.30 to 0.80)" in finding.text
    assert "0.20 (0.14 to 0.26)" in finding.text
    assert "0.58" in finding.text  # sqrt(2 * 0.2 / 1.2)
    assert "lift 0.16 (0.15 to 0.17), domain specialization 0.17 (0.16 to 0.18)" in finding.text
    (strong,) = find(results({"atlas_relations": relations(saliency=0.85)}))
    assert strong.verdict == "shown"
    assert strong.title.startswith("Saliency predicts")
    (noise,) = find(results({"atlas_relations": relations(halves=-0.05)}))
    assert "exceed" not in noise.text
    frame = relations()
    frame[["ci_low", "ci_high"]] = NAN
    (untested,) = find(results({"atlas_relations": frame}))
    assert untested.verdict == "not testable"


def test_the_ceiling_is_what_parallel_halves_give():
    # Two halves with noise of equal spread: r = s2 / (s2 + 2 n2); the whole with the truth: sqrt(s2 / (s2 + n2)).
    signal, noise = 3.0, 2.0
    assert ceiling(signal / (signal + 2 * noise)) == pytest.approx(math.sqrt(signal / (signal + noise)))


@pytest.mark.parametrize(
    ("low", "verdict"), [(0.75, "shown"), (0.6, "shown"), (-0.1, "not shown"), (NAN, "not testable")]
)
def test_how_well_the_gradient_agrees(low, verdict):
    frame = relations()
    frame.loc[0, "ci_low"] = low
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
    for name in ("experts", "domains", "top", "ablated", "relations"):
        assert caption(f"atlas_{name}") != f"Atlas {name}."
