"""Direct logit attribution against the families' own norm and head."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from moescope.errors import ModelError
from moescope.models import load_model
from moescope.models.unembedding import direct_logits, final_norm, through_norm
from tests.families import SOME_FAMILIES, build, save


@pytest.mark.parametrize("family", SOME_FAMILIES)
def test_every_family_has_a_norm_whose_division_alone_is_left_out(family: str, tmp_path: Path) -> None:
    model = load_model(str(save(build(family), tmp_path)), device="cpu")
    norm = final_norm(model)
    assert norm is not None
    directions = torch.randn(5, model.model_width, generator=torch.Generator().manual_seed(0))
    bias = getattr(norm, "bias", None)
    with torch.no_grad():
        normed = norm(directions) - (0 if bias is None else bias)
        sizes = normed.norm(dim=1, keepdim=True) / through_norm(norm, directions).norm(dim=1, keepdim=True)
        expected = (normed / sizes) @ model.hf.get_output_embeddings().weight.T
    expected -= expected.mean(dim=1, keepdim=True)
    torch.testing.assert_close(direct_logits(model, directions), expected, rtol=1e-3, atol=1e-4)


def test_rms_norm_is_a_plain_matmul(tmp_path: Path) -> None:
    model = load_model(str(save(build("olmoe"), tmp_path)), device="cpu")
    directions = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    logits = (directions * model.hf.model.norm.weight) @ model.hf.lm_head.weight.T
    torch.testing.assert_close(
        direct_logits(model, directions), logits - logits.mean(1, keepdim=True), rtol=1e-4, atol=1e-4
    )


def test_norms_of_both_kinds_and_gains_stored_less_one() -> None:
    class OneMore(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.linspace(-0.5, 0.5, 8))

        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + 1e-6) * (1 + self.weight)

    directions = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        through_norm(OneMore(), directions), directions * (1 + OneMore().weight), rtol=1e-4, atol=1e-5
    )
    centering = nn.LayerNorm(8)
    with torch.no_grad():
        centering.weight.copy_(torch.linspace(0.5, 2, 8))
        centering.bias.copy_(torch.linspace(-9, 9, 8))
    centered = directions - directions.mean(1, keepdim=True)
    torch.testing.assert_close(through_norm(centering, directions), centered * centering.weight, rtol=1e-4, atol=1e-5)
    assert torch.equal(through_norm(None, directions), directions)


def test_a_model_without_its_head_is_refused(tmp_path: Path) -> None:
    model = load_model(str(save(build("olmoe"), tmp_path)), device="cpu", layers=[0])
    with pytest.raises(ModelError, match="without its head"):
        direct_logits(model, torch.zeros(1, 32))
