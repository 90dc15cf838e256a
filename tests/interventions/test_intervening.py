"""The context: nesting, restoring, and positions that stay what they are while text is generated."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import moescope
from moescope.errors import ModelError
from moescope.interventions import Ablate, Replace, Scale, Set, intervening
from moescope.models import MoEModel, load_model
from moescope.models.seam import ExpertCall, hooked, transformed
from tests.families import build, padded_batch, save


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    return load_model(str(save(build("olmoe"), tmp_path_factory.mktemp("olmoe"))))


@pytest.fixture(
    scope="module",
    params=["gpt_oss", "deepseek_v3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("olmoe", "qwen2_moe"))],
)
def any_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> MoEModel:
    """gpt_oss has sliding windows, deepseek_v3 a compressed cache."""
    return load_model(str(save(build(request.param), tmp_path_factory.mktemp(request.param))))


def prompt(length: int, seed: int = 3) -> Tensor:
    return padded_batch([length], seed=seed)[0]


def generate(model: MoEModel, ids_BS: Tensor, num_tokens: int = 12, **options) -> list[list[int]]:
    options = {"attention_mask": torch.ones_like(ids_BS), "do_sample": False, "eos_token_id": None, **options}
    out = model.generate(ids_BS, max_new_tokens=num_tokens, **options)
    return out[:, ids_BS.shape[1] :].tolist()


@torch.no_grad()
def logits(model: MoEModel, ids_BS: Tensor, **options) -> Tensor:
    return model.hf(input_ids=ids_BS, **options).logits


def test_nested_contexts_do_what_one_with_all_the_changes_does(model: MoEModel) -> None:
    ids_BS = prompt(9)
    outer = [Scale(1, 3, 0.5), Set(2, 5, 0.4, positions=[-2, 1]), Replace(3, 0, positions=2)]
    inner = [Replace(1, 4), Scale(1, 3, 3.0), Set(2, 6, 0.1), Ablate(3, 2, renormalize=True)]
    with intervening(model, [*outer, *inner]):
        together = logits(model, ids_BS)
    with intervening(model, outer):
        outer_alone = logits(model, ids_BS)
        with intervening(model, inner):
            assert torch.equal(logits(model, ids_BS), together)
        assert torch.equal(logits(model, ids_BS), outer_alone)
    assert not torch.allclose(together, outer_alone)
    with intervening(model, [Scale(1, 3, 0.5)]), intervening(model, [Scale(1, 3, 2.0)]):
        assert torch.equal(logits(model, ids_BS), logits_without(model, ids_BS))


def logits_without(model: MoEModel, ids_BS: Tensor) -> Tensor:
    """With no transform in any seam."""
    with hooked(model.seams, logits=False):
        for seam in model.seams.values():
            seam.transforms = ()
        return logits(model, ids_BS)


def test_everything_is_restored_also_after_an_exception(model: MoEModel) -> None:
    ids_BS = prompt(9)

    def snapshot() -> list[object]:
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), sorted(vars(m))) for m in model.hf.modules()]
        return [hooks, {layer: copy.copy(vars(seam)) for layer, seam in model.seams.items()}]

    before, plain = snapshot(), logits(model, ids_BS)

    class Boom(Exception):
        pass

    def boom(call: ExpertCall) -> tuple[Tensor, Tensor]:
        raise Boom

    changes = [Set(1, 3, 1.0, positions=[-1]), Replace(2, 1)]
    with intervening(model, changes):
        with pytest.raises(Boom), intervening(model, changes), transformed(model.seams, {3: [boom]}):
            generate(model, ids_BS)
        assert len(generate(model, ids_BS)[0]) == 12
    assert snapshot() == before
    with pytest.raises(Boom), intervening(model, changes):
        raise Boom
    with pytest.raises(moescope.errors.UsageError), intervening(model, [*changes, Ablate(9, 0)]):
        pass
    assert snapshot() == before
    assert torch.equal(logits(model, ids_BS), plain)


def test_generation_with_and_without_a_cache_is_one_text(any_model: MoEModel) -> None:
    """And it is what passes over the whole text give, where positions are simply columns."""
    model, length = any_model, 7
    ids_BS, layer, last = prompt(length), any_model.layers[0], any_model.layers[-1]
    plain = generate(model, ids_BS)
    assert plain == generate(model, ids_BS, use_cache=False)
    seen = {tuple(plain[0])}
    for positions in (None, [-1], [2], [length + 1, length + 4], [-1, -3, length]):
        for change in (Set(layer, 1, 6.0, positions=positions), Replace(last, 2, positions=positions)):
            with intervening(model, [change]):
                cached = generate(model, ids_BS)
                assert cached == generate(model, ids_BS, use_cache=False)
                assert (
                    cached
                    == model.hf.generate(input_ids=ids_BS, max_new_tokens=12, do_sample=False, eos_token_id=None)[
                        :, length:
                    ].tolist()
                )
            absolute = None if positions is None else [p + length if p < 0 else p for p in positions]
            text_BS = torch.cat([ids_BS, torch.tensor(cached)], dim=1)
            same = {Set: Set(layer, 1, 6.0, positions=absolute), Replace: Replace(last, 2, positions=absolute)}
            with intervening(model, [same[type(change)]]):
                predicted = logits(model, text_BS).argmax(-1)[:, length - 1 : -1]
            assert predicted.tolist() == cached
            seen.add(tuple(cached[0]))
    assert len(seen) > 4  # the changes do change the text
    assert generate(model, ids_BS) == plain


def test_a_prompt_read_in_chunks_ends_where_it_ends(model: MoEModel) -> None:
    ids_BS = prompt(11)
    with intervening(model, [Set(1, 1, 6.0, positions=[-1, -6])]):
        whole = generate(model, ids_BS)
        assert generate(model, ids_BS, prefill_chunk_size=4) == whole
    assert whole != generate(model, ids_BS)


def test_padding_on_the_left_is_not_counted(any_model: MoEModel) -> None:
    model = any_model
    short, long = prompt(5, seed=8), prompt(9, seed=9)
    both = torch.cat([torch.cat([torch.zeros((1, 4), dtype=torch.int64), short], dim=1), long])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    changed = 0
    for positions in ([-1], [0, 3], [6], [-2, 9]):
        with intervening(model, [Set(model.layers[0], 1, 6.0, positions=positions)]):
            alone = generate(model, short) + generate(model, long)
            assert generate(model, both, attention_mask=mask) == alone
            assert generate(model, both, attention_mask=mask, use_cache=False) == alone
        changed += alone != generate(model, short) + generate(model, long)
    assert changed


def test_padding_on_the_right_needs_a_mask_only_for_negative_positions(model: MoEModel) -> None:
    short, long = prompt(5, seed=8), prompt(9, seed=9)
    both = torch.cat([torch.nn.functional.pad(short, (0, 4)), long])
    mask = (torch.arange(9) < torch.tensor([[5], [9]])).long()
    for positions, options in (([1, 4], {}), ([1, 4], {"attention_mask": mask}), ([-1, -3], {"attention_mask": mask})):
        with intervening(model, [Set(1, 1, 6.0, positions=positions)]):
            together = logits(model, both, **options)
            assert torch.allclose(together[0, :5], logits(model, short)[0], atol=1e-5)
            assert torch.allclose(together[1], logits(model, long)[0], atol=1e-5)
        assert not torch.allclose(together[0, :5], logits(model, short)[0], atol=1e-3)


def test_beams_share_their_prompt(model: MoEModel) -> None:
    ids_BS = prompt(7)
    with intervening(model, [Set(1, 1, 6.0, positions=[-1, 8])]):
        cached = generate(model, ids_BS, num_beams=3)
        assert cached == generate(model, ids_BS, num_beams=3, use_cache=False)
    assert cached != generate(model, ids_BS, num_beams=3)


def test_a_loop_of_ones_own_over_a_cache(model: MoEModel) -> None:
    """The prompt is what the pass without a cache was given; later passes go on from there."""
    ids_BS = prompt(8)
    with intervening(model, [Set(1, 1, 6.0, positions=[-1, 9])]):
        expected = generate(model, ids_BS, num_tokens=4)[0]
        with torch.no_grad():
            out = model.hf(input_ids=ids_BS, use_cache=True)
            found = [int(out.logits[0, -1].argmax())]
            for _ in range(3):
                out = model.hf(
                    input_ids=torch.tensor([[found[-1]]]), past_key_values=out.past_key_values, use_cache=True
                )
                found.append(int(out.logits[0, -1].argmax()))
    assert found == expected


def test_part_of_a_model_can_be_changed_but_not_continued(tmp_path) -> None:
    folder = save(build("olmoe"), tmp_path)
    part, whole = load_model(str(folder), layers=[1]), load_model(str(folder))
    ids_BS, tokens, keep_T = padded_batch([6, 6])
    found = []
    for model in (part, whole):
        with intervening(model, [Set(0, 1, 6.0, positions=[2])]):
            model.listen(ids_BS, tokens, keep_T, layers=[1], on_routing=found.append)
    assert torch.equal(found[0].logits_TE, found[1].logits_TE)
    with pytest.raises(ModelError, match="without its head"):
        part.generate(ids_BS)
