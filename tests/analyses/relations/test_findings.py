"""The findings of relations against tables made by hand."""

import pandas as pd
import pytest

from moescope.analyses.finding import find
from moescope.report.sections import sections
from tests.analyses.weights.test_findings import weights
from tests.report.folders import results, write


def relations(first: str, second: str, value: float, name: str = "a, b") -> dict:
    return {
        "relation": name,
        "first": first,
        "second": second,
        "unit": "pairs",
        "num_layers": 2,
        "num_layers_above_null": 2,
        "num_layers_below_null": 0,
        "rank_correlation": value,
        "ci_low": value - 0.1,
        "ci_high": value + 0.1,
        "null_low": -0.05,
        "null_high": 0.06,
        "p_value": 0.001,
        "num_experts": 8,
        "num_values": 12,
    }


@pytest.mark.parametrize(
    ("values", "verdict", "word"),
    [
        ((0.5, 0.4), "shown", "have similar outputs"),
        ((0.5, 0.18), "shown", "somewhat"),
        ((0.5, 0.1), "shown", "somewhat"),
        ((0.1, -0.1), "not shown", "do not predict"),
        ((-0.4, -0.3), "shown", "less similar"),
    ],
)
def test_whether_weights_predict_outputs(values, verdict, word):
    frame = pd.DataFrame(
        [
            relations("weights.joined_matched_cosine", "similarity.cka", values[0], "weights, CKA"),
            relations("weights.joined_matched_cosine", "similarity.centered_cosine", values[1], "weights, cosine"),
            relations("weights.router_cosine", "similarity.cka", 0.9, "router rows, CKA"),
        ]
    )
    (finding,) = find(results({"relations_pooled": frame}))
    assert (finding.topic, finding.verdict) == ("relations", verdict)
    assert word in finding.title
    without = frame.assign(ci_low=float("nan"), ci_high=float("nan"))
    (finding,) = find(results({"relations_pooled": without}))
    assert finding.verdict == "not testable"


def test_numbers_of_relations():
    frame = pd.DataFrame(
        [
            relations("similarity.cka", "coactivation.lift", 0.5, "output CKA, co-activation"),
            relations("weights.router_cosine", "coactivation.lift", 0.8, "router rows, co-activation"),
        ]
    )
    (finding,) = find(results({"relations_pooled": frame}))
    assert finding.verdict == "shown" and "selected together" in finding.title
    for numbers in (
        *("output CKA, co-activation 0.50 (0.40 to 0.60)", "router rows, co-activation 0.80 (0.70 to 0.90)"),
        *("-0.050 to 0.060", "2 of 2 layers"),
    ):
        assert numbers in finding.text


def test_other_relations_bring_no_finding():
    frame = pd.DataFrame([relations("weights.router_norm", "usage.selection_frequency", 0.5)])
    assert find(results({"relations_pooled": frame})) == []


def test_a_section_of_their_own(tmp_path):
    frame = pd.DataFrame([relations("similarity.cka", "coactivation.lift", 0.5)])
    tables = {"weights": weights(), "weights_pairs": weights(), "weights_by_rank": weights(), "relations_pooled": frame}
    tables["relations"] = frame
    folder = write(
        tmp_path / "run", tables, ("relations", "weights_layer_7"), analyses=["distributions", "weights", "relations"]
    )
    found = {section.name: section for section in sections(type(results({})).read(folder))}
    assert [table.name for table in found["weights"].tables] == ["weights", "weights_pairs"]
    assert [table.name for table in found["distributions"].tables] == ["weights_by_rank"]
    assert [table.name for table in found["relations"].tables] == ["relations", "relations_pooled"]
    assert found["weights"].figures[0].caption.startswith("Layer 7: ")
    assert found["relations"].summary
    assert "other" not in found
