"""Several linear maps as one product: the same numbers, and what is copied for it."""

import torch

from encoder_kernels import project
from encoder_kernels.projection.reference import project_reference
from tests.kernels.layers import KERNEL_DEVICE
from tests.kernels.oracle import assert_as_exact_as_the_reference, normal
from tests.support.launches import Launches


def maps(width=24, together=False):
    """Return three weights and three biases, in one piece of memory each kind if together."""
    weights = normal(3, 16, width, seed=1, dtype=torch.float32).to(KERNEL_DEVICE)
    biases = normal(3, 16, seed=2, dtype=torch.float32).to(KERNEL_DEVICE)
    parts = [*weights, *biases]
    parts = parts if together else [part.clone() for part in parts]
    return [part.detach().requires_grad_() for part in parts]


def names_of(function) -> list[str]:
    launches = Launches()
    with launches:
        function()
    return launches.names


def test_results_and_gradients_are_as_exact_as_map_by_map():
    inputs = [normal(9, 24, seed=0, dtype=torch.float32), *(p.cpu() for p in maps())]
    assert_as_exact_as_the_reference(
        ("y", "grad x", *(f"grad {kind}{i}" for kind in "wb" for i in range(3))),
        lambda x, *parameters: torch.cat(project(x, parameters[:3], parameters[3:]), 1),
        lambda x, *parameters: torch.cat(project_reference(x, parameters[:3], parameters[3:]), 1),
        inputs,
        normal(9, 48, seed=3, dtype=torch.float32),
    )


def test_maps_that_lie_together_are_read_where_they_are():
    x, grad = (normal(9, n, seed=n, dtype=torch.float32).to(KERNEL_DEVICE) for n in (24, 48))
    x.requires_grad_()
    for together, copies in ((True, 0), (False, 2)):
        parameters = maps(together=together)
        forward = names_of(lambda p=parameters: project(x, p[:3], p[3:]))
        assert forward.count("cat") == copies and forward.count("addmm") == 1
        outs = project(x, parameters[:3], parameters[3:])
        grads = [part.detach() for part in grad.view(9, 3, 16).unbind(1)]
        backward = names_of(
            lambda p=parameters, o=outs, g=grads: torch.autograd.grad(o, [x, *p], g)
        )
        assert backward.count("mm") == 2 and backward.count("sum") == 1
        assert backward.count("cat") == copies // 2


def test_one_product_takes_fewer_operations_than_three():
    """Forward and backward: 6 and 11 operations become 3 and 4 at most, views apart."""
    x = normal(9, 24, seed=0, dtype=torch.float32).to(KERNEL_DEVICE).requires_grad_()
    found = {}
    for name, function in (("one", project), ("three", project_reference)):
        parameters = maps(together=True)
        outs = function(x, parameters[:3], parameters[3:])
        grads = normal(9, 3, 16, seed=4, dtype=torch.float32).to(KERNEL_DEVICE).unbind(1)
        found[name] = names_of(
            lambda o=outs, p=parameters, g=grads: torch.autograd.grad(o, [x, *p], g)
        )
    launched = {
        name: sum(op in ("mm", "sum", "add", "cat", "add_") for op in ops)
        for name, ops in found.items()
    }
    assert launched == {"one": 3, "three": 11}, found


def test_a_frozen_map_gets_no_gradient():
    x = normal(9, 24, seed=0, dtype=torch.float32).to(KERNEL_DEVICE)
    parameters = [part.detach() for part in maps()]
    parameters[4].requires_grad_()
    outs = project(x, parameters[:3], parameters[3:])
    torch.stack(outs).sum().backward()
    torch.testing.assert_close(parameters[4].grad, torch.full_like(parameters[4], 9.0))
