"""A run whose pass was finished keeps what was made of it, whatever domains are called and whatever fails after it."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

import moescope
from moescope.analyses import registry
from moescope.analyses.entropy.analysis import Entropy
from moescope.corpora.names import labels_of
from moescope.errors import AnalysisFailed, EnvironmentFailure, IncompleteResults
from moescope.models import MoEModel
from moescope.report import page
from tests.analyses.runs import WORDS, tiny_model
from tests.report.html import Page

NAMES = ["all", "", "x" * 300, "a/b", "../x", "Law", "law", "all (domain)", "=1+1", "\x1b[2J", "nan", "<b>bold</b>"]
NUM_TOKENS = 2400


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def corpus():
    draw = np.random.default_rng(0)
    words = [word for some in WORDS.values() for word in some]
    return moescope.load_corpus({name: [" ".join(draw.choice(words, 40)) for _ in range(14)] for name in NAMES})


def test_labels() -> None:
    assert labels_of(["all", "law"]) == ("all (domain)", "law")
    assert labels_of(["all (domain)", "all", "", " ", "(empty)"]) == (
        *("all (domain)", "all (domain) 2", "(empty) 2", "(empty) 3", "(empty)"),
    )
    labels = labels_of(NAMES)
    assert len(set(labels)) == len(NAMES) and "all" not in labels
    assert [label for name, label in zip(NAMES, labels, strict=True) if name not in ("all", "")] == [
        name for name in NAMES if name not in ("all", "")
    ]


@pytest.mark.slow
def test_domains_of_any_name_in_every_question(model: MoEModel, corpus, tmp_path: Path) -> None:
    assert corpus.domains == tuple(NAMES)
    labels = labels_of(NAMES)
    run = moescope.capture(model, corpus, None, NUM_TOKENS, [0, 3], predictions=True, command="report")
    folder = run.save(tmp_path / "out")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["failures"] == [] and not (folder / "failures.txt").exists()
    assert [domain["name"] for domain in manifest["domains"]] == NAMES
    assert [domain["label"] for domain in manifest["domains"]][:2] == ["all (domain) 2", "(empty)"]
    with_domains = 0
    for path in (folder / "tables").glob("*.parquet"):
        frame = pd.read_parquet(path)
        if "domain" in frame:
            with_domains += 1
            assert set(frame["domain"].dropna()) <= {"all", "", *labels}, path.name
    assert with_domains >= 4
    usage = pd.read_parquet(folder / "tables" / "usage.parquet")
    pooled, own = (usage[usage["domain"] == name] for name in ("all", "all (domain) 2"))
    assert pooled["num_tokens"].max() == NUM_TOKENS == 12 * own["num_tokens"].max()
    made = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    assert max(Counter(name.casefold() for name in made).values()) == 1
    assert {path.parent.name for path in folder.rglob("*") if path.is_file()} <= {
        *("out", "tables", "arrays", "state", "figures", "profiles"),
    }
    text = page.write(folder).read_text(encoding="utf-8")
    assert "<b>bold</b>" not in text and "&lt;b&gt;bold" in text
    assert Page(text).headings


class Broken(Entropy):
    """Entropy in which one step fails."""

    step: ClassVar[str] = ""

    def frames(self, table, context):
        if self.step == "frames":
            raise ValueError("no rows")
        return super().frames(table, context)

    def arrays(self, table, context):
        if self.step == "arrays":
            raise ValueError("no arrays")
        return {}

    def files(self, table, context):
        if self.step == "files":
            raise ValueError("no files")
        yield from ()

    def figures(self, table, context):
        first = next(iter(super().figures(table, context)))
        yield first
        if self.step == "figures":
            raise ValueError("no figures")
        yield "router_broken", partial(self.draw, first[1])

    def draw(self, make):
        figure = make()
        if self.step == "making":
            raise ValueError("not made")
        if self.step == "drawing":
            figure.axes[0].set_title("$\\nonsense{$", parse_math=True)
        return figure


def broken(step: str) -> Broken:
    return type("Broken", (Broken,), {"step": step})()


@pytest.mark.parametrize(
    ("step", "said"),
    [
        ("frames", "tables of entropy: ValueError: no rows"),
        ("arrays", "arrays of entropy: ValueError: no arrays"),
        ("files", "files of entropy: ValueError: no files"),
        ("figures", "figures of entropy: ValueError: no figures"),
        ("making", "figure router_broken: ValueError: not made"),
        ("drawing", "figure router_broken: ValueError:"),
    ],
)
def test_a_step_that_fails_loses_nothing_else(step: str, said: str, model: MoEModel, corpus, tmp_path: Path) -> None:
    run = moescope.capture(model, corpus, [broken(step), "paths"], 400, [0, 1])
    with pytest.raises(IncompleteResults) as error:
        run.save(tmp_path / "out")
    assert error.value.exit_code == 1 and error.value.path == tmp_path / "out"
    folder = tmp_path / "out"
    assert any(said in failure for failure in error.value.failures)
    assert json.loads((folder / "manifest.json").read_text())["failures"] == error.value.failures
    assert "Traceback" in (folder / "failures.txt").read_text()
    made = {path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    assert {"state/entropy.safetensors", "state/paths.safetensors", "tables/paths.csv"} <= made
    assert any(name.startswith("figures/paths") for name in made)
    assert ("tables/router_entropy.csv" in made) == (step != "frames")


def test_a_question_that_fails_alone_keeps_its_counts(model: MoEModel, corpus, tmp_path: Path, monkeypatch) -> None:
    def fails(*_):
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(Entropy, "table", fails)
    with pytest.raises(AnalysisFailed, match="entropy failed: ZeroDivisionError: odd") as failed:
        moescope.capture(model, corpus, ["entropy"], 400, [0])
    folder = failed.value.run.save(tmp_path / "out")
    assert (folder / "state" / "entropy.safetensors").is_file()
    assert json.loads((folder / "manifest.json").read_text())["failures"] == ["entropy: ZeroDivisionError: odd"]


def test_relations_that_fail_lose_nothing(model: MoEModel, corpus, monkeypatch) -> None:
    def fails(*_):
        raise ZeroDivisionError("odd")

    (entry,) = registry.entries("joint")
    monkeypatch.setattr(type(registry.find(entry.name)), "table", fails)
    with pytest.raises(AnalysisFailed, match=f"{entry.name} failed") as failed:
        moescope.capture(model, corpus, ["entropy", "usage"], 400, [0])
    assert set(failed.value.run.tables) == {"entropy", "usage"}


def test_a_run_that_does_not_fit_is_refused_before_the_pass(model: MoEModel, corpus, monkeypatch) -> None:
    from moescope.analyses import sizes

    monkeypatch.setattr(sizes, "available_bytes", lambda device: 10**5)
    read: list[int] = []
    with pytest.raises(EnvironmentFailure, match=r"take .* \(usage .*\) for 4 layers.* 100 kB are free") as no:
        moescope.capture(model, corpus, ["entropy", "usage"], 400, progress=read.append)
    assert "`layers`" in str(no.value) and not read


def test_sizes_are_those_of_the_statistics(model: MoEModel, corpus) -> None:
    from moescope.analyses.sizes import available_bytes, state_bytes, total_bytes

    run = moescope.capture(model, corpus, ["usage", "overlap", "coactivation", "map"], 400)
    sizes = state_bytes(run.analyses.values(), run.context)
    held = {name: statistic.nbytes() for name, statistic in run.statistics.items()}
    assert {key: value for keys in sizes.values() for key, value in keys.items()} == held
    assert total_bytes(sizes) == sum(held.values())
    assert "cooccurrence" in sizes["overlap"] and "cooccurrence" in sizes["coactivation"]
    assert 10**6 < available_bytes("cpu") < 2**50
