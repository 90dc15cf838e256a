"""How a results folder takes its place: with nothing lost on the way and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import chdir
from pathlib import Path

import psutil
import pytest

from moescope.errors import IncompleteResults, ResultsError
from moescope.results import MANIFEST, ResultsFolder, places
from tests.report.folders import manifest


def write(path: Path, text: str, **options) -> ResultsFolder:
    with ResultsFolder(path, **options) as folder:
        folder.write_manifest(manifest())
        folder.write_text("who", text)
    return folder


def hidden(folder: Path) -> list[Path]:
    return list(folder.glob(f"{places.PREFIX}*"))


@pytest.mark.parametrize("exchange", [True, False])
def test_replacing_leaves_one_folder_with_the_new_content(exchange, tmp_path, monkeypatch):
    if not exchange:
        monkeypatch.setattr(places, "_exchanged", lambda first, second: False)
    write(tmp_path / "out", "old")
    (tmp_path / "out" / "more").write_text("of the old")
    assert write(tmp_path / "out", "new", force=True).path == tmp_path / "out"
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted(["out", MANIFEST, "who"])
    assert (tmp_path / "out" / "who").read_text() == "new"


@pytest.mark.skipif(sys.platform != "linux", reason="one step on Linux only")
def test_linux_exchanges_in_one_step(tmp_path, monkeypatch):
    write(tmp_path / "out", "old")
    renamed = []
    monkeypatch.setattr(places.Path, "rename", lambda *paths: renamed.append(paths))
    write(tmp_path / "out", "new", force=True)
    assert not renamed
    assert (tmp_path / "out" / "who").read_text() == "new"


def test_where_the_new_folder_cannot_be_moved_the_old_one_is_back(tmp_path, monkeypatch):
    """As on a disk that fails between the two renames: the old results stay, and the new ones lie beside."""
    write(tmp_path / "out", "old")
    monkeypatch.setattr(places, "_exchanged", lambda first, second: False)
    rename, times = Path.rename, []

    def failing(first, second):
        times.append(first)
        if len(times) == 2:
            raise OSError("no")
        rename(first, second)

    monkeypatch.setattr(places.Path, "rename", failing)
    folder = write(tmp_path / "out", "new", force=True)
    assert folder.path == tmp_path / "out-2"
    assert (tmp_path / "out" / "who").read_text() == "old"
    assert (tmp_path / "out-2" / "who").read_text() == "new"
    assert not hidden(tmp_path)


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path):
    write(tmp_path / "real" / "out", "old")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "out")
    with pytest.raises(ResultsError, match="exists already"):
        ResultsFolder(tmp_path / "link")
    write(tmp_path / "link", "new", force=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "out" / "who").read_text() == "new"
    (tmp_path / "dangling").symlink_to(tmp_path / "real" / "later")
    write(tmp_path / "dangling", "made")
    assert (tmp_path / "dangling").is_symlink()
    assert (tmp_path / "real" / "later" / "who").read_text() == "made"
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(ResultsError, match="leads to itself"):
        ResultsFolder(tmp_path / "circle")


def test_paths_survive_a_change_of_directory_and_know_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    with chdir(tmp_path):
        folder = ResultsFolder("out")
        with chdir(tmp_path / "elsewhere"), folder:
            folder.write_text("who", "me")
    assert folder.path == tmp_path / "out"
    assert (tmp_path / "out" / "who").is_file()
    assert write("~/out", "at home").path == tmp_path / "home" / "out"
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_error_after_the_manifest_keeps_what_was_written(tmp_path):
    with (
        pytest.raises(IncompleteResults, match=r"results: ZeroDivisionError: odd") as error,
        ResultsFolder(tmp_path / "out") as folder,
    ):
        folder.write_manifest(manifest())
        folder.write_text("who", "me")
        raise ZeroDivisionError("odd")
    assert error.value.exit_code == 1
    assert isinstance(error.value.__cause__, ZeroDivisionError)
    assert (tmp_path / "out" / "who").is_file()
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["failures"] == ["results: ZeroDivisionError: odd"]
    assert "Traceback" in (tmp_path / "out" / "failures.txt").read_text()


def test_ctrl_c_after_the_manifest_keeps_what_was_written(tmp_path):
    with pytest.raises(KeyboardInterrupt) as stop, ResultsFolder(tmp_path / "out") as folder:
        folder.write_manifest(manifest())
        raise KeyboardInterrupt
    assert stop.value.__notes__ == [f"what was finished is in {tmp_path / 'out'}"]
    assert json.loads((tmp_path / "out" / MANIFEST).read_text())["failures"] == ["results: stopped before the end"]


def test_an_incomplete_run_replaces_nothing(tmp_path):
    write(tmp_path / "out", "old")
    with pytest.raises(IncompleteResults) as error, ResultsFolder(tmp_path / "out", force=True) as folder:
        folder.write_manifest(manifest())
        with folder.attempt("figure x"):
            raise ValueError("no")
    assert error.value.path == folder.path == tmp_path / "out-2"
    assert (tmp_path / "out" / "who").read_text() == "old"


RUN = """
    import sys, time
    from pathlib import Path
    from moescope.results import ResultsFolder, places
    with ResultsFolder(Path(sys.argv[1]), force=True) as folder:
        folder.write_text("who", "new")
        if sys.argv[2] == "aside":
            folder.path.rename(folder.writing_to.parent / places.OLD)
        print("ready", flush=True)
        time.sleep(600)
"""


def killed(path: Path, how: str = "") -> int:
    """Has another process begin a results folder, and kills it; returns its id."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(RUN), str(path), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.kill()
    process.wait()
    return process.pid


def test_what_a_killed_run_left_is_removed_by_the_next(tmp_path):
    killed(tmp_path / "first")
    assert len(hidden(tmp_path)) == 1
    write(tmp_path / "second", "me")
    assert [path.name for path in tmp_path.iterdir()] == ["second"]


def test_a_run_killed_while_it_replaced_a_folder_is_completed_by_the_next(tmp_path):
    write(tmp_path / "out", "old")
    killed(tmp_path / "out", "aside")
    assert not (tmp_path / "out").exists()
    write(tmp_path / "second", "me")
    assert (tmp_path / "out" / "who").read_text() == "new"
    assert not hidden(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"host": "another-host"},  # its disk is shared: its processes are not ours to judge
        {"pid": os.getppid(), "started": psutil.Process(os.getppid()).create_time()},  # it lives
        {"pid": "12"},
        {"pid": -1},
        {"started": None},
    ],
)
def test_what_may_belong_to_a_living_run_stays(change, tmp_path):
    leftover = tmp_path / f"{places.PREFIX}abc"
    (leftover / "new").mkdir(parents=True)
    dead = places._owner() | {"pid": 2**22 + 7, "name": "out"}
    (leftover / places.OWNER).write_text(json.dumps(dead | change))
    (tmp_path / f"{places.PREFIX}none").mkdir()  # not said whose it is
    (tmp_path / f"{places.PREFIX}file").write_text("")
    write(tmp_path / "mine", "me")
    assert leftover.is_dir() and len(hidden(tmp_path)) == 3
    (leftover / places.OWNER).write_text(json.dumps(dead))
    write(tmp_path / "second", "me")
    assert not leftover.exists() and len(hidden(tmp_path)) == 2


def test_an_id_that_another_process_has_by_now_is_no_life_sign(tmp_path):
    leftover = tmp_path / f"{places.PREFIX}abc"
    leftover.mkdir()
    owner = places._owner() | {"started": psutil.Process().create_time() - 100, "name": "../../escape"}
    (leftover / places.OWNER).write_text(json.dumps(owner))
    (leftover / "old").mkdir()
    (leftover / "new").mkdir()
    write(tmp_path / "deep" / "er" / "mine", "me")  # another folder: not looked at
    assert leftover.exists()
    write(tmp_path / "mine", "me")
    assert not leftover.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "mine"]


DRAW = """
    import sys, time
    from matplotlib.figure import Figure
    from moescope.results import writing
    writing.loky.cpu_count = lambda: 2
    figures = ((str(number), Figure()) for number in range(10**6))
    for number, _ in enumerate(writing._drawn(figures)):
        if number == 20:
            print("ready", flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_kill_leaves_no_process_that_draws(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(DRAW)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 60
    while any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children):
        assert time.monotonic() < deadline, children
        time.sleep(0.1)
