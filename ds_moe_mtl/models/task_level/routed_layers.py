"""Transformer layers as experts: copies of a layer, mixed by the route or only the chosen one run.

B sequences (rows of a padded batch, or runs of tokens of a packed one), T tokens, D hidden size,
L routed layers, E experts.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from ds_moe_mtl.models.attention.choice import Packing
from ds_moe_mtl.models.attention.own import PackedMask, plan_like
from ds_moe_mtl.models.calls import CallScope

PLAN = "packing"
"""The keyword by which transformers' attention interface brings a plan to attention."""

READ = ("attention_type",)
"""Attributes of a layer that a model's forward reads."""


@dataclass
class RouteCall:
    """One forward call: routes [L, B, E] and, for a packed batch, the sequences' lengths.

    one_hot: the routes are one-hot and carry no gradient, so only chosen experts run. whole_batch:
    a batch is never split by expert (generation, whose cache holds all rows).
    """

    routes_LBE: torch.Tensor
    lengths: Sequence[int] | None = None
    one_hot: bool = False
    whole_batch: bool = False
    experts_LB: list[list[int]] | None = None
    subsets: dict[tuple[int, ...], "Subset"] = field(default_factory=dict)  # packed, by sequences

    def experts(self, layer: int) -> list[int]:
        """Return each sequence's expert in a layer, of one-hot routes.

        All layers' are read at once: on a GPU the host waits for them.
        """
        if self.experts_LB is None:
            self.experts_LB = self.routes_LBE.argmax(dim=2).tolist()
        return self.experts_LB[layer]

    def subset(self, rows: tuple[int, ...], states: torch.Tensor, packing: Packing) -> "Subset":
        """Return some sequences of a packed batch, whose plan is `packing` and states [1, T, D]."""
        if rows not in self.subsets:
            ends = np.cumsum(self.lengths)
            tokens = np.concatenate([np.arange(ends[r] - self.lengths[r], ends[r]) for r in rows])
            lengths = [self.lengths[r] for r in rows]
            plan = plan_like(packing, lengths, states.device, states.dtype)
            tokens = torch.from_numpy(tokens).to(states.device)
            self.subsets[rows] = Subset(tokens, plan, states.shape[1])
        return self.subsets[rows]


@dataclass(frozen=True)
class Subset:
    """Some sequences of a packed batch of `size` tokens: the indices of theirs, and their plan."""

    tokens: torch.Tensor
    packing: Packing
    size: int

    def of(self, value, name: str = ""):
        """Return a layer's argument for these sequences; name: its keyword, where it has one.

        A tensor [1, size, ...] has something for each token, as rotary positions do.
        """
        if isinstance(value, PackedMask):
            return value.of(self.packing)
        if name == PLAN:
            return self.packing
        if isinstance(value, tuple):
            return tuple(self.of(each) for each in value)
        per_token = isinstance(value, torch.Tensor) and value.shape[:2] == (1, self.size)
        return value[:, self.tokens] if per_token else value


class RoutedLayer(nn.Module):
    """Stands where a transformer layer stood; its experts are copies of that layer.

    Takes and gives what the layer did. Every expert's parameters get a gradient in training, if
    only zeros: ranks reduce the same tensors whatever their tasks chose.
    """

    def __init__(
        self,
        experts: Sequence[nn.Module],
        index: int,
        scope: CallScope[RouteCall],
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.index = index
        self.scope = scope
        for name in READ:
            if hasattr(experts[0], name):
                setattr(self, name, getattr(experts[0], name))

    def forward(self, hidden_states: torch.Tensor, *args, **kwargs) -> torch.Tensor | tuple:
        """Return what the layer does, the states [., ., D] or a tuple that begins with them.

        Of attention weights, which a tuple may hold besides, experts have no common ones: None.
        """
        call = self.scope.call
        assert call is not None, "a routed layer ran outside CallScope.use"
        routes_BE, beams = call.routes_LBE[self.index], 1
        if call.lengths is None:  # beams are further rows of a sequence
            beams = len(hidden_states) // len(routes_BE)
            routes_BE = routes_BE.repeat_interleave(beams, dim=0)
        if not call.one_hot:
            return self._mixed(call, routes_BE, hidden_states, args, kwargs)
        expert_B = [expert for expert in call.experts(self.index) for _ in range(beams)]
        chosen = sorted(set(expert_B))
        if call.whole_batch and len(chosen) > 1:
            return self._mixed(call, routes_BE, hidden_states, args, kwargs)
        if len(chosen) == 1:
            out = self.experts[chosen[0]](hidden_states, *args, **kwargs)
        elif call.lengths is None:
            out = self._by_rows(expert_B, hidden_states, args, kwargs)
        else:
            out = self._by_tokens(call, expert_B, hidden_states, args, kwargs)
        if self.training and torch.is_grad_enabled():
            idle = [
                p for e, x in enumerate(self.experts) if e not in chosen for p in x.parameters()
            ]
            states = _states(out)
            zero = sum((p.sum() * 0 for p in idle), start=states.new_zeros(()))
            out = _like(out, states + zero.to(states.dtype))
        return out

    def _mixed(self, call, routes_BE, hidden_states, args, kwargs) -> torch.Tensor | tuple:
        """Return the experts' outputs weighted by the routes."""
        if call.lengths is None:
            weights = routes_BE[:, None, None, :]
        else:
            lengths = torch.tensor(call.lengths, device=routes_BE.device)
            weights = routes_BE.repeat_interleave(lengths, dim=0)[None, :, None, :]
            # Tokens in no sequence, which fill a batch up, have no route: nothing reads them.
            fill = hidden_states.shape[1] - weights.shape[1]
            weights = nn.functional.pad(weights, (0, 0, 0, 0, 0, fill))
        weights = weights.to(hidden_states.dtype)
        outputs = [expert(hidden_states, *args, **kwargs) for expert in self.experts]
        mixed = sum(_states(out) * weights[..., e] for e, out in enumerate(outputs))
        return _like(outputs[0], mixed)

    def _by_rows(self, expert_B, hidden_states, args, kwargs) -> torch.Tensor | tuple:
        """Run each expert on its rows of a padded batch."""
        size, outputs, order = len(hidden_states), [], []
        for e, expert in enumerate(self.experts):
            mine = [row for row, chosen in enumerate(expert_B) if chosen == e]
            if mine:
                index = torch.tensor(mine, device=hidden_states.device)
                sub_args = [_rows(value, index, size) for value in args]
                sub_kwargs = {name: _rows(value, index, size) for name, value in kwargs.items()}
                outputs.append(expert(hidden_states[index], *sub_args, **sub_kwargs))
                order += mine
        place = torch.tensor(np.argsort(order), device=hidden_states.device)
        return _like(outputs[0], torch.cat([_states(out) for out in outputs])[place])

    def _by_tokens(self, call, expert_B, hidden_states, args, kwargs) -> torch.Tensor | tuple:
        """Run each expert on the tokens of its sequences of a packed batch [1, T, D]."""
        outputs, order = [], []
        for e, expert in enumerate(self.experts):
            mine = tuple(row for row, chosen in enumerate(expert_B) if chosen == e)
            if mine:
                subset = call.subset(mine, hidden_states, _plan(args, kwargs))
                sub_args = [subset.of(value) for value in args]
                sub_kwargs = {name: subset.of(value, name) for name, value in kwargs.items()}
                states = hidden_states[:, subset.tokens]
                outputs.append(expert(states, *sub_args, **sub_kwargs))
                order.append(subset.tokens)
        place = torch.argsort(torch.cat(order))
        states = torch.cat([_states(out) for out in outputs], dim=1)[:, place]
        fill = hidden_states.shape[1] - states.shape[1]
        return _like(outputs[0], nn.functional.pad(states, (0, 0, 0, fill)))


def route_layers(
    layers: nn.ModuleList,
    chosen: Sequence[int],
    num_experts: int,
    scope: CallScope[RouteCall],
    noise: float = 0.0,
    first_index: int = 0,
) -> int:
    """Make the chosen layers RoutedLayers of copies, in place; return the next free route index.

    noise: standard deviation added to each copy (1e-8 in CrossTaskMoE). Raises ValueError for a
    layer that is not there.
    """
    for index, place in enumerate(chosen, start=first_index):
        if not 0 <= place < len(layers):
            raise ValueError(f"router.layers: {place} is no layer; allowed: 0 to {len(layers) - 1}")
        experts = [_copied(layers[place]) for _ in range(num_experts)]
        for parameter in (p for expert in experts for p in expert.parameters() if noise):
            parameter.data.add_(torch.randn_like(parameter), alpha=noise)
        extra = len(layers) + (index - first_index) * (num_experts - 1)
        slots = [place, *range(extra, extra + num_experts - 1)]
        for expert, slot in zip(experts, slots, strict=True):
            _take_slot(expert, slot)
        layers[place] = RoutedLayer(experts, index, scope)
    return first_index + len(chosen)


def _copied(layer: nn.Module) -> nn.Module:
    """Return a copy with weights of its own and the model's configuration, which names the
    attention in use and may change."""
    configs = [getattr(module, "config", None) for module in layer.modules()]
    return copy.deepcopy(layer, {id(config): config for config in configs})


def _take_slot(expert: nn.Module, slot: int) -> None:
    """Let an expert's attention keep its keys and values in this place of a decoder's cache."""
    for module in expert.modules():
        if getattr(module, "layer_idx", None) is not None:
            module.layer_idx = slot


def _rows(value, index: torch.Tensor, size: int):
    is_batch = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == size
    return value[index] if is_batch else value


def _plan(args: tuple, kwargs: dict) -> Packing:
    """Return the plan among a layer's arguments."""
    masks = (value for value in (*args, *kwargs.values()) if isinstance(value, PackedMask))
    return kwargs[PLAN] if PLAN in kwargs else next(masks).packing


def _states(output: torch.Tensor | tuple) -> torch.Tensor:
    """Return the hidden states in a layer's output."""
    return output[0] if isinstance(output, tuple) else output


def _like(output: torch.Tensor | tuple, states: torch.Tensor) -> torch.Tensor | tuple:
    """Return `states` in the form of a layer's output, without the attention's weights."""
    return (states, *[None] * len(output[1:])) if isinstance(output, tuple) else states
