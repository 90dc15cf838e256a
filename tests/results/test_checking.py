"""Results folders of strangers: shown, or refused with an error of ours; nothing outside is read or written."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

import moescope
from moescope.errors import MoescopeError, ResultsError
from moescope.models import load_model
from moescope.results import MANIFEST, Results, ResultsFolder
from moescope.results.checking import TABLE_CELLS
from moescope.run import Run
from tests.analyses.runs import small_corpus
from tests.cli.conftest import run_command, working_in
from tests.families import build, tokenizer
from tests.results.mutants import mutate

SECONDS = 20


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    model = load_model(build("olmoe"), tokenizer=tokenizer())
    corpus = small_corpus(tmp_path_factory.mktemp("text"))
    return moescope.capture(model, corpus, ["entropy", "paths", "coactivation"], 600, layers=[0, 2])


@pytest.fixture(scope="module")
def base(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a run leaves it, with one figure of its many."""
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, 1])
    with ResultsFolder(tmp_path_factory.mktemp("run") / "base") as folder:
        for name, statistic in run.state.items():
            folder.write_state(name, statistic)
        for name, frame in run.frames.items():
            folder.write_table(name, frame)
        for name, text in run.files.items():
            folder.write_text(name, text)
        folder.write_figures([("entropy_layers", figure)])
        folder.write_manifest(run.manifest)
    return folder.path


@pytest.fixture
def copied(base: Path, tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "outside").write_text("secret", "utf-8")
    shutil.copytree(base, tmp_path / "copy")
    with working_in(tmp_path):
        yield tmp_path / "copy"


def shown(folder: Path) -> int:
    """The exit code of `moescope report --from`; an error that is not ours comes through."""
    return run_command("report", "--from", folder)


def loaded(folder: Path, run: Run) -> str:
    """What came of loading each state: "works" or "refused"."""
    for key, statistic in run.state.items():
        try:
            type(statistic).load(folder / "state" / f"{key}.safetensors").compute()
        except MoescopeError:
            return "refused"
    return "works"


def test_the_folder_itself_is_shown_and_loaded(copied: Path, run: Run) -> None:
    assert shown(copied) == 0
    assert loaded(copied, run) == "works"
    assert "secret" not in (copied / "index.html").read_text("utf-8")


@pytest.mark.parametrize(("seed", "count"), [(0, 20), pytest.param(1, 1000, marks=pytest.mark.slow)])
def test_every_mutant_is_shown_or_refused(
    base: Path, run: Run, seed: int, count: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    draw = random.Random(seed)
    (tmp_path / "outside").write_text("secret", "utf-8")
    results = []
    with working_in(tmp_path):
        for number in range(count):
            folder = tmp_path / f"copy-{number}"
            shutil.copytree(base, folder)
            what = mutate(folder, draw)
            started = time.process_time()
            try:
                code, state = shown(folder), loaded(folder, run)
            except BaseException as error:
                raise AssertionError(what) from error
            assert code in (0, 2), f"{what}: {code}, {capfd.readouterr().err}"
            assert time.process_time() - started < SECONDS, what
            assert "Traceback" not in capfd.readouterr().err
            page = folder / "index.html"
            assert not page.exists() or "c2VjcmV0" not in page.read_text("utf-8"), what  # "secret", in base64
            assert (tmp_path / "outside").read_text("utf-8") == "secret"
            results.append(code == 2 or state == "refused")
            shutil.rmtree(folder)
    assert count // 4 < sum(results) < count


@pytest.mark.parametrize(
    ("version", "said"),
    [(99, "update moescope"), (2, "run the command again"), ("x", "no manifest of moescope"), (True, "no manifest")],
)
def test_other_versions_are_refused(copied: Path, version: Any, said: str) -> None:
    manifest = json.loads((copied / MANIFEST).read_text("utf-8"))
    manifest |= {"schema_version": version, "invented_later": 1}
    (copied / MANIFEST).write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ResultsError, match=said):
        Results.read(copied)


def test_sizes_are_bounded(copied: Path) -> None:
    """A manifest of 100 MB (of holes), and a table of some kilobytes that says it holds billions of values."""
    table = copied / "tables" / "router_entropy.parquet"
    rows = TABLE_CELLS // 2
    runs = pa.DictionaryArray.from_arrays(pa.array([0] * 4096, pa.int8()), pa.array(["x"]))
    with pq.ParquetWriter(table, pa.schema([(name, runs.type) for name in "abc"])) as writer:
        for _ in range(3):
            writer.write_table(pa.table({name: pa.chunked_array([runs] * (rows // 4096 // 3)) for name in "abc"}))
    assert table.stat().st_size < 2**23
    with pytest.raises(ResultsError, match="rows of 3 columns"):
        Results.read(copied).table("router_entropy")
    with (copied / MANIFEST).open("r+b") as file:
        file.truncate(100 * 2**20)
    with pytest.raises(ResultsError, match="104,857,600 bytes"):
        Results.read(copied)


@pytest.mark.parametrize(
    "name", ["manifest.json", "tables", "tables/router_entropy.parquet", "figures", "figures/entropy_layers.png"]
)
def test_links_that_lead_outside_are_not_followed(copied: Path, name: str) -> None:
    elsewhere = copied.parent / "elsewhere"
    shutil.move(copied / name, elsewhere)
    (copied / name).symlink_to(elsewhere)
    assert shown(copied) == 2
    assert not (copied / "index.html").exists()
    (copied / name).unlink()
    shutil.move(elsewhere, copied / f"{name}-moved")
    (copied / name).symlink_to(copied / f"{name}-moved")  # inside, a link is a file like others
    assert shown(copied) == 0


@pytest.mark.parametrize("name", ["index.html", ".index.html.partial"])
def test_a_page_is_not_written_through_a_link(copied: Path, name: str) -> None:
    (copied / name).symlink_to(copied.parent / "outside")
    assert shown(copied) == 0
    assert (copied.parent / "outside").read_text("utf-8") == "secret"
    assert not (copied / "index.html").is_symlink()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_have_the_permissions_that_the_umask_leaves(run: Run, umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        with ResultsFolder(tmp_path / "out") as folder:
            for name, statistic in run.state.items():
                folder.write_state(name, statistic)
            folder.write_table("router_entropy", run.frames["router_entropy"])
            folder.write_arrays("some", {"one": np.arange(3)})
            folder.write_figures([("entropy_layers", Figure())])
            folder.write_manifest(run.manifest)
        with working_in(tmp_path):
            assert shown(folder.path) == 0
    finally:
        os.umask(before)
    paths = [folder.path, *folder.path.rglob("*")]
    assert len(paths) > 8
    for path in paths:
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        assert stat.S_IMODE(path.stat().st_mode) == expected, path
