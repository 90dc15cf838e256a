"""The sentences about causes against tables made by hand."""

import math

import pandas as pd
import pytest
from moescope.report.cause_findings import ceiling
from moescope.report.findings import find
from moescope.report.words import caption, definitions

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


def test_the_domain_that_surely_needs_an_expert():
    (finding,) = find(results({"atlas_top": top()}))
    assert finding.topic == "atlas"
    assert finding.title == "law needs expert 3 of layer 7 most"
    assert finding.text == (
        "Without it the loss on law would rise by 0.0500 nats per token (95 % interval 0.0200 to 0.0900; the loss is "
        "2.50), on documents that had no say in choosing it. 20 random experts of its layer that the domain uses as "
        "often: 0.00300 on average, 5 to 95 % of them -0.00100 to 0.0100. Measured on 300 tokens of 11 documents. In "
        "1 of 2 domains even the lower end for the domain's own expert lies above 95 % of such others: law."
    )


def test_no_domain_surely_needs_one():
    for frame in (top(ci_low=[-0.01, 0.1, -0.004]), top(ci_low=[NAN] * 3, ci_high=[NAN] * 3)):
        (finding,) = find(results({"atlas_top": frame}))
        assert finding.title == "No domain surely needs one expert"
    assert "too few documents for an interval" in finding.text


def test_whether_routing_statistics_foretell_what_matters():
    (finding,) = find(results({"atlas_relations": relations()}))
    assert finding.title == "Routing statistics say little about which experts matter"
    assert "selection frequency 0.050 (-0.010 to 0.11); saliency 0.35 (0.29 to 0.41)" in finding.text
    real = "With the Δ loss of the 24 experts ablated for real, over all layers: saliency 0.60 (0.30 to 0.80)."
    assert real in finding.text
    assert "the other half by 0.20 (0.14 to 0.26): a sample's noise would hide all beyond about 0.58." in finding.text
    assert "lift 0.16 (0.15 to 0.17), domain specialization 0.17 (0.16 to 0.18)" in finding.text
    (strong,) = find(results({"atlas_relations": relations(saliency=0.85)}))
    assert strong.title == "Saliency foretells best which experts matter"
    (noise,) = find(results({"atlas_relations": relations(halves=-0.05)}))
    assert "noise would hide" not in noise.text


def test_the_ceiling_is_what_parallel_halves_give():
    # Two halves with noise of equal spread: r = s2 / (s2 + 2 n2); the whole with the truth: sqrt(s2 / (s2 + n2)).
    signal, noise = 3.0, 2.0
    assert ceiling(signal / (signal + 2 * noise)) == pytest.approx(math.sqrt(signal / (signal + noise)))


def test_how_well_the_gradient_agrees():
    found = find(results({"atlas_ablated": ablated(), "atlas_relations": relations()}))
    finding = found[-1]
    assert finding.title == "The gradient ranks experts roughly as real ablations do"
    assert finding.text == (
        "3 experts were ablated for real on 900 tokens: rank correlation 0.800 (95 % interval 0.600 to 0.900). Over "
        "all of them the estimate is 50 % of what was measured. Its first-order part alone: 0.50 (0.10 to 0.70)."
    )


def test_words():
    assert "nats per token" in definitions("atlas")["Δ loss"]
    for name in ("experts", "domains", "top", "ablated", "relations"):
        assert caption(f"atlas_{name}") != f"Atlas {name}."
