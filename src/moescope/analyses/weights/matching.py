"""Hidden neurons of two experts matched, so that the order in which they are stored does not count.

A hidden neuron f of an expert is a row of gate, a row of up and a column of down. Permuting an expert's neurons leaves
what it computes unchanged; so does changing a neuron's sign in both up and down, where the gate multiplies up (see
`ExpertWeights.sign_is_free`). Two experts are matched by the one-to-one assignment of neurons that maximizes the cosine
of their weights, all matrices joined:

    max over permutations p and signs s of  sum_f  <g_f, g'_p(f)> + s_f (<u_f, u'_p(f)> + <d_f, d'_p(f)>)

It is a linear assignment problem (the best sign of a pair of neurons does not depend on the other pairs), solved
exactly (scipy; Crouse 2016). A maximum over F! permutations is above 0 for any two experts, so it is read beside the
same for `random_directions`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from moescope.models.weights import ExpertWeights

JOINED = "joined"
"""All matrices of an expert as one."""
_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True)
class Neurons:
    """The hidden neurons of one layer's experts.

    Attributes:
        parts: Each neuron's row of gate (if there is one) and up and column of down, by name, (E, F, M), float32.
        sign_is_free: Whether changing a neuron's sign in both up and down changes nothing.
    """

    parts: dict[str, Tensor]
    sign_is_free: bool

    @classmethod
    def of(cls, weights: ExpertWeights) -> Neurons:
        """Those of a layer: one copy of its weights in float32, none where they are in float32."""
        given = {"gate": weights.gate_EFM, "up": weights.up_EFM, "down": weights.down_EMF.transpose(1, 2)}
        return cls({name: part.float() for name, part in given.items() if part is not None}, weights.sign_is_free)

    @property
    def num_experts(self) -> int:
        """E."""
        return self.parts["up"].shape[0]

    def random_directions(self, experts: Sequence[int], *, seed: int) -> Neurons:
        """Some of the experts with random directions for neurons, norms matched: each row keeps its norm alone."""
        generator = torch.Generator().manual_seed(seed)
        drawn = {}
        for name, part_EFM in self.parts.items():
            chosen_eFM = part_EFM[list(experts)]
            noise_eFM = torch.randn(chosen_eFM.shape, generator=generator).to(chosen_eFM.device)
            drawn[name] = noise_eFM * (chosen_eFM.norm(dim=-1) / noise_eFM.norm(dim=-1)).unsqueeze(-1)
        return Neurons(drawn, self.sign_is_free)

    def norms(self) -> dict[str, Tensor]:
        """Frobenius norm of each expert's matrices, and of all joined, (E,)."""
        norms = {name: part_EFM.flatten(1).norm(dim=1) for name, part_EFM in self.parts.items()}
        return norms | {JOINED: torch.stack(list(norms.values())).norm(dim=0)}

    def cosines(self) -> dict[str, Tensor]:
        """Cosine of the flattened matrices, as they are stored, of all pairs of experts, (E, E)."""
        inner = {}
        for name, part_EFM in self.parts.items():
            flat_EN = part_EFM.flatten(1)
            inner[name] = flat_EN @ flat_EN.T
        inner[JOINED] = torch.stack(list(inner.values())).sum(0)
        return {name: _cosine(inner_EE) for name, inner_EE in inner.items()}

    def matched_cosines(self, pairs_P2: NDArray[np.integer]) -> dict[str, NDArray[np.float64]]:
        """The same after matching neurons, for these pairs of experts, (P,).

        The similarities of neurons, F x F numbers a pair, are held for as many pairs at a time as fit 64 MB, or one.
        """
        inner: dict[str, list[Tensor]] = {name: [] for name in self.parts}
        order = np.argsort(pairs_P2[:, 0], kind="stable")
        for expert, others in self._chunks(pairs_P2[order]):
            columns_nF, signs_nF = self._match(expert, others)
            rows_n1 = torch.as_tensor(others, device=columns_nF.device).unsqueeze(1)
            for name, part_EFM in self.parts.items():
                products_nF = (part_EFM[expert] * part_EFM[rows_n1, columns_nF]).sum(-1)
                inner[name].append((products_nF if name == "gate" else products_nF * signs_nF).sum(-1).double().cpu())
        values = {name: torch.cat(parts).numpy() for name, parts in inner.items() if parts}
        if not values:
            return {name: np.empty(0) for name in (*self.parts, JOINED)}
        values[JOINED] = np.sum(list(values.values()), axis=0)
        first_P, second_P = pairs_P2[order].T
        found = {}
        for name, norms_E in self.norms().items():
            lengths_E = norms_E.double().cpu().numpy()
            found[name] = np.empty(len(order))
            with np.errstate(invalid="ignore", divide="ignore"):
                found[name][order] = values[name] / (lengths_E[first_P] * lengths_E[second_P])
        return found

    def _chunks(self, pairs_P2: NDArray[np.integer]) -> Iterator[tuple[int, NDArray[np.integer]]]:
        """Pairs in ascending order of the first expert -> that expert, and some of those it is paired with."""
        _, num_neurons, width = self.parts["up"].shape
        together = max(1, _CHUNK_NUMBERS // (num_neurons * max(num_neurons, width)))
        experts, starts = np.unique(pairs_P2[:, 0], return_index=True)
        for expert, others in zip(experts, np.split(pairs_P2[:, 1], starts[1:]), strict=False):  # no pairs: one part
            for start in range(0, len(others), together):
                yield int(expert), others[start : start + together]

    def _match(self, expert: int, others: NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        """For each neuron of an expert the one it is matched with in each of the others, and its sign there, (n, F)."""
        chosen = torch.as_tensor(others, device=self.parts["up"].device)
        signed_nFF = sum(
            part[expert] @ part[chosen].transpose(1, 2) for name, part in self.parts.items() if name != "gate"
        )
        assert isinstance(signed_nFF, Tensor)
        gain_nFF = signed_nFF.abs() if self.sign_is_free else signed_nFF
        if "gate" in self.parts:
            gain_nFF = gain_nFF + self.parts["gate"][expert] @ self.parts["gate"][chosen].transpose(1, 2)
        columns = [linear_sum_assignment(gain_FF, maximize=True)[1] for gain_FF in gain_nFF.cpu().numpy()]
        columns_nF = torch.as_tensor(np.stack(columns), device=signed_nFF.device)
        chosen_nF = signed_nFF.gather(2, columns_nF.unsqueeze(2)).squeeze(2)
        signs_nF = torch.where(chosen_nF < 0, -1.0, 1.0) if self.sign_is_free else torch.ones_like(chosen_nF)
        return columns_nF, signs_nF

    def spectra(self) -> dict[str, NDArray[np.float64]]:
        """Singular values of every expert's matrices, descending, (E, min(F, M)).

        Roots of the eigenvalues of the smaller Gram matrix, in float32: exact to about 3e-4 of the largest.
        """
        found = {}
        for name, part_EFM in self.parts.items():
            values = []
            wide = part_EFM.shape[1] <= part_EFM.shape[2]
            for some_eFM in part_EFM.split(max(1, _CHUNK_NUMBERS // part_EFM[0].numel())):
                gram = some_eFM @ some_eFM.mT if wide else some_eFM.mT @ some_eFM
                values.append(torch.linalg.eigvalsh(gram.cpu()).clamp_min(0).sqrt().flip(-1).double().numpy())
            found[name] = np.concatenate(values)
        return found


def effective_rank(singular_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """`exp(H(s^2 / sum s^2))`, over the last axis: 1 for one direction, their number for directions of equal weight.

    Roy and Vetterli 2007 ("The effective rank") weigh by s; squares are shares of the matrix' energy. NaN for zeros.
    """
    energy = np.asarray(singular_values, dtype=np.float64) ** 2
    total = energy.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = energy / total
        logs = np.where(shares > 0, np.log(shares), 0.0)
    return np.where(total[..., 0] > 0, np.exp(-(shares * logs).sum(-1)), np.nan)


def cosines_of_rows(rows_EM: Tensor) -> Tensor:
    """Cosine of all pairs of rows, (E, E); NaN where a row is zero."""
    rows_EM = rows_EM.float()
    return _cosine(rows_EM @ rows_EM.T)


def _cosine(inner_EE: Tensor) -> Tensor:
    norms_E = inner_EE.diagonal().sqrt()
    return (inner_EE / torch.outer(norms_E, norms_E)).clamp(-1.0, 1.0)
