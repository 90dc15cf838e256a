"""Findings of all questions: which tables each needs, and how they are written."""

import pytest

from moescope.analyses.finding import as_records, find
from tests.report import tables
from tests.report.folders import results


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


def test_records_name_topic_title_text_and_verdict():
    for record in as_records(find(results(tables.everything()))):
        assert set(record) == {"topic", "title", "text", "verdict"}
        assert record["verdict"] in ("shown", "not shown", "not testable")
