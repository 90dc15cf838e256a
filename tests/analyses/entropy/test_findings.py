"""The fact about router confidence against tables made by hand."""

import pandas as pd

from moescope.analyses.finding import Fact, facts, find
from tests.report import tables
from tests.report.folders import results


def only(frame) -> Fact:
    assert find(results({"router_entropy": frame})) == []
    (fact,) = facts(results({"router_entropy": frame}))
    assert fact.topic == "entropy"
    return fact


def test_layer_and_domain_of_highest_entropy():
    fact = only(tables.entropy())
    assert fact.title.endswith("highest at layer 1")
    for number in (
        *("layer 1 is 1.20 nats", "86.6 %", "1,000 tokens", "40.0 %", "Lowest at layer 7: 65.0 %", "60.0 %"),
        *("highest in verse (81.0 %)", "lowest 70.0 % (law)"),
    ):
        assert number in fact.text, number


def test_one_layer_ranks_no_layers():
    fact = only(tables.entropy().iloc[:3])
    assert fact.title.endswith("layer 1 is 86.6 % of its maximum")
    assert "Lowest at layer" not in fact.text
    assert "80.0 % (law)" in fact.text


def test_layers_that_are_not_distinguishable_are_not_ranked():
    fact = only(tables.entropy(layer_tied=[True] * 6))
    assert "not distinguishable between layers" in fact.title
    assert "Lowest at layer" not in fact.text


def test_some_of_the_layers_tie():
    frame = tables.entropy(layer_tied=[True] * 6)
    more = tables.entropy(layer=[9] * 6).iloc[:3].assign(layer_tied=False, normalized_entropy_mean=0.3)
    both = only(pd.concat([frame, more], ignore_index=True))
    assert both.title.endswith("highest at layers 1, 7 (not distinguishable)")
    assert "Lowest at layer 9: 30.0 %" in both.text


def test_domains_that_are_not_distinguishable_are_not_ranked():
    assert "By domain" not in only(tables.entropy(domain_tied=[False, True, True] * 2)).text
