"""DeBERTa, v2 and v3: scores have terms of a token and of how far another one is from it.

He et al., "DeBERTa: Decoding-enhanced BERT with Disentangled Attention", 2006.03654, eq. 4: a
query times a key of its distance (content to position, c2p), a key times a query of its distance
(p2c). v2 and v3 put far distances into buckets; some v2 convolve over neighbours after layer 0.

T tokens, D hidden size, H heads, d head size, n sequences of a group padded to L tokens, R rows of
distances, 2 L - 1.
"""

from abc import abstractmethod
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn
from transformers.activations import ACT2FN

from ds_moe_mtl.models.attention.own import (
    PackedMask,
    attend,
    distances,
    heads_of,
    longest_of,
    nearest,
    rows_by_distance,
)
from ds_moe_mtl.models.families.own_attention import OwnAttention, through


class DebertaLike(OwnAttention):
    """What v1 and v2 have in common."""

    relative = True

    def first_position(self, model: nn.Module) -> int:
        """Return 0."""
        return 0

    def max_length(self, model: nn.Module) -> int:
        """Return what the encoder was meant for, also where it has no table of positions."""
        return model.config.max_position_embeddings

    def run_layers(
        self, model: nn.Module, x: torch.Tensor, mask: PackedMask, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return the last hidden states [1, T, D]; each layer projects the distances' table."""
        more = (None, None, model.encoder.get_rel_embedding())  # no query_states, no relative_pos
        first, others = model.encoder.layer[:1], model.encoder.layer[1:]
        after = self.after_first(model, x, through(first, x, mask, *more), position_ids)
        return through(others, after, mask, *more)

    def after_first(
        self, model: nn.Module, x: torch.Tensor, after: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return what the second layer gets, of embeddings x and layer 0's output, [1, T, D]."""
        return after

    def attend(
        self,
        module: nn.Module,
        x: torch.Tensor,
        mask: PackedMask,
        output_attentions: bool = False,
        query_states: None = None,
        relative_pos: None = None,
        rel_embeddings: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        """Return attention's output [1, T, D], no weights; rel_embeddings: the table, or None."""
        kinds = [kind for kind in ("c2p", "p2c") if kind in module.pos_att_type]
        size = module.attention_head_size
        scaling = (size * self.score_terms(module)) ** -0.5
        terms = None
        if module.relative_attention and kinds:
            rows = self.rows(module, longest_of(mask.packing), x.device)
            used = module.pos_dropout(rel_embeddings[rows.first : rows.last + 1])
            found = {}
            for kind in kinds:
                mapped = self.position_map(module, kind)(used)
                # Whose gradient is the same each time on a GPU, as index_select's is not.
                by_distance = nn.functional.embedding(rows.index_R, mapped)
                found[kind] = heads_of(by_distance[None], size)[0]
            terms = DistanceTerms(found.get("c2p"), found.get("p2c"))
        return attend(module, self.heads(module, x), mask, scaling, terms), None

    @abstractmethod
    def score_terms(self, module: nn.Module) -> int:
        """Return how many products are summed in a score, by whose root it is divided."""

    @abstractmethod
    def heads(self, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        """Return query, key and value [1, H, T, d] of x [1, T, D]."""

    @abstractmethod
    def rows(self, module: nn.Module, longest: int, device: torch.device) -> "Rows":
        """Return which rows of the table stand for the distances in `longest` tokens."""

    @abstractmethod
    def position_map(self, module: nn.Module, kind: str) -> nn.Module:
        """Return what makes keys (c2p) or queries (p2c) [., H * d] of rows of the table [., D]."""


class DistanceTerms(NamedTuple):
    """Keys and queries of each distance, in `distances`' order; None where scores lack them."""

    key_HRd: torch.Tensor | None
    query_HRd: torch.Tensor | None

    def __call__(self, query, key, scaling: float) -> torch.Tensor:
        """Return what a group's scores have besides [n, H, L, L]; query, key [n, H, L, d]."""
        length = query.shape[2]
        found = []
        if self.key_HRd is not None:
            found.append(_products(query, nearest(self.key_HRd, length, dim=1) * scaling))
        if self.query_HRd is not None:
            # Rows are the keys here: what is the query's distance from a key has the other sign.
            mirrored_HRd = nearest(self.query_HRd, length, dim=1).flip(1) * scaling
            found.append(_products(key, mirrored_HRd).transpose(-1, -2))
        return sum(found[1:], start=found[0])


def _products(x: torch.Tensor, of_distance_HRd: torch.Tensor) -> torch.Tensor:
    """Return [n, H, L, L], at (i, j) token i of x [n, H, L, d] times the row for i - j."""
    n, heads, length, size = x.shape
    rows = x.transpose(1, 2).reshape(n * length, heads, size).transpose(0, 1)
    products = torch.bmm(rows, of_distance_HRd.transpose(1, 2))
    return rows_by_distance(products.view(heads, n, length, -1)).transpose(0, 1)


class Rows(NamedTuple):
    """Rows first to last of a table; index_R: which of them each distance has."""

    first: int
    last: int
    index_R: torch.Tensor


@lru_cache(maxsize=1024)
def _rows(longest: int, span: int, buckets: int, farthest: int, device: torch.device) -> Rows:
    """Return the rows of a table of 2 x span rows; buckets, farthest: as transformers has them.

    On a CPU first, where no rounding of a logarithm differs from device to device.
    """
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

    with torch.inference_mode(False):  # kept for later calls, that may have a backward pass
        apart_R = distances(longest, torch.device("cpu"))
        if buckets > 0:
            apart_R = make_log_bucket_position(apart_R, buckets, farthest).long()
        rows_R = (apart_R + span).clamp(0, 2 * span - 1)
        first, last = int(rows_R.min()), int(rows_R.max())
        return Rows(first, last, (rows_R - first).to(device))


class DebertaV2(DebertaLike):
    """DeBERTa-v2 and v3; its attention holds query_proj, key_proj and value_proj."""

    name = "DeBERTa-v2"

    def marks(self, encoder: nn.Module) -> bool:
        """Return whether the encoder says how it norms its table of distances."""
        return hasattr(encoder, "norm_rel_ebd")

    def attends(self, module: nn.Module) -> bool:
        """Return whether a module holds pos_att_type and query_proj."""
        return hasattr(module, "pos_att_type") and hasattr(module, "query_proj")

    def after_first(
        self, model: nn.Module, x: torch.Tensor, after: torch.Tensor, position_ids: torch.Tensor
    ) -> torch.Tensor:
        """Return layer 0's output, or what the convolution of x adds to it, [1, T, D]."""
        conv = model.encoder.conv
        return after if conv is None else _convolved(conv, x, after, position_ids)

    def score_terms(self, module: nn.Module) -> int:
        """Return 1 and 1 for each of c2p and p2c."""
        return 1 + sum(kind in module.pos_att_type for kind in ("c2p", "p2c"))

    def heads(self, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        """Return query, key and value [1, H, T, d] of x [1, T, D]."""
        maps = (module.query_proj, module.key_proj, module.value_proj)
        return [heads_of(each(x), module.attention_head_size) for each in maps]

    def rows(self, module: nn.Module, longest: int, device: torch.device) -> Rows:
        """Return the rows of distances, far ones in buckets where there are some."""
        buckets, farthest = module.position_buckets, module.max_relative_positions
        return _rows(longest, module.pos_ebd_size, buckets, farthest, device)

    def position_map(self, module: nn.Module, kind: str) -> nn.Module:
        """Return the map of keys (c2p) or queries (p2c), of its own or the tokens'."""
        if module.share_att_key:
            return {"c2p": module.key_proj, "p2c": module.query_proj}[kind]
        return getattr(module, {"c2p": "pos_key_proj", "p2c": "pos_query_proj"}[kind])


def _convolved(
    conv: nn.Module, x: torch.Tensor, after: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """Return what transformers' ConvLayer gives of embeddings x and layer 0's output [1, T, D].

    Beside a sequence's ends stand zeros: a neighbour counts where its position is the next one.
    """
    taps = conv.conv.kernel_size[0]
    half = taps // 2
    around_TDk = nn.functional.pad(x[0], (0, 0, half, half)).unfold(0, taps, 1)
    place_Tk = nn.functional.pad(position_ids[0], (half, half), value=-1).unfold(0, taps, 1)
    step_k = torch.arange(-half, half + 1, device=x.device)
    own_Tk = place_Tk == position_ids[0][:, None] + step_k
    out_TD1 = nn.functional.conv1d(
        around_TDk * own_Tk[:, None], conv.conv.weight, conv.conv.bias, groups=conv.conv.groups
    )
    out_TD = ACT2FN[conv.conv_act](conv.dropout(out_TD1.squeeze(2)))
    return conv.LayerNorm(after + out_TD)


class Deberta(DebertaLike):
    """DeBERTa v1; its attention holds in_proj, whose rows are a head's query, key and value."""

    name = "DeBERTa"

    def marks(self, encoder: nn.Module) -> bool:
        """Return whether the encoder has distances, and no norm for their table."""
        has_distances = hasattr(encoder, "get_rel_embedding")
        return has_distances and not hasattr(encoder, "norm_rel_ebd")

    def attends(self, module: nn.Module) -> bool:
        """Return whether a module holds pos_att_type and in_proj."""
        return hasattr(module, "pos_att_type") and hasattr(module, "in_proj")

    def pack(self, model: nn.Module) -> None:
        """Give the encoder a forward that takes a plan. Raises ValueError for talking heads."""
        if any(getattr(module, "talking_head", False) for module in model.modules()):
            raise ValueError("its heads talk: talking_head = True; allowed: False")
        super().pack(model)

    def score_terms(self, module: nn.Module) -> int:
        """Return 1 and 1 for each of pos_att_type."""
        return 1 + len(module.pos_att_type)

    def heads(self, module: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
        """Return query, key and value [1, H, T, d] of x [1, T, D]; keys have no bias."""
        size = module.attention_head_size
        query, key, value = heads_of(module.in_proj(x), 3 * size).chunk(3, dim=-1)
        q_bias, v_bias = (
            heads_of(bias[None, None], size) for bias in (module.q_bias, module.v_bias)
        )
        return [query + q_bias, key, value + v_bias]

    def rows(self, module: nn.Module, longest: int, device: torch.device) -> Rows:
        """Return the rows of distances, up to the farthest."""
        span = module.max_relative_positions
        return _rows(longest, span, 0, span, device)

    def position_map(self, module: nn.Module, kind: str) -> nn.Module:
        """Return the map of keys (c2p) or queries (p2c)."""
        return getattr(module, {"c2p": "pos_proj", "p2c": "pos_q_proj"}[kind])
