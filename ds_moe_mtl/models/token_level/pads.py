"""Whether pads stay apart from real tokens: experts give pads 0, which a dense FFN does not.

An encoder that mixes tokens beside attention (a Fourier transform, a convolution) carries what its
pads hold into real tokens; routed, it would then be another function without a word.
"""

import torch
from torch import nn

ROWS, REAL, LENGTH = 2, 4, 6
"""Sequences tried, their real tokens, and their tokens with pads."""


@torch.no_grad()
def check_pads(model: nn.Module) -> None:
    """Raise ValueError where the real tokens' outputs change with what stands under the mask.

    The model and all random states stay as they are. A model that does not take `input_ids` and an
    `attention_mask`, or that has no weights to try, is not tried.
    """
    table = getattr(model, "get_input_embeddings", lambda: None)()
    weight = getattr(table, "weight", None)
    if not isinstance(table, nn.Embedding) or weight.is_meta or len(weight) < LENGTH + 2:
        return
    modes = [(module, module.training) for module in model.modules()]
    words = [number for number in range(len(weight)) if number != table.padding_idx]
    model.eval()
    try:
        with torch.random.fork_rng(devices=[]):
            found = [_outputs(model, words, pad) for pad in (words[-1], words[-2])]
    except Exception:  # whatever a model of another kind raises: it is not called so
        return
    finally:
        for module, training in modes:
            module.training = training
    first, second = found
    difference = float((first - second).abs().max())
    if difference > 1e-3 * max(1.0, float(first.abs().max())):
        raise ValueError(
            f"{type(model).__name__} lets pads reach real tokens (their outputs differ by "
            f"{difference:.2g} with what stands under attention_mask): routed, it would be another "
            f"function; allowed: encoders that mix tokens by masked attention alone"
        )


def _outputs(model: nn.Module, words: list[int], pad: int) -> torch.Tensor:
    """Return the real tokens' outputs, or the sequences' where the model gives one for each."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor(words[: ROWS * LENGTH] * LENGTH, device=device)[: ROWS * LENGTH]
    ids = ids.view(ROWS, LENGTH).clone()
    mask = torch.ones_like(ids)
    ids[1, REAL:], mask[1, REAL:] = pad, 0
    torch.manual_seed(0)
    out = model(input_ids=ids, attention_mask=mask)[0].float()
    return out[1, :REAL] if out.dim() > 2 and out.shape[1] == LENGTH else out[1]
