"""Tiny encoders of transformers' architectures, with random weights."""

import torch

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 300,
    "max_position_embeddings": 24,
    "pad_token_id": 1,
}
"""Fewer positions than a packed batch has tokens, so that a table read by place shows."""

OWN = {
    "albert": {"embedding_size": 16},
    "convbert": {"embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "esm": {"position_embedding_type": "absolute", "mask_token_id": 4},
    "luke": {"entity_vocab_size": 10, "entity_emb_size": 16},
    "mobilebert": {"embedding_size": 16, "intra_bottleneck_size": 16, "hidden_act": "gelu"},
    "rembert": {"input_embedding_size": 16, "output_embedding_size": 16},
    "roc_bert": {
        "pronunciation_vocab_size": 9,
        "shape_vocab_size": 9,
        "pronunciation_embed_dim": 8,
        "shape_embed_dim": 8,
    },
    "squeezebert": {"embedding_size": 32},
    "xmod": {"languages": ["en_XX", "de_DE"], "default_language": "en_XX"},
}
"""What an architecture needs beside, to be as small."""

NOISE = 0.1


def tiny_encoder(kind: str, **more):
    """Return a tiny AutoModel of a model_type in eval mode, its biases and norms random too."""
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.for_model(kind, **{**TINY, **OWN.get(kind, {}), **more})
    with torch.device("meta"):
        weights = sum(weight.numel() for weight in AutoModel.from_config(config).parameters())
    if weights > 3_000_000:
        raise ValueError(f"{weights:,} weights are not tiny")
    torch.manual_seed(0)
    model = AutoModel.from_config(config).float().eval()
    for parameter in model.parameters():
        parameter.data += NOISE * torch.randn_like(parameter)
    return model
