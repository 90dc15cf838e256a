"""Mean cosine of all pairs of experts' outputs on the same tokens, in a bounded sum."""

from __future__ import annotations

import torch
from torch import Tensor


class CosineSums:
    """Mean over tokens of `cos(o_i(x), o_j(x))` for all pairs, from all tokens and without each group of documents.

    A token for which an expert's output is zero has no direction there and does not count for that expert's pairs.

    Args:
        num_variables: V.
        num_groups: G; 0 for no intervals.
        device: Device of the sums.
    """

    def __init__(self, num_variables: int, num_groups: int = 0, device: torch.device | str = "cpu") -> None:
        shape = (max(1, num_groups), num_variables, num_variables)
        self.num_groups = num_groups
        self.sum_GVV = torch.zeros(shape, dtype=torch.float64, device=device)
        self.count_GVV = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(
        self,
        outputs_VnM: Tensor,
        bounds: list[tuple[int, int]] | None = None,
        mean_V1M: Tensor | None = None,
        *,
        at_a_time: int = 256,
    ) -> None:
        """Takes in some tokens.

        Args:
            outputs_VnM: Outputs of all variables, any floating dtype.
            bounds: First and last (exclusive) token of each group.
            mean_V1M: Subtracted first: the centered cosine.
            at_a_time: Tokens normalized at a time.
        """
        dtype = torch.float64 if outputs_VnM.dtype == torch.float64 else torch.float32
        bounds = bounds or [(0, outputs_VnM.shape[1])]
        for start in range(0, outputs_VnM.shape[1], at_a_time):
            end = min(outputs_VnM.shape[1], start + at_a_time)
            part_VnM = outputs_VnM[:, start:end].to(self.sum_GVV.device, dtype)
            if mean_V1M is not None:
                part_VnM = part_VnM - mean_V1M.to(part_VnM)
            norms_Vn = torch.linalg.vector_norm(part_VnM, dim=-1)
            known_Vn = norms_Vn > 0
            unit_VnM = part_VnM / torch.where(known_Vn, norms_Vn, 1.0).unsqueeze(-1)
            known_Vn = known_Vn.double()
            for group, (first, last) in enumerate(bounds):
                part = slice(max(first, start) - start, min(last, end) - start)
                if part.stop > max(part.start, 0):
                    flat = unit_VnM[:, part].flatten(1)
                    self.sum_GVV[group] += (flat @ flat.T).double()
                    self.count_GVV[group] += known_Vn[:, part] @ known_Vn[:, part].T

    def finish(self) -> tuple[Tensor, Tensor]:
        """Means of all pairs, (V, V), and without each group, (G, V, V); NaN where no token counts."""
        sum_VV, count_VV = self.sum_GVV.sum(0), self.count_GVV.sum(0)
        without = (sum_VV - self.sum_GVV) / (count_VV - self.count_GVV)
        return sum_VV / count_VV, without[: self.num_groups]
