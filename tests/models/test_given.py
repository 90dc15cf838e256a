"""An already loaded model of transformers: looked into as it is, and left as it was but for the seam."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM

from moescope.errors import ModelError, UsageError
from moescope.models import load_model
from tests.families import build, padded_batch, save, tokenizer


def routings(model) -> list:
    ids_BS, tokens, keep_T = padded_batch([9, 5])
    records: list = []
    model.listen(ids_BS, tokens, keep_T, layers=model.layers, on_routing=records.append)
    return records


@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_it_is_the_same_as_loading_its_checkpoint(family: str, tmp_path: Path) -> None:
    folder = save(build(family), tmp_path)
    loaded = load_model(str(folder))
    hf = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(1, 9)[None]
    before = hf(input_ids=ids).logits
    given = load_model(hf, tokenizer=tokenizer())
    assert given.hf is hf
    assert given.complete
    assert given.facts == loaded.facts
    assert given.tokenizer("a").input_ids == loaded.tokenizer("a").input_ids
    for ours, theirs in zip(routings(given), routings(loaded), strict=True):
        assert torch.equal(ours.expert_ids_TK, theirs.expert_ids_TK)
        assert torch.equal(ours.weights_TK, theirs.weights_TK)
    assert torch.equal(hf(input_ids=ids).logits, before)


def test_one_that_was_looked_into_before() -> None:
    hf = build("olmoe")
    first = load_model(hf)
    again = load_model(hf)
    assert torch.equal(routings(again)[0].weights_TK, routings(first)[0].weights_TK)
    stock = again.probe.stock_implementation
    del first, again
    gc.collect()
    assert load_model(hf).probe.stock_implementation == stock


def test_changes_made_to_it_beforehand_are_measured() -> None:
    """As merged adapters are: what is measured is the model as it was handed over."""
    plain, changed = build("qwen3_moe"), build("qwen3_moe")
    with torch.no_grad():
        changed.model.layers[0].self_attn.q_proj.weight += torch.ones(32, 4) @ torch.ones(4, 32)
    first, second = routings(load_model(plain)), routings(load_model(changed))
    assert not torch.equal(first[0].logits_TE, second[0].logits_TE)


def test_without_a_tokenizer_text_is_refused() -> None:
    model = load_model(build("olmoe"))
    with pytest.raises(ModelError, match=r"without a tokenizer[\s\S]*hand it over"):
        _ = model.tokenizer
    with pytest.raises(UsageError, match="tokenizer is a str"):
        load_model(build("olmoe"), tokenizer="gpt2")


def test_arguments_that_only_a_checkpoint_takes() -> None:
    for argument in ({"dtype": "float32"}, {"device": "cpu"}, {"revision": "main"}, {"layers": [0]}):
        with pytest.raises(UsageError, match=f"{next(iter(argument))} was given for a model that is already loaded"):
            load_model(build("olmoe"), **argument)


class Adapted(nn.Module):
    """What a model of PEFT looks like from outside."""

    def merge_and_unload(self) -> None: ...


def test_models_that_are_refused(tmp_path: Path) -> None:
    folder = save(build("olmoe"), tmp_path)
    for model, said in (
        (Adapted(), r"adapters that are not merged[\s\S]*merge_and_unload"),
        (nn.Linear(2, 2), "the model is a Linear"),
        (AutoModel.from_pretrained(folder), "has no head"),
        (build("olmoe").train(), r"training mode[\s\S]*model.eval"),
        (build("olmoe").to("meta"), "meta device"),
    ):
        with pytest.raises(UsageError, match=said):
            load_model(model)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("family", ["qwen3_moe", "deepseek_v3"])
def test_linear_layers_in_int8(family: str) -> None:
    """Attention and head quantized by torch itself; experts and routers are no linear layers and stay as they are."""
    plain = build(family)
    quantized = torch.ao.quantization.quantize_dynamic(plain, {nn.Linear}, dtype=torch.qint8)
    packed = [module for module in quantized.modules() if type(module).__module__.startswith("torch.ao.nn.quantized")]
    assert packed
    ids = torch.arange(1, 9)[None]
    before = quantized(input_ids=ids).logits
    model = load_model(quantized, tokenizer=tokenizer())
    assert torch.equal(model.hf(input_ids=ids).logits, before)
    first, second = routings(model), routings(load_model(plain))
    assert not torch.equal(first[-1].logits_TE, second[-1].logits_TE)
    agree = (first[0].expert_ids_TK == second[0].expert_ids_TK).float().mean()
    assert agree > 0.7
    ours, theirs = (looked.expert_weights(looked.layers[0]).down_EMF for looked in (model, load_model(plain)))
    assert torch.equal(ours, theirs)
