"""The sizes of a BERT-like encoder, from which weights, FLOPs and memory are counted."""

from typing import NamedTuple


class Shape(NamedTuple):
    """A BERT-like encoder; token_types: rows of the segment embedding."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int = 30_522
    positions: int = 512
    token_types: int = 2


SIZES = {
    "minilm": Shape(6, 384, 1536, 12),
    "bert_base": Shape(12, 768, 3072, 12),
    "bert_large": Shape(24, 1024, 4096, 16),
}


def shape_of(config) -> Shape:
    """Return the shape that a transformers configuration describes."""
    return Shape(
        config.num_hidden_layers,
        config.hidden_size,
        config.intermediate_size,
        config.num_attention_heads,
        config.vocab_size,
        config.max_position_embeddings,
        config.type_vocab_size,
    )


def random_transformer(shape: Shape, dropout: float, pooler: bool = False):
    """Return a BERT of that shape with random weights, in float32 on the default device."""
    from transformers import BertModel

    config = bert_config(shape, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)
    return BertModel(config, add_pooling_layer=pooler)


def bert_config(shape: Shape, **more):
    """Return transformers' configuration of a BERT of that shape; more: of its keys."""
    from transformers import BertConfig

    return BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.intermediate,
        max_position_embeddings=shape.positions,
        type_vocab_size=shape.token_types,
        **more,
    )
