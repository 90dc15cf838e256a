"""The finding about the identity of tokens against tables made by hand."""

import pytest

from moescope.analyses.finding import Finding, find
from tests.report import tables
from tests.report.folders import results
from tests.report.reading import denies
from tests.report.tables import NAN


def only(**given) -> Finding:
    (finding,) = find(results({"vocabulary_dependence": tables.vocabulary_dependence()} | given))
    assert finding.topic == "vocabulary"
    return finding


def test_dependence_on_held_out_documents():
    finding = only()
    # Of four layers and readings the smallest p-value, times four.
    assert (finding.verdict, finding.p_value) == ("shown", pytest.approx(0.0016))
    assert finding.title.endswith("more on the input token than on the true next token")
    for number in (
        *("input token is highest at layer 1: 0.310 nats", "0.270 to 0.350", "p = 0.0016"),
        "0.170 nats (95 % interval 0.140 to 0.200)",
    ):
        assert number in finding.text, number


def test_p_values_are_corrected_for_layers_and_readings():
    frame = tables.vocabulary_dependence(dependence_p_value=[0.02, 0.5, 0.5, 0.5])
    finding = only(vocabulary_dependence=frame)
    assert (finding.verdict, finding.p_value) == ("not shown", pytest.approx(0.08))
    assert denies(finding.title)
    assert "0.310 nats" in finding.text
    assert "the input" not in finding.title
    part = tables.vocabulary_dependence(dependence_p_value=[0.02, 0.5, NAN, NAN])
    assert only(vocabulary_dependence=part).verdict == "shown"


@pytest.mark.parametrize(
    ("low", "high", "value", "words"),
    [
        (-0.01, 0.3, 0.14, None),
        (-0.2, -0.1, -0.15, "more on the true next token than on the input token"),
    ],
)
def test_readings_are_ranked_where_the_interval_excludes_none(low, high, value, words):
    frame = tables.vocabulary_dependence(
        difference=[value] * 4, difference_ci_low=[low] * 4, difference_ci_high=[high] * 4
    )
    finding = only(vocabulary_dependence=frame)
    assert finding.verdict == "shown"
    if words is None:
        assert finding.title.endswith("identity")
        assert "Difference" not in finding.text
    else:
        assert finding.title.endswith(words)
        assert "0.150 nats (95 % interval 0.100 to 0.200)" in finding.text


def test_ties_are_those_of_the_same_reading():
    frame = tables.vocabulary_dependence(dependence_tied=[True, False, True, True])
    assert "at layers 1, 7 (not distinguishable)" in only(vocabulary_dependence=frame).text


def test_too_few_documents_are_not_testable():
    measured = [name for name in tables.vocabulary_dependence() if name.startswith(("dependence", "difference"))]
    nothing = {name: [NAN] * 4 for name in measured} | {"dependence_tied": [False] * 4}
    frame = tables.vocabulary_dependence(**nothing)
    finding = only(vocabulary_dependence=frame)
    assert (finding.verdict, finding.p_value) == ("not testable", None)
    assert "nan" not in finding.text


def test_specialization_on_held_out_documents_is_a_level_beside_it():
    finding = only(vocabulary=tables.vocabulary())
    # The highest of the input token's top-K, not that of top-1 nor of the next token.
    for number in ("83.0 %", "layer 7, the highest", "51.0 %", "91 token types"):
        assert number in finding.text, number
    assert "83.0 %" not in only().text
    before = tables.vocabulary().drop(columns="evaluation_half_vocabulary_specialization")
    assert only(vocabulary=before).text == only().text
    # It makes no finding by itself.
    assert find(results({"vocabulary": tables.vocabulary()})) == []


def test_no_row_no_finding():
    assert find(results({"vocabulary_dependence": tables.vocabulary_dependence().iloc[:0]})) == []
