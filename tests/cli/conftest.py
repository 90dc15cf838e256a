"""A tiny random olmoe checkpoint, a small corpus of three domains, and commands run in an empty folder."""

from __future__ import annotations

import os
import random
import signal
import sys
import warnings
from collections.abc import Callable
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


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working folder; whatever a command changes in this process is as it was afterwards."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    environment, show, handler = dict(os.environ), warnings.showwarning, signal.getsignal(signal.SIGTERM)
    filters = warnings.filters[:]
    yield folder
    os.environ.clear()
    os.environ.update(environment)
    warnings.showwarning = show
    warnings.filters[:] = filters
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def moescope(here, capfd, monkeypatch) -> Callable[..., Outcome]:
    """Runs a command in this process, as the console script would."""

    def run(*words: object, app: Callable[[], App] = build) -> Outcome:
        arguments = [str(word) for word in words]
        monkeypatch.setattr(sys, "argv", ["moescope", *arguments])
        capfd.readouterr()
        code = launch(app(), arguments)
        return Outcome(code, *capfd.readouterr())

    return run
