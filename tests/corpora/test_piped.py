"""Standard input and named pipes."""

from __future__ import annotations

import gc
import gzip
import io
import os
import sys
import threading
from pathlib import Path

import pytest
import zstandard

from moescope.corpora import load_corpus
from moescope.errors import CorpusError
from tests.corpora import folders

ROWS = [{"text": f"text {number}", "d": "ab"[number % 2]} for number in range(9)]
PIPED = {
    "lines": folders.lines(ROWS),
    "gzip": gzip.compress(folders.lines(ROWS)),
    "zstandard": zstandard.ZstdCompressor().compress(folders.lines(ROWS)),
}


class Pipe:
    def __init__(self, data: bytes, tty: bool = False):
        self.buffer = io.BytesIO(data)
        self.isatty = lambda: tty


@pytest.mark.parametrize("kind", PIPED)
def test_records_come_through_standard_input(kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", Pipe(PIPED[kind]))
    corpus = load_corpus("-", domain_field="d")
    assert (corpus.name, corpus.domains) == ("stdin", ("a", "b"))
    assert len(list(corpus.documents("a"))) == 5
    # The file lives as long as the corpus or a part of it.
    part, kept = corpus.only(["b"]), corpus.path
    del corpus
    gc.collect()
    assert len(list(part.documents("b"))) == 4
    del part
    gc.collect()
    assert not kept.exists()


def test_text_comes_through_standard_input(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", Pipe(b"just some text\n"))
    assert [one.text for one in load_corpus("-").documents("stdin")] == ["just some text\n"]


@pytest.mark.parametrize("pipe", [Pipe(b""), Pipe(b" \n"), Pipe(b"x", tty=True), None])
def test_nothing_comes_through_standard_input(pipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stdin", pipe)
    with pytest.raises(CorpusError, match="standard input"):
        load_corpus("-")


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
def test_a_named_pipe(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(PIPED["lines"]))
    writer.start()
    assert load_corpus(tmp_path / "pipe", domain_field="d").domains == ("a", "b")
    writer.join()
    with pytest.raises(CorpusError, match="neither a file nor a folder"):
        load_corpus("/dev/null")
