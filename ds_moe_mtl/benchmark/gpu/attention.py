"""Part: attention alone, four ways, at the lengths of a batch of the measured run.

T tokens, H heads, d head size.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from ds_moe_mtl.benchmark.gpu.measured import device_of, first_steps, measured_workload
from ds_moe_mtl.benchmark.gpu.timing import alternated, middle, spread
from ds_moe_mtl.models.attention.choice import PACKED_FLASH, PACKED_SDPA, attention_plan
from ds_moe_mtl.models.attention.flash import flash, why_not_flash
from ds_moe_mtl.models.attention.padded import padded, sdpa

HEADS = {"BERT-Base": (12, 64), "MiniLM": (12, 32)}
TOY_HEADS = {"toy": (2, 16)}
LARGEST_ERROR = 2e-2
"""Of output and gradients in bf16 against float32, |found - exact| / |exact|."""
DROPOUT = 0.1
COLUMNS = ["heads", "way", "forward, ms", "forward + backward, ms", "quartiles", "error"]

Attend = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""From q, k, v [1, H, T, d] and a dropout to the output [T, H, d]."""


def measure(request: dict, tell: Callable[[dict], None]) -> dict:
    """Return each way's times and its error against float32; what cannot run says why."""
    device = device_of(request)
    step = first_steps(measured_workload(request), device, 1, padded=False)[0]
    lengths = [length for batch in step[0] for length in batch.lengths]
    found: dict = {"lengths": lengths, "rows": [], "cannot": {}, "tables": []}
    for shape, (heads, size) in (HEADS if request["gpu"] else TOY_HEADS).items():
        ways, cannot = _ways(lengths, size, device)
        found["cannot"] |= cannot
        for name, attend in ways.items():
            row = _measured(attend, lengths, heads, size, device, request["gpu"])
            found["rows"].append({"shape": f"{shape}, {heads} x {size}", "way": name} | row)
            found["tables"] = _tables(found)
            tell(found)
    return found


def _ways(
    lengths: Sequence[int], size: int, device: torch.device
) -> tuple[dict[str, Attend], dict[str, str]]:
    """Return the ways that run here by name, and why the others do not."""
    scale, dtype = size**-0.5, torch.bfloat16
    ways: dict[str, Attend] = {"padded SDPA": _of_transformers(padded(sdpa), PACKED_SDPA, lengths)}
    cannot = {}
    reason = why_not_flash(device, dtype, size)
    if reason is None:
        ways["flash"] = _of_transformers(flash, PACKED_FLASH, lengths)
    else:
        cannot["flash"] = reason
    try:
        from encoder_kernels.attention import attend, plan_of
        from encoder_kernels.attention.torch_ops import Efficient
    except ImportError as error:
        return ways, cannot | dict.fromkeys(("ours", "efficient"), str(error))
    plan = plan_of(lengths, device)

    def ours(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        tensors = (x.transpose(1, 2).squeeze(0) for x in (q, k, v))
        return attend(*tensors, plan, scale, dropout, impl="triton")

    def efficient(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        tensors = (x.transpose(1, 2).squeeze(0).contiguous() for x in (q, k, v))
        return Efficient.apply(*tensors, plan.ends, plan.longest, dropout, scale)

    ways["ours"] = ours
    if reason is None:
        ways["efficient"] = efficient
    else:
        cannot["efficient"] = reason
    return ways, cannot


def _of_transformers(function, name: str, lengths: Sequence[int]) -> Attend:
    """Return one of the package's attentions as transformers calls it."""

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        if q.dtype not in plans:
            plans[q.dtype] = attention_plan(name, lengths, None, q.device, q.dtype)
        packing = plans[q.dtype]
        scaling = q.shape[-1] ** -0.5
        out, _ = function(None, q, k, v, None, scaling=scaling, dropout=dropout, packing=packing)
        return out.squeeze(0)

    plans: dict = {}
    return attend


def _measured(
    attend: Attend, lengths: Sequence[int], heads: int, size: int, device, gpu: bool
) -> dict:
    """Return the times of one way, and its largest error; none is timed that is wrong."""
    torch.manual_seed(0)
    shape = (1, sum(lengths), heads, size)
    drawn = [torch.randn(shape, device=device).bfloat16() for _ in range(4)]
    q, k, v, grad = (*(x.transpose(1, 2) for x in drawn[:3]), drawn[3].squeeze(0))
    exact_way = _of_transformers(padded(sdpa), PACKED_SDPA, lengths)
    exact = _results(exact_way, [x.float() for x in (q, k, v)], grad.float())
    found = _results(attend, [q, k, v], grad)
    error = max(float((a.float() - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True))
    if not error <= LARGEST_ERROR:  # NaN too
        return {"error": error}
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    rounds = 20 if gpu else 2
    work = {
        "forward": partial(_forward, attend, leaves),
        "both": lambda: torch.autograd.grad(attend(*leaves, DROPOUT), leaves, grad),
    }
    times = alternated(work, device, rounds, 3)
    ms, low, high = middle(times["both"])
    return {
        "error": error,
        "forward_ms": middle(times["forward"])[0],
        "ms": ms,
        "low": low,
        "high": high,
    }


@torch.no_grad()
def _forward(attend: Attend, leaves: Sequence[Tensor]) -> None:
    attend(*leaves, DROPOUT)


def _results(attend: Attend, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = attend(*leaves, 0.0)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _tables(found: dict) -> list[dict]:
    lengths = found["lengths"]
    rows = [
        [row["shape"], row["way"], row["forward_ms"], row["ms"], spread(row["low"], row["high"])]
        if "ms" in row
        else [row["shape"], row["way"], "wrong", "wrong", ""]
        for row in found["rows"]
    ]
    for cells, row in zip(rows, found["rows"], strict=True):
        cells.append(row["error"])
    title = f"{len(lengths)} sequences, {sum(lengths):,} tokens, longest {max(lengths)}"
    tables = [{"title": title, "columns": COLUMNS, "rows": rows}]
    if found["cannot"]:
        why = [list(item) for item in found["cannot"].items()]
        tables.append({"title": "cannot run here", "columns": ["way", "why"], "rows": why})
    return tables
