"""The sentences about causes against tables made by hand."""

import math
import re

import pandas as pd
import pytest

from moescope.report.cause_findings import ceiling
from moescope.report.findings import find
from moescope.report.words import caption, definitions
from tests.report.folders import results
from tests.report.reading import denies, names, numbers, unsaid
from tests.report.tables import NAN


def top(**changes: list) -> pd.DataFrame:
    columns = {
        "domain": ["law", "law", "verse"],
        "place": [0, 1, 0],
        "layer": [7, 1, 1],
        "expert": [3, 2, 0],
        "num_tokens": [300, 300, 280],
        "num_documents": [11, 11, 10],
        "delta_loss": [0.05, 0.2, 0.011],
        "ci_low": [0.02, 0.1, -0.004],
        "ci_high": [0.09, 0.3, 0.02],
        "control_delta_loss": [0.003, 0.004, 0.002],
        "control_quantile_05": [-0.001, -0.002, -0.003],
        "control_quantile_95": [0.01, 0.02, 0.03],
        "num_controls": [20, 20, 20],
        "choosing_delta_loss": [0.06, 0.05, 0.04],
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
            "gradient_delta_loss": [0.005, 0.012, 0.018],
        }
    )


def test_the_domain_that_surely_needs_an_expert():
    (finding,) = find(results({"atlas_top": top()}))
    assert finding.topic == "atlas"
    assert "law" in finding.title and "verse" not in finding.title
    assert names(finding.title, "expert", 3) and names(finding.title, "layer", 7)
    effect, controls = ("0.0500", "0.0200", "0.0900", "2.50"), ("20", "0.00300", "-0.00100", "0.0100")
    assert unsaid(finding.text, *effect, *controls, "300", "11", "1", "2") == []
    assert "nats per token" in finding.text


def test_no_domain_surely_needs_one():
    for frame in (top(ci_low=[-0.01, 0.1, -0.004]), top(ci_low=[NAN] * 3, ci_high=[NAN] * 3)):
        (finding,) = find(results({"atlas_top": frame}))
        assert denies(finding.title)
        assert not names(finding.title, "expert", 3)
    assert "too few documents" in finding.text


def test_whether_routing_statistics_foretell_what_matters():
    (finding,) = find(results({"atlas_relations": relations()}))
    assert "saliency" not in finding.title.lower()
    for predictor, value, low, high in (
        ("selection frequency", "0.050", "-0.010", "0.11"),
        ("saliency", "0.35", "0.29", "0.41"),
        ("saliency", "0.60", "0.30", "0.80"),  # of those really ablated
        ("lift", "0.16", "0.15", "0.17"),
        ("domain specialization", "0.17", "0.16", "0.18"),
    ):
        assert re.search(rf"{predictor}\W+{value} \(\D*{low} to {high}\)", finding.text), predictor
    assert unsaid(finding.text, "24", "0.20", "0.14", "0.26", "0.58") == []
    (strong,) = find(results({"atlas_relations": relations(saliency=0.85)}))
    assert strong.title.lower().startswith("saliency")
    (noise,) = find(results({"atlas_relations": relations(halves=-0.05)}))
    assert "0.58" not in numbers(noise.text)
    assert len(numbers(noise.text)) < len(numbers(finding.text))


def test_the_ceiling_is_what_parallel_halves_give():
    # Two halves with noise of equal spread: r = s2 / (s2 + 2 n2); the whole with the truth: sqrt(s2 / (s2 + n2)).
    signal, noise = 3.0, 2.0
    assert ceiling(signal / (signal + 2 * noise)) == pytest.approx(math.sqrt(signal / (signal + noise)))


def test_how_well_the_gradient_agrees():
    found = find(results({"atlas_ablated": ablated(), "atlas_relations": relations()}))
    finding = found[-1]
    assert "gradient" in finding.title and not denies(finding.title)
    assert unsaid(finding.text, "3", "900", "0.800", "0.600", "0.900", "50", "0.50", "0.10", "0.70") == []


def test_words():
    assert "nats per token" in definitions("atlas")["Δ loss"]
    for name in ("experts", "domains", "top", "ablated", "relations"):
        assert caption(f"atlas_{name}") != f"Atlas {name}."
