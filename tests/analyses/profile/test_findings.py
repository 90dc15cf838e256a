"""What is said of labels, and what is not; the caption of an expert's page."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from moescope.analyses import words
from moescope.analyses.finding import find
from tests.report.folders import results
from tests.report.reading import denies, names, numbers, unsaid


def profiles(**changes) -> pd.DataFrame:
    frame = {
        "layer": [1, 1, 7, 7],
        "expert": [0, 1, 0, 1],
        "label": ["law ×2.0", "verse ×1.1", "␣the ×4.0", ""],
        "balanced_accuracy": [0.8, 0.52, 0.7, np.nan],
        "ci_low": [0.75, 0.48, 0.65, np.nan],
        "ci_high": [0.84, 0.56, 0.74, np.nan],
        "p_value": [0.0001, 0.3, 0.02, np.nan],
        "selection_half_balanced_accuracy": [0.82, 0.6, 0.9, np.nan],
    }
    return pd.DataFrame(frame | changes)


def said(frame: pd.DataFrame, everything: bool = True) -> list:
    tables = {"profile": frame} | ({"profile_best": frame} if everything else {})
    return find(results(tables, analyses=["profile"]))


def test_the_best_is_chosen_on_one_half_and_shown_as_measured_on_the_other():
    (finding,) = said(profiles())
    assert (finding.topic, finding.verdict) == ("profile", "shown")
    assert finding.p_value == pytest.approx(0.0003)  # the smallest of three
    # By Holm: 0.0001 * 3 and 0.02 * 2 are at most 0.05, 0.3 is not.
    assert unsaid(finding.title, "67") == []
    assert unsaid(finding.text, "0.700", "0.650", "0.740", "3", "2") == []
    assert "␣the ×4.0" in finding.text and "law" not in finding.text
    assert names(finding.text, "expert", 0) and names(finding.text, "layer", 7)


def test_experts_are_counted_after_correction_for_their_number():
    (finding,) = said(profiles(p_value=[0.0001, 0.3, 0.03, np.nan]))
    assert unsaid(finding.title, "33") == []


def test_labels_that_a_coin_would_match_are_called_so():
    (finding,) = said(profiles(p_value=[0.02, 0.4, 0.9, np.nan]))
    assert (finding.verdict, finding.p_value) == ("not shown", pytest.approx(0.06))
    assert denies(finding.title) and not numbers(finding.title)


def test_too_few_documents_are_not_testable():
    (finding,) = said(profiles(p_value=np.nan, ci_low=np.nan, ci_high=np.nan))
    assert (finding.verdict, finding.p_value) == ("not testable", None)
    assert "nan" not in finding.text


def test_nothing_is_said_of_some_experts_or_without_labels():
    assert said(profiles(), everything=False) == []
    assert said(profiles(balanced_accuracy=np.nan)) == []
    assert said(profiles(label="")) == []


def test_the_caption_of_a_page_names_its_expert():
    caption = words.caption("profile_L07E31")
    assert names(caption, "expert", 31) and names(caption, "layer", 7)
