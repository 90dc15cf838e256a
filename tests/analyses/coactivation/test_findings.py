"""The finding about co-activation against tables made by hand."""

from moescope.analyses.finding import Finding, find
from tests.report import tables
from tests.report.folders import results
from tests.report.reading import denies
from tests.report.tables import NAN


def only(**changes) -> Finding:
    (finding,) = find(results({"coactivation": tables.coactivation(**changes)}))
    assert finding.topic == "coactivation"
    return finding


def test_the_pair_is_chosen_on_one_half_and_measured_on_the_other():
    finding = only()
    assert (finding.verdict, finding.p_value) == ("shown", 0.0005)
    # Layer 7 has the larger excess on the selection half, layer 1 the larger lift on the evaluation half.
    assert "xperts 1 and 3 of layer 7" in finding.title
    for number in ("11 pairs", "lift is 2.80 (95 % interval 2.30 to 3.30)", "0.710", "(p = 0.00050)"):
        assert number in finding.text, number
    assert "0 and 2" not in finding.text


def test_a_pair_that_is_not_confirmed_is_not_shown():
    finding = only(top_p_value=[0.0001, 0.06])
    assert (finding.verdict, finding.p_value) == ("not shown", 0.06)
    assert denies(finding.title) and "layer 7" not in finding.title
    assert "experts 1 and 3 of layer 7" in finding.text


def test_too_few_documents_are_not_testable():
    nothing = {f"top_{name}": [3.9, NAN] for name in ("lift", "lift_chance", "lift_ci_low", "lift_ci_high", "p_value")}
    finding = only(**nothing)
    assert (finding.verdict, finding.p_value) == ("not testable", None)
    assert "nan" not in finding.text
    known = only(top_p_value=[0.1, NAN])
    assert known.verdict == "not testable" and "lift is 2.80" in known.text


def test_without_a_pair_that_is_expected_often_enough_there_is_no_claim():
    given = {"coactivation": tables.coactivation(top_excess_selection_half=[NAN, NAN])}
    assert find(results(given)) == []
    assert "0 and 2 of layer 1" in only(top_excess_selection_half=[1.0, NAN]).text
    assert find(results({"coactivation_pairs": tables.coactivation_pairs()})) == []
