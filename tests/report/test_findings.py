"""The sentences against tables made by hand: the right cell, the right number, nothing where there is nothing."""

import re

import pandas as pd
import pytest

from moescope.report.findings import Finding, find
from moescope.report.keynumbers import per_layer
from tests.report import tables
from tests.report.folders import results
from tests.report.reading import denies, names, numbers, unsaid
from tests.report.tables import NAN


def only(**given) -> Finding:
    found = find(results(given))
    assert len(found) == 1
    return found[0]


def test_no_table_no_finding():
    assert find(results({})) == []


@pytest.mark.parametrize("missing", sorted(tables.everything()))
def test_a_missing_table_takes_only_its_own_findings_away(missing):
    every = tables.everything()
    whole = find(results(every))
    del every[missing]
    part = find(results(every))
    assert set(part) <= set(whole)
    gone = {"specialists": 2, "usage_load": 0}.get(missing, 1)
    assert len(whole) - len(part) == gone


def test_specialist_is_shown_as_measured_on_the_other_half():
    finding = find(results({"specialists": tables.specialists()}))[0]
    assert finding.topic == "usage" and not denies(finding.title)
    assert names(finding.title, "expert", 3) and names(finding.title, "layer", 7) and "verse" in finding.title
    share, lift = ("91.2", "87.1", "94.4"), ("2.50", "2.25", "2.75")
    assert unsaid(finding.text, *share, *lift, "50.0", "260", "11") == []


def test_specialist_that_does_not_hold_up_is_not_called_one():
    finding = find(results({"specialists": tables.specialists(lift_ci_low=[0.9, 1.2, 1.1])}))[0]
    assert denies(finding.title) and not names(finding.title, "expert", 3)
    assert names(finding.text, "expert", 3) and names(finding.text, "layer", 7) and "verse" in finding.text


def test_specialist_without_documents_for_an_interval():
    few = tables.specialists(ci_low=[NAN] * 3, ci_high=[NAN] * 3, lift_ci_low=[NAN] * 3, lift_ci_high=[NAN] * 3)
    finding = only(specialists=few)
    assert unsaid(finding.text, "91.2") == [] and "too few documents" in finding.text


def test_specialist_not_met_on_the_other_half_is_passed_over():
    finding = find(results({"specialists": tables.specialists(num_tokens=[0, 260, 240])}))[0]
    assert names(finding.title, "expert", 0) and names(finding.title, "layer", 1) and "verse" in finding.title


def test_domains_with_specialists():
    finding = find(results({"specialists": tables.specialists()}))[1]
    assert numbers(finding.title) == ["1", "2"]
    assert re.search(r"\b(none|no)\b[^.]*\blaw\b", finding.text, re.IGNORECASE)
    both = find(
        results({"specialists": tables.specialists(lift_ci_low=[2.2, 1.2, 2.1], expert=[3, 0, 3], layer=[7, 1, 7])})
    )
    assert numbers(both[1].title) == ["2", "2"]
    assert not re.search(r"\b(none|no)\b[^.]*\blaw\b", both[1].text, re.IGNORECASE)
    assert unsaid(both[1].text, "1") == []  # one expert serves both


def test_information_beside_its_null():
    finding = only(usage_information=tables.information())
    assert finding.topic == "usage" and "domain" in finding.title and not denies(finding.title)
    assert names(finding.title, "layer", 7) and names(finding.text, "layer", 1)
    assert unsaid(finding.text, "30.0", "0.350", "1", "0.0500", "0.0200", "0.0871", "-1.0", "1", "2") == []


def test_information_within_its_null_is_no_knowledge():
    finding = only(usage_information=tables.information(mutual_information=[0.02, 0.08]))
    assert "domain" in finding.title and denies(finding.title) and not names(finding.title, "layer", 7)


def test_information_of_one_layer():
    finding = only(usage_information=tables.information().iloc[1:])
    assert names(finding.title, "layer", 7) and not denies(finding.title)
    assert not names(finding.text, "layer", 1) and "-1.0" not in numbers(finding.text)


def test_dead_busiest_and_rare_experts():
    finding = only(usage=tables.usage({1: [500, 500, 500, 500], 7: [0, 800, 20, 1180]}, num_tokens=2000))
    assert numbers(finding.title) == ["1", "8"] and "never" in finding.title
    assert re.search(r"layer 7: 0\b", finding.text)
    assert names(finding.text, "expert", 3)
    assert unsaid(finding.text, "59.0", "54.0", "64.0", "1.18", "50.0", "1") == []


def test_no_expert_is_dead():
    title = only(usage=tables.usage({1: [500, 500, 500, 501]})).title
    assert denies(title) and numbers(title) == ["4"]


def test_least_sure_layer_and_domain():
    finding = only(router_entropy=tables.entropy())
    assert finding.topic == "entropy"
    assert names(finding.title, "layer", 1) and not names(finding.title, "layer", 7)
    assert names(finding.text, "layer", 7) and "nats" in finding.text
    assert unsaid(finding.text, "86.6", "1.20", "1,000", "40.0", "65.0", "60.0") == []
    assert re.search(r"verse\D+81\.0 %", finding.text) and re.search(r"law\D+70\.0 %", finding.text)


def test_sureness_of_one_layer_ranks_no_layers():
    finding = only(router_entropy=tables.entropy().iloc[:3])
    assert names(finding.title, "layer", 1)
    assert not names(finding.text, "layer", 7)
    assert re.search(r"law\D+80\.0 %", finding.text)


def test_vocabulary_counts_top_k_and_compares_with_independence():
    finding = only(vocabulary=tables.vocabulary())
    assert finding.topic == "vocabulary" and "token" in finding.title and not denies(finding.title)
    assert names(finding.text, "layer", 1)
    assert unsaid(finding.text, "90.0", "65.0", "120", "10", "20.0", "7.5") == []
    assert "99.0" not in numbers(finding.text)  # the first rank alone


def test_vocabulary_at_chance_is_no_specialization():
    frame = tables.vocabulary()
    frame["vocabulary_specialization"] = 0.4
    frame["vocabulary_specialization_independent"] = 0.5
    assert denies(only(vocabulary=frame).title)


def test_strongest_pair():
    given = {"coactivation_pairs": tables.coactivation_pairs(), "coactivation": tables.coactivation()}
    finding = only(**given)
    assert finding.topic == "coactivation"
    assert names(finding.title, "expert", 1) and names(finding.title, "expert", 3) and names(finding.title, "layer", 7)
    assert unsaid(finding.text, "450", "1,000", "3", "150", "75.0", "11") == []
    assert "not an estimate" in finding.text


def test_paths_of_two_and_of_more_layers():
    finding = only(paths=tables.paths())
    assert finding.topic == "paths"
    assert numbers(finding.title) == ["1", "7"]
    assert unsaid(finding.text, "0.310", "0.00200") == []
    more = tables.paths(layer=[1, 7], next_layer=[7, 9], top1_nmi=[0.31, 0.2], top1_nmi_independent=[0.002, 0.001])
    finding = only(paths=more)
    assert numbers(finding.title) == ["1", "7"]
    assert unsaid(finding.text, "7", "9", "0.200", "0.00100") == []


def test_paths_of_one_layer_are_none():
    assert find(results({"paths": tables.paths().iloc[:0]})) == []


def test_key_numbers_per_layer():
    key = per_layer(results(tables.everything()))
    assert key.columns == [
        "layer",
        "router entropy",
        "top-1 probability",
        "MaxVio",
        "never used",
        "domain information",
        "vocabulary",
    ]
    assert key.rows == [
        ["1", "86.6 %", "40.0 %", "0.200", "0", "-1.0 %", "90.0 %"],
        ["7", "65.0 %", "60.0 %", "0.600", "1", "30.0 %", "80.0 %"],
    ]
    overall = {series.label: series.show(series.overall) for series in key.series}
    assert overall["never used"] == "1"
    assert overall["router entropy"] == "75.8 %"


def test_key_numbers_where_no_leading_one_is_known():
    distributions = pd.DataFrame({"layer": [1, 1, 7], "quantity": ["logit", "weight", "logit"], "std": [1.5, 9.0, 2.0]})
    overlap = pd.DataFrame(
        {"layer": [1, 7], "measure": ["jaccard"] * 2, "mean": [0.1, 0.2], "mean_independent": [0.05, 0.07]}
    )
    key = per_layer(results({"routing_distributions": distributions, "overlap": overlap, "paths": tables.paths()}))
    assert key.columns == ["layer", "logit spread", "overlap (Jaccard)", "to the next layer"]
    assert key.rows == [["1", "1.50", "10.0 %", "0.310"], ["7", "2", "20.0 %", "–"]]
    assert unsaid(key.series[1].meaning, "6.0") == []


def test_key_numbers_of_a_run_of_one_analysis():
    key = per_layer(results({"router_entropy": tables.entropy()}))
    assert key.columns == ["layer", "router entropy", "top-1 probability"]
    assert per_layer(results({})).series == []
