"""`moescope trace`, `--trace`, and `moescope trace import`, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import moescope as library
from tests.traces import formats


@pytest.fixture
def recorded(moescope, tiny, shelf, here) -> Path:
    outcome = moescope("trace", "--model", tiny, "--corpus", shelf, "--num-tokens", 900, "--seed", 4, "--out", "T")
    assert outcome.code == 0, outcome.err
    assert "900 tokens of" in outcome.out and outcome.out.endswith("T\n")
    return here / "T"


def test_usage_from_a_trace_is_usage_of_the_model(moescope, recorded, tiny, shelf, here):
    outcome = moescope("usage", "--trace", "T", "--out", "U")
    assert outcome.code == 0, outcome.err
    assert "note: usage: mean router probability and auxiliary loss are left out" in outcome.err
    outcome = moescope(
        "usage", "--model", tiny, "--corpus", shelf, "--num-tokens", 900, "--seed", 4, "--out", "M"
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    for name in ("usage", "usage_divergence", "usage_information", "specialists"):
        ours, theirs = (here / folder / "tables" / f"{name}.csv" for folder in ("U", "M"))
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.mark.parametrize("question", ["overlap", "vocabulary", "coactivation", "paths", "entropy"])
def test_the_other_questions_take_a_trace(question, moescope, recorded, here):
    outcome = moescope(question, "--trace", "T", "--layers", 0, 2, "--out", "Q")
    assert outcome.code == 0, outcome.err
    manifest = json.loads((here / "Q" / "manifest.json").read_text())
    assert manifest["layers"] == [0, 2] and manifest["seed"] == 4 and manifest["analyses"] == [question]
    assert (here / "Q" / "figures").is_dir()


@pytest.mark.slow
def test_a_report_of_a_trace_has_its_page(moescope, recorded, here):
    outcome = moescope("report", "--trace", "T", "--out", "R")
    assert outcome.code == 0, outcome.err
    assert "similarity was left out" in outcome.err
    page = (here / "R" / "index.html").read_text(encoding="utf-8")
    assert "Router confidence" in page and "Expert paths" in page


def test_what_cannot_be_combined_with_a_trace(moescope, recorded, tiny):
    outcome = moescope("usage", "--trace", "T", "--model", tiny)
    assert outcome.code == 2 and "--trace was given with --model" in outcome.err
    outcome = moescope("usage", "--trace", "nothing")
    assert outcome.code == 2 and "there is no nothing" in outcome.err
    outcome = moescope("similarity", "--trace", "T")
    assert outcome.code == 2 and "--trace" in outcome.err
    outcome = moescope("trace", "--model", tiny, "--out", "T")
    assert outcome.code == 2 and "exists already" in outcome.err
    outcome = moescope("report", "--trace", "T", "--analyses", "map")
    assert outcome.code == 2 and "map takes the model" in outcome.err


def test_responses_are_imported_and_asked(moescope, recorded, tiny, here):
    """As a server's client would save them: prompt_token_ids, choices[0].token_ids and .routed_experts."""
    trace = library.open_trace(recorded)
    documents = formats.documents_of(trace)
    formats.write_tensorrt_llm(here, documents, trace.facts.layers, 4)  # for the shape only
    records = [
        {
            "prompt_token_ids": document.token_ids_T[: document.num_prompt].tolist(),
            "choices": [{"token_ids": document.written, "routed_experts": document.expert_ids_TLK.tolist()}],
            "domain": document.domain,
            "id": document.name,
        }
        for document in documents
    ]
    formats._lines(here / "log.jsonl", records)
    outcome = moescope("trace", "import", "log.jsonl", "--format", "vllm", "--model", tiny, "--out", "V")
    assert outcome.code == 0, outcome.err
    outcome = moescope("coactivation", "--trace", "V", "--out", "C")
    assert outcome.code == 0, outcome.err
    frame = pd.read_csv(here / "C" / "tables" / "coactivation.csv")
    assert set(frame["phase"]) == {"prompt", "generated", "all"}
    assert frame[frame["phase"] == "all"]["num_tokens"].eq(900).all()
    outcome = moescope("entropy", "--trace", "V", "--out", "E")
    assert outcome.code == 2 and "no column router_entropy, which entropy takes" in outcome.err
    # a recording can be asked without converting it first
    outcome = moescope("coactivation", "--trace", "log.jsonl", "--out", "D")
    assert outcome.code == 0, outcome.err
    direct = pd.read_csv(here / "D" / "tables" / "coactivation.csv")
    pd.testing.assert_frame_equal(direct, frame)


def test_counts_answer_usage_without_intervals(moescope, recorded, tiny, here):
    documents = formats.documents_of(library.open_trace(recorded))
    path = formats.write_imatrix(here, documents, [0, 1, 2, 3], 8)
    outcome = moescope("usage", "--trace", path, "--out", "I")
    assert outcome.code == 0, outcome.err
    assert "are left out: the corpus has one domain (nano-imatrix)" in outcome.err
    frame = pd.read_csv(here / "I" / "tables" / "usage.csv")
    assert frame["ci_low"].isna().all() and frame["num_documents"].eq(0).all()
    assert not (here / "I" / "tables" / "specialists.csv").exists()
    outcome = moescope("paths", "--trace", path)
    assert outcome.code == 2 and "no column expert_ids" in outcome.err


def test_sets_without_ranks_answer_what_needs_none(moescope, recorded, here):
    documents = formats.documents_of(library.open_trace(recorded))
    folder = formats.write_megatron(here, documents, [0, 1, 2, 3])
    outcome = moescope("report", "--trace", folder, "--out", "G")
    assert outcome.code == 0, outcome.err
    assert json.loads((here / "G" / "manifest.json").read_text())["analyses"][:3] == ["usage", "coactivation", "paths"]
    paths = pd.read_csv(here / "G" / "tables" / "paths.csv")
    assert paths["nmi"].notna().all() and paths["top1_nmi"].isna().all()
    assert "of first-ranked experts are left out" in outcome.err
