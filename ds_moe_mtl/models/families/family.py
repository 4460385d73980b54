"""What an encoder must tell us; one file beside this one tells it for each family of encoders."""

from typing import NamedTuple, Protocol

from torch import nn


class FFN(NamedTuple):
    """A layer's two linear maps and transformers' name of the activation between them."""

    first: nn.Linear
    second: nn.Linear
    hidden_act: str


class Family(Protocol):
    """What is asked of a family; a module with these functions is one.

    Who belongs to a family is told by structure. Whether an encoder then runs as it should is
    tried out (models.encoder_check), never taken from its name.
    """

    DROPOUTS: tuple[str, ...]
    """The configuration's names of the dropout probabilities."""

    def is_encoder(self, model: nn.Module) -> bool:
        """Return whether the model is one that PackedEncoder can run, by its structure."""

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """Return an encoder's layers in order. Raises ValueError where depths share a layer."""

    def ffn_layers(self, model: nn.Module) -> list[nn.Module]:
        """Return the layers with this family's FFN anywhere in a model, in order of depth."""

    def ffn(self, layer: nn.Module, config) -> FFN:
        """Return a layer's FFN. Raises ValueError, one line, where it holds anything else."""

    def run_ffn(self, layer: nn.Module, x):
        """Return what the layer's own FFN makes of x [..., D], before dropout and residual."""

    def put_ffn(self, layer: nn.Module, routed: nn.Module) -> None:
        """Put a module that maps [batch, seq, D] to itself where the layer's FFN stood."""

    def before_residuals(self, layer: nn.Module) -> list[nn.Module]:
        """Return the modules whose `dense` is the last map before a residual sum."""

    def word_embeddings(self, model: nn.Module) -> nn.Embedding:
        """Return the table of the tokens."""

    def first_position(self, model: nn.Module) -> int:
        """Return the position id of a sequence's first token."""

    def max_length(self, model: nn.Module) -> int:
        """Return the tokens of the longest sequence that has positions."""

    def token_types(self, model: nn.Module) -> int:
        """Return the rows of the table of token types; 0: it takes no token types."""

    def head_size(self, model: nn.Module) -> int:
        """Return the width of an attention head."""
