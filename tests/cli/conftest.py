"""A tiny random olmoe checkpoint, a small corpus of three domains, and commands run in an empty folder."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclopts import App

from moescope.cli.app import build
from moescope.cli.failures import launch
from tests import families

WORDS = {
    "law": "court shall party clause section herein whereas contract liable remedy statute appeal",
    "verse": "moon sea soft night heart sing golden wind silver leaf dream river",
    "code": "def return import self None for in range print class lambda yield",
}


def write_corpus(folder: Path, num_documents: int, num_words: int, domains: int = 3) -> Path:
    draw = random.Random(7)
    for domain, words in list(WORDS.items())[:domains]:
        (folder / domain).mkdir(parents=True)
        for number in range(num_documents):
            text = " ".join(draw.choices(words.split(), k=num_words))
            (folder / domain / f"{number}.txt").write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """olmoe: 4 layers, 8 experts, top-2."""
    return families.save(families.build("olmoe"), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def shelf(tmp_path_factory) -> Path:
    """30 documents of about 600 tokens in each of 3 domains."""
    return write_corpus(tmp_path_factory.mktemp("corpora") / "shelf", 30, 100)


@dataclass
class Outcome:
    """What a command left in the terminal."""

    code: int
    out: str
    err: str


@contextlib.contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Whatever a command changes in this process, the working folder too, is as it was afterwards."""
    environment, show, handler = dict(os.environ), warnings.showwarning, signal.getsignal(signal.SIGTERM)
    filters, arguments, hook = warnings.filters[:], sys.argv, sys.excepthook
    with contextlib.chdir(folder):
        yield
    os.environ.clear()
    os.environ.update(environment)
    sys.argv, sys.excepthook = arguments, hook
    warnings.showwarning = show
    warnings.filters[:] = filters
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def here(tmp_path) -> Iterator[Path]:
    """An empty working folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    with working_in(folder):
        yield folder


def run_command(*words: object, app: Callable[[], App] = build) -> int:
    """Runs a command in this process, as the console script would."""
    arguments = [str(word) for word in words]
    sys.argv = ["moescope", *arguments]
    return launch(app(), arguments)


@pytest.fixture
def moescope(here, capfd) -> Callable[..., Outcome]:
    """Runs a command in the empty working folder."""

    def run(*words: object, **options: Callable[[], App]) -> Outcome:
        capfd.readouterr()
        code = run_command(*words, **options)
        return Outcome(code, *capfd.readouterr())

    return run


@dataclass
class Report:
    """The folder that `moescope report` left, and what it said."""

    folder: Path
    outcome: Outcome


@pytest.fixture(scope="session")
def report(tiny, shelf, tmp_path_factory) -> Report:
    """One report of everything about two layers, to be read by tests and left as it is."""
    folder = tmp_path_factory.mktemp("reports")
    out, err = io.StringIO(), io.StringIO()
    with working_in(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run_command(
            *("report", "--model", tiny, "--corpus", shelf, "--num_tokens", 3000),
            *("--layers", 0, 2, "--seed", 5, "--out", "mine"),
        )
    return Report(folder / "mine", Outcome(code, out.getvalue(), err.getvalue()))
