"""The sizes of an encoder, from which weights, FLOPs and memory are counted.

D hidden size, F intermediate size.
"""

from typing import NamedTuple


class Shape(NamedTuple):
    """An encoder by what counting needs; the defaults, and what is None, are BERT's.

    token_types: rows of the segment embedding. gated: the FFN's first map gives 2 F, of which one
    half is multiplied by the other. biased: the FFN's maps have biases. head_size: None: D / heads.
    beside: weights of a layer beside its FFN; projections: those that each of its tokens is
    multiplied by. outside: weights of no layer, without the pooler; mapped: those of them that each
    token is multiplied by. pooled: the pooler's. table_width: of the word embedding. window: tokens
    to each side that `local` of the layers see. relative: scores have terms for the distance of
    two tokens, so attention is never fused; terms: those of them that are products, each of a token
    and a row for every distance (DeBERTa's c2p and p2c). masks: dropouts of rows of D in a layer;
    scaled: rows that a layer's norms in plain PyTorch keep beside their input (RMSNorm 1, a centred
    one 2).
    """

    layers: int
    hidden: int
    intermediate: int
    heads: int
    vocabulary: int = 30_522
    positions: int = 512
    token_types: int = 2
    gated: bool = False
    biased: bool = True
    head_size: int | None = None
    beside: int | None = None
    projections: int | None = None
    outside: int | None = None
    mapped: int = 0
    pooled: int | None = None
    table_width: int | None = None
    window: int = 0
    local: int = 0
    relative: bool = False
    terms: int = 0
    masks: int = 2
    scaled: int = 0

    @property
    def attention_width(self) -> int:
        """Columns of all heads of a query."""
        return self.hidden if self.head_size is None else self.heads * self.head_size

    @property
    def projected(self) -> int:
        """Weights of a layer, beside its FFN, that a token is multiplied by."""
        return 4 * self.hidden**2 if self.projections is None else self.projections

    @property
    def wide(self) -> int:
        """Columns that the FFN's first map gives."""
        return self.intermediate * (2 if self.gated else 1)

    @property
    def table(self) -> int:
        """Weights of the word embedding."""
        return self.vocabulary * (self.table_width or self.hidden)


SIZES = {
    "minilm": Shape(6, 384, 1536, 12),
    "bert_base": Shape(12, 768, 3072, 12),
    "bert_large": Shape(24, 1024, 4096, 16),
}

KNOWN_ENCODERS = {
    "modernbert_base": ("modernbert", {}),
    "modernbert_large": (
        "modernbert",
        {
            "hidden_size": 1024,
            "intermediate_size": 2624,
            "num_hidden_layers": 28,
            "num_attention_heads": 16,
        },
    ),
    "eurobert_210m": ("eurobert", {}),
    "nomic_bert": ("nomic_bert", {}),
    "xlm_roberta_xl": ("xlm-roberta-xl", {}),
}
"""Of other families, by name: transformers' model_type, and the keys in which the published encoder
differs from the defaults of its configuration."""


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
