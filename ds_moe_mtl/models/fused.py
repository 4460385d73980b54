"""BERT's layers on encoder_kernels: query, key and value as one product, and the residual norm.

A module becomes another class and stays the object it was, so that its parameters keep their names
and hooks stay. Which modules do as BERT's is told by their code: RoBERTa's, ELECTRA's and their
like are copies of it, and what does anything else stays as it is.

T tokens, D hidden size, H heads, d head size.
"""

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import (
    BertSelfAttention,
    BertSelfOutput,
    eager_attention_forward,
)

from ds_moe_mtl.models.kernels import EncoderKernels
from encoder_kernels import dropout_residual_norm, project


def set_kernels(transformer: nn.Module, kernels: EncoderKernels) -> None:
    """Have an encoder's layers run on `kernels`, where they do as BERT's do."""
    for module in transformer.modules():
        plain = getattr(module, "plain_class", type(module))
        if kernels.norm and _is_output(module, plain):
            _become(module, NormedOutput, plain)
        elif kernels.projection and _is_self_attention(module, plain):
            _become(module, JointSelfAttention, plain)
        elif type(module) is not plain:
            _become(module, plain, plain)


def forms(transformer: nn.Module) -> EncoderKernels:
    """Return which kernels fit the encoder's layers; attention fits all."""
    modules = [(module, type(module)) for module in transformer.modules()]
    return EncoderKernels(
        attention=True,
        norm=any(_is_output(*each) for each in modules),
        projection=any(_is_self_attention(*each) for each in modules),
    )


class NormedOutput(nn.Module):
    """The end of attention or of the FFN: dense, then dropout + residual + LayerNorm at once."""

    def forward(self, hidden_states: torch.Tensor, input_tensor: torch.Tensor) -> torch.Tensor:
        """Return LayerNorm(dropout(dense(hidden_states)) + input_tensor) [..., D]."""
        norm = self.LayerNorm
        return dropout_residual_norm(
            self.dense(hidden_states),
            input_tensor,
            norm.weight,
            norm.bias,
            norm.eps,
            self.dropout.p if self.training else 0.0,
            impl="triton",
        )


class JointSelfAttention(nn.Module):
    """Self-attention whose query, key and value are one product."""

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, **kwargs):
        """Return (attention's output [1, T, D], weights or None), as BERT's does."""
        assert past_key_values is None, "an encoder keeps no keys and values"
        shape = hidden_states.shape[:-1]
        maps = (self.query, self.key, self.value)
        joint = project(
            hidden_states.flatten(0, -2), [m.weight for m in maps], [m.bias for m in maps]
        )
        heads = (x.view(*shape, -1, self.attention_head_size).transpose(1, 2) for x in joint)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        out, weights = attend(
            self,
            *heads,
            attention_mask,
            dropout=self.dropout.p if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return out.reshape(*shape, -1).contiguous(), weights


def _become(module: nn.Module, class_: type[nn.Module], plain: type[nn.Module]) -> None:
    module.plain_class = plain
    module.__class__ = class_


def _is_output(module: nn.Module, plain: type[nn.Module]) -> bool:
    norm = getattr(module, "LayerNorm", None)
    return _does_as(plain, BertSelfOutput) and type(norm) is nn.LayerNorm and norm.bias is not None


def _is_self_attention(module: nn.Module, plain: type[nn.Module]) -> bool:
    maps = [getattr(module, name, None) for name in ("query", "key", "value")]
    return _does_as(plain, BertSelfAttention) and all(
        type(linear) is nn.Linear and linear.bias is not None for linear in maps
    )


def _does_as(class_: type[nn.Module], other: type[nn.Module]) -> bool:
    """Return whether both classes have the same program as their forward pass."""
    codes = [getattr(c.forward, "__code__", None) for c in (class_, other)]
    return None not in codes and len({(c.co_code, c.co_names, c.co_consts) for c in codes}) == 1
