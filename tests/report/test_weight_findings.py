"""Sentences about weights and relations against tables made by hand."""

import re

import pandas as pd
import pytest

from moescope.report.findings import find
from moescope.report.keynumbers import per_layer
from moescope.report.sections import sections
from tests.report.folders import results, write
from tests.report.reading import denies, names, unsaid


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
    assert finding.topic == "weights" and not denies(finding.title)
    assert names(finding.title, "layer", 1) and not names(finding.title, "layer", 7)
    assert unsaid(finding.text, "0.350", "0.110", "0.00200", "0.200", "0.110", "1", "2", "13", "27") == []
    assert names(finding.text, "layer", 7)


def test_weights_of_one_layer_of_a_sample_and_no_more_alike():
    one = find(results({"weights": weights(num_pairs_matched=4).iloc[:4]}))[0]
    assert names(one.title, "layer", 1) and not names(one.text, "layer", 7)
    assert unsaid(one.text, "4", "6") == [] and "random" in one.text
    alike = weights()
    alike["median_redrawn"] = 0.6
    denied = find(results({"weights": alike}))[0].title
    assert denies(denied) and not names(denied, "layer", 1)
    stored = weights()[weights().measure != "matched_cosine"]
    assert find(results({"weights": stored})) == []


@pytest.mark.parametrize(
    ("same", "other"),
    [
        ([(0.5, 0.4), (0.6, 0.5)], (0.5, 0.18)),  # both clearly above, one less clearly
        ([(0.5, 0.18), (0.5, 0.1)], (0.1, -0.1)),  # somewhat, not at all
        ([(0.1, -0.1)], (-0.4, -0.3)),  # not at all, the opposite
        ([(-0.4, -0.3)], (0.5, 0.4)),
    ],
)
def test_whether_weights_predict_outputs(same, other):
    """Which of four verdicts is given depends on both measures; the rows of other relations have no part in it."""

    def said(values):
        frame = pd.DataFrame(
            [
                relations("weights.joined_matched_cosine", "similarity.cka", values[0], "weights, CKA"),
                relations("weights.joined_matched_cosine", "similarity.centred_cosine", values[1], "weights, cosine"),
                relations("weights.router_cosine", "similarity.cka", 0.9, "router rows, CKA"),
            ]
        )
        finding = find(results({"relations_pooled": frame}))[0]
        assert finding.topic == "relations" and "weights" in finding.title
        return finding.title

    assert len({said(values) for values in same}) == 1
    assert said(other) != said(same[0])
    assert all(denies(said(values)) == (values == (0.1, -0.1)) for values in (*same, other))


def test_relations_in_words():
    frame = pd.DataFrame(
        [
            relations("similarity.cka", "coactivation.lift", 0.5, "output CKA, co-activation"),
            relations("weights.router_cosine", "coactivation.lift", 0.8, "router rows, co-activation"),
        ]
    )
    finding = find(results({"relations_pooled": frame}))[0]
    assert finding.topic == "relations" and not denies(finding.title)
    assert re.search(r"output CKA, co-activation\W+0\.50 \(\D*0\.40 to 0\.60\)", finding.text)
    assert re.search(r"router rows, co-activation\W+0\.80 \(\D*0\.70 to 0\.90\)", finding.text)
    assert unsaid(finding.text, "-0.050", "0.060", "2", "2") == []


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
    assert names(found["weights"].figures[0].caption, "layer", 7)
    assert found["relations"].summary
    assert "other" not in found
