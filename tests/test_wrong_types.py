"""Every public function with arguments of the wrong type: an error of ours that names the parameter; short reprs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import moescope
from moescope import Ablate, Replace, Scale, Set
from moescope.analyses.atlas.options import AtlasOptions
from moescope.analyses.map.options import MapOptions
from moescope.analyses.similarity.analysis import Similarity
from moescope.errors import UsageError, whole_numbers
from moescope.models import load_model
from moescope.statistics import ExpertUsage
from tests.families import build, tokenizer

TEXTS = {"a": ["the cat sat on the mat", "a dog"] * 12, "b": ["return x + 1", "def f(x):"] * 12}
USAGE: dict[str, Any] = {"num_experts_per_token": 1, "layers": [0], "domains": ["a"]}


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model(build("olmoe"), tokenizer=tokenizer())


@pytest.fixture(scope="module")
def corpus() -> Any:
    return moescope.load_corpus(TEXTS)


def usage(counts: Any = [[[1, 1]]], tokens: Any = [2], **changes: Any) -> ExpertUsage:  # noqa: B006 (read only)
    return ExpertUsage.from_counts(counts, tokens, **{**USAGE, **changes})


LOADING: list[tuple[Callable[[], Any], str]] = [
    (lambda: moescope.load_model(5), "name_or_path"),
    (lambda: moescope.load_model(None), "name_or_path"),
    (lambda: moescope.load_model("nano", layers=99), r"layers=99`[\s\S]*layers=\[99\]"),
    (lambda: moescope.load_model("nano", layers="1"), "layers='1'"),
    (lambda: moescope.load_model("nano", layers=[1.5]), "layers` holds a value of type float"),
    (lambda: moescope.load_model("nano", dtype=5), "dtype"),
    (lambda: moescope.load_model("nano", device=["cpu"]), "device"),
    (lambda: moescope.load_model("nano", revision=5), "revision=5"),
    (lambda: moescope.load_model("nano", trust_remote_code="no"), "trust_remote_code='no'"),
    (lambda: moescope.load_corpus(5), "int"),
    (lambda: moescope.load_corpus(None), "NoneType"),
    (lambda: moescope.load_corpus(b"x"), "bytes"),
    (lambda: moescope.load_corpus([1, 2]), "list of int"),
    (lambda: moescope.load_corpus(["a"]), "no file or folder"),
    (lambda: moescope.load_corpus(TEXTS, text_field=5), "text_field"),
    (lambda: moescope.load_corpus(TEXTS, domains=5), "domains"),
    (lambda: moescope.load_corpus(TEXTS, num_domains="x"), "num_domains"),
    (lambda: moescope.load_corpus(TEXTS).first("x"), "num_domains='x'"),
    (lambda: moescope.load_corpus(TEXTS).only("a"), "domains='a'"),
    (lambda: Ablate("0", 1), "layer='0'"),
    (lambda: Ablate(0, 1.5), "expert=1.5"),
    (lambda: Replace(0, None), "expert=None"),
    (lambda: Ablate(0, 1, positions="3"), "positions='3'"),
    (lambda: Ablate(0, 1, positions=[1.5]), "positions` holds a value of type float"),
    (lambda: Ablate(0, 1, renormalize="x"), "renormalize='x'"),
    (lambda: Scale(0, 1, "x"), "factor='x'"),
    (lambda: Set(0, 1, None), "value=None"),
    (lambda: Set(0, 1, True), "value=True"),
    (lambda: usage("x"), "counts_LDE"),
    (lambda: usage([[["a", "b"]]]), "counts_LDE"),
    (lambda: usage([[[1]], [[1], [2]]]), "counts_LDE` is no array"),
    (lambda: usage([[[float("nan"), 1]]]), "finite"),
    (lambda: usage(num_experts_per_token="x"), "num_experts_per_token='x'"),
    (lambda: usage(layers=0), "layers=0"),
    (lambda: usage(domains="a"), "domains='a'"),
    (lambda: ExpertUsage(num_experts="x", **USAGE), "num_experts='x'"),
    (lambda: ExpertUsage(num_experts=2, **{**USAGE, "layers": 3}), "layers=3"),
    (lambda: ExpertUsage.load(5), "5 cannot be read"),
    (lambda: usage().merge(5), "cannot merge int"),
    (lambda: Similarity(num_samples="x"), "num_samples='x'"),
    (lambda: MapOptions(num_neighbors=None, num_components="5"), "num_components='5'"),
    (lambda: AtlasOptions(method="x"), "method=x"),
]


@pytest.mark.parametrize(("call", "said"), LOADING, ids=[said for _, said in LOADING])
def test_what_is_made_or_loaded(call: Callable[[], Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        call()


CAPTURES: list[tuple[dict[str, Any], str]] = [
    ({"model": "nano"}, "model='nano'"),
    ({"corpus": "embedded"}, r"corpus='embedded'`[\s\S]*load_corpus"),
    ({"corpus": ["a"]}, "corpus"),
    ({"analyses": "entropy"}, "analyses='entropy'"),
    ({"analyses": [5]}, "analyses=5"),
    ({"analyses": [Similarity]}, "analyses` is of type"),
    ({"analyses": [Similarity(method="foo")]}, r"method='foo'` of similarity[\s\S]*cka, cosine"),
    ({"analyses": [Similarity(control="no")]}, "control='no'"),
    ({"skip": "atlas"}, "skip='atlas'"),
    ({"num_tokens": "100"}, "num_tokens='100'"),
    ({"num_tokens": 1.5}, "num_tokens=1.5"),
    ({"layers": 0}, r"layers=\[0\]"),
    ({"layers": [True]}, "layers` holds a value of type bool"),
    ({"seed": "x"}, "seed='x'"),
    ({"sequence_length": "x"}, "sequence_length='x'"),
    ({"batch_tokens": 0.5}, "batch_tokens=0.5"),
    ({"predictions": "yes"}, "predictions='yes'"),
]


@pytest.mark.parametrize(("wrong", "said"), CAPTURES, ids=[said for _, said in CAPTURES])
def test_capture(model: Any, corpus: Any, wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        moescope.capture(**{"model": model, "corpus": corpus, "analyses": ["entropy"], "num_tokens": 100, **wrong})


INTERVENTIONS: list[tuple[dict[str, Any], str]] = [
    ({"model": "nano"}, "model='nano'"),
    ({"changes": Ablate(0, 1)}, "changes` is of type Ablate"),
    ({"changes": [3]}, "3 is not a change"),
    ({"changes": None}, "changes=None"),
    ({"prompt": 5}, "prompt=5"),
    ({"target": 1.5}, "target=1.5"),
    ({"top": "x"}, "top='x'"),
    ({"controls": None}, "controls=None"),
    ({"usage": 5}, "usage=5"),
]


@pytest.mark.parametrize(("wrong", "said"), INTERVENTIONS, ids=[said for _, said in INTERVENTIONS])
def test_intervening(model: Any, wrong: dict[str, Any], said: str) -> None:
    given = {"model": model, "prompt": "a b c", "changes": [Set(0, 1, 0.5)], "controls": 0, **wrong}
    with pytest.raises(UsageError, match=said):
        moescope.intervene(**given)
    if set(wrong) <= {"model", "changes"}:
        with pytest.raises(UsageError, match=said), moescope.intervening(given["model"], given["changes"]):
            pass


def test_numbers_of_other_libraries_are_numbers(model: Any) -> None:
    for given in (range(2), np.array([0, 1]), torch.tensor([0, 1]), (np.int32(0), 1), {0: "a", 1: "b"}.keys()):
        assert whole_numbers(given, "layers") == [0, 1]
        assert model.check_layers(given) == [0, 1]
    assert Ablate(np.int64(0), torch.tensor(1), positions=np.array([2])) == Ablate(0, 1, positions=2)


def test_reprs_are_short_and_names_are_listed(model: Any, corpus: Any) -> None:
    run = moescope.capture(model, corpus, ["entropy"], 100)
    assert repr(model) == ("<MoEModel OlmoeForCausalLM (olmoe): 4 MoE layers x 8 experts, 2 per token, float32 on cpu>")
    assert repr(corpus) == "<TextsCorpus texts: 2 domains (a, b)>"
    assert repr(run) == "<Run: capture on OlmoeForCausalLM, 100 tokens of texts; entropy>"
    with pytest.raises(UsageError, match="out=5"):
        run.save(5)
    assert dir(moescope) == sorted(moescope.__all__)
