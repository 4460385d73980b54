"""Attention over packed sequences by encoder_kernels: a program per short sequence and head."""

from ds_moe_mtl.models.attention.heads import heads_alike
from ds_moe_mtl.models.attention.windows import window_of
from encoder_kernels import attend


def short(
    module,
    query,
    key,
    value,
    attention_mask,
    *,
    scaling,
    packing,
    dropout=0.0,
    sliding_window=None,
    **kwargs,
):
    """Return attention's output [1, T, H, d] and no weights; query, key, value [1, H, T, d].

    packing: a SequencePlan. Tokens after the last sequence's get 0. Raises ValueError for a layer
    with a window (models.encoder takes another attention for encoders that have some).
    """
    if window_of(sliding_window) is not None:
        raise ValueError("attention of short sequences has no sliding_window; allowed: none")
    key, value = heads_alike(query, key, value)
    q_THd, k_THd, v_THd = (x.transpose(1, 2).squeeze(0) for x in (query, key, value))
    out_THd = attend(q_THd, k_THd, v_THd, packing, scaling, dropout, impl="triton")
    return out_THd.unsqueeze(0), None
