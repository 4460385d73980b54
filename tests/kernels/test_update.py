"""The update's kernels: bit for bit the plain PyTorch reference, and close to float64 and torch's.

On the GPU, or in Triton's interpreter without one.
"""

import copy
import math

import pytest
import torch
from torch.optim.adam import adam
from triton.runtime.interpreter import GridExecutor

from tests.kernels.layers import KERNEL_DEVICE
from update_kernels import AdamOptions, Partition, adam_update
from update_kernels.launch import BLOCK, plan_blocks
from update_kernels.reference import update_partition

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning:triton")  # NumPy's, of NaN

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
UNIT = 2.0**-24
"""Half the distance from 1 to the next float32: what one rounding is off by, relatively."""

SIZES = [[BLOCK + 1, 24, 2 * BLOCK, 1], [], [7], [3 * 16, 8 * 5]]
OPTIONS = [
    AdamOptions(1e-3, 0.9, 0.999, 1e-8, 0.01, True),
    AdamOptions(1e-3, 0.9, 0.999, 1e-8, 0.0, True),
    AdamOptions(1e-2, 0.0, 0.98, 1e-6, 0.1, False),  # no memory, decay added to the gradient
    AdamOptions(3e-4, 0.4, 0.95, 1e-8, 0.0, False),  # interpolated from the gradient's end
]


def make(dtype: torch.dtype, steps: float = 3.0, seed: int = 0):
    """Return gradients of every group, and partitions between which memory is NaN."""
    draw = torch.Generator().manual_seed(seed)

    def random(size: int) -> torch.Tensor:
        return torch.randn(size, generator=draw)

    gradients = [[(0.1 * random(n)).to(dtype).to(KERNEL_DEVICE) for n in of] for of in SIZES]
    partitions = []
    for sizes in SIZES:
        size = sum(sizes)
        values = [random(size), 0.01 * random(size), 1e-4 * random(size).square()]
        values.append(values[0].to(dtype))
        guarded = [torch.full((size + 16,), math.nan, dtype=v.dtype) for v in values]
        for memory, value in zip(guarded, values, strict=True):
            memory[8 : 8 + size] = value
        flat = [memory.to(KERNEL_DEVICE)[8 : 8 + size] for memory in guarded]
        partitions.append(Partition(*flat[:3], torch.tensor(steps).to(KERNEL_DEVICE), flat[3]))
    return gradients, partitions


def copied(partitions):
    """Return partitions of their own memory, what lies around them included."""
    return copy.deepcopy(partitions)


def memory_of(tensor: torch.Tensor) -> torch.Tensor:
    """Return all of the memory that a tensor is a part of, as bytes."""
    return torch.tensor([], dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())


def assert_same_memory(found, expected):
    for group, (one, other) in enumerate(zip(found, expected, strict=True)):
        for name, a, b in zip(one._fields, one, other, strict=True):
            assert torch.equal(memory_of(a), memory_of(b)), (group, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("scale", "bound"), [(1.0, 0.0), (1.0, 0.5), (256.0, 1e-3)])
def test_steps_are_the_references_bit_for_bit(dtype, scale, bound):
    gradients, found = make(dtype)
    expected, compared = copied(found), 0
    for step in range(3):
        gradients, _ = make(dtype, seed=step)
        settings = {"scale": scale, "bound": bound}
        ours = adam_update(gradients, found, OPTIONS, **settings, impl="triton")
        theirs = adam_update(gradients, expected, OPTIONS, **settings, impl="torch")
        flat = torch.cat([g.double() for of in gradients for g in of])
        assert ours.finite and float(ours.norm) == pytest.approx(flat.norm().item() / scale, 1e-6)
        # Summed in another order the norm's last bit, and so the factor's, may be another.
        if bound:
            assert float(theirs.norm) == pytest.approx(float(ours.norm), 3e-7)
            assert float(ours.norm) > bound
        if not bound or torch.equal(ours.norm, theirs.norm):
            assert_same_memory(found, expected)
            compared += 1
        expected = copied(found)
    assert compared


def test_a_norm_does_not_depend_on_chance():
    gradients, partitions = make(torch.bfloat16)
    norms = {
        float(adam_update(gradients, copied(partitions), OPTIONS, impl="triton").norm)
        for _ in range(3)
    }
    assert len(norms) == 1


def bounds(before: Partition, options: AdamOptions, exact: dict) -> dict:
    """Return what weights and moments may be off by, from the roundings of one element's update.

    Each operator and each option in float32 is off by a unit, torch's float32 root by two. An
    average's product and sum are rounded once or twice; of the square both terms are positive.
    """
    weights, average, square = (t.double().abs() for t in before[:3])
    gradient = exact["gradient"].abs()
    lost = 0.0  # of the gradient, where decay is added to it
    if options.weight_decay and not options.decoupled:
        lost = 2 * UNIT * (gradient + 2 * options.weight_decay * weights)
    keeps = 1 - options.beta1
    average = 2 * UNIT * (gradient + 2 * average + exact["exp_avg"].abs()) + keeps * lost
    square = 5 * UNIT * exact["exp_avg_sq"] + 2 * (1 - options.beta2) * gradient * lost
    denominator = exact["exp_avg_sq"].sqrt() / exact["root"] + options.eps
    moved = exact["step_size"] * exact["exp_avg"].abs() / denominator
    moved = moved * (square / (2 * exact["exp_avg_sq"]).clamp(min=1e-45) + 8 * UNIT)
    moved = moved + exact["step_size"] * average / denominator
    moved = moved + 3 * UNIT * (weights + exact["weights"].abs())
    return {"exp_avg": average, "exp_avg_sq": square, "weights": moved}


def exact_adam(before: Partition, gradient: torch.Tensor, options: AdamOptions) -> dict:
    """Return Adam's step in float64, from a float32 partition and gradient."""
    weights, average, square = (t.double() for t in before[:3])
    gradient, count = gradient.double(), float(before.step) + 1
    if options.decoupled:
        weights = weights * (1 - options.lr * options.weight_decay)
    else:
        gradient = gradient + weights * options.weight_decay
    average = options.beta1 * average + (1 - options.beta1) * gradient
    square = options.beta2 * square + (1 - options.beta2) * gradient.square()
    root = math.sqrt(1 - options.beta2**count)
    step_size = options.lr / (1 - options.beta1**count)
    moved = step_size * average / (square.sqrt() / root + options.eps)
    found = {"weights": weights - moved, "exp_avg": average, "exp_avg_sq": square}
    return found | {"root": root, "step_size": step_size, "gradient": gradient}


@pytest.mark.parametrize("group", [0, 2, 3])
def test_a_step_is_float64s_and_torchs_fused_adams_to_their_roundings(group):
    gradients, partitions = make(torch.bfloat16)
    options, gradients = OPTIONS[group], gradients[group]
    before, found, fused = (copied(partitions[group]) for _ in range(3))
    gradient = torch.cat(gradients).float()
    adam_update([gradients], [found], [options], impl="triton")
    adam(
        [fused.weights], [gradient.clone()], [fused.exp_avg], [fused.exp_avg_sq], [], [fused.step],
        fused=True, amsgrad=False, beta1=options.beta1, beta2=options.beta2, lr=options.lr,
        weight_decay=options.weight_decay, eps=options.eps, maximize=False,
        decoupled_weight_decay=options.decoupled,
    )  # fmt: skip
    exact = exact_adam(before, gradient, options)
    for name, bound in bounds(before, options, exact).items():
        for other in (exact[name], getattr(fused, name).double()):
            error = (getattr(found, name).double() - other).abs()
            assert (error <= bound).all(), (name, float((error / bound.clamp(min=1e-45)).max()))
    assert found.step == fused.step == 4
    assert not torch.equal(found.weights, before.weights)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("group", "gradient"), [(0, 2), (2, 0)])
def test_nothing_is_written_where_one_element_is_not_finite(bad, group, gradient):
    gradients, partitions = make(torch.bfloat16)
    gradients[group][gradient][-1] = bad
    before = copied(partitions)
    outcome = adam_update(gradients, partitions, OPTIONS, bound=1.0, impl="triton")
    assert not outcome.finite and outcome.norm == math.inf
    assert_same_memory(partitions, before)


def test_gradients_may_lie_anywhere():
    """At odd addresses, and not in one piece."""
    gradients, partitions = make(torch.bfloat16)
    expected = copied(partitions)
    moved = [[torch.stack([g, g], 1)[:, 1] for g in gradients[0]], *gradients[1:3]]
    moved.append([torch.cat([g[:1], g])[1:] for g in gradients[3]])
    adam_update(moved, partitions, OPTIONS, impl="triton")
    adam_update(gradients, expected, OPTIONS, impl="triton")
    assert_same_memory(partitions, expected)


def test_other_ranks_gradients_count_in_the_norm():
    gradients, partitions = make(torch.float32)
    alone = adam_update(gradients, copied(partitions), OPTIONS, impl="triton").norm
    for impl in ("torch", "triton"):

        def add(total: torch.Tensor) -> None:  # of three ranks with the like
            assert total.dtype == torch.float64 and total.shape == (1,)
            total.mul_(3)

        norm = adam_update(gradients, copied(partitions), OPTIONS, reduce=add, impl=impl).norm
        assert float(norm) == pytest.approx(math.sqrt(3) * float(alone), rel=1e-6)

    def nan(total: torch.Tensor) -> None:
        total.fill_(math.nan)

    before = copied(partitions)
    assert not adam_update(gradients, partitions, OPTIONS, reduce=nan, impl="triton").finite
    assert_same_memory(partitions, before)


@pytest.mark.parametrize("steps", [0, 1, 999, 123_456])
def test_the_first_and_late_steps_have_torchs_biases(steps):
    """In float64 on the device, by squaring: 1 - 0.999 in float32 would be off in its 4th digit."""
    gradients, partitions = make(torch.float32, steps=float(steps))
    before, expected = copied(partitions[0]), copied(partitions[0])
    adam_update(gradients[:1], partitions[:1], OPTIONS[:1], impl="triton")
    exact = exact_adam(before, torch.cat(gradients[0]), OPTIONS[0])
    error = (partitions[0].weights.double() - exact["weights"]).abs()
    bound = bounds(before, OPTIONS[0], exact)["weights"]
    assert (error <= bound).all() and partitions[0].step == steps + 1
    one = torch.ones((), device=KERNEL_DEVICE)
    update_partition(torch.cat(gradients[0]), expected, OPTIONS[0], one)
    assert torch.equal(partitions[0].weights, expected.weights)


@pytest.mark.skipif(KERNEL_DEVICE == "cuda", reason="launches are counted in the interpreter")
def test_a_step_is_one_launch_a_group_and_two_for_the_norm(monkeypatch):
    names, run = [], GridExecutor.__call__

    def count(self, *args, **kwargs):
        names.append(self.fn.__name__)
        run(self, *args, **kwargs)

    monkeypatch.setattr(GridExecutor, "__call__", count)
    gradients, partitions = make(torch.bfloat16)
    adam_update(gradients, partitions, OPTIONS, bound=1.0, impl="triton")
    groups = sum(map(bool, SIZES))
    assert names == ["norm_kernel", "decide_kernel"] + ["update_kernel"] * groups


def test_blocks_cover_every_element_once():
    table, starts = plan_blocks(tuple(map(tuple, SIZES)), torch.device("cpu"))
    assert starts[-1] == len(table) and len(starts) == len(SIZES) + 1
    number = 0
    for sizes, begin, end in zip(SIZES, starts[:-1], starts[1:], strict=True):
        rows = table[begin:end].tolist()
        wanted = [(number + n, i) for n, size in enumerate(sizes) for i in range(size)]
        number += len(sizes)
        assert [(g, first + i) for g, first, _, count in rows for i in range(count)] == wanted
        places = [place + i for _, _, place, count in rows for i in range(count)]
        assert places == list(range(sum(sizes)))


def test_tensors_that_do_not_fit_are_refused():
    gradients, partitions = make(torch.bfloat16)
    with pytest.raises(ValueError, match="group 0: weights is torch.float32"):
        adam_update([gradients[0][:-1]], partitions[:1], OPTIONS[:1])
    with pytest.raises(ValueError, match="gradients must be torch.bfloat16"):
        adam_update([[g.float() for g in gradients[0]]], partitions[:1], OPTIONS[:1])
    with pytest.raises(ValueError, match="2 options"):
        adam_update(gradients[:1], partitions[:1], OPTIONS[:2])
