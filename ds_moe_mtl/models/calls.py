"""What a forward call knows beside its arguments, for the layers that the arguments do not reach.

transformers hands keywords to attention but not to the feed-forward part of a layer, so gate ids
and routes travel beside the call. The state belongs to the call: a thread (or an asyncio task) sees
its own calls only, and a model's layers see their model's call only, also where a model runs inside
another one's call.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Generic, TypeVar

Call = TypeVar("Call")

_CALLS: ContextVar[Mapping["CallScope", object]] = ContextVar(
    "ds_moe_mtl_calls", default=MappingProxyType({})
)


class CallScope(Generic[Call]):
    """What the layers of one model have in common: the key to the call that they are in.

    It holds nothing itself, so it may be shared; a copy of a model has a scope of its own.
    """

    @property
    def call(self) -> Call | None:
        """The model's call in force in this thread; None outside one."""
        return _CALLS.get().get(self)

    @contextmanager
    def use(self, call: Call) -> Iterator[Call]:
        """Put `call` in force for the model's layers that run inside the block, in this thread."""
        before = self.call
        self.enter(call)
        try:
            yield call
        finally:
            self.enter(before)

    def enter(self, call: Call | None) -> None:
        """Put `call` in force from now on; None: no call. `use` is for whom a block serves."""
        others = {scope: of_scope for scope, of_scope in _CALLS.get().items() if scope is not self}
        _CALLS.set(others if call is None else {**others, self: call})
