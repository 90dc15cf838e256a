"""What is said of labels, and what is not; the caption of an expert's page."""

from __future__ import annotations

import numpy as np
import pandas as pd

from moescope.analyses import words
from moescope.analyses.finding import find
from tests.report.folders import results
from tests.report.reading import denies, names, unsaid


def profiles(**changes) -> pd.DataFrame:
    frame = {
        "layer": [1, 1, 7, 7],
        "expert": [0, 1, 0, 1],
        "label": ["law ×2.0", "verse ×1.1", "␣the ×4.0", ""],
        "balanced_accuracy": [0.8, 0.52, 0.7, np.nan],
        "ci_low": [0.75, 0.48, 0.65, np.nan],
        "ci_high": [0.84, 0.56, 0.74, np.nan],
        "selection_half_balanced_accuracy": [0.82, 0.6, 0.9, np.nan],
    }
    return pd.DataFrame(frame | changes)


def said(frame: pd.DataFrame, everything: bool = True) -> list:
    tables = {"profile": frame} | ({"profile_best": frame} if everything else {})
    return find(results(tables, analyses=["profile"]))


def test_the_best_is_chosen_on_one_half_and_shown_as_measured_on_the_other():
    (finding,) = said(profiles())
    assert finding.topic == "profile"
    assert unsaid(finding.title, "67") == []
    assert unsaid(finding.text, "0.700", "0.650", "0.740", "3", "2") == []
    assert "␣the ×4.0" in finding.text and "law" not in finding.text
    assert names(finding.text, "expert", 0) and names(finding.text, "layer", 7) and names(finding.text, "layer", 1)


def test_labels_that_a_coin_would_match_are_called_so():
    (finding,) = said(profiles(ci_low=[0.4, 0.45, 0.49, np.nan]))
    assert denies(finding.title) and unsaid(finding.title, "67") == ["67"]


def test_nothing_is_said_of_some_experts_or_without_intervals():
    assert said(profiles(), everything=False) == []
    assert said(profiles(ci_low=np.nan)) == []


def test_the_caption_of_a_page_names_its_expert():
    caption = words.caption("profile_L07E31")
    assert names(caption, "expert", 31) and names(caption, "layer", 7)
