"""Grouped keys and values: fewer heads of them than of queries, each for as many queries' heads."""

import torch


def heads_alike(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return key and value [1, H, T, d] with as many heads H as the query.

    Head g of G key heads stands for the H / G query heads from g H / G on (Ainslie et al., GQA,
    2305.13245), as in transformers' repeat_kv. Raises ValueError where G does not divide H.
    """
    heads, groups = query.shape[1], key.shape[1]
    if heads % groups:
        raise ValueError(f"{heads} heads of queries, {groups} of keys; allowed: a multiple")
    times = heads // groups
    if times == 1:
        return key, value
    return key.repeat_interleave(times, dim=1), value.repeat_interleave(times, dim=1)
