"""Key numbers per layer against tables made by hand."""

import pandas as pd

from moescope.report.keynumbers import per_layer
from tests.report import tables
from tests.report.folders import results


def test_key_numbers_per_layer():
    numbers = per_layer(results(tables.everything()))
    assert numbers.columns == [
        "layer",
        "MaxVio",
        "never selected",
        "domain information",
        "router entropy",
        "top-1 probability",
        "vocabulary",
    ]
    assert numbers.rows == [
        ["1", "0.200", "0", "-1.0 %", "86.6 %", "40.0 %", "90.0 %"],
        ["7", "0.600", "1", "30.0 %", "65.0 %", "60.0 %", "80.0 %"],
    ]
    overall = {series.label: series.show(series.overall) for series in numbers.series}
    assert overall["never selected"] == "1"
    assert overall["router entropy"] == "75.8 %"


def test_key_numbers_where_no_leading_one_is_known():
    distributions = pd.DataFrame({"layer": [1, 1, 7], "quantity": ["logit", "weight", "logit"], "std": [1.5, 9.0, 2.0]})
    overlap = pd.DataFrame(
        {"layer": [1, 7], "measure": ["jaccard"] * 2, "mean": [0.1, 0.2], "mean_chance": [0.05, 0.07]}
    )
    numbers = per_layer(results({"routing_distributions": distributions, "overlap": overlap, "paths": tables.paths()}))
    assert numbers.columns == ["layer", "logit spread", "overlap (Jaccard)", "to the next layer"]
    assert numbers.rows == [["1", "1.50", "10.0 %", "0.310"], ["7", "2", "20.0 %", "–"]]
    assert numbers.series[1].meaning.endswith("; 6.0 % under independent routing")


def test_key_numbers_of_a_run_of_one_analysis():
    numbers = per_layer(results({"router_entropy": tables.entropy()}))
    assert numbers.columns == ["layer", "router entropy", "top-1 probability"]
    assert per_layer(results({})).series == []
