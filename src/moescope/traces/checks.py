"""What every reader checks of expert ids."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moescope.errors import UsageError


def check_ids(expert_ids_TLK: np.ndarray, num_experts: int | None, layers: Sequence[int], place: str) -> None:
    """Refuses ids that no routing can have.

    Args:
        expert_ids_TLK: Expert ids of tokens, layers, ranks.
        num_experts: E; None where it is not known.
        layers: The layers, for the message.
        place: Where they are from.

    Raises:
        UsageError: An id below 0, or of E or more, or twice for one token and layer.
    """
    if not expert_ids_TLK.size:
        return
    lowest, highest = int(expert_ids_TLK.min()), int(expert_ids_TLK.max())
    if lowest < 0 or (num_experts is not None and highest >= num_experts):
        wrong = lowest if lowest < 0 else highest
        token, layer, _ = np.argwhere(expert_ids_TLK == wrong)[0].tolist()
        raise UsageError(
            f"{place}: expert {wrong} at layer {layers[layer]} (row {token})",
            expected=f"expert ids 0 to {num_experts - 1}" if num_experts is not None else "expert ids from 0",
            remedy="check that the model given is the one that was traced; ids of physical experts need their map",
        )
    if expert_ids_TLK.shape[2] > 1:
        sorted_TLK = np.sort(expert_ids_TLK, axis=2)
        twice_TL = (sorted_TLK[..., 1:] == sorted_TLK[..., :-1]).any(axis=2)
        if twice_TL.any():
            token, layer = np.argwhere(twice_TL)[0].tolist()
            raise UsageError(
                f"{place}: the experts {expert_ids_TLK[token, layer].tolist()} of one token at layer {layers[layer]} "
                f"(row {token}) are not distinct",
                expected=f"{expert_ids_TLK.shape[2]} different experts for each token",
                remedy="name the model with `model`, so that layers without experts are known; else the recording is "
                "damaged",
            )
