"""A row for each kind of encoder that is carried: transformers' model_type and a tiny shape.

A new family is a file in ds_moe_mtl/models/families and rows here; the tests of families do the
rest, and README's list of encoders is made of them.
"""

from pathlib import Path
from typing import NamedTuple

from transformers import BertTokenizerFast

from tests.support.encoders import tiny_encoder
from tests.support.tiny import write_tiny


class Kind(NamedTuple):
    """model_type: as transformers has it; family: of ours; more: configuration keys of the tiny
    one; known: what README calls encoders of the kind."""

    model_type: str
    family: str
    known: str
    more: dict = {}


LONG = {"max_position_embeddings": 64}  # rotary positions have no table that would show a fault

DISTANCES = {
    "relative_attention": True,
    "max_relative_positions": 7,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
}

DEBERTA_V3 = {
    **DISTANCES,
    "max_relative_positions": 12,
    "position_buckets": 6,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "type_vocab_size": 0,
}

KINDS = {
    kind.model_type: kind
    for kind in (
        Kind("bert", "BERT", "BERT, MiniLM"),
        Kind("roberta", "BERT", "RoBERTa"),
        Kind("xlm-roberta", "BERT", "XLM-R"),
        Kind("xlm-roberta-xl", "BERT", "XLM-R-XL, XXL"),
        Kind("camembert", "BERT", "CamemBERT"),
        Kind("electra", "BERT", "ELECTRA"),
        Kind("ernie", "BERT", "ERNIE"),
        Kind("data2vec-text", "BERT", "Data2Vec text"),
        Kind("roc_bert", "BERT", "RoCBert"),
        Kind("xmod", "BERT", "X-MOD"),
        Kind(
            "modernbert",
            "ModernBERT",
            "ModernBERT, mmBERT, Ettin",
            # Three layers in four are local, with a window that sequences of the tests exceed.
            {**LONG, "num_hidden_layers": 3, "local_attention": 4, "global_attn_every_n_layers": 2},
        ),
        Kind("eurobert", "EuroBERT", "EuroBERT", {**LONG, "num_key_value_heads": 1}),
        Kind("nomic_bert", "NomicBERT", "NomicBERT", LONG),
        Kind("distilbert", "DistilBERT", "DistilBERT"),
        # As v3: buckets that sequences of the tests exceed, and no table of positions.
        Kind("deberta-v2", "DeBERTa-v2", "DeBERTa-v2, v3", DEBERTA_V3),
        Kind("deberta", "DeBERTa", "DeBERTa", {**DISTANCES, "type_vocab_size": 0}),
        Kind("mpnet", "MPNet", "MPNet"),
        Kind("megatron-bert", "MegatronBERT", "MegatronBERT", {"intermediate_size": 48}),
        Kind("rembert", "RemBERT", "RemBERT", {"input_embedding_size": 24}),
    )
}
"""By model_type."""

SHOWN = ("bert", *(kind for kind, row in KINDS.items() if row.family != "BERT"))
"""One of each family, and each further architecture that is not BERT's."""

PLACES = ("modernbert", "eurobert", "deberta-v2", "distilbert")
"""One for each place and form of an FFN: one map of both gated halves, two, BERT's, in one module
with its dropout. For tests of files, to which attention is nothing."""


def tiny(model_type: str, **more):
    """Return a tiny encoder of a row, random weights, in eval mode."""
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    return tiny_encoder(model_type, **{**special, **KINDS[model_type].more, **more})


def write_family(folder: Path, model_type: str) -> Path:
    """Write tiny data and a tiny encoder of a row with a word tokenizer, as write_tiny does."""
    write_tiny(folder)
    tokenizer = BertTokenizerFast.from_pretrained(folder / "encoder")
    positions = {"max_position_embeddings": 80}  # as many tokens as the data's longest, and more
    pad = 1 if model_type == "mpnet" else 0  # MPNet's code knows no other
    model = tiny(model_type, vocab_size=len(tokenizer), pad_token_id=pad, **positions)
    for left in ("config.json", "model.safetensors"):
        (folder / "encoder" / left).unlink()
    model.save_pretrained(folder / "encoder")
    return folder


def encoder_table() -> list[str]:
    """Return README's table of encoders: a row a family, its kinds in the order of KINDS."""
    lines = ["| family | encoders | model_type |", "|---|---|---|"]
    for family in dict.fromkeys(kind.family for kind in KINDS.values()):
        rows = [kind for kind in KINDS.values() if kind.family == family]
        known = ", ".join(kind.known for kind in rows)
        types = ", ".join(f"`{kind.model_type}`" for kind in rows)
        lines.append(f"| {family} | {known} | {types} |")
    return lines
