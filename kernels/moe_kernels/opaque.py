"""Keeping torch's compiler and tracer out of the operators.

Their autograd functions, address tables and (on a CPU) counts read by the host cannot be traced;
followed step by step they break a graph in a dozen places and take minutes to compile. Called as a
whole they break it once, and the rest of the model is compiled around them. torch.jit.trace would
write the routes of its one example into the trace as constants: it is refused.
"""

import functools
from collections.abc import Callable

import torch


def opaque(function: Callable) -> Callable:
    """Return the function so that torch.compile calls it instead of looking into it.

    Under torch.jit.trace it raises RuntimeError.

    torch's own decorator imports the compiler, three seconds, in every process; here that happens
    only while something is being compiled.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        if torch.compiler.is_compiling():
            return torch.compiler.disable(function)(*args, **kwargs)
        if torch.jit.is_tracing():
            raise RuntimeError(
                f"moe_kernels.{function.__name__} cannot be traced: a trace would keep the routes "
                f"of its example; allowed: torch.compile, or the model as it is"
            )
        return function(*args, **kwargs)

    return call
