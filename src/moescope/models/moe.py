"""`MoEModel`: a loaded model, its facts, and one forward pass that tells what every router decided."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from moescope.context import ModelInfo, check_experts
from moescope.errors import ModelError
from moescope.models.current import SinceProbe, common_experts_per_token, experts_per_token
from moescope.models.experts import run_expert
from moescope.models.facts import ModelFacts
from moescope.models.head import giving
from moescope.models.layout import Layout, from_the_end, no_such_layer
from moescope.models.listening import RecordMaker
from moescope.models.routers import RouterFacts, RouterRule
from moescope.models.seam import LayerSeam, StopForward, hooked, in_force
from moescope.models.weights import ExpertWeights, expert_weights
from moescope.records import ExpertOutputs, Routing, TokenBatch

_LOGIT_BYTES = 64 * 2**20
_LOGIT_ROWS = 512  # enough for the product to be fast


class MoEModel:
    """A Mixture-of-Experts model that can be looked into; made by `load_model`.

    Attributes:
        name: As it was asked for.
        revision: The commit of a hub repository; None for others.
        hf: transformers' model. With fewer blocks than the checkpoint (`complete` is False) it is the decoder alone,
            its last norm was not read, and only what comes out of its blocks means anything.
        facts: Facts of the whole checkpoint.
        layers: MoE layers that are loaded, decoder block indices.
        complete: Whether the whole depth is loaded, so that predictions can be had.
        seams: The seam of each loaded layer, for interventions.
        rules: How each loaded layer's router decides, found by the probe.
        probe: What the probe found.
        since_probe: What the model was then.
    """

    def __init__(
        self,
        name: str,
        hf: PreTrainedModel,
        facts: ModelFacts,
        layout: Layout,
        *,
        revision: str | None = None,
        tokenizer: Any = None,
        tokenizer_problem: ModelError | None = None,
        complete: bool = True,
    ) -> None:
        self.name = name
        self.revision = revision
        self.hf = hf
        self.facts = facts
        self.layout = layout
        self.complete = complete
        self.layers = tuple(layout.experts)
        self.seams: dict[int, LayerSeam] = {}
        self.rules: dict[int, RouterRule] = {}
        self.probe: Any = None
        self._tokenizer = tokenizer
        self._tokenizer_problem = tokenizer_problem
        self.since_probe = SinceProbe()

    def __repr__(self) -> str:
        """One line: name, family, sizes, device."""
        per_token = experts_per_token(self.hf, self.layout, self.layers[0])
        dtype = str(self.dtype).removeprefix("torch.")
        loaded = "" if self.complete else f", down to layer {self.layers[-1]}"
        sizes = f"{len(self.layers)} MoE layers x {self.num_experts} experts, {per_token} per token"
        return f"<MoEModel {self.name} ({self.family}): {sizes}, {dtype} on {self.device}{loaded}>"

    @property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer.

        Raises:
            ModelError: It has none that can be used; says why.
        """
        if self._tokenizer is None:
            problem = self._tokenizer_problem or ModelError(f"{self.name} has no tokenizer")
            # A new one each time: an error that was raised before keeps the frames it passed through.
            raise ModelError(problem.found, expected=problem.expected, remedy=problem.remedy) from problem.__cause__
        return self._tokenizer

    @property
    def family(self) -> str:
        """The family, as transformers names it (`model_type`)."""
        return self.facts.family

    @property
    def config_hash(self) -> str:
        """Hash of the checkpoint's configuration."""
        return self.facts.config_hash

    @property
    def checkpoint_layers(self) -> tuple[int, ...]:
        """All MoE layers of the checkpoint."""
        return self.facts.layers

    @property
    def num_blocks(self) -> int:
        """Decoder blocks of the checkpoint."""
        return self.facts.num_blocks

    @property
    def num_experts(self) -> int:
        """E, routed experts of a layer."""
        return self.facts.num_experts

    @property
    def num_experts_per_token(self) -> int:
        """K, as the routers have it now.

        Raises:
            ModelError: It was set to different numbers in different layers.
        """
        return common_experts_per_token(self.hf, self.layout, self.layers, self.name)

    @property
    def num_shared_experts(self) -> int:
        """Experts of a layer that every token goes through."""
        return self.facts.num_shared_experts

    @property
    def model_width(self) -> int:
        """M."""
        return self.facts.model_width

    @property
    def expert_width(self) -> int:
        """F."""
        return self.facts.expert_width

    @property
    def vocab_size(self) -> int:
        """V, rows of the embedding."""
        return self.facts.vocab_size

    @property
    def max_positions(self) -> int | None:
        """Longest sequence the model was made for; None where nothing bounds it."""
        return self.facts.max_positions

    @property
    def num_parameters(self) -> int:
        """Parameters of the checkpoint."""
        return self.facts.num_parameters

    @property
    def num_active_parameters(self) -> int:
        """Parameters of the checkpoint that take part in one token."""
        return self.facts.num_active_parameters

    @property
    def num_loaded_parameters(self) -> int:
        """Parameters in memory."""
        return sum(parameter.numel() for parameter in self.hf.parameters())

    @property
    def loaded_bytes(self) -> int:
        """Bytes that parameters and buffers take in memory."""
        return sum(tensor.nbytes for tensor in (*self.hf.parameters(), *self.hf.buffers()))

    @property
    def router(self) -> RouterFacts:
        """How the router decides (the first loaded layer's; the probe proves that all layers share the rule)."""
        return self.rules[self.layers[0]].facts()

    @property
    def device(self) -> torch.device:
        """Where token ids go: the device of the input embeddings."""
        return next(self.hf.get_input_embeddings().parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return self.hf.dtype

    @property
    def decoder(self) -> nn.Module:
        """The model without its head: ids or embeddings in, last hidden state out."""
        return self.hf.base_model if self.complete else self.hf

    @property
    def blocks(self) -> nn.ModuleList:
        """The decoder blocks that are loaded."""
        blocks = self.hf.get_submodule(self.layout.blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def experts(self, layer: int) -> Any:
        """A layer's experts module, as transformers made it."""
        return self.seams[layer].experts

    def expert_weights(self, layer: int) -> ExpertWeights:
        """A layer's gate, up and down matrices and its router's, in one orientation for all families."""
        seam = self.seams[self.check_layers([layer])[0]]
        return expert_weights(seam.experts, seam.router)

    @torch.no_grad()
    def expert_outputs(
        self,
        layer: int,
        inputs_NM: Tensor,
        experts: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        rows: int = 4096,
    ) -> Tensor:
        """Outputs of experts for given inputs, each expert for every input, before any routing weight.

        Args:
            layer: A loaded MoE layer.
            inputs_NM: Inputs of the layer's experts, such as `Routing.inputs_TM`.
            experts: Which experts; default all.
            dtype: Compute and return in this dtype instead of the model's, such as float32 for a bfloat16 model.
            rows: Inputs that go through an expert at a time; bounds the memory beside the result.

        Returns:
            (number of experts, N, M), on the layer's device.

        Raises:
            UsageError: A layer that is not loaded, or an expert that does not exist.
        """
        module = self.experts(self.check_layers([layer])[0])
        chosen = self.check_experts(experts)
        inputs_NM = inputs_NM.to(module.down_proj.device)
        outputs = [
            torch.cat([run_expert(module, expert, part_nM, dtype) for part_nM in inputs_NM.split(rows)])
            for expert in chosen
        ]
        return torch.stack(outputs)

    def refresh(self) -> None:
        """Looks at what may have been changed on `hf` since it was probed; routing rules are found again if need be.

        Raises:
            ModelError: Passes no longer come by the seams, or routers decide by no known rule.
        """
        self.since_probe.refresh(self.hf, self.layout, self.seams.values(), self.name)

    @property
    def info(self) -> ModelInfo:
        """Facts of the model as it is now, for those who answer questions without it."""
        return ModelInfo(
            name=self.name,
            revision=self.revision,
            family=self.family,
            config_hash=self.config_hash,
            dtype=str(self.dtype).removeprefix("torch."),
            device=str(self.device),
            num_experts=self.num_experts,
            num_experts_per_token=self.num_experts_per_token,
            num_shared_experts=self.num_shared_experts,
            model_width=self.model_width,
            expert_width=self.expert_width,
            vocab_size=self.vocab_size,
            scoring=self.router.scoring,
            selects_by=self.router.selects_by,
            complete=self.complete,
            tokenizer=self._tokenizer,
            interventions=in_force(self.seams.values()),
            changes=self.since_probe.changes(self.hf, self.num_experts_per_token),
        )

    def check_experts(self, experts: Sequence[int] | None) -> list[int]:
        """Experts to look at, in the order given; None means all.

        Raises:
            UsageError: An expert that does not exist.
        """
        return check_experts(experts, self.num_experts, self.name)

    def check_layers(self, layers: Sequence[int] | None) -> list[int]:
        """Layers to look at, ascending, each once; None means all that are loaded, -1 the model's last block.

        Raises:
            UsageError: A layer that is not loaded or is no MoE layer; lists those that are.
        """
        if layers is None:
            return list(self.layers)
        chosen = sorted(set(from_the_end(layers, self.num_blocks)))
        unknown = [layer for layer in chosen if layer not in self.layers]
        if unknown or not chosen:
            raise no_such_layer(unknown, self.layers, self.name)
        return chosen

    def listen(
        self,
        input_ids_BS: Tensor,
        tokens: TokenBatch,
        keep_T: Tensor,
        *,
        layers: Sequence[int],
        on_routing: Callable[[Routing], None],
        on_outputs: Callable[[ExpertOutputs], None] | None = None,
        needs_logits: bool = True,
        needs_inputs: bool = False,
        predictions: bool = False,
    ) -> Tensor | None:
        """One forward pass that tells what each layer's router decided, and its experts' outputs.

        The batch is padded on the right and goes without an attention mask: a causal model's kept tokens can't see
        what comes after them. The pass ends at the deepest layer asked, before its experts if no one listens to them.

        Args:
            input_ids_BS: Token ids, int64, on `device`.
            tokens: Where the kept tokens come from.
            keep_T: Rows of the flattened batch that are counted, ascending, int64.
            layers: MoE layers to look at.
            on_routing: Takes each layer's record, in order of depth.
            on_outputs: Takes each layer's expert outputs, after its routing.
            needs_logits: Whether records carry logits (and selection values).
            needs_inputs: Whether records carry the experts' inputs.
            predictions: Run the whole depth, and return the most probable next token of each kept token.

        Returns:
            Predicted token ids (T,), int64, or None.

        Raises:
            ModelError: Predictions of a model that is not complete; or the model was changed in a way that its routing
                is no longer seen, or is not what its facts say.
            UsageError: A layer that is not loaded.
        """
        chosen = self.check_layers(layers)
        self.refresh()
        if predictions and not self.complete:
            raise ModelError(
                f"{self.name} was loaded down to layer {self.layers[-1]}: it can't predict tokens",
                remedy="load it without `layers`",
            )
        seams = {layer: self.seams[layer] for layer in chosen}
        maker = RecordMaker(
            tokens=tokens,
            keep_T=None if keep_T.shape[0] == input_ids_BS.numel() else keep_T,
            rules=self.rules,
            device=self.device,
            num_experts=self.num_experts,
            num_experts_per_token=self.num_experts_per_token,
            on_routing=on_routing,
            on_outputs=on_outputs,
            needs_logits=needs_logits,
            needs_inputs=needs_inputs,
        )
        with torch.inference_mode(), hooked(seams, logits=needs_logits):
            for seam in seams.values():
                seam.listener = maker
            seams[chosen[-1]].stop = not predictions
            hidden_BSM = self.last_hidden(input_ids_BS)
            maker.check_all_heard(chosen)
            if hidden_BSM is None:
                return None
            return self.predict(hidden_BSM.flatten(0, 1).index_select(0, keep_T.to(hidden_BSM.device)))

    def last_hidden(self, input_ids_BS: Tensor) -> Tensor | None:
        """The decoder's last hidden state, B x S x M; None if a seam ended the pass before it."""
        try:
            return self.decoder(input_ids=input_ids_BS, use_cache=False).last_hidden_state
        except StopForward:
            return None

    def generate(self, *args: Any, **options: Any) -> Any:
        """Continues texts: everything goes to `generate` of transformers' model, what comes back is its own.

        Raises:
            ModelError: The model is not complete.
        """
        if not self.complete:
            raise ModelError(f"{self.name} was loaded without its head", remedy="load it without `layers`")
        return self.hf.generate(*args, **options)  # type: ignore[operator]

    def predict(self, hidden_TM: Tensor) -> Tensor:
        """The most probable next token after each of these last hidden states, int64, on `device`."""
        rows = min(_LOGIT_ROWS, max(1, _LOGIT_BYTES // (4 * self.vocab_size)))
        parts = [self.logits(part_nM).argmax(-1) for part_nM in hidden_TM.split(rows)]
        return torch.cat(parts).to(self.device) if parts else torch.empty(0, dtype=torch.int64, device=self.device)

    def logits(self, hidden_TM: Tensor) -> Tensor:
        """Next-token logits of last hidden states, T x V, exactly as the family's own head makes them.

        The family's `forward` runs with these states in place of its decoder's, so that scalings and caps of logits
        are the family's own. Gradients pass.

        Raises:
            ModelError: The model is not complete.
        """
        if not self.complete:
            raise ModelError(f"{self.name} was loaded without its head", remedy="load it without `layers`")
        with giving(self.decoder, hidden_TM.unsqueeze(0)):
            ids = torch.zeros((1, hidden_TM.shape[0]), dtype=torch.int64, device=self.device)
            return self.hf(input_ids=ids, use_cache=False).logits.squeeze(0)
