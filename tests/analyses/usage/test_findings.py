"""Findings and facts about usage against tables made by hand: the right cell, number and verdict."""

import pytest

from moescope.analyses.finding import Fact, Finding, facts, find
from moescope.analyses.usage.findings import best_of_domains
from tests.report import tables
from tests.report.folders import results
from tests.report.reading import denies
from tests.report.tables import NAN


def only(**given) -> Finding:
    (finding,) = find(results(given))
    assert finding.topic == "usage"
    return finding


def load(**given) -> Fact:
    assert find(results(given)) == []
    (fact,) = facts(results(given))
    assert fact.topic == "usage"
    return fact


def test_specialist_is_reported_as_measured_on_the_other_half():
    finding = only(specialists=tables.specialists())
    assert (finding.verdict, finding.p_value) == ("shown", 0.0002)
    assert finding.title.endswith("expert 3 of layer 7, for verse")
    for number in (
        *("91.2 %", "87.1 to 94.4 %", "2.50 times", "2.25 to 2.75", "p = 0.00020", "50.0 %"),
        *("260 tokens", "11 documents"),
    ):
        assert number in finding.text, number


def test_the_first_rank_is_tested_and_no_other():
    finding = only(specialists=tables.specialists(lift_p_value=[0.2, 0.0001, 0.0001]))
    assert (finding.verdict, finding.p_value) == ("not shown", 0.2)
    assert denies(finding.title) and "expert 3" not in finding.title
    assert "expert 3 of layer 7 for verse" in finding.text


def test_specialist_without_a_test_is_not_testable():
    nothing = {name: [NAN] * 3 for name in ("ci_low", "ci_high", "lift_ci_low", "lift_ci_high", "lift_p_value")}
    finding = only(specialists=tables.specialists(**nothing))
    assert (finding.verdict, finding.p_value) == ("not testable", None)
    assert "not testable" in finding.title
    assert "91.2 % of the tokens of verse (too few documents" in finding.text
    assert "nan" not in finding.text


def test_specialist_without_tokens_on_the_other_half_is_passed_over():
    finding = only(specialists=tables.specialists(num_tokens=[0, 260, 240]))
    assert finding.title.endswith("expert 0 of layer 1, for verse")


def test_each_domain_has_its_best_expert_by_rank():
    frame = tables.specialists(rank=[2, 0, 1])
    assert best_of_domains(results({"specialists": frame}))[["domain", "expert"]].values.tolist() == [
        ["verse", 0],
        ["law", 2],
    ]
    assert best_of_domains(results({"specialists": frame.iloc[:0]})) is None
    assert best_of_domains(results({})) is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ("in 1 of 2 domains. Not in law.",)),
        ({"lift_ci_low": [2.2, 1.2, 2.1], "expert": [3, 0, 3], "layer": [7, 1, 7]}, ("2 of 2", "1 different expert)")),
        ({"lift_ci_low": [1.9, 1.2, 1.1]}, ("in 0 of 2 domains.",)),
        ({"lift_ci_low": [2.0, 1.2, NAN]}, ("in 1 of 1 domain.", "interval in 1 more domain.")),
    ],
)
def test_domains_with_specialists(changes, words):
    text = only(specialists=tables.specialists(**changes)).text
    for word in words:
        assert word in text
    if "1.9" in str(changes):
        assert "Not in" not in text


def test_information_beside_its_null():
    finding = only(usage_information=tables.information())
    assert (finding.verdict, finding.p_value) == ("shown", 0.0003)
    assert finding.title.endswith("most at layer 7")
    for number in (
        *("set of 2 selected experts", "0.610 bits", "0.520 to 0.700", "61.0 %", "mean -0.120", "-0.170 to -0.0654"),
        *("p = 0.00030 for any layer", "Lowest at layer 1: 0.0400 bits", "0.350 bits (null mean 0.0500)"),
    ):
        assert number in finding.text, number


def test_layers_that_are_not_distinguishable_are_named_together():
    tied = tables.information(set_information_tied=[True, True])
    assert only(usage_information=tied).title.endswith("most at layers 1, 7 (not distinguishable)")


def test_the_smallest_p_value_of_any_layer_is_that_of_the_claim():
    # Each is of the highest layer among permutations: no further correction for their number.
    finding = only(usage_information=tables.information(set_information_p_value=[0.04, 0.3]))
    assert (finding.verdict, finding.p_value) == ("shown", 0.04)


def test_information_within_the_null_is_not_shown():
    finding = only(usage_information=tables.information(set_information_p_value=[0.4, 0.06]))
    assert (finding.verdict, finding.p_value) == ("not shown", 0.06)
    assert denies(finding.title) and "layer" not in finding.title
    assert "0.610 bits" in finding.text


def test_information_of_too_few_documents_is_not_testable():
    names = [name for name in tables.information() if name.startswith("set_") and not name.endswith("tied")]
    frame = tables.information(**{name: [NAN, NAN] for name in names}, set_information_tied=[False, False])
    finding = only(usage_information=frame)
    assert (finding.verdict, finding.p_value) == ("not testable", None)
    assert "nan" not in finding.text
    assert find(results({"usage_information": frame.drop(columns=names)})) == []  # a folder of before


def test_information_of_one_layer_ranks_no_layers():
    finding = only(usage_information=tables.information().iloc[1:])
    assert (finding.verdict, finding.title.endswith("information at layer 7")) == ("shown", True)
    assert "Lowest" not in finding.text


def test_information_of_one_selected_expert_is_said_once():
    (finding,) = find(results({"usage_information": tables.information()}, num_experts_per_token=1))
    assert "the selected expert of a token" in finding.text
    assert "0.350" not in finding.text


def test_unused_most_frequent_and_rare_experts():
    fact = load(usage=tables.usage({1: [500, 500, 500, 500], 7: [0, 800, 20, 1180]}, num_tokens=2000))
    assert fact.title.startswith("1 of 8 experts")
    assert fact.text.startswith("layer 7: 0.")
    for number in ("expert 3 of layer 7", "59.0 %", "54.0 to 64.0 %", "1.18 times", "50.0 %", "1 expert in use is"):
        assert number in fact.text


def test_every_expert_is_selected():
    assert load(usage=tables.usage({1: [500, 500, 500, 501]})).title.startswith("All 4 experts")
