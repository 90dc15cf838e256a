"""What every source of text must satisfy, wherever its text lies."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moescope.corpora import Corpus, Document, Sampler, load_corpus
from moescope.corpora.huggingface import HuggingFaceCorpus
from moescope.corpora.problems import Problems
from moescope.errors import CorpusError
from tests.corpora import folders
from tests.corpora.texts import tokenizer

# A file or folder is written first, then opened: so that it can be moved and changed in between.
WRITERS: dict[str, Callable[[Path], Path]] = {
    "text-folder": lambda root: folders.write_text_folder(root / "corpus"),
    "mixed-folder": lambda root: folders.write_mixed_folder(root / "corpus"),
    "jsonl": lambda root: folders.write_jsonl(root / "corpus.jsonl", folders.records(nested=True)),
    "jsonl.gz": lambda root: folders.write_jsonl(root / "corpus.jsonl.gz", folders.records(nested=True)),
    "jsonl.zst": lambda root: folders.write_jsonl(root / "corpus.jsonl.zst", folders.records(nested=True)),
    "parquet": lambda root: folders.write_parquet(root / "corpus.parquet", folders.records(nested=True)),
    "json": lambda root: folders.write_json(root / "corpus.json", folders.records(nested=True)),
    "csv": lambda root: folders.write_csv(root / "corpus.csv", folders.records(nested=True)),
    "arrow": lambda root: folders.write_arrow(root / "corpus.arrow", folders.records(nested=True)),
    "collection": lambda root: _collection(root / "corpus"),
    "hub-parquet": lambda root: folders.write_parquet(root / "corpus.parquet", folders.records(nested=True)),
    "hub-folder": lambda root: _collection(root / "corpus"),
}


def _collection(folder: Path) -> Path:
    rows = folders.records(nested=True)
    folders.write_parquet(folder / "data" / "train-0.parquet", rows[:11])
    folders.write_parquet(folder / "data" / "train-1.parquet", rows[11:])
    return folder


def open_source(kind: str, path: Path) -> Corpus:
    if kind == "hub-parquet":
        return HuggingFaceCorpus("parquet", data_files=str(path), domain_field="meta.set", split="train", name="corpus")
    if kind == "hub-folder":
        return HuggingFaceCorpus(str(path), domain_field="meta.set")
    if kind.endswith("-folder"):
        return load_corpus(path)
    return load_corpus(path, domain_field="meta.set")


@pytest.fixture(params=[*WRITERS, "embedded"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def corpus(kind: str, tmp_path: Path) -> Corpus:
    return load_corpus("embedded") if kind == "embedded" else open_source(kind, WRITERS[kind](tmp_path))


def everything(corpus: Corpus, seed: int = 0) -> list[Document]:
    return list(corpus.stream(seed, set(corpus.domains), Problems()))


def test_domains_are_told(corpus: Corpus):
    assert corpus.name
    assert len(set(corpus.domains)) == len(corpus.domains) > 1
    assert isinstance(corpus.domains, tuple)
    assert set(corpus.groups) <= set(corpus.domains)
    json.dumps([corpus.name, corpus.domains, dict(corpus.groups), corpus.fingerprint, corpus.notes])


def test_one_pass_gives_every_document_once(corpus: Corpus):
    documents = everything(corpus)
    ids = [document.document_id for document in documents]
    assert len(set(ids)) == len(ids)
    assert {document.domain for document in documents} == set(corpus.domains)
    for document in documents:
        assert document.text.strip()
        document.text.encode("utf-8")
    by_domain = [document for domain in corpus.domains for document in corpus.documents(domain)]
    assert {(one.domain, one.document_id, one.text) for one in by_domain} == {
        (one.domain, one.document_id, one.text) for one in documents
    }


@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_lost_or_changed(corpus: Corpus):
    read = {domain: sorted(document.text for document in corpus.documents(domain)) for domain in corpus.domains}
    assert read == {domain: sorted(documents) for domain, documents in folders.texts().items()}


def test_the_seed_draws_the_order(corpus: Corpus):
    for domain in corpus.domains:
        first, again, other = ([one.document_id for one in corpus.documents(domain, seed)] for seed in (0, 0, 1))
        assert first == again
        assert sorted(first) == sorted(other)
    assert [one.document_id for one in everything(corpus, 0)] != [one.document_id for one in everything(corpus, 1)]


def test_a_domains_order_does_not_depend_on_the_others(corpus: Corpus):
    together = everything(corpus, seed=3)
    for domain in corpus.domains[:3]:
        alone = [document.document_id for document in corpus.documents(domain, seed=3)]
        assert alone == [document.document_id for document in together if document.domain == domain]


def test_a_domain_that_is_no_longer_wanted_stops(corpus: Corpus):
    wanted = set(corpus.domains)
    seen: list[str] = []
    for document in corpus.stream(0, wanted, Problems()):
        assert document.domain in wanted
        seen.append(document.domain)
        wanted.discard(document.domain)
    assert sorted(seen) == sorted(corpus.domains)


def test_the_first_domains(corpus: Corpus):
    part = corpus.first(2)
    assert part.domains == corpus.domains[:2]
    assert {document.domain for document in everything(part)} == set(part.domains)
    assert f"first 2 of the {len(corpus.domains)} domains" in part.notes[-1]
    assert corpus.first(len(corpus.domains)).notes == corpus.notes
    for number in (0, -1, len(corpus.domains) + 1):
        with pytest.raises(CorpusError, match=", ".join(corpus.domains)):
            corpus.first(number)
    with pytest.raises(CorpusError, match="no domain 'delta'"):
        corpus.documents("delta")
    assert corpus.only(corpus.domains[::-1]).domains == corpus.domains[::-1]
    with pytest.raises(CorpusError, match="no domain delta"):
        corpus.only(["delta"])


def test_the_sampler_can_use_it(corpus: Corpus):
    sampler = Sampler(corpus, tokenizer(), num_tokens=60 * len(corpus.domains) + 1, seed=2)
    batches = list(sampler)
    assert sampler.num_tokens_D.tolist() == [61] + [60] * (len(corpus.domains) - 1)
    assert sampler.warnings == []
    domain_ids_T = np.concatenate([batch.tokens.domain_ids_T.numpy() for batch in batches])
    assert np.bincount(domain_ids_T).tolist() == sampler.num_tokens_D.tolist()


@pytest.mark.parametrize("kind", WRITERS)
def test_it_is_the_same_elsewhere_on_disk(kind: str, tmp_path: Path):
    path = WRITERS[kind](tmp_path / "here")
    there = tmp_path / "there" / path.name
    there.parent.mkdir()
    first = open_source(kind, path)
    before = [(one.document_id, one.text) for one in everything(first)]
    shutil.copytree(path, there) if path.is_dir() else shutil.copy(path, there)
    second = open_source(kind, there)
    assert second.name == first.name
    assert second.fingerprint == first.fingerprint
    assert [(one.document_id, one.text) for one in everything(second)] == before


@pytest.mark.parametrize("kind", WRITERS)
def test_the_fingerprint_knows_another_content(kind: str, tmp_path: Path):
    path = WRITERS[kind](tmp_path)
    before = open_source(kind, path).fingerprint
    assert open_source(kind, path).fingerprint == before
    file = next(one for one in sorted(path.rglob("*")) if one.is_file()) if path.is_dir() else path
    if file.suffix == ".parquet":
        folders.write_parquet(file, folders.records(nested=True)[:8] * 2)
    elif file.suffix == ".txt":
        file.write_text(file.read_text("utf-8").replace("a", "b"), "utf-8")
    else:
        writers = {".json": folders.write_json, ".csv": folders.write_csv, ".arrow": folders.write_arrow}
        writers.get(file.suffix, folders.write_jsonl)(file, folders.records(nested=True)[:9])
    assert open_source(kind, path).fingerprint != before


def test_endless_reading_stops_when_no_one_asks(corpus: Corpus):
    stream = corpus.stream(0, set(corpus.domains), Problems())
    assert len(list(itertools.islice(stream, 2))) == 2
    stream.close()
