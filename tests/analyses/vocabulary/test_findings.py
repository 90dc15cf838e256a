"""The finding about vocabulary specialization against tables made by hand."""

from moescope.analyses.finding import Finding
from moescope.analyses.vocabulary.findings import FINDINGS
from tests.report import tables
from tests.report.folders import results


def only(frame) -> Finding:
    (make,) = FINDINGS
    finding = make(results({"vocabulary": frame}))
    assert finding is not None
    assert finding.topic == "vocabulary"
    return finding


def test_top_k_is_compared_with_independent_routing():
    finding = only(tables.vocabulary())
    assert finding.verdict == "shown"
    assert finding.title.endswith("input token")
    for number in (
        "layer 1",
        "90.0 %",
        "65.0 %",
        "120 token types",
        "10 times",
        "input token 20.0 %",
        "next token 7.5 %",
    ):
        assert number in finding.text
    assert "99.0 %" not in finding.text  # that is top-1


def test_specialization_below_independent_routing_is_not_shown():
    frame = tables.vocabulary()
    frame["vocabulary_specialization"] = 0.4
    frame["vocabulary_specialization_chance"] = 0.5
    assert only(frame).verdict == "not shown"


def test_no_table_no_finding():
    assert FINDINGS[0](results({})) is None
