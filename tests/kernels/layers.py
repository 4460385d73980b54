"""Random top-1 layers, the float64 truth about them, and the error that rounding explains.

T tokens, D hidden size, F inner size, H rows of w1 (F or, gated, 2 F), G gates, E experts.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

import moe_kernels
from moe_kernels.ffn.reference import expert_ffn_reference
from moe_kernels.routing.reference import choose, gate_logits

# Where kernels run: the GPU, or their interpreter on the CPU.
KERNEL_DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Between the two best experts, so that float32 and float64 choose alike (logits are of order 1).
MARGIN = 1e-5


@dataclass
class Layer:
    """A top-1 layer's inputs, in the type under test; experts has None for a missing bias."""

    x_TD: Tensor
    gate_weight: Tensor
    gate_ids_T: Tensor
    experts: list[list[Tensor] | None]
    mask_T: Tensor | None
    grad_y_TD: Tensor
    grad_prob_T: Tensor
    activation: str = "gelu"

    def to(self, device: str) -> "Layer":
        """Return the layer on a device."""
        values = [
            value.to(device) if isinstance(value, Tensor) else value
            for value in vars(self).values()
        ]
        moved = Layer(*values)
        moved.experts = [kind and [tensor.to(device) for tensor in kind] for kind in self.experts]
        return moved

    def tensors(self) -> list[Tensor]:
        return [self.x_TD, self.gate_weight, *(t for kind in self.experts for t in kind or ())]

    def names(self) -> list[str]:
        """Return the names of tensors(), an expert's with its number."""
        kinds = zip(KINDS, self.experts, strict=True)
        return ["x", "gate_weight", *(f"{k}[{e}]" for k, ts in kinds for e in range(len(ts or ())))]

    def by_kind(self, tensors: list[Tensor]) -> list[list[Tensor] | None]:
        """Return w1, b1, w2 and b2 of tensors in the order of tensors()."""
        following = iter(tensors[2:])
        return [kind and [next(following) for _ in kind] for kind in self.experts]


def make_layer(
    T, D, F, G, E, dtype=torch.float32, pads=True, only_expert=None, seed=0, activation="gelu",
    biases=("b1", "b2"),
) -> Layer:  # fmt: skip
    """Return a random layer; `only_expert`: every token goes to that expert."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int, std: float = 1.0) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64) * std
        return values.to(dtype)

    x_TD, gate_weight = normal(T, D), normal(G * E, D, std=D**-0.5)
    if only_expert is not None:
        # A hidden column that is 4 in every token, and that one expert's gates like.
        x_TD[:, 0] = 4.0
        gate_weight[:, 0] = -4.0
        gate_weight[only_expert::E, 0] = 4.0
    gate_ids_T = torch.randint(0, G, (T,), generator=generator)
    H = F * moe_kernels.ACTIVATIONS[activation].halves
    shapes = ((H, D), (H,), (D, F), (D,))
    stds = (D**-0.5, 1.0, F**-0.5, 1.0)
    experts = [
        [normal(*shape, std=std) for _ in range(E)] if name in ("w1", "w2", *biases) else None
        for name, shape, std in zip(KINDS, shapes, stds, strict=True)
    ]
    mask_T = torch.rand(T, generator=generator) > 0.2 if pads else None
    grad_prob_T = torch.randn(T, generator=generator)
    grad_y_TD = normal(T, D)
    return Layer(x_TD, gate_weight, gate_ids_T, experts, mask_T, grad_y_TD, grad_prob_T, activation)


def has_margin(layer: Layer) -> bool:
    """Return whether no token is so undecided that rounding could change its expert."""
    logits_TE = exact_logits(layer)
    if logits_TE.shape[1] == 1 or logits_TE.shape[0] == 0:
        return True
    best = logits_TE.topk(2).values
    return bool((best[:, 0] - best[:, 1]).min() > MARGIN)


def exact_logits(layer: Layer) -> Tensor:
    num_experts = len(layer.experts[0])
    return gate_logits(
        layer.x_TD.double(), layer.gate_weight.double(), layer.gate_ids_T, num_experts
    )


def plain_top1(x_TD, gate_weight, gate_ids_T, w1, b1, w2, b2, mask_T, gate_scale, activation):
    """Return what top1_moe_ffn does from the plain references and autograd alone."""
    logits_TE = gate_logits(x_TD, gate_weight, gate_ids_T, len(w1))
    expert_T, prob_T = choose(logits_TE, mask_T)
    scale_T = moe_kernels.gate_scale_of(prob_T, gate_scale)
    order_R = torch.cat([torch.nonzero(expert_T == e)[:, 0] for e in range(len(w1))])
    counts = [int((expert_T == e).sum()) for e in range(len(w1))]
    y_RD = expert_ffn_reference(x_TD[order_R], counts, w1, b1, w2, b2, activation)
    y_RD = y_RD * scale_T[order_R].to(y_RD.dtype).unsqueeze(1)
    y_TD = torch.zeros_like(x_TD).index_copy(0, order_R, y_RD)
    return y_TD, expert_T, prob_T, torch.tensor(counts, dtype=torch.int32)


def run(layer: Layer, layer_fn, dtype=None, gate_scale="paper", activation=None, **options):
    """Return (results and gradients by name, expert_T, counts_E) of a forward and backward pass."""
    dtype = dtype or layer.x_TD.dtype
    leaves = [t.detach().clone().to(dtype).requires_grad_() for t in layer.tensors()]
    y_TD, expert_T, prob_T, counts_E = layer_fn(
        leaves[0],
        leaves[1],
        layer.gate_ids_T,
        *layer.by_kind(leaves),
        mask_T=layer.mask_T,
        gate_scale=gate_scale,
        activation=activation or layer.activation,
        **options,
    )
    grads = [layer.grad_y_TD.to(y_TD.dtype), layer.grad_prob_T.to(prob_T.dtype)]
    torch.autograd.backward([y_TD, prob_T], grads)
    assert all(leaf.grad is not None for leaf in leaves)
    values = {"y": y_TD.detach(), "prob": prob_T.detach()}
    values |= {f"grad {name}": leaf.grad for name, leaf in zip(layer.names(), leaves, strict=True)}
    return values, expert_T, counts_E


KINDS = ("w1", "b1", "w2", "b2")


def assert_close_to_truth(layer: Layer, impl: str, **options) -> None:
    """Assert that `impl` routes like float64 and errs at most twice as much as plain PyTorch.

    Added to that is what its stores lose: one unit in the last place of the largest value, and one
    for each of the two intermediate stores in a chain where they truncate (bfloat16 in Triton's
    interpreter). Errors are root mean squares over all experts, since a single value's
    may be small by luck.
    """
    assert has_margin(layer)
    truth, expert_T, counts_E = run(layer, plain_top1, torch.float64, **options)
    plain, _, _ = run(layer, plain_top1, **options)
    there = layer if impl == "torch" else layer.to(KERNEL_DEVICE)
    ours, our_expert_T, our_counts_E = run(there, moe_kernels.top1_moe_ffn, impl=impl, **options)
    assert torch.equal(expert_T, our_expert_T.cpu())
    assert torch.equal(counts_E, our_counts_E.cpu())
    truncates = impl == "triton" and KERNEL_DEVICE == "cpu" and layer.x_TD.dtype == torch.bfloat16
    stores = 3 if truncates else 1
    given = [f"grad {k}[" for k, ts in zip(KINDS, layer.experts, strict=True) if ts is not None]
    for kind in ("y", "prob", "grad x", "grad gate_weight", *given):
        names = [name for name in truth if name == kind or name.startswith(kind) and "[" in kind]
        exact, reference, found = ([v[name] for name in names] for v in (truth, plain, ours))
        largest = max(value.abs().max().item() if value.numel() else 0 for value in exact)
        rounding = stores * torch.finfo(found[0].dtype).eps * largest
        allowed = 2 * rms_error(exact, reference) + rounding
        assert rms_error(exact, found) <= allowed, (
            f"{kind}: error {rms_error(exact, found):.3g}, allowed {allowed:.3g}"
        )


def rms_error(exact: list[Tensor], values: list[Tensor]) -> float:
    """Return the root of the mean squared difference; infinite where a value is not a number."""
    pairs = zip(exact, values, strict=True)
    differences = torch.cat([(value.cpu().double() - true).flatten() for true, value in pairs])
    if differences.numel() == 0:
        return 0.0
    return differences.nan_to_num(nan=float("inf")).square().mean().sqrt().item()
