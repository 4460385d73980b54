"""The layers that bench_top1 compares, all on one set of weights.

T tokens, D hidden size, F = 4 D inner size, G gates, E experts.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import moe_kernels

SEQUENCE = 128  # tokens of a sequence, which share a gate


@dataclass
class Problem:
    """One shape: the input, the gates' and experts' weights, the gradient of the result."""

    x_TD: Tensor
    gate_weight: Tensor
    gate_ids_T: Tensor
    experts: list[list[Tensor]]
    grad_TD: Tensor

    def leaves(self) -> list[Tensor]:
        """Return every tensor a step makes a gradient of."""
        return [self.x_TD, self.gate_weight, *(t for kind in self.experts for t in kind)]


def make_problem(tokens, hidden, experts, gates, dtype, device, seed=0) -> Problem:
    """Return random weights at BERT's scale and sequences of SEQUENCE tokens, one gate each."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, std: float) -> Tensor:
        values = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
        return (values * std).to(dtype).requires_grad_()

    shapes = ((4 * hidden, hidden), (4 * hidden,), (hidden, 4 * hidden), (hidden,))
    sequences = -(-tokens // SEQUENCE)
    ids = torch.randint(0, gates, (sequences,), generator=generator, device=device)
    return Problem(
        normal(tokens, hidden, std=1.0),
        normal(gates * experts, hidden, std=0.02),
        ids.repeat_interleave(SEQUENCE)[:tokens].contiguous(),
        [[normal(*shape, std=0.02) for _ in range(experts)] for shape in shapes],
        normal(tokens, hidden, std=1.0).detach(),
    )


def dense(problem: Problem) -> Callable[[], Tensor]:
    """Return the dense FFN: the first expert on all tokens."""
    w1, b1, w2, b2 = (kind[0] for kind in problem.experts)

    def forward() -> Tensor:
        return F.linear(F.gelu(F.linear(problem.x_TD, w1, b1)), w2, b2)

    return forward


def ours(problem: Problem, impl: str) -> Callable[[], Tensor]:
    """Return moe_kernels' layer with an implementation."""

    def forward() -> Tensor:
        return moe_kernels.top1_moe_ffn(
            problem.x_TD, problem.gate_weight, problem.gate_ids_T, *problem.experts, impl=impl
        )[0]

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
            F.linear(F.gelu(F.linear(block, w1, b1)), w2, b2)
            for block, w1, b1, w2, b2 in zip(blocks, *problem.experts, strict=True)
        ]
        y_TD = torch.zeros_like(problem.x_TD).index_copy(0, order_T, torch.cat(rows))
        return y_TD * prob_T.to(y_TD.dtype).unsqueeze(1)

    return forward


def grouped_mm(problem: Problem) -> Callable[[], Tensor]:
    """Return torch's grouped_mm with the biases added apart; its weights are stacked each step."""
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


def _gate(problem: Problem) -> tuple[Tensor, Tensor]:
    routing = moe_kernels.route(
        problem.x_TD, problem.gate_weight, problem.gate_ids_T, len(problem.experts[0]), impl="torch"
    )
    return routing.expert_T.long(), routing.prob_T
