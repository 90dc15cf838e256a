"""The finding of weights against tables made by hand."""

import pandas as pd

from moescope.analyses.finding import facts, find
from moescope.report.keynumbers import per_layer
from tests.report.folders import results
from tests.report.tables import NAN


def weights(**changes) -> pd.DataFrame:
    rows = []
    for layer, matched, stored in ((1, 0.35, 0.002), (7, 0.2, 0.001)):
        for measure, matrix, median, redrawn in (
            ("matched_cosine", "joined", matched, 0.11),
            ("cosine", "joined", stored, 0.0),
            ("cosine", "router", 0.5, 0.0),
            ("effective_rank", "up", 20.0 - layer, 27.0),
        ):
            spread = {"q05": median - 0.05, "median": median, "q95": median + 0.05}
            spread |= {f"{name}_control": value - median + redrawn for name, value in spread.items()}
            pairs = {"num_pairs": 6, "num_pairs_matched": 6, "median_excess_p_value": 0.001 if layer == 1 else 0.04}
            rows.append({"layer": layer, "matrix": matrix, "measure": measure, **pairs, **spread} | changes)
    return pd.DataFrame(rows)


def test_weights_beside_random_directions():
    (finding,) = find(results({"weights": weights()}))
    assert (finding.topic, finding.verdict) == ("weights", "shown")
    # A p-value counts for as many layers as there are.
    assert finding.title.endswith("at 1 of 2 layers")
    for numbers in (
        *("0.350", "0.110", "0.00200", "layer 7: 0.200, random directions 0.110", "At 1 of 2 layers"),
        "up at layer 7: 13 in the median expert, 27",
    ):
        assert numbers in finding.text


def test_weights_of_one_layer_of_a_sample_and_no_more_similar():
    one = find(results({"weights": weights(num_pairs_matched=4).iloc[:4]}))[0]
    assert "layer 1" in one.title and one.verdict == "shown"
    assert "4 of 6 pairs" in one.text and "Smallest" not in one.text
    random = weights(median_excess_p_value=0.5)
    assert find(results({"weights": random}))[0].verdict == "not shown"
    assert find(results({"weights": weights(median_excess_p_value=NAN)}))[0].verdict == "not testable"
    stored = weights()[weights().measure != "matched_cosine"]
    assert find(results({"weights": stored})) == []


def test_key_numbers_of_weights():
    numbers = per_layer(results({"weights": weights()}))
    assert [name for name in numbers.columns if name != "layer"]
    assert numbers.rows == [["1", "0.350", "19"], ["7", "0.200", "13"]]


def test_duplicates_and_silent_experts():
    duplicates = pd.DataFrame(
        {
            "layer": [1, 7],
            "expert": [0, 1],
            "other_expert": [3, 2],
            "output_distance": [1e-7, 2e-7],
            "joined_matched_cosine": [0.99999, 1.0],
            "joined_cosine": [0.01, -0.02],
            "router_cosine": [0.4, 0.3],
        }
    )
    (finding,) = facts(results({"weights_duplicates": duplicates}))
    assert finding.title == "2 pairs of experts are duplicates"
    assert "0 and 3 of layer 1, 1 and 2 of layer 7" in finding.text
    assert "-0.0200" in finding.text and "router rows: at least 0.300" in finding.text
    (one,) = facts(results({"weights_duplicates": duplicates.head(1)}))
    assert one.title == "Experts 0 and 3 of layer 1 are duplicates"
    experts = pd.DataFrame({"layer": [1, 1, 7, 7], "expert": [0, 1] * 2, "silent": [False, True, False, False]})
    (finding,) = facts(results({"weights_experts": experts}))
    assert finding.title == "1 of 4 experts is silent" and "expert 1 of layer 1" in finding.text
    assert facts(results({"weights_experts": experts.assign(silent=False)})) == []
