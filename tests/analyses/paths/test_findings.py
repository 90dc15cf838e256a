"""The finding about expert paths against tables made by hand."""

import pytest

from moescope.analyses.finding import Finding, find
from tests.report import tables
from tests.report.folders import results
from tests.report.reading import denies
from tests.report.tables import NAN


def only(frame) -> Finding:
    (finding,) = find(results({"paths": frame}))
    assert finding.topic == "paths"
    return finding


def three(**changes):
    columns = {
        "layer": [1, 7, 9],
        "next_layer": [7, 9, 12],
        "top1_nmi": [0.31, 0.2, 0.4],
        "top1_nmi_chance": [0.002, 0.001, 0.003],
        "dependence": [0.23, 0.35, 0.11],
        "dependence_ci_low": [0.19, 0.3, 0.08],
        "dependence_ci_high": [0.27, 0.4, 0.14],
        "dependence_p_value": [0.003, 0.001, 0.2],
        "dependence_tied": [False, True, False],
    }
    return tables.paths(**(columns | changes))


def test_one_pair_of_layers():
    finding = only(tables.paths())
    assert (finding.verdict, finding.p_value) == ("shown", 0.0006)
    assert finding.title.endswith("layer 7 depends on the expert at layer 1")
    for number in ("0.310", "0.00200", "0.230 nats", "0.190 to 0.270", "p = 0.00060"):
        assert number in finding.text, number


def test_pairs_of_layers_are_ranked_by_dependence_and_corrected_for():
    finding = only(three())
    assert (finding.verdict, finding.p_value) == ("shown", pytest.approx(0.003))
    assert finding.title.endswith("between layers 7 and 9")
    for number in ("layers 7 and 9", "0.200", "0.350 nats", "p = 0.0030 for any of 3 pairs"):
        assert number in finding.text, number


def test_pairs_that_are_not_distinguishable_are_named_together():
    finding = only(three(dependence_tied=[True, True, False]))
    assert finding.title.endswith("between layers 1 and 7, 7 and 9 (not distinguishable)")


def test_dependence_that_is_not_confirmed_is_not_shown():
    finding = only(three(dependence_p_value=[0.02, 0.5, 0.5]))
    assert (finding.verdict, finding.p_value) == ("not shown", pytest.approx(0.06))
    assert denies(finding.title)
    # A high mutual information in one sample is no evidence of its own.
    assert only(tables.paths(dependence_p_value=[0.051])).verdict == "not shown"


def test_too_few_documents_are_not_testable():
    nothing = {f"dependence{end}": [NAN] for end in ("", "_ci_low", "_ci_high", "_p_value")}
    finding = only(tables.paths(**nothing))
    assert (finding.verdict, finding.p_value) == ("not testable", None)
    assert "0.310" in finding.text and "nan" not in finding.text


def test_one_layer_has_no_paths():
    assert find(results({"paths": tables.paths().iloc[:0]})) == []
