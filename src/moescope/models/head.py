"""A decoder that gives states it did not compute, so that the family's own head can be run on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from moescope.models.patching import replaced


class _GivenOutput(BaseModelOutput):
    """A decoder's output that has nothing but the last hidden state, whatever else a family's head looks for."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


@contextmanager
def giving(decoder: nn.Module, hidden_BSM: Tensor) -> Iterator[None]:
    """Lets a decoder return these states, to this thread or task, without computing anything."""
    with replaced(decoder, forward=lambda *args, **kwargs: _GivenOutput(last_hidden_state=hidden_BSM)):
        yield
