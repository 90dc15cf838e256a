"""A model's structure, from its configuration alone: which classes build it, and its modules without weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from moescope.errors import ModelError
from moescope.models.checkpoint import Source
from moescope.models.gate import check_depth, inside, own_code, read_config, read_json
from moescope.models.layout import text_config
from moescope.models.refusal import refusing
from moescope.models.tokenizer import warn_of_code

_AGAIN = "copy or download the checkpoint again"


@dataclass(frozen=True)
class Architecture:
    """What a checkpoint's config.json makes of a model.

    Attributes:
        name: The checkpoint.
        declared: What config.json says, past the gate.
        config: transformers' configuration of it.
        auto_class: What builds the model with its head.
        code: Files of the checkpoint's own that run; empty unless it is trusted and transformers has no code for it.
    """

    name: str
    declared: Mapping[str, Any]
    config: PreTrainedConfig
    auto_class: Any
    code: tuple[str, ...] = ()

    def check_tensors(self, names: Iterable[str]) -> None:
        """Refuses a config.json that declares more blocks than there are tensors of, before they are built.

        Args:
            names: All tensors of the checkpoint.

        Raises:
            ModelError: It does.
        """
        num_blocks = getattr(text_config(self.config), "num_hidden_layers", None)
        if isinstance(num_blocks, int):
            check_depth(num_blocks, names, self.name)

    def on_meta(self, config: PreTrainedConfig | None = None) -> PreTrainedModel:
        """The model's modules without weights.

        Args:
            config: Another configuration of the same class.

        Raises:
            ModelError: The configuration can't be built.
        """
        with (
            refusing(
                f"the model that the config.json of {self.name} describes can't be built",
                expected="numbers that fit together",
                remedy=_AGAIN,
            ),
            torch.device("meta"),
        ):
            return self.auto_class.from_config(config or self.config, trust_remote_code=bool(self.code))


def read_architecture(source: Source, *, trust_remote_code: bool) -> Architecture:
    """Reads a checkpoint's config.json.

    Args:
        source: The checkpoint.
        trust_remote_code: Whether code of the checkpoint's own may run where transformers has none.

    Raises:
        ModelError: It can't be read, or is no language model that transformers knows.
    """
    path = inside(source.folder, "config.json", source.name)
    assert path is not None
    declared = read_config(path, source.name)
    code = () if declared["model_type"] in CONFIG_MAPPING else tuple(own_code(read_json(path, source.name)))
    if code and trust_remote_code:
        warn_of_code(source.name, list(code))
    else:
        _refuse_unknown(declared["model_type"], code, source.name)
    with refusing(
        f"the config.json of {source.name} can't be used",
        expected="entries of the types and values that its model_type takes",
        remedy=_AGAIN,
    ):
        if code:
            config = AutoConfig.from_pretrained(source.folder, trust_remote_code=True, local_files_only=True)
            config._attn_implementation = config._experts_implementation = None
        else:
            config = CONFIG_MAPPING[declared["model_type"]].from_dict(copy.deepcopy(declared))
    return Architecture(source.name, declared, config, _auto_class(config, source.name, code), code)


def _refuse_unknown(model_type: str, code: tuple[str, ...], name: str) -> None:
    if model_type in CONFIG_MAPPING:
        return
    if code:
        raise ModelError(
            f"transformers {transformers.__version__} does not know the model in {name} ({model_type}); it brings code "
            f"of its own ({', '.join(code)}), which was not run",
            expected="a model_type that transformers knows",
            remedy="update transformers; or read the code and, if you trust it, load the model with "
            "trust_remote_code=True",
        )
    raise ModelError(
        f"transformers {transformers.__version__} does not know the model in {name}: its model_type is {model_type!r}",
        expected="a config.json with a model_type it knows",
        remedy="update transformers",
    )


def _auto_class(config: Any, name: str, code: tuple[str, ...]) -> Any:
    """What builds a model with its head; those that also see are run on text alone."""
    for auto_class in (AutoModelForCausalLM, AutoModelForImageTextToText):
        is_own = bool(code) and auto_class.__name__ in (getattr(config, "auto_map", None) or {})
        if is_own or type(config) in auto_class._model_mapping:
            return auto_class
    raise ModelError(
        f"{name} ({config.model_type}) is not a causal language model",
        expected="a decoder that transformers loads with AutoModelForCausalLM or AutoModelForImageTextToText",
        remedy="docs/families.md lists the families that can be looked into",
    )
