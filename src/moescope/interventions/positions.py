"""Which rows of a layer's call are at which token positions, also while text is being generated."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from moescope.errors import ModelError
from moescope.models.patching import hook_scope, method_of, replaced

if TYPE_CHECKING:
    from moescope.models import MoEModel


class Positions(threading.local):
    """Follows forward passes and keeps each token's position.

    A token's position is the number of tokens before it in its own text. Tokens in a cache count; padding, which a
    2-D attention mask marks, does not, on either side. Without a mask every column counts, and padding on the right
    has the positions after the text's last.

    Negative positions count from the end of the prompt: within `generate` that is its input, whatever the passes are
    given; otherwise it is the input of the last pass without a cache. Each thread has the positions of its own passes.
    """

    def __init__(self) -> None:
        self._positions_BS: Tensor | None = None
        self._prompt_B: Tensor | None = None
        self._generating = False
        self._width = 0
        self._masks: dict[tuple[int, ...], Tensor] = {}

    def rows(self, positions: tuple[int, ...], num_rows: int) -> Tensor:
        """Mask (N,) of the rows of the current pass that are at these positions.

        Raises:
            ModelError: The layer was called with other rows than the pass's tokens.
        """
        if self._positions_BS is None or self._prompt_B is None or self._positions_BS.numel() != num_rows:
            seen = "none" if self._positions_BS is None else f"{self._positions_BS.numel()}"
            raise ModelError(
                f"experts were called with {num_rows} rows, and the tokens seen in this pass were {seen}",
                expected="a forward pass of the whole decoder, in which experts get every token",
                remedy="leave out `positions`, to change all tokens",
            )
        if positions not in self._masks:
            here_BS = torch.zeros_like(self._positions_BS, dtype=torch.bool)
            for position in positions:
                wanted_B = self._prompt_B + position if position < 0 else torch.full_like(self._prompt_B, position)
                here_BS |= self._positions_BS == wanted_B.unsqueeze(-1)
            self._masks[positions] = (here_BS & (self._positions_BS >= 0)).flatten()
        return self._masks[positions]

    def on_pass(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Forward pre-hook of the decoder: reads the positions off a pass's input."""
        tokens = options.get("inputs_embeds")
        if tokens is None:
            tokens = options["input_ids"] if options.get("input_ids") is not None else args[0]
        num_rows, length = tokens.shape[:2]
        cache = options.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None else 0
        mask = options.get("attention_mask", args[1] if len(args) > 1 else None)
        columns_S = torch.arange(past, past + length, device=tokens.device)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] >= past + length:
            kept_Bs = mask[:, : past + length].to(tokens.device) != 0
            positions_BS = (kept_Bs.cumsum(-1) - 1)[:, past:].masked_fill(~kept_Bs[:, past:], -1)
            lengths_B = kept_Bs.sum(-1)
        else:
            positions_BS = columns_S.expand(num_rows, length)
            lengths_B = torch.full((num_rows,), past + length, device=tokens.device)
        known = self._prompt_B is not None and self._prompt_B.shape[0] == num_rows
        if not known or (past == 0 and not self._generating):
            # A prompt that is read in several passes goes on after the first of them; its padding is on the left.
            self._prompt_B = lengths_B + max(0, self._width - past - length)
        self._positions_BS = positions_BS
        self._masks = {}

    @contextmanager
    def generating(self, width: int) -> Iterator[None]:
        """For the duration of one `generate`, whose prompt is `width` columns wide (0: not known)."""
        before = self._generating, self._width, self._prompt_B
        self._generating, self._width, self._prompt_B = True, width, None
        try:
            yield
        finally:
            self._generating, self._width, self._prompt_B = before


@contextmanager
def following(model: MoEModel) -> Iterator[Positions]:
    """Positions of the model's passes for as long as the context lasts; afterwards the model is as it was."""
    positions = Positions()
    decoder = model.hf.get_submodule(model.layout.blocks_path.rpartition(".")[0])
    stock = method_of(model.hf, "generate")

    def generate(*args: Any, **options: Any) -> Any:
        given = args[0] if args else options.get("inputs", options.get("input_ids", options.get("inputs_embeds")))
        with positions.generating(int(given.shape[1]) if isinstance(given, Tensor) and given.ndim > 1 else 0):
            return stock(*args, **options)  # type: ignore[misc]

    with ExitStack() as stack:
        own = stack.enter_context(hook_scope())
        handle = decoder.register_forward_pre_hook(own(positions.on_pass), with_kwargs=True)
        stack.callback(handle.remove)
        if stock is not None:
            stack.enter_context(replaced(model.hf, generate=generate))
        yield positions
