"""The finding about co-activation against tables made by hand."""

from moescope.analyses.coactivation.findings import FINDINGS
from tests.report import tables
from tests.report.folders import results


def test_the_pair_of_highest_lift():
    (make,) = FINDINGS
    given = {"coactivation_pairs": tables.coactivation_pairs(), "coactivation": tables.coactivation()}
    finding = make(results(given))
    assert finding is not None
    assert (finding.topic, finding.verdict) == ("coactivation", "not testable")
    assert "experts 1 and 3 of layer 7" in finding.title
    for number in ("450 tokens of 1,000", "3 times the 150 expected", "expert 1, 75.0 %", "11 pairs"):
        assert number in finding.text
    for name in given:
        assert make(results({other: frame for other, frame in given.items() if other != name})) is None
    assert make(results(given | {"coactivation_pairs": tables.coactivation_pairs().iloc[:0]})) is None
