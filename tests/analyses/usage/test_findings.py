"""Findings about usage against tables made by hand: the right cell, number and verdict."""

from moescope.analyses.finding import Finding
from moescope.analyses.usage.findings import FINDINGS, best_of_domains
from tests.report import tables
from tests.report.folders import results
from tests.report.tables import NAN


def found(**given) -> list[Finding]:
    return [finding for make in FINDINGS if (finding := make(results(given))) is not None]


def only(**given) -> Finding:
    (finding,) = found(**given)
    assert finding.topic == "usage"
    return finding


def test_specialist_is_reported_as_measured_on_the_other_half():
    finding = found(specialists=tables.specialists())[0]
    assert finding.verdict == "shown"
    assert "expert 3 of layer 7, for verse" in finding.title
    for number in ("91.2 %", "87.1 to 94.4 %", "2.50 times", "2.25 to 2.75", "50.0 %", "260 tokens", "11 documents"):
        assert number in finding.text


def test_specialist_whose_interval_includes_chance_is_not_shown():
    for low in (0.9, 1.0):
        finding = found(specialists=tables.specialists(lift_ci_low=[low, 1.2, 1.1]))[0]
        assert finding.verdict == "not shown"
        assert "expert 3 of layer 7, for verse" in finding.text


def test_specialist_without_documents_for_an_interval_is_not_testable():
    few = tables.specialists(ci_low=[NAN] * 3, ci_high=[NAN] * 3, lift_ci_low=[NAN] * 3, lift_ci_high=[NAN] * 3)
    finding = only(specialists=few)
    assert finding.verdict == "not testable"
    assert "91.2 % of the tokens of verse (too few documents" in finding.text


def test_specialist_without_tokens_on_the_other_half_is_passed_over():
    finding = found(specialists=tables.specialists(num_tokens=[0, 260, 240]))[0]
    assert "expert 0 of layer 1, for verse" in finding.title


def test_the_first_specialist_with_an_interval_is_reported():
    frame = tables.specialists(lift_ci_low=[NAN, 1.2, 1.1])
    assert best_of_domains(results({"specialists": frame}))["domain"].tolist() == ["verse", "law"]
    finding = found(specialists=frame)[0]
    assert "expert 2 of layer 1, for law" in finding.title
    assert finding.verdict == "shown"


def test_domains_with_specialists():
    finding = found(specialists=tables.specialists())[1]
    assert finding.title.startswith("1 of 2 domains")
    assert finding.verdict == "shown"
    assert finding.text.endswith("for law.")
    both = found(specialists=tables.specialists(lift_ci_low=[2.2, 1.2, 2.1], expert=[3, 0, 3], layer=[7, 1, 7]))[1]
    assert both.title.startswith("2 of 2 domains")
    assert "1 different expert." in both.text
    none = found(specialists=tables.specialists(lift_ci_low=[1.9, 1.2, 1.1]))[1]
    assert none.title.startswith("0 of 2 domains")
    assert none.verdict == "not shown"


def test_information_beside_its_null():
    finding = only(usage_information=tables.information())
    assert finding.verdict == "shown"
    assert "layer 7" in finding.title
    for number in (
        "0.350 bits",
        "mean 0.0500",
        "0.0200 to 0.0871",
        "30.0 %",
        "1 bits",
        "layer 1: -1.0 %",
        "1 of 2 layers",
    ):
        assert number in finding.text


def test_information_within_the_null_is_not_shown():
    assert only(usage_information=tables.information(mutual_information=[0.02, 0.08])).verdict == "not shown"


def test_information_of_one_layer_ranks_no_layers():
    finding = only(usage_information=tables.information().iloc[1:])
    assert (finding.verdict, "layer 7" in finding.title) == ("shown", True)
    assert "Lowest" not in finding.text


def test_unused_most_frequent_and_rare_experts():
    finding = only(usage=tables.usage({1: [500, 500, 500, 500], 7: [0, 800, 20, 1180]}, num_tokens=2000))
    assert finding.title.startswith("1 of 8 experts")
    assert finding.text.startswith("layer 7: 0.")
    for number in ("expert 3 of layer 7", "59.0 %", "54.0 to 64.0 %", "1.18 times", "50.0 %", "1 expert in use is"):
        assert number in finding.text


def test_every_expert_is_selected():
    assert only(usage=tables.usage({1: [500, 500, 500, 501]})).title.startswith("All 4 experts")


def test_no_table_no_finding():
    assert found() == []
