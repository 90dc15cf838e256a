"""nano's parameters in one flat vector, and its forward and backward pass by the compiled kernels.

The vector is cut into tensors under the names that `OlmoeForCausalLM` gives them, so a checkpoint is its state dict.
"""

import ctypes
import math
from dataclasses import dataclass, field
from functools import partial

import torch
from transformers import OlmoeConfig

from training import kernels

NANO = {
    "vocab_size": 8192,
    "hidden_size": 128,
    "intermediate_size": 32,
    "num_hidden_layers": 16,
    "num_attention_heads": 4,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "router_aux_loss_coef": 0.01,
    "norm_topk_prob": False,
    "bos_token_id": None,
    "pad_token_id": None,
    "eos_token_id": 0,
}


def make_config(**changes: object) -> OlmoeConfig:
    """Configuration of nano, with changes (tests use tiny ones)."""
    return OlmoeConfig(**{**NANO, **changes})


def parameter_shapes(config: OlmoeConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter; q, k, v are neighbors so that they are one matrix."""
    m, f, e = config.hidden_size, config.intermediate_size, config.num_experts
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, m)}
    for layer in range(config.num_hidden_layers):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj.weight": (m, m) for name in "qkvo"}
        shapes[f"{prefix}.mlp.gate.weight"] = (e, m)
        shapes[f"{prefix}.mlp.experts.gate_up_proj"] = (e, 2 * f, m)
        shapes[f"{prefix}.mlp.experts.down_proj"] = (e, m, f)
        for name in ("self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"):
            shapes[f"{prefix}.{name}.weight"] = (m,)
    shapes["model.norm.weight"] = (m,)
    return shapes


def views(flat: torch.Tensor, shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Cut a flat vector into named tensors that share its memory."""
    out, start = {}, 0
    for name, shape in shapes.items():
        size = math.prod(shape)
        assert size % 16 == 0, f"{name}: {shape} does not fill whole vectors of 16"
        out[name] = flat[start : start + size].view(shape)
        start += size
    assert start == flat.numel()
    return out


def initialize(config: OlmoeConfig, seed: int) -> torch.Tensor:
    """Draw the parameters: normal, std 0.02 or, for matrices, 1 / sqrt(inputs).

    The attention's output is scaled down by depth. The experts' is not: at the start each of K experts has a weight of
    about 1 / E, which makes their sum small enough.
    """
    shapes = parameter_shapes(config)
    flat = torch.empty(sum(math.prod(s) for s in shapes.values()))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in views(flat, shapes).items():
        if name.endswith("norm.weight") or "layernorm" in name:
            tensor.fill_(1.0)
            continue
        std = 0.02 if "embed" in name or "mlp.gate" in name else tensor.shape[-1] ** -0.5
        if "o_proj" in name:
            std /= math.sqrt(2 * config.num_hidden_layers)
        tensor.normal_(0.0, std, generator=generator)
    return flat


@dataclass
class Batch:
    """Documents end to end: no row, no padding."""

    ids_T: torch.Tensor  # int32
    targets_T: torch.Tensor  # int32, -1 where the next token is not known
    starts: torch.Tensor  # int32, where each document starts, and T at the end
    positions_T: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        lengths = self.starts.diff()
        self.positions_T = torch.arange(len(self.ids_T), dtype=torch.int32) - torch.repeat_interleave(
            self.starts[:-1], lengths
        )


class FastModel:
    """One shard's forward and backward pass; shards share the parameters and have a gradient each."""

    def __init__(self, config: OlmoeConfig, flat: torch.Tensor, exact: bool = False) -> None:
        """Set up over existing parameters.

        Args:
            config: The model's shape; widths must be multiples of 16.
            flat: The parameters, as `initialize` lays them out; read, not copied.
            exact: Use the float32 build of the kernels.
        """
        self.config, self.flat, self.exact = config, flat, exact
        self.shapes = parameter_shapes(config)
        self.weights = views(flat, self.shapes)
        self.flat_grad = torch.zeros_like(flat)
        self.grads = views(self.flat_grad, self.shapes)
        self.half = torch.bfloat16 if kernels.half(exact) else torch.float32
        self._call = partial(kernels.call, kernels.load(exact))
        self._buffers: dict[str, torch.Tensor] = {}
        size = config.hidden_size // config.num_attention_heads
        rates = 1.0 / (config.rope_parameters["rope_theta"] ** (torch.arange(0, size, 2).float() / size))
        angles = torch.arange(config.max_position_embeddings).float()[:, None] * rates
        self._cos, self._sin = angles.cos().contiguous(), angles.sin().contiguous()

    def _buffer(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """A buffer that is kept from step to step; grown when a larger batch comes."""
        size = math.prod(shape)
        held = self._buffers.get(name)
        if held is None or held.numel() < size:
            held = self._buffers[name] = torch.empty(size, dtype=dtype)
        return held[:size].view(shape)

    def _weight(self, layer: int, name: str, grad: bool = False) -> torch.Tensor:
        return (self.grads if grad else self.weights)[f"model.layers.{layer}.{name}"]

    def _qkv(self, layer: int, grad: bool = False) -> torch.Tensor:
        m = self.config.hidden_size
        first = self._weight(layer, "self_attn.q_proj.weight", grad)
        return first.as_strided((3 * m, m), (m, 1))

    def forward(self, batch: Batch) -> torch.Tensor:
        """Hidden states after the last layer, before the final norm. What the backward pass needs stays in buffers."""
        c, call = self.config, self._call
        T, M, F = len(batch.ids_T), c.hidden_size, c.intermediate_size
        E, K, H, eps = c.num_experts, c.num_experts_per_tok, c.num_attention_heads, float(c.rms_norm_eps)
        half = {"dtype": self.half}
        x = self._buffer("x.0", T, M)
        torch.index_select(self.weights["model.embed_tokens.weight"], 0, batch.ids_T, out=x)
        for n in range(c.num_hidden_layers):
            b = partial(self._layer_buffer, n)
            norm16 = b("norm16", T, M, **half)
            call("norm_forward", T, M, eps, x, self._weight(n, "input_layernorm.weight"), b("scale", T), None, norm16)
            raw, out16 = b("raw", T, 3 * M), b("out16", T, M, **half)
            call("linear_forward", T, M, 3 * M, norm16, self._qkv(n), raw, 0)
            call("attention_forward", T, M, H, eps, raw, self._weight(n, "self_attn.q_norm.weight"),
                 self._weight(n, "self_attn.k_norm.weight"), self._cos, self._sin, batch.positions_T, batch.starts,
                 len(batch.starts) - 1, b("q_scale", T), b("k_scale", T), b("q16", T, M, **half),
                 b("k16", T, M, **half), b("v16", T, M, **half), b("lse", T, H), out16)  # fmt: skip
            middle = b("middle", T, M)
            middle.copy_(x)
            call("linear_forward", T, M, M, out16, self._weight(n, "self_attn.o_proj.weight"), middle, 1)
            hidden, hidden16 = self._buffer("hidden", T, M), b("hidden16", T, M, **half)
            call("norm_forward", T, M, eps, middle, self._weight(n, "post_attention_layernorm.weight"), b("scale2", T),
                 hidden, hidden16)  # fmt: skip
            ids, weights = b("ids", T, K, dtype=torch.int32), b("weights", T, K)
            call("route", T, M, E, K, hidden, self._weight(n, "mlp.gate.weight"), b("logits", T, E), b("p", T, E), ids,
                 weights, b("counts", E))  # fmt: skip
            x = self._buffer(f"x.{n + 1}", T, M)
            call("moe_forward", T, M, F, E, K, middle, hidden16, ids, weights,
                 self._weight(n, "mlp.experts.gate_up_proj"), self._weight(n, "mlp.experts.down_proj"),
                 b("saved", T * K, 2 * F, **half), x)  # fmt: skip
        return x

    def _layer_buffer(self, layer: int, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return self._buffer(f"{name}.{layer}", *shape, dtype=dtype)

    def forward_backward(
        self,
        batch: Batch,
        num_targets: int,
        num_tokens: int,
        load_LE: torch.Tensor | None,
        balance: float,
        z_loss: float,
    ) -> tuple[float, float, torch.Tensor]:
        """One shard of one step: overwrites `flat_grad`.

        Args:
            batch: The documents.
            num_targets: Predicted tokens of ALL shards: the loss is their mean.
            num_tokens: Tokens of all shards: the balance loss is a mean over them.
            load_LE: `N_e / N` of each layer (rows sum to K) that the balance loss sees; this batch's own when None.
            balance: Coefficient of the balance loss, mean over layers of `E sum_e load_e P_e`; its gradient ends at the
                router's weights.
            z_loss: Coefficient of the z-loss, mean over layers and tokens of logsumexp squared; likewise.

        Returns:
            Sum of the losses in nats, the z-loss's sum, and the counts (layer, expert).
        """
        c, call = self.config, self._call
        T, M, F, L = len(batch.ids_T), c.hidden_size, c.intermediate_size, c.num_hidden_layers
        E, K, H, eps = c.num_experts, c.num_experts_per_tok, c.num_attention_heads, float(c.rms_norm_eps)
        half = {"dtype": self.half}
        self.flat_grad.zero_()
        x = self.forward(batch)
        counts_LE = torch.stack([self._layer_buffer(n, "counts", E) for n in range(L)])
        load_LE = counts_LE / T if load_LE is None else load_LE

        loss, z_sum, z_total = ctypes.c_double(), ctypes.c_double(), 0.0
        z_scale = z_loss / (num_tokens * L)
        final16, d16 = self._buffer("final16", T, M, **half), self._buffer("d16", T, M, **half)
        dhidden, dx, scale = self._buffer("dhidden", T, M), self._buffer("dx", T, M), self._buffer("final_scale", T)
        draw16, dlogits16 = self._buffer("draw16", T, 3 * M, **half), self._buffer("dlogits16", T, E, **half)
        dtask16 = self._buffer("dtask16", T, E, **half)
        dweights = self._buffer("dweights", T, K)
        final, dfinal = self.weights["model.norm.weight"], self.grads["model.norm.weight"]
        embed, dembed = self.weights["model.embed_tokens.weight"], self.grads["model.embed_tokens.weight"]
        call("norm_forward", T, M, eps, x, final, scale, None, final16)
        call("head_loss", T, M, c.vocab_size, final16, embed, batch.targets_T, 1.0 / num_targets, dhidden, dembed,
             ctypes.byref(loss))  # fmt: skip
        dx.zero_()
        call("norm_backward", T, M, x, scale, final, dhidden, dx, dfinal)
        for n in reversed(range(L)):
            b, w, g = partial(self._layer_buffer, n), partial(self._weight, n), partial(self._weight, n, grad=True)
            hidden16, out16 = b("hidden16", T, M, **half), b("out16", T, M, **half)
            ids = b("ids", T, K, dtype=torch.int32)
            call("moe_backward", T, M, F, E, K, dx, hidden16, ids, b("weights", T, K), w("mlp.experts.gate_up_proj"),
                 w("mlp.experts.down_proj"), b("saved", T * K, 2 * F, **half), g("mlp.experts.gate_up_proj"),
                 g("mlp.experts.down_proj"), dhidden, dweights)  # fmt: skip
            call("route_backward", T, E, K, b("logits", T, E), b("p", T, E), ids, dweights,
                 load_LE[n] * (balance * E / (num_tokens * L)), z_scale, dtask16, dlogits16,
                 ctypes.byref(z_sum))  # fmt: skip
            z_total += z_sum.value
            # Balance and z-loss train the router alone: passed on to what it reads, they turn down the norm before it
            call("linear_backward", T, M, E, dtask16, hidden16, w("mlp.gate.weight"), dhidden, None, 1)
            call("linear_backward", T, M, E, dlogits16, hidden16, w("mlp.gate.weight"), None, g("mlp.gate.weight"), 0)
            call("norm_backward", T, M, b("middle", T, M), b("scale2", T), w("post_attention_layernorm.weight"),
                 dhidden, dx, g("post_attention_layernorm.weight"))  # fmt: skip
            # dx is now the gradient of `middle`, where attention joined the residual stream
            call("to_half", T * M, dx, d16)
            call("linear_backward", T, M, M, d16, out16, w("self_attn.o_proj.weight"), dhidden,
                 g("self_attn.o_proj.weight"), 0)  # fmt: skip
            call("to_half", T * M, dhidden, d16)
            call("attention_backward", T, M, H, b("raw", T, 3 * M), w("self_attn.q_norm.weight"),
                 w("self_attn.k_norm.weight"), self._cos, self._sin, batch.positions_T, batch.starts,
                 len(batch.starts) - 1, b("q_scale", T), b("k_scale", T), b("q16", T, M, **half),
                 b("k16", T, M, **half), b("v16", T, M, **half), b("lse", T, H), out16, d16,
                 g("self_attn.q_norm.weight"), g("self_attn.k_norm.weight"), draw16)  # fmt: skip
            call("linear_backward", T, M, 3 * M, draw16, b("norm16", T, M, **half), self._qkv(n), dhidden,
                 self._qkv(n, True), 0)  # fmt: skip
            call("norm_backward", T, M, self._buffer(f"x.{n}", T, M), b("scale", T), w("input_layernorm.weight"),
                 dhidden, dx, g("input_layernorm.weight"))  # fmt: skip
        dembed.index_add_(0, batch.ids_T, dx)
        return loss.value, z_total, counts_LE
