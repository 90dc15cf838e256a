"""Findings of all questions: what each needs, how claims are judged together, how findings and facts are written."""

import math

import pytest

from moescope.analyses.finding import Claim, Fact, as_records, facts, find, named_with_ties
from tests.report import tables
from tests.report.folders import results
from tests.report.reading import denies, numbers
from tests.report.tables import NAN

# Tables of `tables.everything()` from which a claim or a fact is drawn; the others only add to a sentence.
CLAIMS = {"specialists": 1, "usage_information": 1, "vocabulary_dependence": 1, "coactivation": 1, "paths": 1}
FACTS = {"usage": 1, "router_entropy": 1}


def claim(p_value: float) -> Claim:
    return Claim("usage", "It does", "It does not", "So many.", p_value, "It cannot be known", "It takes more.")


def test_no_table_no_finding():
    assert find(results({})) == []
    assert facts(results({})) == []


@pytest.mark.parametrize("missing", sorted(tables.everything()))
def test_a_missing_table_takes_only_its_own_findings_away(missing):
    every = tables.everything()
    whole, levels = find(results(every)), facts(results(every))
    assert (len(whole), len(levels)) == (sum(CLAIMS.values()), sum(FACTS.values()))
    del every[missing]
    part, left = find(results(every)), facts(results(every))
    assert {finding.title for finding in part} <= {finding.title for finding in whole}
    assert set(left) <= set(levels)
    assert len(whole) - len(part) == CLAIMS.get(missing, 0)
    assert len(levels) - len(left) == FACTS.get(missing, 0)


@pytest.mark.parametrize(
    ("adjusted", "verdict", "title"),
    [
        (0.0, "shown", "It does"),
        (0.0499, "shown", "It does"),
        (0.0501, "not shown", "It does not"),
        (1.0, "not shown", "It does not"),
        (NAN, "not testable", "It cannot be known"),
    ],
)
def test_a_claim_is_judged_by_its_adjusted_p_value(adjusted, verdict, title):
    finding = claim(0.5).judged(adjusted)
    assert (finding.verdict, finding.title, finding.topic) == (verdict, title, "usage")
    if verdict == "not testable":
        assert finding.p_value is None
        assert finding.text == "It takes more. So many."
    else:
        assert (finding.p_value, finding.text) == (adjusted, "So many.")


def unclear() -> dict:
    """Four claims of which none is shown."""
    return {
        "specialists": tables.specialists(lift_p_value=[0.5] * 3),
        "usage_information": tables.information(set_information_p_value=[0.6, 0.6]),
        "vocabulary_dependence": tables.vocabulary_dependence(dependence_p_value=[0.7] * 4),
        "coactivation": tables.coactivation(top_p_value=[0.8, 0.8]),
    }


def test_claims_of_a_run_are_judged_together():
    weak = tables.specialists(lift_p_value=[0.04, 0.001, 0.001])
    (finding,) = find(results({"specialists": weak}))
    assert (finding.verdict, finding.p_value) == ("shown", pytest.approx(0.04))
    beside = find(results(unclear() | {"specialists": weak}))
    assert len(beside) == 4
    assert [finding.verdict for finding in beside] == ["not shown"] * 4
    assert beside[0].p_value == pytest.approx(0.16)
    # 0.012 times 4 is still below 0.05; what cannot be tested counts for nothing.
    strong = tables.specialists(lift_p_value=[0.012, 0.9, 0.9])
    assert find(results(unclear() | {"specialists": strong}))[0].verdict == "shown"
    untested = unclear() | {
        "specialists": weak,
        "usage_information": tables.information(set_information_p_value=[NAN, NAN]),
        "vocabulary_dependence": tables.vocabulary_dependence(dependence_p_value=[NAN] * 4),
        "coactivation": tables.coactivation(top_p_value=[NAN, NAN]),
    }
    verdicts = [finding.verdict for finding in find(results(untested))]
    assert verdicts == ["shown", "not testable", "not testable", "not testable"]


def test_a_later_claim_is_adjusted_for_fewer():
    given = {
        "specialists": tables.specialists(lift_p_value=[0.03] * 3),
        "coactivation": tables.coactivation(top_p_value=[0.9, 0.02]),
    }
    found = find(results(given))
    assert [finding.p_value for finding in found] == pytest.approx([0.04, 0.04])
    assert [finding.verdict for finding in found] == ["shown", "shown"]


def test_titles_say_the_verdict():
    for p_value, verdict in ((1e-6, "shown"), (0.9, "not shown"), (NAN, "not testable")):
        given = {
            "specialists": tables.specialists(lift_p_value=[p_value] * 3),
            "usage_information": tables.information(set_information_p_value=[p_value] * 2),
            "vocabulary_dependence": tables.vocabulary_dependence(dependence_p_value=[p_value] * 4),
            "coactivation": tables.coactivation(top_p_value=[p_value] * 2),
            "paths": tables.paths(dependence_p_value=[p_value]),
        }
        found = find(results(given))
        assert len(found) == len(given)
        assert {finding.verdict for finding in found} == {verdict}
        for finding in found:
            assert denies(finding.title) == (verdict != "shown"), finding.title
            assert ("not testable" in finding.title) == (verdict == "not testable"), finding.title
            assert finding.text.startswith("A test needs") == (verdict == "not testable")
            # What is not shown names no layer and no expert as if it had been found.
            assert verdict == "shown" or not numbers(finding.title)


def test_records_name_topic_title_text_and_verdict():
    found = as_records(find(results(tables.everything())))
    assert len(found) == sum(CLAIMS.values())
    for record in found:
        assert set(record) == {"topic", "title", "text", "verdict", "p_value"}
        assert record["verdict"] in ("shown", "not shown", "not testable")
        assert record["p_value"] is None or 0 <= record["p_value"] <= 1


def test_facts_have_no_verdict():
    levels = facts(results(tables.everything()))
    assert levels
    assert all(isinstance(fact, Fact) for fact in levels)
    for record in as_records(levels):
        assert set(record) == {"topic", "title", "text"}
        assert not any(isinstance(value, float) and math.isnan(value) for value in record.values())


@pytest.mark.parametrize(
    ("names", "noun", "words"),
    [
        ([3], "layer", "layer 3"),
        ([3], "", "3"),
        (["verse"], "", "verse"),
        ([1, 2, 3, 4], "layer", "layers 1 to 4 (not distinguishable)"),
        ([1, 2], "layer", "layers 1, 2 (not distinguishable)"),
        ([1, 2, 4], "layer", "layers 1, 2, 4 (not distinguishable)"),
        (["law", "verse", "code"], "", "law, verse, code (not distinguishable)"),
        (list(range(0, 20, 2)), "layer", "layers 0, 2, 4, 6, 8, 10, 12, 14 and 2 more (not distinguishable)"),
    ],
)
def test_ties_are_named_together(names, noun, words):
    assert named_with_ties(names, noun) == words
