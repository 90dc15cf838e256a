"""Every form of file: read whole, skipped and counted where broken, in bounded memory, without a traceback."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.corpora import load_corpus
from moescope.corpora.document import MAX_CHARACTERS, MAX_RECORD_BYTES
from moescope.corpora.problems import Problems
from moescope.corpora.readers import json_values, read_documents
from moescope.corpora.records import Fields
from moescope.errors import CorpusError
from tests.corpora import folders
from tests.corpora.texts import words

TEXTS = ["one, two", 'a "quoted" word', "line\nbreak", "é 漢 🙂", '{[\\"]}', "x" * 300]


def table(records: list[dict]) -> pa.Table:
    return pa.Table.from_pylist(records)


def delimited(records: list[dict], delimiter: str, newline: str = "\r\n") -> bytes:
    made = io.StringIO()
    writer = csv.DictWriter(made, list(records[0]), delimiter=delimiter, lineterminator=newline)
    writer.writeheader()
    writer.writerows(records)
    return made.getvalue().encode()


def parquet(records: list[dict]) -> bytes:
    made = io.BytesIO()
    pq.write_table(table(records), made, row_group_size=4)
    return made.getvalue()


def arrow_stream(records: list[dict]) -> bytes:
    made = io.BytesIO()
    with pa.ipc.new_stream(made, table(records).schema) as writer:
        writer.write_table(table(records), max_chunksize=4)
    return made.getvalue()


def arrow_file(records: list[dict]) -> bytes:
    made = io.BytesIO()
    with pa.ipc.new_file(made, table(records).schema) as writer:
        writer.write_table(table(records), max_chunksize=4)
    return made.getvalue()


FORMS: dict[str, Callable[[list[dict]], bytes]] = {
    "lines.jsonl": folders.lines,
    "lines.ndjson": folders.lines,
    "c4-train.00000-of-01024.json": folders.lines,
    "array.json": lambda records: json.dumps(records).encode(),
    "pretty.json": lambda records: b"\xef\xbb\xbf" + json.dumps(records, indent=2, ensure_ascii=False).encode(),
    "one-after-another.json": lambda records: "".join(json.dumps(one, indent=1) for one in records).encode(),
    "table.csv": lambda records: b"\xef\xbb\xbf" + delimited(records, ","),
    "semicolons.csv": lambda records: delimited(records, ";", "\n"),
    "table.tsv": lambda records: delimited(records, "\t"),
    "table.parquet": parquet,
    "stream.arrow": arrow_stream,
    "file.arrow": arrow_file,
}
MUTANTS = 40
PACKED = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
NAMES = [
    (name, packed) for name in FORMS for packed in PACKED if not packed or not name.endswith((".parquet", ".arrow"))
]


def write(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("name", "packed"), NAMES)
def test_every_form_holds_the_same(name: str, packed: str, tmp_path: Path):
    records = [{"text": text, "d": "ab"[number % 2]} for number, text in enumerate(TEXTS)]
    path = write(tmp_path, name + packed, PACKED[packed](FORMS[name](records)))
    corpus = load_corpus(path, domain_field="d")
    assert corpus.name == name.rpartition(".")[0]
    problems = Problems()
    read = [(one.text, one.domain) for one in corpus.stream(0, {"a", "b"}, problems)]
    assert sorted(read) == sorted((record["text"], record["d"]) for record in records)
    assert problems.messages() == []


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.html", "a.rs"])
@pytest.mark.parametrize("packed", PACKED)
def test_plain_files_are_one_document(name: str, packed: str, tmp_path: Path):
    path = write(tmp_path, name + packed, PACKED[packed]("def é():\n    pass\n".encode()))
    assert [one.text for one in load_corpus(path).documents("a")] == ["def é():\n    pass\n"]


anything = st.recursive(
    st.none() | st.text() | st.floats(allow_nan=False) | st.booleans(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@settings(deadline=None, max_examples=100)
@given(
    records=st.lists(st.dictionaries(st.text(max_size=6), anything, max_size=4), max_size=6),
    indent=st.sampled_from([None, 1]),
    in_array=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_json_is_split_where_its_values_end(records, indent, in_array, chunk):
    """Against the json module, wherever a chunk of the file ends."""
    text = json.dumps(records, indent=indent, ensure_ascii=False) if in_array else " ".join(map(json.dumps, records))

    class Slow(io.BytesIO):
        def read(self, size=-1):
            return super().read(chunk)

    values = list(json_values.Splitter().values(Slow(text.encode("utf-8", "surrogatepass"))))
    assert [json.loads(value) for value in values] == records


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes with one kind of damage."""
    kind = draw.randrange(5)
    if not data or kind == 0:
        return data[: draw.randrange(len(data) + 1)]
    position = draw.randrange(len(data))
    length = draw.randrange(1, 9)
    if kind == 1:
        return data[:position] + draw.randbytes(length) + data[position + length :]
    if kind == 2:
        return data[:position] + data[position + length :]
    if kind == 3:
        return data[:position] + data[max(0, position - 50) : position] * draw.randrange(1, 4) + data[position:]
    return (
        data[:position] + draw.choice([b'"', b"{", b"[", b"\x00", b"\xff\xff\xff\x7f", b"\n", b","]) + data[position:]
    )


@pytest.mark.parametrize(("name", "packed"), NAMES)
def test_damage_ends_in_our_error_or_a_count(name: str, packed: str, tmp_path: Path):
    """Whatever bytes a file holds: documents, counted problems, or an error of ours; and that soon."""
    records = [{"text": words(number, 8), "d": "ab"[number % 2], "n": number} for number in range(12)]
    whole = PACKED[packed](FORMS[name](records))
    draw = random.Random(f"{name}{packed}")
    before = time.perf_counter()
    for number in range(MUTANTS):
        data = draw.randbytes(50) if number == 0 else damaged(whole, draw)
        if packed and draw.random() < 0.5:
            data = PACKED[packed](damaged(FORMS[name](records), draw))
        path = write(tmp_path, name + packed, data)
        for fields in (Fields(), Fields(domain="d")):
            problems = Problems()
            try:
                documents = list(read_documents(path, path.name, fields, problems, seed=number, domain="x"))
            except CorpusError as error:
                assert "cannot be read" in error.found
                continue
            assert all(isinstance(one.text, str) and one.text.strip() for one in documents)
            for one in documents:
                (one.text + one.domain).encode("utf-8")
    assert time.perf_counter() - before < 60


def measured(path: Path) -> tuple[list[int], Problems, int]:
    """Lengths of the documents read, what was counted, and the bytes that Python held at most."""
    problems = Problems()
    tracemalloc.start()
    lengths = [len(one.text) for one in read_documents(path, path.name, Fields(), problems, seed=0, domain="x")]
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return sorted(lengths), problems, held


def repeated(path: Path, before: bytes, filler: bytes, count: int, after: bytes) -> Path:
    """A file that is small only because it is compressed."""
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        writer.write(before)
        for _ in range(count):
            writer.write(filler)
        writer.write(after)
    return path


MEGABYTE = 2**20
LONG_LINES = {
    "x.jsonl.zst": (b'{"text": "one two"}\n{"text": "', b"a" * MEGABYTE, b'"}\n{"text": "three four"}\n'),
    "x.json.zst": (b'[{"text": "one two"},\n{"text": "', b"a" * MEGABYTE, b'"},\n{"text": "three four"}]\n'),
    "deep.json.zst": (b'[{"text": "one two"},', b"[" * MEGABYTE, b""),
    "wide.json.zst": (b'[{"text": "one two"},[', b'[],"",' * (MEGABYTE // 6), b'0]\n,{"text": "three four"}]\n'),
    "x.csv.zst": (b'text,d\none two,a\n"', b"a" * MEGABYTE, b'",b\nthree four,b\n'),
    "lines.csv.zst": (b'text,d\none two,a\n"', b"a\n" * (MEGABYTE // 2), b'",b\nthree four,b\n'),
    "cells.csv.zst": (b"text,d\none two,a\n", b"a," * (MEGABYTE // 2), b"\nthree four,b\n"),
    "x.txt.zst": (b"one two", b"a" * MEGABYTE, b""),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if name == "lines.csv.zst" else []) for name in LONG_LINES],
)
def test_a_line_of_any_length_is_skipped_in_bounded_memory(name: str, tmp_path: Path):
    before, filler, after = LONG_LINES[name]
    path = repeated(tmp_path / name, before, filler, 160, after)
    assert path.stat().st_size < 50_000
    lengths, problems, held = measured(path)
    # Not a part of the file's 160 MB, however long the line.
    assert held < 5 * MAX_RECORD_BYTES
    if name == "x.txt.zst":
        assert (lengths, problems.counts) == ([MAX_CHARACTERS], {"long": 1})
        return
    lost_rest = name in ("deep.json.zst", "wide.json.zst", "lines.csv.zst")
    assert lengths == ([7] if lost_rest else [7, 10])
    assert problems.counts == {"too_long": 1, **({"unclosed": 1} if lost_rest else {})}


def test_a_value_repeated_in_a_parquet_file_is_kept_once(tmp_path: Path):
    """4 MB of text in a dictionary, selected 200 times: 800 MB, if each row had its own."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 200, pa.int32()), pa.array(["a" * (4 * MEGABYTE)]))
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet", use_dictionary=True, compression="zstd")
    del column
    usual, own = pa.default_memory_pool(), pa.system_memory_pool()  # the usual pool's maximum is of all earlier tests
    before = own.max_memory()
    pa.set_memory_pool(own)
    try:
        lengths, _, _ = measured(tmp_path / "x.parquet")
    finally:
        pa.set_memory_pool(usual)
    assert lengths == [MAX_CHARACTERS] * 200
    assert own.max_memory() < max(before, 100 * MEGABYTE)


def test_what_expands_beyond_measure_is_not_unpacked(tmp_path: Path):
    column = pa.array(["a" * (80 * MEGABYTE), "short"])
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet", use_dictionary=False, compression="zstd")
    lengths, problems, _ = measured(tmp_path / "x.parquet")
    assert (lengths, problems.counts) == ([], {"expands": 1})


def test_columns_of_one_name(tmp_path: Path):
    twice = pa.Table.from_arrays(
        [pa.array(["first"]), pa.array(["second"]), pa.array(["a"])], names=["text", "text", "d"]
    )
    pq.write_table(twice, tmp_path / "x.parquet")
    with pa.ipc.new_stream(tmp_path / "x.arrow", twice.schema) as writer:
        writer.write_table(twice)
    (tmp_path / "x.csv").write_text("text,text,d\nfirst,second,a\n")
    for name in ("x.parquet", "x.arrow", "x.csv"):
        problems = Problems()
        documents = list(load_corpus(tmp_path / name, domain_field="d").stream(0, {"a"}, problems))
        assert [one.text for one in documents] == ["first"]
        assert problems.messages() == [f"1 column named like another skipped (text of {name})"]


def test_broken_rows_are_counted(tmp_path: Path):
    path = write(tmp_path, "x.csv", b'text,d\none,a\ntwo\nthree,a,b\n"fo"ur,a\nfive,"a"\nsix,"a\nb')
    problems = Problems()
    documents = list(load_corpus(path).stream(0, {"x"}, problems))
    assert sorted(one.text for one in documents) == ["five", "one"]
    assert problems.messages() == [
        "3 broken rows skipped (line 3 of x.csv, line 4 of x.csv, line 5 of x.csv)",
        "1 file with a quote or bracket that is not closed read only so far (line 7 of x.csv)",
    ]


def test_text_inside_records_that_is_not_utf8(tmp_path: Path):
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00"), pa.py_buffer(b"\xff\xfe"))
    nested = pa.StructArray.from_arrays([bad], ["raw"])
    pq.write_table(pa.table({"body": nested}), tmp_path / "x.parquet")
    pq.write_table(pa.table({"body": [{"raw": "good text"}]}), tmp_path / "y.parquet")
    problems = Problems()
    corpus = load_corpus(tmp_path, text_field="body.raw")
    assert [one.text for one in corpus.stream(0, set(corpus.domains), problems)] == ["good text"]
    assert problems.counts == {"broken_row": 1}


def test_domains_that_are_not_utf8_or_too_long(tmp_path: Path):
    raw = pa.array([b"caf\xe9", b"a" * 5000, b""])
    flat = pa.StringArray.from_buffers(len(raw), raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": ["one", "two", "three"], "d": flat}), tmp_path / "x.parquet")
    corpus = load_corpus(tmp_path / "x.parquet", domain_field="d")
    assert set(corpus.domains) == {"caf\ufffd", ""}
    problems = Problems()
    assert len(list(corpus.stream(0, set(corpus.domains), problems))) == 2
    assert problems.counts["no_domain"] == 1


def test_too_many_domains_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("moescope.corpora.files.MAX_DOMAINS", 20)
    path = folders.write_jsonl(tmp_path / "x.jsonl", [{"text": "t", "d": f"value {n}"} for n in range(30)])
    with pytest.raises(CorpusError, match="'d' of x has more than 20 values"):
        load_corpus(path, domain_field="d")


def test_rows_without_a_column_that_is_read_are_counted_at_once(tmp_path: Path):
    pq.write_table(pa.table({"other": pa.nulls(3_000_000, pa.int8())}), tmp_path / "x.parquet")
    before = time.perf_counter()
    with pytest.raises(CorpusError, match="3,000,000 records without text"):
        load_corpus(tmp_path / "x.parquet")
    assert time.perf_counter() - before < 5
