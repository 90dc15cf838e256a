"""Every question with the least text there can be: one domain, one or two documents, a single token."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import moescope
from moescope.models import MoEModel
from tests.analyses.runs import tiny_model

TEXTS = [f"some text number {number} about a thing, sell 12 € or {7 * number}. " * (5 + number) for number in range(12)]
CORPORA: dict[str, dict[str, list[str]]] = {
    "one domain": {"only": TEXTS},
    "one document": {"only": TEXTS[:1]},
    "two documents": {"only": TEXTS[:2]},
    "one document of each domain": {"first": TEXTS[:1], "second": TEXTS[1:2]},
    "one token": {"only": ["a"]},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::moescope.errors.MoescopeWarning")
@pytest.mark.parametrize("texts", CORPORA.values(), ids=CORPORA)
def test_everything_is_answered_or_left_out_and_all_figures_are_drawn(
    model: MoEModel, texts: Mapping[str, Any], tmp_path: Path
) -> None:
    run = moescope.capture(model, moescope.load_corpus(dict(texts)), num_tokens=1000)
    assert {"usage", "entropy", "coactivation", "weights"} <= set(run.tables)
    for name in run.figures:
        run.figures[name].savefig(io.BytesIO(), format="png", dpi=40)
    run.save(tmp_path / "out")
    if len(texts) == 1:
        assert [note for note in run.manifest.notes if "one domain" in note]
        assert not {"specialists", "usage_information", "usage_divergence"} & set(run.frames)
        compared = [name for name in run.tables["usage"].data_vars if "lift" in name or "information" in name]
        assert all(run.tables["usage"][name].isnull().all() for name in compared)
        assert run.frames["map_quality"]["domain_accuracy"].isna().all()
        assert not [one for one in run.findings if one.verdict == "shown" and "domain" in one.title.lower()]
