"""The sentences against tables made by hand: the right cell, the right number, nothing where there is nothing."""

import pandas as pd
import pytest

from moescope.report.findings import Finding, find
from moescope.report.keynumbers import per_layer
from tests.report import tables
from tests.report.folders import results
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
    assert finding.title == "The most specialised expert is expert 3 of layer 7, for verse"
    assert finding.text == (
        "On documents that had no say in choosing it, it is selected for 91.2 % of the tokens of verse (95 % "
        "interval 87.1 to 94.4 %), 2.50 times its mean over all domains (95 % interval 2.25 to 2.75); uniform "
        "routing would give it 50.0 %. Measured on 260 tokens of 11 documents."
    )
    assert finding.topic == "usage"


def test_specialist_that_does_not_hold_up_is_not_called_one():
    finding = find(results({"specialists": tables.specialists(lift_ci_low=[0.9, 1.2, 1.1])}))[0]
    assert finding.title == "No expert stands out for a domain"
    assert finding.text.startswith("The likeliest is expert 3 of layer 7, for verse.")


def test_specialist_without_documents_for_an_interval():
    few = tables.specialists(ci_low=[NAN] * 3, ci_high=[NAN] * 3, lift_ci_low=[NAN] * 3, lift_ci_high=[NAN] * 3)
    finding = only(specialists=few)
    assert "91.2 % of the tokens of verse (too few documents for an interval)" in finding.text


def test_specialist_not_met_on_the_other_half_is_passed_over():
    finding = find(results({"specialists": tables.specialists(num_tokens=[0, 260, 240])}))[0]
    assert finding.title == "The most specialised expert is expert 0 of layer 1, for verse"


def test_domains_with_specialists():
    finding = find(results({"specialists": tables.specialists()}))[1]
    assert finding.title == "1 of 2 domains has a specialist"
    assert finding.text.endswith("None such for law.")
    both = find(
        results({"specialists": tables.specialists(lift_ci_low=[2.2, 1.2, 2.1], expert=[3, 0, 3], layer=[7, 1, 7])})
    )
    assert both[1].title == "2 of 2 domains have a specialist"
    assert both[1].text.endswith("Some serve more than one domain: they are 1 expert.")


def test_information_beside_its_null():
    finding = only(usage_information=tables.information())
    assert finding.title == "Experts tell most about the domain at layer 7"
    assert finding.text == (
        "At layer 7 the selected experts tell 30.0 % of what there is to know about a token's domain, beyond "
        "chance: 0.350 of 1 bits, where shuffled documents give 0.0500 (95 % range 0.0200 to 0.0871). Least at "
        "layer 1: -1.0 %. Above chance at 1 of 2 layers."
    )


def test_information_within_its_null_is_no_knowledge():
    finding = only(usage_information=tables.information(mutual_information=[0.02, 0.08]))
    assert finding.title == "Experts tell nothing about the domain that chance would not"


def test_information_of_one_layer():
    finding = only(usage_information=tables.information().iloc[1:])
    assert finding.title == "The experts of layer 7 tell domains apart"
    assert "Least" not in finding.text


def test_dead_busiest_and_rare_experts():
    finding = only(usage=tables.usage({1: [500, 500, 500, 500], 7: [0, 800, 20, 1180]}, num_tokens=2000))
    assert finding.title == "1 of 8 experts were never selected"
    assert finding.text == (
        "layer 7: 0. The busiest, expert 3 of layer 7, takes 59.0 % of all tokens (95 % interval 54.0 to 64.0 "
        "%), 1.18 times its fair share of 50.0 %. 1 expert in use gets less than a tenth of a fair share."
    )


def test_no_expert_is_dead():
    assert only(usage=tables.usage({1: [500, 500, 500, 501]})).title == "None of 4 experts is dead"


def test_least_sure_layer_and_domain():
    finding = only(router_entropy=tables.entropy())
    assert finding.title == "The router is least sure at layer 1"
    assert finding.text == (
        "Its entropy there is 86.6 % of the most there could be (1.20 nats, mean over 1,000 tokens), and its "
        "first choice gets 40.0 % of the probability. It is surest at layer 7: 65.0 %, first choice 60.0 %. Of "
        "the domains, verse leaves it least sure (81.0 %), law surest (70.0 %), mean over layers."
    )


def test_sureness_of_one_layer_ranks_no_layers():
    finding = only(router_entropy=tables.entropy().iloc[:3])
    assert finding.title == "How sure the router is at layer 1"
    assert "surest at layer" not in finding.text
    assert finding.text.endswith("law surest (80.0 %).")


def test_vocabulary_counts_top_k_and_compares_with_independence():
    finding = only(vocabulary=tables.vocabulary())
    assert finding.title == "Experts follow the token read"
    assert finding.text == (
        "At layer 1 a token type's own expert gets 90.0 % of its occurrences, where independent routing at the "
        "same counts would give 65.0 % (mean over 120 token types seen at least 10 times, by the token read). "
        "Excess over independent routing, mean over layers: the token read 20.0 %, the token that comes next "
        "7.5 %."
    )


def test_vocabulary_at_chance_is_no_specialization():
    frame = tables.vocabulary()
    frame["vocabulary_specialization"] = 0.4
    frame["vocabulary_specialization_independent"] = 0.5
    assert only(vocabulary=frame).title == "Experts do not specialise in token types"


def test_strongest_pair():
    given = {"coactivation_pairs": tables.coactivation_pairs(), "coactivation": tables.coactivation()}
    finding = only(**given)
    assert finding.title == "Experts 1 and 3 of layer 7 are selected together"
    assert finding.text == (
        "450 tokens of 1,000 select both, 3 times the 150 that independent routing would bring together. Of "
        "the tokens of expert 1, 75.0 % select expert 3 too. The highest lift of 11 pairs, so a description of "
        "this sample, not an estimate."
    )


def test_paths_of_two_and_of_more_layers():
    finding = only(paths=tables.paths())
    assert finding.title == "The expert at layer 1 tells the one at layer 7"
    more = tables.paths(layer=[1, 7], next_layer=[7, 9], top1_nmi=[0.31, 0.2], top1_nmi_independent=[0.002, 0.001])
    finding = only(paths=more)
    assert finding.title == "The expert at layer 1 tells the one at layer 7 best"
    assert finding.text.endswith("Least between layers 7 and 9: 0.200 (0.00100).")


def test_paths_of_one_layer_are_none():
    assert find(results({"paths": tables.paths().iloc[:0]})) == []


def test_key_numbers_per_layer():
    numbers = per_layer(results(tables.everything()))
    assert numbers.columns == [
        "layer",
        "router entropy",
        "top-1 probability",
        "MaxVio",
        "never used",
        "domain information",
        "vocabulary",
    ]
    assert numbers.rows == [
        ["1", "86.6 %", "40.0 %", "0.200", "0", "-1.0 %", "90.0 %"],
        ["7", "65.0 %", "60.0 %", "0.600", "1", "30.0 %", "80.0 %"],
    ]
    overall = {series.label: series.show(series.overall) for series in numbers.series}
    assert overall["never used"] == "1"
    assert overall["router entropy"] == "75.8 %"


def test_key_numbers_where_no_leading_one_is_known():
    distributions = pd.DataFrame({"layer": [1, 1, 7], "quantity": ["logit", "weight", "logit"], "std": [1.5, 9.0, 2.0]})
    overlap = pd.DataFrame(
        {"layer": [1, 7], "measure": ["jaccard"] * 2, "mean": [0.1, 0.2], "mean_independent": [0.05, 0.07]}
    )
    numbers = per_layer(results({"routing_distributions": distributions, "overlap": overlap, "paths": tables.paths()}))
    assert numbers.columns == ["layer", "logit spread", "overlap (Jaccard)", "to the next layer"]
    assert numbers.rows == [["1", "1.50", "10.0 %", "0.310"], ["7", "2", "20.0 %", "–"]]
    assert numbers.series[1].meaning.endswith("; 6.0 % if routing were independent of it")


def test_key_numbers_of_a_run_of_one_analysis():
    numbers = per_layer(results({"router_entropy": tables.entropy()}))
    assert numbers.columns == ["layer", "router entropy", "top-1 probability"]
    assert per_layer(results({})).series == []
