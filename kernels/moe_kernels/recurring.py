"""Sizes that come again, for shapes that a CPU compiles: fill up to one instead of the true size.

oneDNN compiles a 16-bit product anew for every shape (0.5 to 3 ms each, and memory that it does not
give back), and the number of tokens differs in every step. Filled up to recurring sizes a
run meets each shape many times.
"""

import torch


def recurring_size(
    count: int, device: torch.device, dtype: torch.dtype, step: int = 16, per_octave: int = 64
) -> int:
    """Return the size that stands in for `count`: itself, but on a CPU in 16 bits the next one up.

    There it is the next multiple of `step`, or of a `per_octave`-th of the power of two at or below
    count where that is more, so that no octave has more than per_octave sizes. 0 stays 0. Both are
    powers of two: then a size stands for itself.
    """
    assert step & (step - 1) == 0 and per_octave & (per_octave - 1) == 0, (step, per_octave)
    if device.type != "cpu" or dtype.itemsize != 2:
        return count
    step = max(step, (1 << count.bit_length()) // (2 * per_octave))
    return -(-count // step) * step
