"""Files and folders: what is read, what is skipped and counted, what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moescope.corpora import Sampler, files, load_corpus
from moescope.corpora.document import MAX_CHARACTERS
from moescope.corpora.files import FilesCorpus
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError, MoescopeWarning
from tests.corpora import folders
from tests.corpora.texts import tokenizer, words


def read(corpus, seed=0) -> tuple[dict[str, str], Problems]:
    problems = Problems()
    documents = list(corpus.stream(seed, set(corpus.domains), problems))
    assert len({document.document_id for document in documents}) == len(documents)
    return {document.document_id: document.text for document in documents}, problems


def test_a_file_is_one_domain_named_after_it(tmp_path: Path):
    path = folders.write_jsonl(tmp_path / "letters.v2.jsonl.gz", [{"text": "one"}, {"text": "two"}])
    corpus = load_corpus(path)
    assert (corpus.name, corpus.domains) == ("letters.v2", ("letters.v2",))
    assert read(corpus)[0] == {"letters.v2.jsonl.gz:1": "one", "letters.v2.jsonl.gz:2": "two"}
    (tmp_path / "note.txt").write_text("three")
    corpus = load_corpus(tmp_path / "note.txt")
    assert (corpus.domains, read(corpus)[0]) == (("note",), {"note.txt": "three"})


def test_a_folder_without_sub_folders_is_one_domain(tmp_path: Path):
    folder = tmp_path / "my.letters"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    folders.write_parquet(folder / "b.parquet", [{"text": "two"}])
    (folder / "README.md").write_text("about the data")
    (folder / "loader.py").write_text("about the data")
    (folder / "picture.png").write_bytes(b"png")
    (folder / ".hidden.txt").write_text("hidden")
    corpus = load_corpus(folder)
    assert corpus.domains == ("my.letters",)
    assert read(corpus)[0] == {"a.txt": "one", "b.parquet:0": "two"}
    assert corpus.notes == (
        "left out of my.letters: 2 files about the data beside it (README, scripts, and the like); "
        "1 files of kinds that are not read (1 .png)",
    )


def test_files_beside_the_domains_are_left_out_and_said(tmp_path: Path):
    folders.write_text_folder(tmp_path / "corpus")
    (tmp_path / "corpus" / "notes.txt").write_text("belongs to no domain")
    (tmp_path / "corpus" / "empty").mkdir()
    (tmp_path / "corpus" / ".git").mkdir()
    (tmp_path / "corpus" / ".git" / "a.txt").write_text("hidden")
    corpus = load_corpus(tmp_path / "corpus")
    assert corpus.domains == ("alpha", "beta", "gamma")
    assert corpus.notes == (
        "sub-folders of corpus without a file that is read: empty (no files)",
        "1 files beside the sub-folders of corpus belong to no domain: notes.txt",
    )


def test_domains_of_a_field_come_by_frequency(tmp_path: Path):
    rows = [{"text": "t", "d": name} for name in ["b", "c", "a", "c", "b", "c", 7, "b"]]
    corpus = load_corpus(folders.write_jsonl(tmp_path / "x.jsonl", rows), domain_field="d")
    assert corpus.domains == ("b", "c", "7", "a")


def test_a_field_of_that_very_name_comes_before_a_path(tmp_path: Path):
    rows = [{"text": "t", "meta.set": "flat", "meta": {"set": "nested"}}]
    assert load_corpus(folders.write_jsonl(tmp_path / "x.jsonl", rows), domain_field="meta.set").domains == ("flat",)


def test_text_may_be_nested_too(tmp_path: Path):
    rows = [{"body": {"raw": "one"}, "source": "a letter", "license": "CC0-1.0"}]
    for path in (folders.write_jsonl(tmp_path / "x.jsonl", rows), folders.write_parquet(tmp_path / "x.parquet", rows)):
        (document,) = load_corpus(path, text_field="body.raw").documents("x")
        assert (document.text, document.source, document.license) == ("one", "a letter", "CC0-1.0")


def test_broken_lines_are_counted_with_their_numbers(tmp_path: Path):
    good = json.dumps({"text": words(1, 300)}).encode()
    broken = [b'{"text": "cut', b"[1, 2]", b"not json", b'"a string"', b"{", b"}}", b"[" * 5000]
    data = [good, *broken, b"", b"  ", good.replace(b"a", b"b"), b'{"other": 1}', b'{"text": null}', b'{"text": " "}']
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"\n".join(data))
    texts, problems = read(load_corpus(path))
    assert sorted(texts) == ["x.jsonl:1", "x.jsonl:11"]
    assert problems.messages() == [
        "7 broken JSON lines skipped (line 2 of x.jsonl, line 3 of x.jsonl, line 4 of x.jsonl, line 5 of x.jsonl, "
        "line 6 of x.jsonl, ...)",
        "3 records without text in the text field skipped (line 12 of x.jsonl, line 13 of x.jsonl, line 14 of x.jsonl)",
    ]
    sampler = Sampler(load_corpus(path), tokenizer(), num_tokens=200)
    with pytest.warns(MoescopeWarning, match="7 broken JSON lines skipped") as caught:
        list(sampler)
    assert [str(warning.message) for warning in caught] == sampler.warnings == problems.messages()


def test_invalid_utf8_is_replaced_and_counted(tmp_path: Path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"caf\xe9 au lait")
    (folder / "b.txt").write_bytes("\ufeffcafé".encode())
    (folder / "c.jsonl").write_bytes(b'{"text": "na\xefve"}\n{"text": "lone \\ud800 half"}\n')
    column = pa.StringArray.from_buffers(
        1, pa.py_buffer(b"\x00\x00\x00\x00\x04\x00\x00\x00"), pa.py_buffer(b"z\xe9r\xf6")
    )
    pq.write_table(pa.table({"text": column}), folder / "d.parquet")
    texts, problems = read(load_corpus(folder))
    assert texts == {
        "a.txt": "caf\ufffd au lait",
        "b.txt": "café",
        "c.jsonl:1": "na\ufffdve",
        "c.jsonl:2": "lone \ufffd half",
        "d.parquet:0": "z\ufffdr\ufffd",
    }
    (message,) = problems.messages()
    assert message.startswith("3 documents with invalid UTF-8 read with U+FFFD in its place (")


def test_records_without_a_domain_are_counted(tmp_path: Path):
    rows = [{"text": "one", "d": "a"}, {"text": "two"}, {"text": "three", "d": None}, {"text": "four", "d": ["a"]}]
    texts, problems = read(load_corpus(folders.write_jsonl(tmp_path / "x.jsonl", rows), domain_field="d"))
    assert list(texts.values()) == ["one"]
    assert problems.counts["no_domain"] == 3


def test_long_documents_are_cut_and_counted(tmp_path: Path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    long = "é漢" * MAX_CHARACTERS
    (folder / "a.txt").write_text(long, "utf-8")
    (folder / "b.txt").write_text("𐍈" * (MAX_CHARACTERS + 1), "utf-8")
    (folder / "c.txt").write_text("𐍈" * MAX_CHARACTERS, "utf-8")
    folders.write_jsonl(folder / "d.jsonl", [{"text": long}])
    problems = Problems()
    documents = {one.document_id: one for one in load_corpus(folder).stream(0, {"corpus"}, problems)}
    assert {name: one.truncated for name, one in documents.items()} == {
        "a.txt": True, "b.txt": True, "c.txt": False, "d.jsonl:1": True,
    }  # fmt: skip
    assert documents["a.txt"].text == documents["d.jsonl:1"].text == long[:MAX_CHARACTERS]
    assert documents["b.txt"].text == documents["c.txt"].text == "𐍈" * MAX_CHARACTERS
    assert "3 documents longer than 262,144 characters read only so far" in problems.messages()[0]


def test_a_collection_larger_than_the_buffer_is_mixed_piece_by_piece(tmp_path: Path, monkeypatch):
    rows = [{"text": f"text {number}"} for number in range(500)]
    corpus = load_corpus(folders.write_jsonl(tmp_path / "x.jsonl", rows))
    for name, value in (("BUFFER_DOCUMENTS", 50), ("BUFFER_CHARACTERS", 300)):
        with monkeypatch.context() as patch:
            patch.setattr(files, name, value)
            order = [int(one.document_id.split(":")[1]) for one in corpus.documents("x")]
        assert sorted(order) == list(range(1, 501))
        assert order != sorted(order)
        # Nothing comes before it was read.
        assert all(line <= position + 52 for position, line in enumerate(order))


def test_a_parquet_files_row_groups_come_in_an_order_by_seed(tmp_path: Path, monkeypatch):
    rows = [{"text": f"text {number}"} for number in range(100)]
    corpus = load_corpus(folders.write_parquet(tmp_path / "x.parquet", rows, row_group_size=10))
    monkeypatch.setattr(files, "BUFFER_DOCUMENTS", 0)
    orders = [[one.document_id for one in corpus.documents("x", seed)] for seed in range(3)]
    assert all(len(set(order)) == 100 for order in orders)
    assert len({order[0].split(":")[1][:-1] for order in orders}) > 1


def test_large_files_are_hashed_by_samples(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(files, "SAMPLE_BYTES", 100)
    path = tmp_path / "x.txt"
    text = words(1, 2000)
    path.write_text(text)
    before = FilesCorpus(path).fingerprint
    for changed in (
        text + "x",
        "X" + text[1:],
        text[:-1] + "X",
        text[: len(text) // 2] + "X" + text[len(text) // 2 + 1 :],
    ):
        path.write_text(changed)
        assert FilesCorpus(path).fingerprint != before
    path.write_text(text)
    assert FilesCorpus(path).fingerprint == before


def write_empty_folder(root: Path) -> Path:
    (root / "corpus" / "domain").mkdir(parents=True)
    (root / "corpus" / "domain" / "picture.png").write_bytes(b"png")
    return root / "corpus"


def write_damaged(root: Path, name: str, data: bytes) -> Path:
    (root / name).write_bytes(data)
    return root / name


REFUSED = {
    "nothing to read": (write_empty_folder, {}, r"has no file we can read.*ending in \.txt"),
    "another kind": (
        lambda root: write_damaged(root, "x.pdf", b"a,b"),
        {},
        r"is not a file we can read.*ending in \.txt",
    ),
    "empty": (lambda root: write_damaged(root, "x.txt", b" \n"), {}, "holds no text"),
    "no such text field": (
        lambda root: folders.write_jsonl(root / "x.jsonl", [{"body": "t", "title": "u"}] * 3),
        {},
        "holds no text: 3 records without.*--text-field; there are body, title",
    ),
    "no such text column": (
        lambda root: folders.write_parquet(root / "x.parquet", [{"body": "t", "title": "u"}] * 3),
        {},
        "holds no text: 3 records without.*--text-field; there are body, title",
    ),
    "only broken lines": (lambda root: write_damaged(root, "x.jsonl", b"x\ny\n"), {}, "2 broken JSON lines skipped"),
    "no such domain field": (
        lambda root: folders.write_jsonl(root / "x.jsonl", [{"text": "t", "kind": "u"}]),
        {"domain_field": "meta.kind"},
        "none of the 1 records.*--domain-field; there are text, kind",
    ),
    "damaged gzip": (
        lambda root: write_damaged(root, "x.jsonl.gz", gzip.compress(b'{"text": "t"}\n' * 99)[:-12]),
        {"domain_field": "d"},
        "cannot be read",
    ),
    "not gzip": (lambda root: write_damaged(root, "x.jsonl.gz", b'{"text": "t"}'), {}, "cannot be read"),
    "not zstandard": (lambda root: write_damaged(root, "x.jsonl.zst", b'{"text": "t"}'), {}, "cannot be read"),
    "not parquet": (lambda root: write_damaged(root, "x.parquet", b"PAR1"), {}, "cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(case: str, tmp_path: Path):
    write, options, message = REFUSED[case]
    with pytest.raises(CorpusError, match=f"(?s){message}") as raised:
        load_corpus(write(tmp_path), **options)
    assert raised.value.exit_code == 2
