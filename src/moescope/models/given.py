"""An already loaded model of transformers: looked into as it is."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import nn
from transformers import PreTrainedModel

from moescope.errors import UsageError, of_type
from moescope.models.facts import gather_facts
from moescope.models.layout import find_layout
from moescope.models.moe import MoEModel
from moescope.models.probe import probe
from moescope.models.refusal import refusing
from moescope.models.tokenizer import given_tokenizer, refuse_beyond

_SEE = "docs/families.md lists the families that can be looked into"


def is_model(given: Any) -> TypeGuard[nn.Module]:
    """Whether this is a model rather than a checkpoint's name."""
    return isinstance(given, nn.Module)


def wrap(model: nn.Module, tokenizer: Any, **other: Any) -> MoEModel:
    """Proves that a loaded model can be looked into.

    Args:
        model: The model, with its head, in evaluation mode.
        tokenizer: Its tokenizer; None where no text will be read.
        other: Arguments of `load_model` that only a checkpoint can take.

    Raises:
        UsageError: It is no model of transformers, or arguments are for checkpoints.
        ModelError: It can't be looked into.
    """
    hf = _checked(model)
    given = [name for name, value in other.items() if value is not None]
    if given:
        raise UsageError(
            f"{', '.join(given)} was given for a model that is already loaded",
            expected="these arguments with a checkpoint only",
            remedy="load the model as it is to be measured; `layers` is an argument of capture, too",
        )
    name = str(hf.config.name_or_path or type(hf).__name__)
    with refusing(
        f"the structure of {name} can't be used",
        expected="decoder blocks with routed experts",
        remedy="see docs/families.md",
    ):
        where = find_layout(hf, name)
        facts = gather_facts(hf, where, name)
    own = given_tokenizer(tokenizer, hf.config, name, facts.vocab_size)
    made = MoEModel(name, hf, facts, where, tokenizer=own.tokenizer, tokenizer_problem=own.problem)
    if own.beyond:
        refuse_beyond(hf.get_input_embeddings(), own.beyond, name)
    with refusing(f"a forward pass of {name} fails", expected="a model that runs", remedy="run it without moescope"):
        probe(made)
    return made


def _checked(model: nn.Module) -> PreTrainedModel:
    if hasattr(model, "merge_and_unload") or hasattr(model, "peft_config"):
        raise UsageError(
            f"the model ({type(model).__name__}) holds adapters that are not merged",
            expected="a model of transformers with plain weights",
            remedy="merge them first: model = model.merge_and_unload()",
        )
    if not isinstance(model, PreTrainedModel):
        raise UsageError(
            f"the model is a {type(model).__name__}",
            expected="a model of transformers, such as AutoModelForCausalLM.from_pretrained gives",
        )
    if model.get_output_embeddings() is None:
        raise UsageError(
            f"{type(model).__name__} has no head",
            expected="a model that predicts tokens, such as AutoModelForCausalLM.from_pretrained gives",
        )
    if model.training:
        raise UsageError(
            f"{type(model).__name__} is in training mode", expected="evaluation mode", remedy="call model.eval() first"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError(
            f"weights of {type(model).__name__} are on the meta device or on disk",
            expected="all weights in memory",
            remedy="load it with a device_map that keeps everything on GPUs and the CPU",
        )
    return model


def check_model(model: Any) -> None:
    """Refuses what did not come from `load_model`.

    Raises:
        UsageError: Says what it is.
    """
    of_type(model, MoEModel, "model", 'what load_model gives, such as load_model("nano")')
