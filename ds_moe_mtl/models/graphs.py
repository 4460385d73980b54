"""The encoder's forward and backward pass recorded once a shape, and run again from the record.

A small encoder's step takes the host longer than the GPU: a CUDA graph launches hundreds of kernels
by one call. A graph computes on tensors of its own, always at the same addresses and of the same
shapes: batches are filled up to shapes that come again, copied in, and results read there. Shapes
that are rare are run as they are.

Recording is replaceable: `as_cuda_graphs` on a GPU, `as_second_runs` where there is none, which
runs the encoder again on the same tensors in the graph's place, so that all but the capture itself
is tested anywhere.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tensors = tuple[Tensor, ...]
Body = Callable[..., Tensors]
"""body(bucket, *inputs): inputs need no gradient; outputs are differentiable in the parameters."""

WARM_UP = 3
"""Passes before a capture: kernels are compiled and chosen, tables of addresses made."""


@dataclass
class Record:
    """One bucket's passes over tensors of their own.

    grads_out: of the outputs; None for those that need none. grads: of the parameters; None for
    those that the body does not use. waits: a forward pass whose backward pass has not come.
    """

    inputs: Tensors
    outputs: Tensors
    grads_out: tuple[Tensor | None, ...]
    grads: tuple[Tensor | None, ...]
    forward: Callable[[], None]
    backward: Callable[[], None]
    waits: bool = False


Recorder = Callable[[Body, Hashable, Sequence[Tensor], Tensors], Record]
"""From the body, a bucket, the parameters and inputs like the bucket's. Draws no random number."""


class EncoderGraphs:
    """Runs `body` by records, one a bucket; counts says how often it ran in which way.

    often: a bucket is recorded when it has come so many times before. most: records that are kept,
    each of which holds a gradient of every parameter.
    """

    def __init__(
        self,
        body: Body,
        parameters: Sequence[Tensor],
        record: Recorder,
        often: int = 2,
        most: int = 16,
    ) -> None:
        self.body, self.parameters, self.record = body, tuple(parameters), record
        self.often, self.most = often, most
        self.records: dict[Hashable, Record] = {}
        self.counts: Counter[str] = Counter()
        self._seen: Counter[Hashable] = Counter()
        self._addresses: tuple[int, ...] = ()

    def __call__(self, bucket: Hashable, inputs: Tensors) -> Tensors:
        """Return the body's outputs. The first one's gradient may come once, before the next call
        of the same bucket (RuntimeError); what is not differentiable is the caller's to keep."""
        record = self._record_of(bucket, inputs)
        if record is None:
            self.counts["eager"] += 1
            return self.body(bucket, *inputs)
        self.counts["replayed"] += 1
        if record.waits:
            raise RuntimeError(
                "a recorded encoder was called again before the backward pass of its last call: "
                "its outputs would be overwritten; allowed: one micro-batch a step"
            )
        for own, given in zip(record.inputs, inputs, strict=True):
            own.copy_(given, non_blocking=True)
        return _Replay.apply(record, *self.parameters)

    def _record_of(self, bucket: Hashable, inputs: Tensors) -> Record | None:
        """Return the bucket's record, made now where it is time; None: run it as it is."""
        addresses = tuple(parameter.data_ptr() for parameter in self.parameters)
        if addresses != self._addresses:  # records read weights where they were
            self.records.clear()
            self._addresses = addresses
        self._seen[bucket] += 1
        often = self._seen[bucket] > self.often
        if bucket not in self.records and often and len(self.records) < self.most:
            self.records[bucket] = self.record(self.body, bucket, self.parameters, inputs)
            self.counts["recorded"] += 1
        return self.records.get(bucket)


class _Replay(torch.autograd.Function):
    """A record's passes in the autograd graph. Gradients of the parameters are the record's own
    tensors, which its next backward pass writes again: a step uses them before that."""

    @staticmethod
    def forward(ctx, record: Record, *parameters):
        record.forward()
        record.waits = True
        ctx.record = record
        outputs = tuple(
            out.clone() if grad is None else out.detach()
            for out, grad in zip(record.outputs, record.grads_out, strict=True)
        )
        pairs = zip(outputs, record.grads_out, strict=True)
        ctx.mark_non_differentiable(*(out for out, grad in pairs if grad is None))
        return outputs

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grads):
        record = ctx.record
        for own, given in zip(record.grads_out, grads, strict=True):
            if own is not None:
                own.copy_(given, non_blocking=True)
        record.backward()
        record.waits = False
        return None, *(None if grad is None else grad.detach() for grad in record.grads)


def as_second_runs(
    body: Body, bucket: Hashable, parameters: Sequence[Tensor], inputs: Tensors
) -> Record:
    """Return a record that runs the body again each time: what a CUDA graph does, without one."""
    inputs = tuple(x.clone() for x in inputs)
    state = torch.get_rng_state()
    outputs, grads_out, grads = _pass(body, bucket, parameters, inputs)
    torch.set_rng_state(state)
    fresh: list[Tensor] = []

    def forward() -> None:
        with torch.enable_grad():
            fresh[:] = body(bucket, *inputs)
        _copy(outputs, [x.detach() for x in fresh])

    def backward() -> None:
        _copy(grads, _gradients(fresh, parameters, grads_out))
        fresh.clear()

    return Record(inputs, outputs, grads_out, grads, forward, backward)


class CudaGraphs:
    """Records passes as CUDA graphs that share one pool of memory: they run one after another.

    Never run on a card.
    """

    def __init__(self) -> None:
        self.pool = None

    def __call__(
        self, body: Body, bucket: Hashable, parameters: Sequence[Tensor], inputs: Tensors
    ) -> Record:
        """Capture both passes and return their record; random states stay as they are.

        Raises RuntimeError (torch's) where a pass waits for the GPU.
        """
        inputs = tuple(x.clone() for x in inputs)
        device = inputs[0].device
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        state = torch.cuda.get_rng_state(device)
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                _pass(body, bucket, parameters, inputs)
        torch.cuda.current_stream(device).wait_stream(stream)
        forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        # thread_local: the loader's thread locks memory for its batches meanwhile.
        how = {"pool": self.pool, "capture_error_mode": "thread_local"}
        with torch.enable_grad(), torch.cuda.graph(forward, **how):
            fresh = body(bucket, *inputs)
        grads_out = _like_differentiable(fresh)
        with torch.cuda.graph(backward, **how):
            grads = _gradients(fresh, parameters, grads_out)
        torch.cuda.set_rng_state(state, device)
        outputs = tuple(x.detach() for x in fresh)
        return Record(inputs, outputs, grads_out, grads, forward.replay, backward.replay)


def _pass(body: Body, bucket: Hashable, parameters: Sequence[Tensor], inputs: Tensors):
    """Return (outputs, zeros for their gradients, gradients of the parameters) of one pass."""
    with torch.enable_grad():
        fresh = body(bucket, *inputs)
        grads_out = _like_differentiable(fresh)
        grads = _gradients(fresh, parameters, grads_out)
    return tuple(x.detach().clone() for x in fresh), grads_out, grads


def _like_differentiable(outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(torch.zeros_like(x) if x.requires_grad else None for x in outputs)


def _gradients(outputs, parameters, grads_out) -> tuple[Tensor | None, ...]:
    pairs = [(x, g) for x, g in zip(outputs, grads_out, strict=True) if g is not None]
    differentiable, grads = zip(*pairs, strict=True)
    wanted = [p for p in parameters if p.requires_grad]
    found = iter(torch.autograd.grad(differentiable, wanted, grads, allow_unused=True))
    return tuple(next(found) if p.requires_grad else None for p in parameters)


def _copy(targets: Sequence[Tensor | None], sources: Sequence[Tensor | None]) -> None:
    for target, source in zip(targets, sources, strict=True):
        if target is not None:
            target.copy_(source)
