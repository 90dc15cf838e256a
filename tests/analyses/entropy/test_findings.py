"""The finding about router confidence against tables made by hand."""

from moescope.analyses.entropy.findings import FINDINGS
from moescope.analyses.finding import Finding
from tests.report import tables
from tests.report.folders import results


def only(frame) -> Finding:
    (make,) = FINDINGS
    finding = make(results({"router_entropy": frame}))
    assert finding is not None
    assert finding.topic == "entropy"
    return finding


def test_layer_and_domain_of_highest_entropy():
    finding = only(tables.entropy())
    assert "highest at layer 1" in finding.title
    for number in (
        "1.20 nats",
        "86.6 %",
        "1,000 tokens",
        "40.0 %",
        "layer 7: 65.0 %",
        "60.0 %",
        "verse (81.0 %)",
        "law (70.0 %)",
    ):
        assert number in finding.text


def test_one_layer_ranks_no_layers():
    finding = only(tables.entropy().iloc[:3])
    assert "layer 1" in finding.title
    assert "Lowest at layer" not in finding.text
    assert "law (80.0 %)" in finding.text


def test_equal_layers_are_not_ranked():
    frame = tables.entropy()
    frame.loc[frame["domain"] == "all", "normalized_entropy_mean"] = [0.866, 0.860]
    finding = only(frame)
    assert finding.verdict == "not shown"
    assert "Lowest at layer" not in finding.text


def test_no_table_no_finding():
    assert FINDINGS[0](results({})) is None
