"""A layer's feed-forward network as a family tells it: its linear maps, its activation.

D hidden size, F inner size.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from torch import nn


class FFN(NamedTuple):
    """A layer's linear maps and transformers' name of the activation between them.

    first: one map [F, D], or of a gated FFN one [2 F, D] or two [F, D], the activated half first.
    """

    first: tuple[nn.Linear, ...]
    second: nn.Linear
    hidden_act: str
    gated: bool = False

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.second.out_features

    @property
    def inner_size(self) -> int:
        """F."""
        return self.second.in_features

    @property
    def has_bias(self) -> bool:
        """Whether the maps have biases; all have, or none."""
        return self.second.bias is not None

    def weights(self) -> dict[str, torch.Tensor]:
        """Return copies of the weights by an expert's names: fc1.weight [F or 2 F, D], fc1.bias,
        fc2.weight [D, F] and fc2.bias."""
        names = ("weight", "bias") if self.has_bias else ("weight",)
        state = {}
        for name in names:
            state[f"fc1.{name}"] = torch.cat([getattr(m, name).detach() for m in self.first])
            state[f"fc2.{name}"] = getattr(self.second, name).detach().clone()
        return state

    @torch.no_grad()
    def take(self, expert: nn.Module) -> int:
        """Give the maps an expert's weights (its fc1 and fc2); return how many tensors."""
        names = ("weight", "bias") if self.has_bias else ("weight",)
        for name in names:
            sizes = [linear.out_features for linear in self.first]
            pieces = getattr(expert.fc1, name).split(sizes)
            for linear, piece in zip(self.first, pieces, strict=True):
                getattr(linear, name).copy_(piece)
            getattr(self.second, name).copy_(getattr(expert.fc2, name))
        return len(names) * (len(self.first) + 1)


def checked(ffn: FFN, places: Collection[str], holder: nn.Module, layer: nn.Module) -> FFN:
    """Return the FFN. Raises ValueError, one line, where experts made of it would lose something.

    places: what a message calls the maps, the second one's last; holder: the module in which
    nothing but maps may have weights; layer: whose FFN it is.
    """
    fault = _fault(ffn, places, holder)
    if fault:
        raise ValueError(f"{type(layer).__name__} cannot be upcycled: {fault}")
    return ffn


def _fault(ffn: FFN, places: Collection[str], holder: nn.Module) -> str:
    """Return what two linear maps and an activation would lose of the FFN, "" if nothing."""
    maps = (*ffn.first, ffn.second)
    for place, linear in zip(places, maps, strict=True):
        if type(linear) is not nn.Linear:
            return f"{place} is a {type(linear).__name__}; allowed: a plain nn.Linear"
        held = {name for name, _ in (*linear.named_parameters(), *linear.named_buffers())}
        if held not in ({"weight", "bias"}, {"weight"}):
            return f"{place} holds {' and '.join(sorted(held))}; allowed: weight, and bias or none"
    if len({linear.bias is None for linear in maps}) > 1:
        return "some of its linear maps have biases; allowed: all of them, or none"
    wide = ffn.inner_size * (2 if ffn.gated else 1)
    if (
        sum(linear.out_features for linear in ffn.first) != wide
        or {linear.in_features for linear in ffn.first} != {ffn.hidden_size}
        or any(linear.out_features != ffn.first[0].out_features for linear in ffn.first)
    ):
        shown = " and ".join(str(linear) for linear in maps)
        return f"its linear maps are {shown}; allowed: one back from the other's width"
    for place, module in _beside(holder, maps):
        return f"the FFN holds {place} ({type(module).__name__}) too; allowed: an activation"
    for module in (*maps, holder):
        if module._forward_hooks or module._forward_pre_hooks or hasattr(module, "_hf_hook"):
            return f"a {type(module).__name__} of the FFN has hooks, which would be lost"
    return ""


def _beside(holder: nn.Module, maps: Collection[nn.Linear]) -> Iterator[tuple[str, nn.Module]]:
    """Yield the modules of `holder`, by name, that have weights beside the maps."""
    if holder._parameters or holder._buffers:
        yield type(holder).__name__, holder
    for name, module in holder.named_children():
        if not any(module is linear for linear in maps) and any(
            True for _ in (*module.parameters(), *module.buffers())
        ):
            yield name, module
