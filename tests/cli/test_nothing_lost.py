"""Commands whose pass was finished: what is kept, what is said, how they end."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

from moescope.report import page
from tests.cli.conftest import WORDS

NAMES = ["all", "", "../x", "a/b", "Law", "law", "x" * 300, "=1+1", "\x1b[2Jwiped\u202e"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection whose records name domains of all kinds; one has no visible character."""
    path = tmp_path_factory.mktemp("corpora") / "records.jsonl"
    words = [word for some in WORDS.values() for word in some.split()]
    with path.open("w", encoding="utf-8") as file:
        for number in range(15 * len(NAMES)):
            text = " ".join(words[(number * 7 + index * 3) % len(words)] for index in range(60))
            file.write(json.dumps({"text": text, "domain": NAMES[number % len(NAMES)] or " "}) + "\n")
    return path


def test_domains_of_any_name(moescope, here, tiny, records) -> None:
    given = ["--model", tiny, "--corpus", records, "--domain-field", "domain", "--layers", 0, "--num-tokens", 1800]
    outcome = moescope("usage", *given, "--out", "mine")
    assert outcome.code == 0, outcome.err
    assert "\x1b" not in outcome.out + outcome.err and "\u202e" not in outcome.out + outcome.err
    manifest = json.loads((here / "mine" / "manifest.json").read_text(encoding="utf-8"))
    labels = {domain["name"]: domain["label"] or domain["name"] for domain in manifest["domains"]}
    assert {"all", "../x", "a/b", "Law", "law", "x" * 300} <= set(labels)
    assert labels["all"] == "all (domain)"
    frame = pd.read_parquet(here / "mine" / "tables" / "usage.parquet")
    assert set(frame["domain"]) == {"all", *labels.values()}
    whole, own = (frame[frame["domain"] == name]["num_tokens"].max() for name in ("all", "all (domain)"))
    assert whole == 1800 and 0 < own < 1800
    assert "'=1+1" in (here / "mine" / "tables" / "usage.csv").read_text(encoding="utf-8")


def test_a_page_that_fails_leaves_the_results_and_says_so(moescope, here, tiny, shelf, monkeypatch) -> None:
    def fails(folder):
        raise ZeroDivisionError("odd page")

    monkeypatch.setattr(page, "render", fails)
    given = ["--model", tiny, "--corpus", shelf, "--layers", 0, "--num-tokens", 500]
    outcome = moescope("report", *given, "--analyses", "entropy", "--out", "mine")
    assert outcome.code == 1
    assert "error: could not be made: page: ZeroDivisionError: odd page" in outcome.err
    assert "Results: mine" in outcome.out
    manifest = json.loads((here / "mine" / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["failures"] == ["page: ZeroDivisionError: odd page"]
    assert (here / "mine" / "tables" / "router_entropy.csv").is_file()
    assert "odd page" in (here / "mine" / "failures.txt").read_text(encoding="utf-8")
    monkeypatch.undo()
    monkeypatch.setenv("HOME", str(here))
    assert moescope("report", "--from", "~/mine").code == 0
    assert "odd page" in (here / "mine" / "index.html").read_text(encoding="utf-8")


def test_info_says_what_the_state_takes(moescope, tiny) -> None:
    few, many = (
        json.loads(moescope("info", "--model", tiny, "--json", "--num-domains", domains, "--layers", 0).out)["state"]
        for domains in (3, 300)
    )
    assert many["bytes"]["usage"] > few["bytes"]["usage"] and many["bytes"]["paths"] == few["bytes"]["paths"]
    assert few["total_bytes"] < sum(few["bytes"].values())
    shown = " ".join(moescope("info", "--model", tiny).out.split())
    assert "state of a pass" in shown and "for all questions of a report, 22 domains" in shown
