"""The public `capture` as a whole: its numbers against a plain loop, what it refuses, what it leaves on disk."""

from __future__ import annotations

import errno
import importlib.metadata
import json
import os
import sys
from itertools import islice
from pathlib import Path

import loky
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM

import moescope
from moescope.analyses import registry
from moescope.analyses.base import Analysis, Given
from moescope.context import Context
from moescope.corpora import Sampler
from moescope.errors import AnalysisFailed, EnvironmentFailure, MoescopeWarning, ResultsError, UsageError, warn
from moescope.models import load_model
from moescope.results import ResultsFolder, writing
from moescope.run import answering
from tests.analyses.runs import WORDS, small_corpus, tiny_model
from tests.families import build, save

NUM_TOKENS = 1200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return small_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.filterwarnings("ignore:.*ran alone")
@pytest.mark.parametrize("batch_tokens", [1, 700, 8192])
@pytest.mark.parametrize("family", ["olmoe", "mixtral", "qwen3_moe"])
def test_counts_and_entropies_equal_a_plain_loop(family, batch_tokens, corpus, tmp_path):
    """Each document alone through transformers' own model; ours one by one, in some batches, in one with padding."""
    folder = save(build(family, seed=11), tmp_path)
    model = load_model(str(folder), device="cpu")
    reference = AutoModelForCausalLM.from_pretrained(folder).eval()
    num_selected = reference.config.num_experts_per_tok
    counts = np.zeros((len(model.layers), len(corpus.domains), model.num_experts), dtype=np.int64)
    entropies = [[[] for _ in corpus.domains] for _ in model.layers]
    for batch in Sampler(corpus, model.tokenizer, num_tokens=NUM_TOKENS, batch_tokens=1):
        assert batch.input_ids_BS.shape[0] == 1
        assert batch.keep_T.tolist() == list(range(batch.input_ids_BS.shape[1]))
        domain = int(batch.tokens.domain_ids_B)
        with torch.no_grad():
            routers = reference(input_ids=batch.input_ids_BS, output_router_logits=True).router_logits
        for position, logits_TE in enumerate(routers):
            for logits_E in logits_TE.double().numpy():
                p_E = np.exp(logits_E - logits_E.max()) / np.exp(logits_E - logits_E.max()).sum()
                counts[position, domain, np.argsort(-p_E, kind="stable")[:num_selected]] += 1
                entropies[position][domain].append(float(-(p_E * np.log(p_E)).sum()))
    run = moescope.capture(model, corpus, ["usage", "entropy"], NUM_TOKENS, batch_tokens=batch_tokens)
    assert run.tables["usage"]["num_selected"].values.tolist() == counts.tolist()
    assert counts.sum() == len(model.layers) * num_selected * NUM_TOKENS
    for position, layer in enumerate(model.layers):
        for domain, values in zip(corpus.domains, entropies[position], strict=True):
            cell = run.tables["entropy"].sel(layer=layer, domain=domain)
            assert int(cell["num_tokens"]) == len(values)
            assert float(cell["entropy_mean"]) == pytest.approx(np.mean(values), abs=1e-5)
            assert float(cell["entropy_std"]) == pytest.approx(np.std(values), abs=1e-5)


def test_one_domain_has_usage_without_what_compares_domains(model, corpus):
    run = moescope.capture(model, corpus.first(1), ["usage", "entropy"], 300)
    assert [note for note in run.manifest.notes if note.startswith("usage: ") and "one domain" in note]
    assert set(run.frames) == {"usage", "usage_load", "router_entropy"}
    assert set(run.figures) >= {"usage_frequency", "usage_load"}
    assert not {"usage_specialization", "usage_information", "usage_divergence"} & set(run.figures)
    assert run.frames["usage"]["lift"].isna().all()
    table = run.tables["usage"]
    compared = [name for name in table.data_vars if "information" in name or "divergence" in name or "lift" in name]
    assert len(compared) > 10
    assert all(table[name].isnull().all() for name in compared)
    counts = table["num_selected"].values[:, 0]
    assert (table["max_violation_all"].values == counts.max(axis=1) / counts.mean(axis=1) - 1).all()


def test_one_layer_has_no_paths_and_it_is_said(model, corpus):
    with pytest.warns(MoescopeWarning, match="only layer 2"):
        run = moescope.capture(model, corpus, ["paths", "entropy"], 300, layers=[2])
    assert "entropy" in run.tables


class Doubtful(Analysis):
    """Warns of something, and fails if asked to."""

    name = "doubtful"
    min_domains = 0
    needs_text = False

    def __init__(self, *, fails: bool = False) -> None:
        self.fails = fails
        self.times = 0

    def statistics(self, context):
        return {}

    def measure(self, model, statistics, context):
        return model.name

    def table(self, statistics, context, given=Given()):
        self.times += 1
        warn("expert 3 is odd")
        if self.fails:
            raise ValueError("too odd")
        return xr.Dataset({"oddness": ("layer", [1.0])}, coords={"layer": [0]}, attrs={"measured": given.measured})

    def frames(self, table, context):
        return {}

    def figures(self, table, context):
        yield from ()


def test_tables_are_made_once_and_reading_them_changes_nothing(model, corpus):
    doubtful = Doubtful()
    with pytest.warns(MoescopeWarning, match="expert 3 is odd"):
        run = moescope.capture(model, corpus, ["entropy", doubtful], 300)
    before = run.manifest.model_dump()
    assert list(run.tables) == ["entropy", "doubtful"]
    assert run.tables["entropy"] is run.tables["entropy"]
    assert run.tables["doubtful"].attrs["measured"] == model.name
    assert doubtful.times == 1
    assert run.manifest.model_dump() == before
    assert run.manifest.notes == ["expert 3 is odd"]
    assert run.manifest.total_seconds >= run.manifest.pass_seconds > 0
    with pytest.raises(KeyError):
        run.tables["usage"]


def test_an_analysis_that_fails_loses_no_other(model, corpus, tmp_path):
    with pytest.raises(AnalysisFailed, match="doubtful failed: ValueError: too odd") as failed:
        moescope.capture(model, corpus, ["entropy", Doubtful(fails=True)], 300)
    run = failed.value.run
    assert list(run.tables) == ["entropy"] and run.manifest.notes == ["expert 3 is odd"]
    assert (run.save(tmp_path / "kept") / "tables" / "router_entropy.csv").is_file()
    assert isinstance(failed.value.__cause__, ValueError)
    with pytest.raises(ValueError, match="too odd"):  # nothing else to keep: the error as it is
        moescope.capture(model, None, [Doubtful(fails=True)])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_tokens": 0}, "num_tokens is 0"),
        ({"num_tokens": 2}, "3 domains"),
        ({"batch_tokens": 0}, "batch_tokens is 0"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"layers": [9]}, "no MoE layer 9"),
        ({"analyses": []}, "no analysis was asked for"),
        ({"analyses": ["horoscope"]}, "horoscope"),
    ],
)
def test_what_makes_no_sense_is_refused(model, corpus, changes, said):
    with pytest.raises(UsageError, match=said) as error:
        moescope.capture(model, corpus, **({"analyses": ["entropy"], "num_tokens": 300} | changes))
    assert error.value.exit_code == 2


def test_what_a_run_leaves_behind(model, corpus, tmp_path):
    def saved(name, seed):
        run = moescope.capture(model, corpus, ["entropy", "usage"], NUM_TOKENS, layers=[1, 3], seed=seed)
        return run, run.save(tmp_path / name)

    (run, first), (_, again), (_, other) = saved("first", 4), saved("again", 4), saved("other", 5)
    tables = sorted(path.name for path in (first / "tables").iterdir())
    assert {"usage.csv", "usage.parquet", "router_entropy.csv", "router_entropy.parquet"} <= set(tables)
    assert all((first / "tables" / name).read_bytes() == (again / "tables" / name).read_bytes() for name in tables)
    usage = Path("tables") / "usage.csv"
    assert (first / usage).read_bytes() != (other / usage).read_bytes()

    manifest = json.loads((first / "manifest.json").read_text())
    for package in ("moescope", "torch", "transformers"):
        assert manifest[f"{package}_version"] == importlib.metadata.version(package)
    known = {
        "model": model.name,
        "revision": None,
        "family": "olmoe",
        "config_hash": model.config_hash,
        "dtype": "float32",
        "device": "cpu",
        "corpus": corpus.name,
        "corpus_fingerprint": corpus.fingerprint,
        "num_tokens": NUM_TOKENS,
        "seed": 4,
        "layers": [1, 3],
        "analyses": ["entropy", "usage"],
    }
    assert {name: manifest[name] for name in known} == known
    assert [domain["name"] for domain in manifest["domains"]] == sorted(WORDS)
    assert sum(domain["num_tokens"] for domain in manifest["domains"]) == NUM_TOKENS
    assert all(domain["num_documents"] > 0 for domain in manifest["domains"])
    assert manifest["options"]["batch_tokens"] == 8192
    assert manifest["total_seconds"] >= manifest["pass_seconds"] > 0
    assert manifest["peak_memory_bytes"] > 10**7

    for name, statistic in run.statistics.items():
        kind = type(statistic)
        loaded, again = (kind.load(first / "state" / f"{name}.safetensors") for _ in range(2))
        assert loaded.compute().equals(statistic.compute())
        with pytest.raises(UsageError, match="it would count twice"):
            loaded.merge(again)

    with pytest.raises(ResultsError, match="exists already"):
        run.save(first)
    assert run.save(first, force=True) == first


WRITES = {
    "table": lambda folder, run: folder.write_table("x", run.frames["router_entropy"]),
    "arrays": lambda folder, run: folder.write_arrays("x", {"x": np.random.default_rng(0).random(10**5)}),
    "state": lambda folder, run: folder.write_state("x", run.statistics["entropy"]),
    "figure": lambda folder, run: folder.write_figures(islice(run.figures.items(), 1)),
    "text": lambda folder, run: folder.write_text("x.txt", "x" * 10**5),
}


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on the size of files")
@pytest.mark.parametrize("kind", WRITES)
def test_a_disk_that_takes_no_more_leaves_nothing(kind, model, corpus, tmp_path):
    import resource

    run = moescope.capture(model, corpus, ["entropy"], 300, layers=[1])
    list(run.frames)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with (
        pytest.raises(EnvironmentFailure, match=r"cannot write .*out") as error,
        ResultsFolder(tmp_path / "out") as folder,
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # bytes
            WRITES[kind](folder, run)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == 1
    assert error.value.__cause__.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def written_figures(path, figures):
    with ResultsFolder(path) as folder:
        folder.write_figures(figures)
    return {file.name: file.read_bytes() for file in (path / "figures").iterdir()}


@pytest.mark.slow
def test_figures_drawn_by_other_processes_are_the_same_bytes(model, corpus, tmp_path, monkeypatch):
    run = moescope.capture(model, corpus, ["entropy", "usage"], 300)
    monkeypatch.setattr(loky, "cpu_count", lambda: 1)
    here = written_figures(tmp_path / "here", run.figures.items())
    monkeypatch.setattr(loky, "cpu_count", lambda: 2)
    assert len(here) / 2 > writing.FEW_FIGURES
    assert written_figures(tmp_path / "elsewhere", run.figures.items()) == here


def test_figures_whose_process_ends_are_drawn_all_the_same(tmp_path, monkeypatch):
    here = os.getpid()

    class Deadly(Figure):
        def savefig(self, *args, **kwargs):
            if os.getpid() != here:
                os._exit(1)
            super().savefig(*args, **kwargs)

    monkeypatch.setattr(loky, "cpu_count", lambda: 2)
    names = [f"figure_{number}" for number in range(writing.FEW_FIGURES + 4)]
    files = written_figures(tmp_path / "out", ((name, Deadly()) for name in names))
    assert set(files) == {f"{name}.{suffix}" for name in names for suffix in ("pdf", "png")}
    assert all(content[:4] in (b"%PDF", b"\x89PNG") for content in files.values())


def test_figures_are_drawn_where_there_can_be_no_other_processes(tmp_path, monkeypatch):
    def refused(max_workers, **_):
        raise OSError(errno.ENOSYS, "no semaphores")

    monkeypatch.setattr(loky, "cpu_count", lambda: 2)
    monkeypatch.setattr(loky, "ProcessPoolExecutor", refused)
    names = [f"figure_{number}" for number in range(writing.FEW_FIGURES + 1)]
    files = written_figures(tmp_path / "out", ((name, Figure()) for name in names))
    assert set(files) == {f"{name}.{suffix}" for name in names for suffix in ("pdf", "png")}


def test_two_runs_that_began_together_both_keep_their_results(tmp_path):
    first, second = (ResultsFolder(None, default=tmp_path / "run") for _ in range(2))
    assert first.path == second.path
    for folder, text in ((first, "one"), (second, "two")):
        with folder:
            folder.write_text("who", text)
    assert {path.name: (path / "who").read_text() for path in tmp_path.iterdir()} == {"run": "one", "run-2": "two"}


def test_what_fails_leaves_no_folder_that_was_made_for_it(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ZeroDivisionError), ResultsFolder(tmp_path / "mine" / "new" / "deep" / "run"):
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]
    with ResultsFolder(tmp_path / "mine" / "new" / "run") as folder:
        folder.write_text("x", "x")
    with pytest.raises(ZeroDivisionError), ResultsFolder(tmp_path / "mine" / "new" / "other"):
        raise ZeroDivisionError
    assert (tmp_path / "mine" / "new" / "run" / "x").read_text() == "x"


@pytest.mark.parametrize("num_tokens", [300, 100_000])
def test_a_run_of_everything_measures_each_thing_once(num_tokens, model, corpus):
    """What analyses share they declare alike at any size of sample, and what one needs of another is not made twice."""
    context = Context(
        model=model.info, layers=tuple(model.layers), domains=corpus.domains, groups=corpus.groups,
        corpus_name=corpus.name, num_tokens=num_tokens, seed=0, predictions=True,
    )  # fmt: skip
    asked = [registry.find(name, in_report=True) for name in registry.names()]
    steps, _ = answering.steps_of(asked, context)
    assert sorted(step.analysis.name for step in steps) == sorted(registry.names())
    assert answering.statistics_of(steps, context)
