"""Stock MoE's constructor arguments, read as TaskMoE's: what fits, what has no meaning, what not.

Source: deepspeed 0.19.8, deepspeed.moe.layer.MoE and deepspeed.moe.sharded_moe.TopKGate.
"""

from collections.abc import Mapping
from dataclasses import dataclass

STOCK_JITTER = 0.01
"""What TopKGate multiplies gate inputs by under noisy_gate_policy "Jitter": U(0.99, 1.01)."""


@dataclass(frozen=True)
class StockArguments:
    """The arguments of deepspeed.moe.layer.MoE from the fifth on; None: not given.

    Those about dropping (capacities, use_rts) mean something where tokens are dropped only.
    """

    k: int = 1
    capacity_factor: float | None = None
    eval_capacity_factor: float | None = None
    min_capacity: int | None = None
    noisy_gate_policy: str | None = None
    drop_tokens: bool | None = None
    use_rts: bool | None = None
    use_tutel: bool = False
    enable_expert_tensor_parallelism: bool = False

    def routing(self, options: Mapping) -> dict:
        """Return RoutingOptions' fields: `options`, and what these arguments say of them.

        Raises ValueError, one line, for what TaskMoE does not do and for contradictions.
        """
        options = dict(options)
        if self.k != 1:
            raise _refusal("k", self.k, "1, top-1 routing")
        if self.use_tutel:
            raise _refusal("use_tutel", True, "False")
        if self.enable_expert_tensor_parallelism:
            raise _refusal("enable_expert_tensor_parallelism", True, "False, ep_size")
        if self.noisy_gate_policy == "Jitter":
            options.setdefault("jitter", STOCK_JITTER)
        elif self.noisy_gate_policy not in (None, "None"):
            raise _refusal("noisy_gate_policy", self.noisy_gate_policy, "None, 'Jitter'")
        if self.drop_tokens is not None:
            named = "capacity" if self.drop_tokens else "dropless"
            if options.setdefault("dispatch", named) != named:
                allowed = f"dispatch={named!r}, or only one of the two"
                raise _refusal("drop_tokens", self.drop_tokens, allowed)
        if self.capacity_factor is not None:
            options["capacity_factor"] = self.capacity_factor
        if options.get("dispatch") == "capacity":
            self._check_dropping()
        return options

    def _check_dropping(self) -> None:
        if self.eval_capacity_factor not in (None, self.capacity_factor):
            raise _refusal("eval_capacity_factor", self.eval_capacity_factor, "capacity_factor's")
        if self.min_capacity:
            raise _refusal("min_capacity", self.min_capacity, "0, or drop_tokens=False")
        if self.use_rts:
            raise _refusal("use_rts", True, "False: tokens are kept in their order")


def _refusal(name: str, value: object, allowed: str) -> ValueError:
    return ValueError(f"TaskMoE does not do {name} = {value!r}; allowed: {allowed}")
