"""BART whose layers are experts, in encoder and decoder: text in, text out, a route a task.

B sequences, S tokens of the longest answer, L routed layers over encoder and then decoder.
The public code of Ye, Zha and Ren reads the plain layers in its decoder; here the decoder's
routed layers run.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, EncoderDecoderCache

from ds_moe_mtl.data.batch import NO_TARGET, MultiTaskBatch
from ds_moe_mtl.models.calls import CallScope
from ds_moe_mtl.models.description import FORMAT
from ds_moe_mtl.models.losses import network_inputs
from ds_moe_mtl.models.network import Outputs
from ds_moe_mtl.models.task_level.routed_layers import RouteCall, route_layers
from ds_moe_mtl.models.task_level.task_router import RouterOptions, TaskRouter
from ds_moe_mtl.models.token_level.gating import RoutingOptions
from ds_moe_mtl.models.tokenizer import EncoderLimits, limits_of

IGNORED = NO_TARGET
MAX_ANSWER = 64
"""Tokens, as in the public code."""


class ExpertsCache(DynamicCache):
    """A decoder's own keys and values, with a place for each expert of which a call runs some."""

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return how many tokens have been generated: the same in every place that is in use."""
        return max((layer.get_seq_length() for layer in self.layers), default=0)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the length and the offset of the keys that a mask covers."""
        return self.get_seq_length() + query_length, 0


class RoutedBart(nn.Module):
    """A sequence-to-sequence transformer of many tasks, dense or with experts as layers.

    router None: the dense model, vanilla multi-tasking.
    """

    def __init__(
        self,
        transformer: nn.Module,
        num_tasks: int,
        router: RouterOptions | None = None,
        vectors: torch.Tensor | None = None,
        expert_noise: float = 0.0,
        label_smoothing: float = 0.0,
        num_beams: int = 4,
    ) -> None:
        """num_beams: of generation (4 in the public code). Raises ValueError for a wrong layer."""
        super().__init__()
        self.label_smoothing, self.num_beams = label_smoothing, num_beams
        self.num_tasks = num_tasks
        self._scope: CallScope[RouteCall] = CallScope()
        self.router = None
        if router is not None:
            halves = (transformer.model.encoder.layers, transformer.model.decoder.layers)
            depth = len(halves[0]) + len(halves[1])
            layers = router.layers or tuple(range(depth))
            beyond = [layer for layer in layers if layer >= depth]
            if beyond:
                allowed = f"allowed: 0 to {depth - 1}"
                raise ValueError(f"router.layers: {beyond[0]} is no layer; {allowed}")
            layers = tuple(sorted(layers))
            in_encoder = [layer for layer in layers if layer < len(halves[0])]
            in_decoder = [layer - len(halves[0]) for layer in layers[len(in_encoder) :]]
            count = route_layers(halves[0], in_encoder, router.experts, self._scope, expert_noise)
            route_layers(halves[1], in_decoder, router.experts, self._scope, expert_noise, count)
            self.router = TaskRouter(replace(router, layers=layers), num_tasks, vectors)
        self.transformer = transformer

    def set_step(self, step: int) -> None:
        """Say which training step this is; a task router's temperature depends on it."""
        if self.router is not None:
            self.router.set_step(step)

    @property
    def limits(self) -> EncoderLimits:
        """What the transformer takes."""
        return limits_of(self.transformer)

    def forward(
        self,
        input_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        task_ids_B: torch.Tensor,
        targets_BS: torch.Tensor,
        questions_B: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
        **unused,
    ) -> Outputs:
        """Return every sequence's loss: the mean over its answer's tokens, with label smoothing.

        The arguments are MultiTaskBatch's fields; targets_BS holds IGNORED beyond an answer.
        """
        if len(task_ids_B) == 0:
            return self._nothing(input_ids_T)
        inputs, mask = self._padded(input_ids_T, cu_seqlens, lengths)
        with self._scope.use(self._call(task_ids_B, questions_B)):
            out = self.transformer(
                input_ids=inputs,
                attention_mask=mask,
                decoder_input_ids=self._shifted(targets_BS),
                use_cache=False,
            )
        losses = nn.functional.cross_entropy(
            out.logits.float().transpose(1, 2),
            targets_BS,
            ignore_index=IGNORED,
            reduction="none",
            label_smoothing=self.label_smoothing if self.training else 0.0,
        )
        losses_B = losses.sum(dim=1) / (targets_BS != IGNORED).sum(dim=1)
        no_logits = losses_B.new_zeros((len(losses_B), 1))
        return Outputs(no_logits, losses_B.new_zeros(()), losses_B=losses_B)

    def losses(self, outputs: Outputs, batch: MultiTaskBatch, scaling: bool = True) -> torch.Tensor:
        """Return each sequence's loss [B], which forward has computed; see Network."""
        return outputs.losses_B

    def answers(self, batch: MultiTaskBatch, num_outputs: int) -> torch.Tensor:
        """Return each sequence's generated tokens, int64 [B, MAX_ANSWER]; see Network."""
        return self.generate(**network_inputs(batch))

    def attention_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return the name of the attention that runs: transformers' own, wherever it is."""
        return self.transformer.config._attn_implementation

    def kernels_on(self, device: torch.device, dtype: torch.dtype) -> str:
        """Return which kernels its layers run on: torch's own, wherever they are."""
        return "torch"

    def use_kernels(self, option: str) -> None:
        """Refuse what is not torch's own; see Network."""
        if option == "triton":
            raise ValueError(
                "train.encoder_kernels = triton, but a model that generates has none; allowed: "
                "auto, torch"
            )

    def description(
        self, kind: str, routing: RoutingOptions | None, tasks: Sequence[dict], about: Mapping
    ) -> dict:
        """Return what config.json says of the network, enough to build it again."""
        return {
            "format": FORMAT,
            "family": "bart",
            "kind": kind,
            "encoder": self.transformer.config.to_dict(),
            "encoder_class": type(self.transformer).__name__,
            "heads": [],
            "num_beams": self.num_beams,
            "tasks": list(tasks),
            "about": dict(about),
            **({"router": self.router.values()} if self.router is not None else {}),
        }

    @torch.no_grad()
    def generate(
        self,
        input_ids_T: torch.Tensor,
        cu_seqlens: torch.Tensor,
        task_ids_B: torch.Tensor,
        questions_B: torch.Tensor | None = None,
        lengths: Sequence[int] | None = None,
        **unused,
    ) -> torch.Tensor:
        """Return answers [B, MAX_ANSWER] as tokens by beam search, padded with the pad token."""
        pad = self.transformer.config.pad_token_id
        if len(task_ids_B) == 0:
            return input_ids_T.new_full((0, MAX_ANSWER), pad)
        inputs, mask = self._padded(input_ids_T, cu_seqlens, lengths)
        call = self._call(task_ids_B, questions_B)
        call.whole_batch = True
        # Transformers' own cache has one place a layer; experts that are mixed need one each.
        cache = {}
        if self.transformer.generation_config.use_cache:
            cache = {"past_key_values": EncoderDecoderCache(ExpertsCache(), DynamicCache())}
        with self._scope.use(call):
            tokens = self.transformer.generate(
                input_ids=inputs,
                attention_mask=mask,
                num_beams=self.num_beams,
                max_length=MAX_ANSWER,
                do_sample=False,
                **cache,
            )
        return nn.functional.pad(tokens, (0, MAX_ANSWER - tokens.shape[1]), value=pad)

    def _call(self, task_ids_B: torch.Tensor, questions_B: torch.Tensor | None) -> RouteCall:
        if self.router is None:
            return RouteCall(torch.empty(0))
        return RouteCall(self.router(task_ids_B, questions_B), one_hot=self.router.one_hot)

    def _padded(self, input_ids_T, cu_seqlens, lengths) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (ids [B, longest], mask) of packed tokens."""
        rows = input_ids_T.split(list(cu_seqlens.diff().tolist() if lengths is None else lengths))
        pad = self.transformer.config.pad_token_id
        inputs = pad_sequence(list(rows), batch_first=True, padding_value=pad)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        return inputs, mask

    def _shifted(self, targets_BS: torch.Tensor) -> torch.Tensor:
        """Return what the decoder reads: the answer after the token that starts it."""
        config = self.transformer.config
        first = targets_BS.new_full((len(targets_BS), 1), config.decoder_start_token_id)
        before = torch.cat([first, targets_BS[:, :-1]], dim=1)
        return before.masked_fill(before == IGNORED, config.pad_token_id)

    def _nothing(self, empty: torch.Tensor) -> Outputs:
        """Return the outputs of no sequences, connected to every parameter (one stand-in row)."""
        one = empty.new_full((1,), self.transformer.config.eos_token_id)
        ends = torch.tensor([0, 1], dtype=torch.int32, device=empty.device)
        task = one.new_zeros(1)
        out = self.forward(one, ends, task, one[None], task)
        return Outputs(out.logits_BC[:0], out.aux_loss, losses_B=out.losses_B[:0])
