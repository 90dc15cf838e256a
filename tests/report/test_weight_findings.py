"""Sentences about weights and relations against tables made by hand."""

import pandas as pd
import pytest

from moescope.report.findings import find
from moescope.report.keynumbers import per_layer
from moescope.report.sections import sections
from tests.report.folders import results, write


def weights(**changes) -> pd.DataFrame:
    rows = []
    for layer, matched, stored in ((1, 0.35, 0.002), (7, 0.2, 0.001)):
        for measure, matrix, median, redrawn in (
            ("matched_cosine", "joined", matched, 0.11),
            ("cosine", "joined", stored, 0.0),
            ("cosine", "router", 0.5, 0.0),
            ("effective_rank", "up", 20.0 - layer, 27.0),
        ):
            spread = {"quantile_05": median - 0.05, "median": median, "quantile_95": median + 0.05}
            spread |= {f"{name}_redrawn": value - median + redrawn for name, value in spread.items()}
            pairs = {"num_pairs": 6, "num_pairs_matched": 6}
            rows.append({"layer": layer, "matrix": matrix, "measure": measure, **pairs, **spread} | changes)
    return pd.DataFrame(rows)


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


def test_weights_beside_random_ones():
    finding = find(results({"weights": weights()}))[0]
    assert (finding.topic, finding.title) == ("weights", "Experts' weights are most alike at layer 1")
    assert finding.text == (
        "There the median pair's weights have a cosine of 0.350 once hidden neurons are matched; neurons as long that "
        "point anywhere give 0.110. As they are stored, in no order that means anything: 0.00200. Least at layer 7: "
        "0.200 against 0.110. At 1 of 2 layers 95 % of the pairs lie above 95 % of the random ones. The fewest "
        "directions are used by up at layer 7: an effective rank of 13 in the median expert, 27 if neurons pointed "
        "anywhere."
    )


def test_weights_of_one_layer_of_a_sample_and_no_more_alike():
    one = find(results({"weights": weights(num_pairs_matched=4).iloc[:4]}))[0]
    assert one.title == "How alike the weights of layer 1 are"
    assert " From 4 of 6 pairs, drawn at random." in one.text and "Least" not in one.text
    alike = weights()
    alike["median_redrawn"] = 0.6
    assert find(results({"weights": alike}))[0].title == "Experts' weights are no more alike than random ones"
    stored = weights()[weights().measure != "matched_cosine"]
    assert find(results({"weights": stored})) == []


@pytest.mark.parametrize(
    ("values", "title"),
    [
        ((0.5, 0.4), "Experts with like weights put out alike"),
        ((0.5, 0.18), "Experts with like weights put out somewhat alike"),
        ((0.5, 0.1), "Experts with like weights put out somewhat alike"),
        ((0.1, -0.1), "Experts with like weights do not put out alike"),
        ((-0.4, -0.3), "Experts with like weights put out less alike than others"),
    ],
)
def test_whether_weights_foretell_outputs(values, title):
    frame = pd.DataFrame(
        [
            relations("weights.joined_matched_cosine", "similarity.cka", values[0], "weights, CKA"),
            relations("weights.joined_matched_cosine", "similarity.centred_cosine", values[1], "weights, cosine"),
            relations("weights.router_cosine", "similarity.cka", 0.9, "router rows, CKA"),
        ]
    )
    finding = find(results({"relations_pooled": frame}))[0]
    assert (finding.topic, finding.title) == ("relations", title)


def test_relations_in_words():
    frame = pd.DataFrame(
        [
            relations("similarity.cka", "coactivation.lift", 0.5, "output CKA, co-activation"),
            relations("weights.router_cosine", "coactivation.lift", 0.8, "router rows, co-activation"),
        ]
    )
    finding = find(results({"relations_pooled": frame}))[0]
    assert finding.title == "Experts that put out alike are selected together"
    assert finding.text == (
        "Rank correlation over the pairs of experts of a layer, mean over layers, with its 95 % interval over experts: "
        "output CKA, co-activation 0.50 (0.40 to 0.60); router rows, co-activation 0.80 (0.70 to 0.90). With experts "
        "permuted they lie within -0.050 to 0.060. Outside that, layer by layer, at 2 of 2 layers."
    )


def test_other_relations_bring_no_finding():
    frame = pd.DataFrame([relations("weights.router_norm", "usage.selection_frequency", 0.5)])
    assert find(results({"relations_pooled": frame})) == []


def test_key_numbers_of_weights():
    numbers = per_layer(results({"weights": weights()}))
    assert numbers.columns == ["layer", "alike in weights", "effective rank"]
    assert numbers.rows == [["1", "0.350", "19"], ["7", "0.200", "13"]]


def test_a_section_of_their_own(tmp_path):
    frame = pd.DataFrame([relations("similarity.cka", "coactivation.lift", 0.5)])
    tables = {"weights": weights(), "weights_pairs": weights(), "weights_by_rank": weights(), "relations_pooled": frame}
    tables["relations"] = frame
    folder = write(tmp_path / "run", tables, ("relations", "weights_layer_7"), analyses=["distributions", "weights"])
    found = {section.name: section for section in sections(type(results({})).read(folder))}
    assert [table.name for table in found["weights"].tables] == ["weights", "weights_pairs"]
    assert [table.name for table in found["distributions"].tables] == ["weights_by_rank"]
    assert [table.name for table in found["relations"].tables] == ["relations", "relations_pooled"]
    assert found["weights"].figures[0].caption.startswith("Layer 7: how alike the weights")
    assert found["relations"].summary.startswith("Whether experts that are alike")
    assert "other" not in found
