"""The finding about expert paths against tables made by hand."""

from moescope.analyses.finding import Finding
from moescope.analyses.paths.findings import FINDINGS
from tests.report import tables
from tests.report.folders import results


def found(frame) -> Finding | None:
    (make,) = FINDINGS
    return make(results({"paths": frame}))


def test_one_pair_of_layers():
    finding = found(tables.paths())
    assert finding is not None
    assert (finding.topic, finding.verdict) == ("paths", "shown")
    assert "layer 7" in finding.title
    assert "layer 1" in finding.title
    assert "0.310" in finding.text
    assert "0.00200" in finding.text


def test_more_pairs_of_layers_are_ranked():
    more = tables.paths(layer=[1, 7], next_layer=[7, 9], top1_nmi=[0.31, 0.2], top1_nmi_chance=[0.002, 0.001])
    finding = found(more)
    assert finding is not None
    assert finding.title.endswith("between layers 1 and 7")
    assert finding.text.endswith("between layers 7 and 9: 0.200 (0.00100).")


def test_information_at_chance_is_not_shown():
    finding = found(tables.paths(top1_nmi=[0.0015]))
    assert finding is not None
    assert finding.verdict == "not shown"


def test_one_layer_has_no_paths():
    assert found(tables.paths().iloc[:0]) is None
    assert FINDINGS[0](results({})) is None
