"""The multi-task network: one packed encoder, dense or sparse, and a head for each task.

T tokens, B sequences, C outputs of the widest task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

import torch
from torch import nn

import moe_kernels
from ds_moe_mtl.config.levers import SPARSE_KINDS
from ds_moe_mtl.data import MultiTaskBatch
from ds_moe_mtl.models.attention.choice import PACKED_FLASH
from ds_moe_mtl.models.calls import CallScope
from ds_moe_mtl.models.description import FORMAT
from ds_moe_mtl.models.encoder import PackedEncoder
from ds_moe_mtl.models.families import family_of
from ds_moe_mtl.models.filling import filling_sequences
from ds_moe_mtl.models.graphs import EncoderGraphs, Recorder
from ds_moe_mtl.models.heads import HeadSpec, TaskHeads, word_states
from ds_moe_mtl.models.losses import FORMS, batch_losses, class_weights, network_inputs
from ds_moe_mtl.models.network import Outputs
from ds_moe_mtl.models.shapes import NO_SHAPES, Bucket
from ds_moe_mtl.models.task_level.routed_layers import RouteCall, route_layers
from ds_moe_mtl.models.task_level.task_router import RouterOptions, TaskRouter
from ds_moe_mtl.models.token_level.context import GateCall
from ds_moe_mtl.models.token_level.direct_calls import call_scope, routed_ffns
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.token_level.upcycle import upcycle
from ds_moe_mtl.models.tokenizer import EncoderLimits, limits_of

KINDS = ("single", "mt_dense", *SPARSE_KINDS, "task_moe")


class MultiTaskNetwork(nn.Module):
    """Encoder and heads; gate_of_task maps a task's index to its gate.

    router: None, or the task router whose routes the encoder's RoutedLayers follow, and their
    scope. tied_steps: so many steps of training (set_step) begin with experts tied. shapes: that
    batches are brought to in training.
    """

    shapes = NO_SHAPES

    def __init__(
        self,
        transformer: nn.Module,
        heads: Sequence[HeadSpec],
        dropout: float,
        gate_of_task: Sequence[int] | None,
        router: TaskRouter | None = None,
        scope: CallScope[RouteCall] | None = None,
    ) -> None:
        super().__init__()
        self.router = router
        self._scope = call_scope(transformer) if scope is None else scope
        self.tied_steps = 0
        self._ffns = routed_ffns(transformer)  # it looks through all modules: asked once
        self._routes_sequences = any(ffn.moe.options.route_by == "sequence" for ffn in self._ffns)
        self.encoder = PackedEncoder(transformer)
        self.heads = TaskHeads(self.encoder.hidden_size, heads, dropout)
        gates = torch.zeros(len(heads), dtype=torch.long)
        if gate_of_task is not None:
            gates = torch.tensor(gate_of_task, dtype=torch.long)
        self.register_buffer("gate_of_task", gates, persistent=False)
        outputs = torch.tensor([spec.outputs for spec in heads])
        self.register_buffer("num_outputs", outputs, persistent=False)
        options = torch.tensor([bool(spec.shared) for spec in heads])
        self.register_buffer("scores_options", options, persistent=False)
        forms = torch.tensor([FORMS.index(spec.form) for spec in heads])
        self.register_buffer("forms", forms, persistent=False)
        self.register_buffer("class_weights", class_weights(heads), persistent=False)

    @property
    def limits(self) -> EncoderLimits:
        """What its encoder takes."""
        return limits_of(self.encoder.transformer)

    @property
    def has_options(self) -> bool:
        """Whether a task scores answer options."""
        return any(spec.shared for spec in self.heads.specs)

    @property
    def has_shapes(self) -> bool:
        """Whether a task's answer is more than one class or score."""
        return any(spec.form != "classes" for spec in self.heads.specs)

    def set_step(self, step: int) -> None:
        """Say which training step this is.

        A task router's temperature depends on it, and whether experts are tied (the first
        `tied_steps` steps).
        """
        if self.router is not None:
            self.router.set_step(step)
        for ffn in self._ffns if self.tied_steps else ():
            ffn.moe.tied = step < self.tied_steps

    def forward(
        self,
        input_ids_T: torch.Tensor,
        token_type_ids_T: torch.Tensor,
        position_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        groups: Sequence[tuple[int, int]] | None,
        task_ids_B: torch.Tensor,
        spans_B22: torch.Tensor,
        questions_B: torch.Tensor | None = None,
        keep_routes: bool = False,
        lengths: Sequence[int] | None = None,
        longest_word: int | None = None,
        units_U: torch.Tensor | None = None,
        unit_rows_U: torch.Tensor | None = None,
    ) -> Outputs:
        """Return every sequence's outputs; the arguments are MultiTaskBatch's fields.

        lengths and longest_word are what the host knows of the tensors; without them it reads them
        there, and waits for a GPU.
        """
        starts_B = cu_seqlens[:-1].long()
        call = GateCall(gate_ids=None, keep_routes=keep_routes)
        call.task_ids, call.questions = task_ids_B, questions_B
        lengths = cu_seqlens.diff().tolist() if lengths is None else lengths
        inputs = (input_ids_T, token_type_ids_T, position_ids_T, cu_seqlens, groups, lengths)
        hidden_TD = self._hidden_states(call, inputs, self.gate_of_task[task_ids_B])
        cls_BD = self.encoder.pool(hidden_TD[starts_B])
        logits_BC = self.heads(hidden_TD, cls_BD, starts_B, task_ids_B, spans_B22, longest_word)
        aux_loss = sum(call.aux_losses, start=logits_BC.new_zeros(()))
        unit_logits_UC = None
        if self.heads.reads_tokens:
            if units_U is None:
                units_U = unit_rows_U = task_ids_B.new_zeros(0)
            unit_logits_UC = self.heads.of_units(hidden_TD, units_U, task_ids_B[unit_rows_U])
        return Outputs(logits_BC, aux_loss, call.counts, call.routes, unit_logits_UC=unit_logits_UC)

    def losses(self, outputs: Outputs, batch: MultiTaskBatch, scaling: bool = True) -> torch.Tensor:
        """Return each sequence's loss [B]; see Network."""
        return batch_losses(self, outputs, batch, scaling)

    def answers(self, batch: MultiTaskBatch, num_outputs: int) -> torch.Tensor:
        """Return each sequence's (or unit's) outputs, float32 [B, num_outputs]; see Network."""
        outputs = self(**network_inputs(batch))
        logits = outputs.logits_BC if batch.units_U is None else outputs.unit_logits_UC
        return logits[:, :num_outputs].float()

    def attention_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the attention that runs there."""
        return self.encoder.attention_on(device, dtype)

    def kernels_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return which kernels the encoder's layers run on there, in words."""
        return str(self.encoder.kernels_on(device, dtype))

    def use_kernels(self, option: str) -> None:
        """Have the encoder run on what train.encoder_kernels = `option` means; see Network."""
        self.encoder.use_kernels(option)

    def description(
        self, kind: str, routing: RoutingOptions | None, tasks: Sequence[dict], about: Mapping
    ) -> dict:
        """Return what config.json says of the network, enough to build it again."""
        transformer = self.encoder.transformer
        return {
            "format": FORMAT,
            "kind": kind,
            "encoder": transformer.config.to_dict(),
            "encoder_class": type(transformer).__name__,
            "pooler": getattr(transformer, "pooler", None) is not None,
            "heads": [asdict(spec) for spec in self.heads.specs],
            "routing": asdict(routing) if kind in SPARSE_KINDS else None,
            "gate_of_task": self.gate_of_task.tolist(),
            **({"router": self.router.values()} if self.router is not None else {}),
            "tasks": list(tasks),
            "about": dict(about),
        }

    def features(
        self,
        input_ids_T: torch.Tensor,
        token_type_ids_T: torch.Tensor,
        position_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        groups: Sequence[tuple[int, int]] | None,
        task_ids_B: torch.Tensor,
        spans_B22: torch.Tensor,
        gate: int,
        spans: bool,
        lengths: Sequence[int] | None = None,
        longest_word: int | None = None,
    ) -> torch.Tensor:
        """Return what a head would read [B, D or 3 D] if all sequences were routed by one gate.

        spans: with the two words of each sequence, as the head of a word-sense task.
        """
        lengths = cu_seqlens.diff().tolist() if lengths is None else lengths
        inputs = (input_ids_T, token_type_ids_T, position_ids_T, cu_seqlens, groups, lengths)
        starts_B = cu_seqlens[:-1].long()
        gates_B = torch.full_like(task_ids_B, gate)
        hidden_TD = self._hidden_states(GateCall(gate_ids=None), inputs, gates_B)
        cls_BD = self.encoder.pool(hidden_TD[starts_B])
        if not spans:
            return cls_BD
        words = word_states(hidden_TD, starts_B, spans_B22, longest_word)
        return torch.cat([cls_BD, words], dim=1)

    def _hidden_states(self, call: GateCall, inputs: tuple, gates_B: torch.Tensor) -> torch.Tensor:
        """Return the last hidden states [T, D], each sequence routed by its gate.

        On a CPU in 16 bits, and where `shapes` says so, the tokens are filled up to a size that
        comes again, with tokens that no gate routes; nothing reads their outputs. They are in no
        sequence, or where attention takes sequences alone in sequences of their own.
        """
        *tokens, cu_seqlens, groups, lengths = inputs
        num_tokens = len(tokens[0])
        if self._routes_sequences:
            call.cu_seqlens = cu_seqlens
        if num_tokens == 0:
            return self._run_stand_in(call, tokens[0])
        gates_T = gates_B.repeat_interleave(cu_seqlens.diff().long(), output_size=num_tokens)
        shapes = self.shapes if self.training and not call.keep_routes else NO_SHAPES
        size = shapes.size_of(num_tokens)
        size = moe_kernels.recurring_size(size, gates_T.device, self.encoder.dtype)
        if size > num_tokens or shapes.records:
            fill = (0, size - num_tokens)
            call.mask = nn.functional.pad(torch.ones_like(gates_T), fill)[None]
            *tokens, gates_T = (nn.functional.pad(ids_T, fill) for ids_T in (*tokens, gates_T))
        call.gate_ids = gates_T[None]
        attention = self.encoder.attention_on(gates_T.device, self.encoder.dtype)
        if shapes.records and torch.is_grad_enabled():
            per_token = (*tokens, gates_T, call.mask[0])
            outputs = shapes.run(per_token, cu_seqlens, lengths, attention != PACKED_FLASH)
            hidden_TD, *call.counts = outputs
            return hidden_TD
        if size > num_tokens and attention == PACKED_FLASH:
            cu_seqlens, lengths = filling_sequences(cu_seqlens, lengths, size)
        inputs = (*tokens, cu_seqlens, groups, lengths)
        hidden_TD = self._run_encoder(call, inputs)
        if size > num_tokens:  # a slice's gradient is a whole tensor of zeros, and a copy into it
            hidden_TD = hidden_TD[:num_tokens]
        call.routes = [route.first(num_tokens) for route in call.routes]
        return hidden_TD

    def recorded(self, record: Recorder) -> EncoderGraphs:
        """Return the encoder's passes, to be recorded in buckets (models.shapes)."""
        return EncoderGraphs(self._pass, tuple(self.encoder.parameters()), record)

    def _pass(self, bucket: Bucket, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the last hidden states [T, D] and each sparse layer's counts, of a filled batch.

        inputs: ids, types, positions, the sequences' ends, gates and mask of real tokens.
        """
        *tokens, ends, gates_T, mask_T = inputs
        call = GateCall(gates_T[None], mask_T[None])
        hidden_TD = self._run_encoder(call, (*tokens, ends, None, bucket.lengths))
        return hidden_TD, *call.counts

    def checkpoint_activations(self) -> None:
        """Keep only each layer's input in the forward pass; layers run again in the backward pass.

        The second run gets the gate ids and the random numbers of the first. Raises ValueError for
        an encoder that transformers does not run so.
        """
        transformer = self.encoder.transformer
        if not transformer.supports_gradient_checkpointing:
            raise ValueError(
                f"train.activation_checkpointing = true, which transformers does not have for "
                f"{type(transformer).__name__}; allowed: false"
            )
        newer = getattr(transformer, "activation_checkpointing_enable", None)
        (newer or transformer.gradient_checkpointing_enable)({"use_reentrant": False})

    def _run_encoder(self, call: GateCall, inputs: tuple) -> torch.Tensor:
        if self.router is not None:
            routes_LBE = self.router(call.task_ids, call.questions)
            call = RouteCall(routes_LBE, inputs[-1], self.router.one_hot)
        if self._scope is None:
            return self.encoder(*inputs)
        with self._scope.use(call):
            return self.encoder(*inputs)

    def _run_stand_in(self, call: GateCall, empty: torch.Tensor) -> torch.Tensor:
        """Return hidden states [0, D] of a batch without tokens, connected to every parameter.

        One token that is not routed passes through the encoder: transformers cannot run none, and
        every rank has to make the same collective calls.
        """
        token = empty.new_zeros(1)
        call.gate_ids = token[None]
        call.mask = token[None]
        ends = torch.tensor([0, 1], dtype=torch.int32, device=empty.device)
        if self._routes_sequences:
            call.cu_seqlens = ends
        call.task_ids = call.questions = token
        return self._run_encoder(call, (token, token, token, ends, ((0, 1),), (1,)))[:0]


def build_network(
    transformer: nn.Module,
    kind: str,
    heads: Sequence[HeadSpec],
    dropout: float,
    routing: RoutingOptions | None = None,
    expert_noise: float = 0.0,
    gate_of_task: Sequence[int] | None = None,
    router: RouterOptions | None = None,
    vectors: torch.Tensor | None = None,
    expert_dropout: float = 0.0,
) -> MultiTaskNetwork:
    """Return the network of one of the five kinds around a dense `transformer`.

    mt_tag: `routing.num_gates` gates, task i using gate_of_task[i] (i where not given);
    mt_switch: one gate for all; single and mt_dense: no MoE layer, `routing` is not read.
    task_moe: whole layers are experts, a route a task by `router` over task vectors [tasks, V].
    """
    if kind not in KINDS:
        raise ValueError(f"model.kind is one of {KINDS}, got {kind!r}")
    gates = None
    if kind == "task_moe":
        scope: CallScope[RouteCall] = CallScope()
        depths = family_of(transformer).layers(transformer)
        layers = router.layers or tuple(range(len(depths)))
        router = replace(router, layers=layers)
        route_layers(depths, layers, router.experts, scope, expert_noise)
        task_router = TaskRouter(router, len(heads), vectors)
        return MultiTaskNetwork(transformer, heads, dropout, None, task_router, scope)
    if kind in SPARSE_KINDS:
        upcycle(
            transformer, options=routing, expert_noise=expert_noise, expert_dropout=expert_dropout
        )
    if kind == "mt_tag":
        gates = list(range(len(heads))) if gate_of_task is None else list(gate_of_task)
        if max(gates) >= routing.num_gates:
            raise ValueError(f"gate_of_task {gates} needs more than {routing.num_gates} gates")
    return MultiTaskNetwork(transformer, heads, dropout, gates)
