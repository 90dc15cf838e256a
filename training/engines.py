"""One optimizer step: by the compiled kernels on a CPU, or by the stock transformers model anywhere.

Both engines have the same state: parameters and both moments of AdamW by the parameters' names. A run may go on with
another engine than it began with.
"""

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch.nn import functional
from transformers import OlmoeConfig, OlmoeForCausalLM

from training import kernels
from training.model import Batch, FastModel, initialize, parameter_shapes, views

BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.1, 1.0


def decays(name: str) -> bool:
    """Whether weight decay applies: to matrices, not to the embedding nor to norms."""
    return "norm" not in name and "embed" not in name


class KernelEngine:
    """Threads with a shard of the batch each; they meet once per step, so a busy machine costs little."""

    def __init__(self, config: OlmoeConfig, seed: int, shards: int = 2, exact: bool = False) -> None:
        """Draw fresh parameters; `load_state` replaces them."""
        self.config, self.shards, self.step_number = config, shards, 0
        self.flat = initialize(config, seed)
        self.first, self.second = torch.zeros_like(self.flat), torch.zeros_like(self.flat)
        self.models = [FastModel(config, self.flat, exact) for _ in range(shards)]
        self.library = kernels.load(exact)
        self.name = f"kernels, {'AVX-512 BF16' if kernels.half(exact) else 'AVX2 float32'}, {shards} shards"
        self.pool = ThreadPoolExecutor(shards)
        self._slices = self._cut()

    def _cut(self) -> list[list[tuple[int, int, float]]]:
        """Per thread: (start, end, decay) of its part of the flat vector."""
        size = math.ceil(self.flat.numel() / self.shards / 16) * 16
        slices: list[list[tuple[int, int, float]]] = [[] for _ in range(self.shards)]
        start = 0
        for name, shape in parameter_shapes(self.config).items():
            end, decay = start + math.prod(shape), WEIGHT_DECAY if decays(name) else 0.0
            for i in range(self.shards):
                low, high = max(start, i * size), min(end, (i + 1) * size)
                if low < high:
                    slices[i].append((low, high, decay))
            start = end
        return slices

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""
        return views(self.flat, parameter_shapes(self.config))

    def step(
        self, batches: list[Batch], rate: float, load_LE: torch.Tensor | None, balance: float, z_loss: float
    ) -> tuple[float, torch.Tensor, float]:
        """Forward, backward, update; returns nats per token, counts (layer, expert) and the gradient's norm."""
        num_targets = sum(int((b.targets_T >= 0).sum()) for b in batches)
        num_tokens = sum(len(b.ids_T) for b in batches)

        def work(i: int) -> tuple[float, float, torch.Tensor]:
            return self.models[i].forward_backward(batches[i], num_targets, num_tokens, load_LE, balance, z_loss)

        results = list(self.pool.map(work, range(self.shards)))
        grads = (kernels.ctypes.c_void_p * self.shards)(*(m.flat_grad.data_ptr() for m in self.models))

        def reduce(i: int) -> float:
            part = self._slices[i]
            return self.library.reduce(
                kernels.ctypes.c_long(part[0][0]), kernels.ctypes.c_long(part[-1][1]), grads, self.shards
            )

        norm = math.sqrt(sum(self.pool.map(reduce, range(self.shards))))
        self.step_number += 1
        scale = min(1.0, CLIP / (norm + 1e-6))

        def update(i: int) -> None:
            for start, end, decay in self._slices[i]:
                kernels.call(
                    self.library, "adamw", kernels.ctypes.c_long(start), kernels.ctypes.c_long(end), self.flat,
                    self.models[0].flat_grad, self.first, self.second, scale, rate, decay, *BETAS, EPS,
                    kernels.ctypes.c_long(self.step_number),
                )  # fmt: skip

        list(self.pool.map(update, range(self.shards)))
        return sum(r[0] for r in results) / num_targets, sum(r[2] for r in results), norm

    def state(self) -> dict:
        """Everything a resumed run needs."""
        shapes = parameter_shapes(self.config)
        return {
            "weights": self.weights(), "first": views(self.first, shapes), "second": views(self.second, shapes),
            "step": self.step_number,
        }  # fmt: skip

    def load_state(self, state: dict) -> None:
        """Go on from the `state` of either engine."""
        shapes = parameter_shapes(self.config)
        for flat, part in ((self.flat, "weights"), (self.first, "first"), (self.second, "second")):
            for name, tensor in views(flat, shapes).items():
                tensor.copy_(state[part][name])
        self.step_number = state["step"]


class StockEngine:
    """`OlmoeForCausalLM` with grouped matrix products; bfloat16 autocast on a GPU."""

    def __init__(self, config: OlmoeConfig, seed: int, device: str = "cpu") -> None:
        """Draw fresh parameters, the same as the other engine's; `load_state` replaces them."""
        self.config, self.device = config, torch.device(device)
        self.model = OlmoeForCausalLM(config)
        self.model.load_state_dict(views(initialize(config, seed), parameter_shapes(config)), strict=False)
        self.model.to(self.device).set_experts_implementation("grouped_mm")
        # what each layer's router read in the last forward pass
        self._read: list[torch.Tensor] = [torch.empty(0)] * config.num_hidden_layers
        for number, layer in enumerate(self.model.model.layers):
            layer.mlp.gate.register_forward_pre_hook(partial(self._keep, number))
        named = dict(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named.items() if decays(n)], "weight_decay": WEIGHT_DECAY},
            {"params": [p for n, p in named.items() if not decays(n)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, betas=BETAS, eps=EPS, fused=True)
        self.name = f"stock, {self.device.type}"

    def weights(self) -> dict[str, torch.Tensor]:
        """The parameters by name."""
        return {name: p.detach() for name, p in self.model.named_parameters()}

    def _keep(self, layer: int, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self._read[layer] = inputs[0]

    def losses(self, batch: Batch, load_LE: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """Sum of nats, balance loss (mean over layers), z-loss (mean over layers), counts (layer, expert).

        Documents become rows, padded on the right: under a causal model nothing real sees the padding. The gradient of
        balance and z-loss ends at the router's weights.
        """
        lengths = batch.starts.diff().tolist()
        ids = torch.nn.utils.rnn.pad_sequence(list(batch.ids_T.long().split(lengths)), batch_first=True).to(self.device)
        targets_T = batch.targets_T.long().to(self.device)
        real = torch.arange(ids.shape[1])[None] < torch.tensor(lengths)[:, None]
        real = real.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            out = self.model(input_ids=ids, use_cache=False)
        nats = functional.cross_entropy(out.logits[real].float(), targets_T, ignore_index=-1, reduction="sum")
        experts, chosen = self.config.num_experts, self.config.num_experts_per_tok
        balance, z_loss, counts = [], [], []
        for layer, block in enumerate(self.model.model.layers):
            hidden_TM = self._read[layer].detach().reshape(*ids.shape, -1)[real].float()
            logits_TE = functional.linear(hidden_TM, block.mlp.gate.weight)
            p_TE = logits_TE.softmax(-1)
            counts.append(torch.bincount(p_TE.topk(chosen).indices.flatten(), minlength=experts).float())
            load_E = counts[-1] / len(targets_T) if load_LE is None else load_LE[layer].to(self.device)
            balance.append(experts * (load_E * p_TE.mean(0)).sum())
            z_loss.append(logits_TE.logsumexp(-1).square().mean())
        return nats, torch.stack(balance).mean(), torch.stack(z_loss).mean(), torch.stack(counts)

    def step(
        self, batches: list[Batch], rate: float, load_LE: torch.Tensor | None, balance: float, z_loss: float
    ) -> tuple[float, torch.Tensor, float]:
        """Forward, backward, update; returns nats per token, counts (layer, expert) and the gradient's norm."""
        num_targets = sum(int((b.targets_T >= 0).sum()) for b in batches)
        num_tokens = sum(len(b.ids_T) for b in batches)
        self.optimizer.zero_grad()
        total, counts_LE = 0.0, 0
        for batch in batches:
            nats, balance_loss, z, counts = self.losses(batch, load_LE)
            share = len(batch.ids_T) / num_tokens
            (nats / num_targets + share * (balance * balance_loss + z_loss * z)).backward()
            total += float(nats.detach())
            counts_LE = counts_LE + counts.cpu()
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        return total / num_targets, counts_LE, norm

    def state(self) -> dict:
        """Everything a resumed run needs."""
        moments = {
            part: {n: self.optimizer.state[p].get(key, torch.zeros_like(p)) for n, p in self.model.named_parameters()}
            for part, key in (("first", "exp_avg"), ("second", "exp_avg_sq"))
        }
        steps = {int(held["step"]) for held in self.optimizer.state.values() if held} or {0}
        return {"weights": self.weights(), **moments, "step": steps.pop()}

    def load_state(self, state: dict) -> None:
        """Go on from the `state` of either engine."""
        self.model.load_state_dict(state["weights"], strict=False)  # the output layer is the embedding
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(float(state["step"]), device=parameter.device),
                "exp_avg": state["first"][name].to(parameter.device, copy=True),
                "exp_avg_sq": state["second"][name].to(parameter.device, copy=True),
            }
