"""What an encoder must tell us; one file beside this one tells it for each family of encoders."""

from abc import ABC, abstractmethod

import torch
from torch import nn

from ds_moe_mtl.models.families.ffn import FFN


class Family(ABC):
    """What is asked of a family; the methods with a body are what most encoders do.

    Who belongs to a family is told by structure. Whether an encoder then runs as it should is
    tried out (models.encoder_check), never taken from its name.
    """

    name: str
    """What a message calls encoders of the family."""

    dropouts: tuple[str, ...] = ("hidden_dropout_prob", "attention_probs_dropout_prob")
    """The configuration's names of the dropout probabilities; the first is the one to read."""

    undropped: tuple[str, ...] = ()
    """The configuration's names of dropouts that model.dropout does not reach: they are 0."""

    no_dropout: tuple[str, ...] = ()
    """Ends of the names of their modules."""

    relative = False
    """Whether attention's scores have terms for the distance of two tokens, which only attention
    by products in padded groups (PACKED_EAGER) can add."""

    @abstractmethod
    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model is one that PackedEncoder can run, by its structure."""

    def pack(self, model: nn.Module) -> None:
        """Have an encoder run packed where transformers' attention interface does not see to it.

        In place. Raises ValueError, one line, where it cannot: a part that mixes sequences.
        """
        return  # the interface sees to it

    def use_attention(self, model: nn.Module, name: str) -> None:
        """Have an encoder run the attention that is registered under a name."""
        model.set_attn_implementation(name)

    @abstractmethod
    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return an encoder's layers in order. Raises ValueError where depths share a layer."""

    @abstractmethod
    def has_ffn(self, module: nn.Module) -> bool:
        """Return whether a module is a layer with this family's FFN, dense or upcycled."""

    def ffn_layers(self, model: nn.Module) -> list[nn.Module]:
        """Return the layers with this family's FFN anywhere in a model, in order of depth."""
        return [module for module in model.modules() if self.has_ffn(module)]

    @abstractmethod
    def ffn(self, layer: nn.Module, config) -> FFN:
        """Return a layer's FFN. Raises ValueError, one line, where it holds anything else."""

    def run_ffn(self, layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return what the layer's own FFN makes of x [..., D], before dropout and residual."""
        return layer.mlp(x)

    def put_ffn(self, layer: nn.Module, routed: nn.Module) -> None:
        """Put a module that maps [batch, seq, D] to itself where the layer's FFN stood."""
        layer.mlp = routed

    @abstractmethod
    def before_residuals(self, layer: nn.Module) -> list[tuple[nn.Module, str]]:
        """Return the last maps before the residual sums of a dense layer: the modules that hold
        them, and under which name."""

    def word_embeddings(self, model: nn.Module) -> nn.Embedding:
        """Return the table of the tokens."""
        return model.embeddings.word_embeddings

    def first_position(self, model: nn.Module) -> int:
        """Return the position id of a sequence's first token."""
        return 0

    def max_length(self, model: nn.Module) -> int:
        """Return the tokens of the longest sequence that has positions, or was meant to."""
        return model.config.max_position_embeddings

    def token_types(self, model: nn.Module) -> int:
        """Return the rows of the table of token types; 0: it takes no token types."""
        table = getattr(model.embeddings, "token_type_embeddings", None)
        return table.num_embeddings if isinstance(table, nn.Embedding) else 0

    def head_size(self, model: nn.Module) -> int:
        """Return the width of an attention head."""
        config = model.config
        return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads

    def window(self, model: nn.Module) -> int:
        """Return how many tokens to each side a local layer sees; 0: every layer sees all."""
        return 0
