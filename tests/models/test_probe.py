"""The probe: what it refuses. Each test gives a real model a defect that a version or a family could have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.olmoe import modeling_olmoe

from moescope.errors import ModelError
from moescope.models import load_model
from moescope.models.probe import are_probabilities
from tests.families import build, save

Router = modeling_olmoe.OlmoeTopKRouter
Block = modeling_olmoe.OlmoeSparseMoeBlock


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save(build("olmoe"), tmp_path_factory.mktemp("olmoe")))


def refusal(folder: str) -> str:
    with pytest.raises(ModelError) as error:
        load_model(folder)
    assert error.value.exit_code == 2
    assert error.value.expected
    assert error.value.remedy
    return str(error.value)


def test_probabilities_under_the_name_of_logits(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What routers returned in transformers 5.0 to 5.5."""

    def forward(self: Router, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight).softmax(-1)
        weights, ids = logits.topk(self.top_k, dim=-1)
        return logits, weights, ids

    monkeypatch.setattr(Router, "forward", forward)
    said = refusal(folder)
    assert "returns probabilities (gate) instead of logits" in said
    assert "update transformers: versions 5.0 to 5.5" in said


def test_what_probabilities_are() -> None:
    logits = torch.randn((20, 8), generator=torch.Generator().manual_seed(0))
    assert are_probabilities(logits.softmax(-1))
    assert are_probabilities(logits.softmax(-1).bfloat16())
    assert not are_probabilities(logits)
    assert not are_probabilities(logits.sigmoid())
    assert not are_probabilities(torch.cat([logits.softmax(-1)[:-1], logits[-1:]]))


def test_weights_that_do_not_follow_from_the_logits(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Router.forward

    def forward(self: Router, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, ids = own(self, hidden_states)
        return logits, weights.sqrt(), ids

    monkeypatch.setattr(Router, "forward", forward)
    said = refusal(folder)
    assert "can't tell how the router of layer 0" in said
    assert "gate: weights differ by" in said


def test_a_selection_that_does_not_follow_from_the_logits(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Router, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = F.linear(hidden_states.reshape(-1, self.hidden_dim), self.weight)
        ids = (-logits).topk(self.top_k, dim=-1).indices
        return logits, logits.softmax(-1).gather(1, ids), ids

    monkeypatch.setattr(Router, "forward", forward)
    assert "can't tell how the router of layer 0" in refusal(folder)


def test_a_router_no_one_can_see(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Block, hidden_states: Tensor) -> Tensor:
        flat = hidden_states.reshape(-1, hidden_states.shape[-1])
        weights, ids = F.linear(flat, self.gate.weight).softmax(-1).topk(self.gate.top_k, dim=-1)
        return self.experts(flat, ids, weights).reshape(hidden_states.shape)

    monkeypatch.setattr(Block, "forward", forward)
    assert "no module beside the experts outputs 8 numbers per token" in refusal(folder)


def test_experts_that_are_not_called(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Block, "forward", lambda self, hidden_states: hidden_states)
    said = refusal(folder)
    assert "the experts of layer 0" in said
    assert "were called 0 times" in said


def test_an_expert_chosen_twice(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Router.forward

    def forward(self: Router, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, ids = own(self, hidden_states)
        return logits, weights, ids[:, :1].expand_as(ids)

    monkeypatch.setattr(Router, "forward", forward)
    assert "or one of them twice" in refusal(folder)


def test_a_model_that_is_not_deterministic(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, hidden_states: own(self, hidden_states) + 1e-6 * torch.rand_like(hidden_states)
    )
    said = refusal(folder)
    assert "changes what it computes" in said
    assert "4 of 4 layers were heard" in said


def test_a_model_in_which_tokens_see_what_comes_after(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = Block.forward
    monkeypatch.setattr(
        Block, "forward", lambda self, hidden_states: own(self, hidden_states) + hidden_states.mean(1, keepdim=True)
    )
    assert "depends on tokens after it" in refusal(folder)


def test_experts_that_do_more_than_the_interface_says(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An implementation that is not the experts module's own arithmetic: then outputs per expert would be wrong."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

    monkeypatch.setitem(
        ALL_EXPERTS_FUNCTIONS._global_mapping,
        "grouped_mm",
        lambda *args: 1.01 * grouped_mm_experts_forward(*args),
    )
    assert "computed expert by expert, differ" in refusal(folder)


def test_a_layer_whose_states_are_not_numbers(tmp_path: Path) -> None:
    model = build("olmoe")
    with torch.no_grad():
        model.model.layers[2].input_layernorm.weight.fill_(float("inf"))
    assert "are not finite" in refusal(str(save(model, tmp_path)))


def test_the_report(folder: str) -> None:
    report = load_model(folder).probe
    assert report.layers == (0, 1, 2, 3)
    assert report.num_tokens == 32
    assert report.router_module == "gate"
    assert report.stock_implementation == "grouped_mm"
    assert max(report.weight_error, report.output_error) < 1e-5
    assert report.selection_error == 0
    assert list(report.rules.values()) == [(0, 1, 2, 3)]
