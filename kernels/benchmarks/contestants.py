"""The layers that bench_top1 compares, all on one set of weights.

T tokens, D hidden size, F inner size, H rows of w1 (F or, gated, 2 F), G gates, E experts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import moe_kernels

SEQUENCE = 128  # tokens of a sequence, which share a gate


class Form(NamedTuple):
    """An FFN's form: activation, inner size (None: 4 D), biases or none."""

    activation: str = "gelu"
    inner: int | None = None
    biases: bool = True


@dataclass
class Problem:
    """One shape: the input, the gates' and experts' weights, the gradient of the result.

    experts: w1, b1, w2, b2, a tensor an expert each; None for missing biases.
    """

    x_TD: Tensor
    gate_weight: Tensor
    gate_ids_T: Tensor
    experts: list[list[Tensor] | None]
    grad_TD: Tensor
    activation: str = "gelu"

    def leaves(self) -> list[Tensor]:
        """Return every tensor a step makes a gradient of."""
        return [self.x_TD, self.gate_weight, *(t for kind in self.experts for t in kind or ())]

    def by_expert(self) -> Iterable[tuple[Tensor | None, ...]]:
        """Return each expert's w1, b1, w2 and b2."""
        missing = [None] * len(self.experts[0])
        return zip(*(kind or missing for kind in self.experts), strict=True)

    def ffn_weights(self) -> int:
        """Return how many numbers the two matrices of one FFN have."""
        return self.experts[0][0].numel() + self.experts[2][0].numel()


def make_problem(tokens, hidden, experts, gates, dtype, device, seed=0, form=None) -> Problem:
    """Return random weights at BERT's scale and sequences of SEQUENCE tokens, one gate each.

    form: of the FFNs; None for BERT's.
    """
    form = form or Form()
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return (values * std).to(dtype).requires_grad_()

    inner = form.inner or 4 * hidden
    rows = moe_kernels.ACTIVATIONS[form.activation].halves * inner
    shapes = ((rows, hidden), (rows,), (hidden, inner), (hidden,))
    sequences = -(-tokens // SEQUENCE)
    ids = torch.randint(0, gates, (sequences,), generator=generator, device=device)
    return Problem(
        normal(tokens, hidden, std=1.0),
        normal(gates * experts, hidden, std=0.02),
        ids.repeat_interleave(SEQUENCE)[:tokens].contiguous(),
        [
            [normal(*shape, std=0.02) for _ in range(experts)]
            if form.biases or len(shape) == 2
            else None
            for shape in shapes
        ],
        normal(tokens, hidden, std=1.0).detach(),
        form.activation,
    )


def dense(problem: Problem) -> Callable[[], Tensor]:
    """Return the dense FFN: the first expert on all tokens."""
    weights = next(iter(problem.by_expert()))

    def forward() -> Tensor:
        return _ffn(problem.x_TD, *weights, problem.activation)

    return forward


def ours(problem: Problem, impl: str) -> Callable[[], Tensor]:
    """Return moe_kernels' layer with an implementation."""

    def forward() -> Tensor:
        return moe_kernels.top1_moe_ffn(
            problem.x_TD, problem.gate_weight, problem.gate_ids_T, *problem.experts,
            activation=problem.activation, impl=impl,
        )[0]  # fmt: skip

    return forward


def plain_loop(problem: Problem) -> Callable[[], Tensor]:
    """Return argsort, index_select and a loop over experts under autograd."""
    num_experts = len(problem.experts[0])

    def forward() -> Tensor:
        expert_T, prob_T = _gate(problem)
        order_T = torch.argsort(expert_T, stable=True)
        counts = torch.bincount(expert_T, minlength=num_experts).tolist()
        blocks = problem.x_TD.index_select(0, order_T).split(counts)
        rows = [
            _ffn(block, *weights, problem.activation)
            for block, weights in zip(blocks, problem.by_expert(), strict=True)
        ]
        y_TD = torch.zeros_like(problem.x_TD).index_copy(0, order_T, torch.cat(rows))
        return y_TD * prob_T.to(y_TD.dtype).unsqueeze(1)

    return forward


def grouped_mm(problem: Problem) -> Callable[[], Tensor]:
    """Return torch's grouped_mm with the biases added apart; its weights are stacked each step."""
    _check_plain(problem)
    num_experts = len(problem.experts[0])

    def forward() -> Tensor:
        expert_T, prob_T = _gate(problem)
        order_T = torch.argsort(expert_T, stable=True)
        sorted_T = expert_T[order_T]
        experts_E = torch.arange(num_experts, device=expert_T.device)
        ends_E = torch.searchsorted(sorted_T, experts_E, right=True).to(torch.int32)
        w1, b1, w2, b2 = (torch.stack(kind) for kind in problem.experts)
        h = F.grouped_mm(problem.x_TD[order_T], w1.transpose(1, 2), offs=ends_E) + b1[sorted_T]
        y = F.grouped_mm(F.gelu(h), w2.transpose(1, 2), offs=ends_E) + b2[sorted_T]
        y_TD = torch.empty_like(problem.x_TD).index_copy(0, order_T, y)
        return y_TD * prob_T.to(y_TD.dtype).unsqueeze(1)

    return forward


def stock_deepspeed(problem: Problem, drop_tokens: bool) -> Callable[[], Tensor]:
    """Return DeepSpeed's own MoE layer: capacity 1 with tokens dropped, or every token kept.

    It has one gate; ours has problem's G. Raises ImportError without deepspeed.
    """
    _check_plain(problem)
    import deepspeed
    from deepspeed.moe.experts import Experts
    from deepspeed.moe.sharded_moe import MOELayer, TopKGate

    device = problem.x_TD.device.type
    if not torch.distributed.is_initialized():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        backend = "nccl" if device == "cuda" else "gloo"
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
        deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    hidden, num_experts = problem.x_TD.shape[1], len(problem.experts[0])
    gate = TopKGate(
        hidden, num_experts, min_capacity=0, drop_tokens=drop_tokens, use_rts=False,
        ep_group=torch.distributed.group.WORLD,
    )  # fmt: skip
    layer = MOELayer(gate, Experts(_FFN(hidden), num_experts), "bench", 1, num_experts)
    layer = layer.to(device=problem.x_TD.device, dtype=problem.x_TD.dtype)
    gate.wg.float()
    with torch.no_grad():
        gate.wg.weight.copy_(problem.gate_weight[:num_experts])
    for e, expert in enumerate(layer.experts.deepspeed_experts):
        expert.take([kind[e] for kind in problem.experts])

    def forward() -> Tensor:
        layer.zero_grad(set_to_none=True)
        # MOELayer wants [batch, sequence, hidden] and the mask of used tokens, here all.
        return layer(problem.x_TD.unsqueeze(0), None)[0]

    return forward


class _FFN(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.up, self.down = nn.Linear(hidden, 4 * hidden), nn.Linear(4 * hidden, hidden)

    def take(self, tensors: list[Tensor]) -> None:
        own = (nn.Parameter(tensor.detach()) for tensor in tensors)
        self.up.weight, self.up.bias, self.down.weight, self.down.bias = own

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x)))


def _ffn(x: Tensor, w1, b1, w2, b2, activation: str) -> Tensor:
    return F.linear(moe_kernels.activate(F.linear(x, w1, b1), activation), w2, b2)


def _check_plain(problem: Problem) -> None:
    w1, b1, _, _ = problem.experts
    if problem.activation != "gelu" or b1 is None or w1[0].shape[0] != 4 * w1[0].shape[1]:
        raise ValueError("compared for GELU with biases and F = 4 D alone")


def _gate(problem: Problem) -> tuple[Tensor, Tensor]:
    routing = moe_kernels.route(
        problem.x_TD, problem.gate_weight, problem.gate_ids_T, len(problem.experts[0]), impl="torch"
    )
    return routing.expert_T.long(), routing.prob_T
