"""Which experts a task takes in each layer: task vectors, a router over them, and the selection.

K tasks, L routed layers, E experts, V numbers a task vector, B sequences.
Source: Ye, Zha, Ren, "Eliciting and Understanding Cross-Task Skills with Task-Level Mixture-of-
Experts" (Findings of EMNLP 2022), and its public code CrossTaskMoE for sizes.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from threading import Lock

import torch
from torch import nn

from ds_moe_mtl.config.schema import RouterSection
from ds_moe_mtl.models.task_level.router_nets import new_router_net

_NET_ON_LOAN = Lock()
"""Held while a net computes with other tensors than its own: they stand in it for all threads."""

ROUTES = ("learned", "average", "random_task", "random_instance")
SELECTIONS = ("softmax", "gumbel", "straight_through")
ROUTER_GROUP, VECTORS_GROUP = "task_router", "task_vectors"
"""Names of the optimizer's groups that have rates, and may have a bound on the gradient, apart."""


@dataclass(frozen=True)
class RouterOptions:
    """What a task router is. layers: which transformer layers have experts, from 0.

    temperature falls from its start by exp(-decay * step), never below `temperature_min`.
    frozen: the routes are given (stage 2), neither router nor vectors learn.
    """

    experts: int = 3
    layers: tuple[int, ...] = ()
    route: str = "learned"
    net: str = "mlp"
    hidden: int = 64
    selection: str = "straight_through"
    temperature: float = 2.0
    temperature_min: float = 0.1
    temperature_decay: float = 3e-4
    vector_size: int = 128
    freeze_vectors: bool = False
    frozen: bool = False
    seed: int = 0

    @classmethod
    def from_section(cls, router: RouterSection, seed: int) -> "RouterOptions":
        """Return what a configuration's section says; layers () stands for all of the encoder."""
        names = {field.name for field in fields(cls)} - {"layers", "frozen", "seed"}
        return cls(
            layers=router.layers or (),
            frozen=router.routes_from is not None,
            seed=seed,
            **{name: getattr(router, name) for name in names},
        )


def temperature(step: int, start: float, floor: float, decay: float) -> float:
    """Return max(start * exp(-decay * step), floor)."""
    return max(start * math.exp(-decay * step), floor)


def select(
    logits: torch.Tensor, selection: str, tau: float, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Return routes over the last axis, summing to 1; float32 logits.

    softmax: softmax(logits / tau). gumbel: softmax((logits + noise) / tau). straight_through: its
    largest entry as a one-hot vector, with the gradient of gumbel's. noise None: no noise, as in
    evaluation.
    """
    if noise is not None and selection != "softmax":
        logits = logits + noise
    soft = torch.softmax(logits / tau, dim=-1)
    if selection != "straight_through":
        return soft
    hard = nn.functional.one_hot(soft.argmax(dim=-1), soft.shape[-1]).to(soft)
    return hard + (soft - soft.detach())


def gumbel_noise(shape: Sequence[int], seed: int, step: int) -> torch.Tensor:
    """Return Gumbel(0, 1) noise of a step: the same on every rank and after a resume."""
    generator = torch.Generator().manual_seed((seed * 1_000_003 + step) % (1 << 63))
    uniform = torch.rand(tuple(shape), generator=generator).clamp_(min=torch.finfo().tiny)
    return -torch.log(-torch.log(uniform))


class TaskRouter(nn.Module):
    """Routes of K tasks through L layers; forward gives those of a batch's sequences."""

    def __init__(
        self, options: RouterOptions, num_tasks: int, vectors: torch.Tensor | None = None
    ) -> None:
        """vectors [K, V]: where given (text or Fisher vectors), else drawn from N(0, 1)."""
        super().__init__()
        self.options = options
        self.num_tasks = num_tasks
        self._step: int | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.long))
        shape = (len(options.layers), num_tasks, options.experts)
        if options.route == "learned":
            generator = torch.Generator().manual_seed(options.seed)
            if vectors is None:
                vectors = torch.randn((num_tasks, options.vector_size), generator=generator)
            if len(vectors) != num_tasks:
                raise ValueError(f"{len(vectors)} task vectors for {num_tasks} tasks")
            self.vectors = nn.Parameter(vectors.clone().float())
            size = vectors.shape[1]
            self.net = new_router_net(options.net, size, options.hidden, shape[0], shape[2])
            self.vectors.requires_grad_(not (options.frozen or options.freeze_vectors))
            self.net.requires_grad_(not options.frozen)
        elif options.route == "random_task":
            self.register_buffer("table", _random_table(shape, options.seed))

    def values(self) -> dict:
        """Return the options as plain values, vector_size that of the vectors it has."""
        values = asdict(self.options)
        if self.options.route == "learned":
            values["vector_size"] = self.vectors.shape[1]
        return values

    def set_step(self, step: int) -> None:
        """Say which training step this is: temperature, noise and random routes depend on it."""
        self._step = step
        self.step.fill_(step)

    @property
    def tau(self) -> float:
        """Temperature of the current step."""
        o = self.options
        return temperature(self._now(), o.temperature, o.temperature_min, o.temperature_decay)

    @property
    def one_hot(self) -> bool:
        """Whether routes are one-hot and no gradient needs the other experts' outputs."""
        o = self.options
        if o.route == "learned":
            learns = self.training and not o.frozen
            return o.selection == "straight_through" and not learns
        return o.route != "average"

    def logits(self) -> torch.Tensor:
        """Return the learned router's output [L, K, E], float32 whatever the weights are in."""
        if all(p.dtype == torch.float32 for p in (self.vectors, *self.net.parameters())):
            return self.net(self.vectors).transpose(0, 1)
        weights = {name: p.float() for name, p in self.net.named_parameters()}
        with _NET_ON_LOAN:
            out = torch.func.functional_call(self.net, weights, (self.vectors.float(),))
        return out.transpose(0, 1)

    def task_routes(self) -> torch.Tensor:
        """Return every task's routes [L, K, E], float32: with noise in training only.

        Random routes an instance have none a task: their mean, 1 / E, stands for them.
        """
        o = self.options
        shape = (len(o.layers), self.num_tasks, o.experts)
        if o.route == "random_task":
            return self.table.float()
        if o.route != "learned":
            return torch.full(shape, 1 / o.experts, device=self.step.device)
        noise = None
        if self.training and not o.frozen and o.selection != "softmax":
            noise = gumbel_noise(shape, o.seed, self._now()).to(self.step.device)
        return select(self.logits(), o.selection, self.tau, noise)

    def forward(self, task_ids_B: torch.Tensor, questions_B: torch.Tensor | None) -> torch.Tensor:
        """Return routes [L, B, E] of the sequences of tasks task_ids_B.

        questions_B: the example a sequence belongs to, read by random_instance alone: sequences of
        one example share its route.
        """
        if self.options.route == "random_instance":
            return self._instance_routes(task_ids_B, questions_B)
        return self.task_routes()[:, task_ids_B]

    def _now(self) -> int:
        if self._step is None:
            self._step = int(self.step)
        return self._step

    def _instance_routes(self, task_ids_B, questions_B):
        """Draw by a hash of seed, step, task, example and layer: no state, the same on all ranks.

        In evaluation the step counts as 0, so that an example always takes the same route.
        """
        o = self.options
        if questions_B is None:
            questions_B = torch.arange(len(task_ids_B), device=task_ids_B.device)
        now = self._now() + 1 if self.training else 0
        layer_L1 = torch.arange(len(o.layers), device=task_ids_B.device)[:, None]
        key = torch.tensor(o.seed, device=task_ids_B.device)
        for part in (torch.full_like(layer_L1, now), layer_L1, task_ids_B[None], questions_B[None]):
            key = _mix(key * 0x9E3779B1 + part + 1)
        expert_LB = (key & 0x7FFFFFFF) % o.experts
        return nn.functional.one_hot(expert_LB, o.experts).float()

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._step = None


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Return integers scattered over 62 bits (a multiply-xorshift hash; int64 wraps around)."""
    for factor in (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85):
        x = (x ^ ((x >> 31) & 0x1FFFFFFFF)) * factor
    return x ^ ((x >> 29) & 0x7FFFFFFFF)


def _random_table(shape: tuple[int, int, int], seed: int) -> torch.Tensor:
    """Return one-hot routes [L, K, E] drawn once for every (layer, task)."""
    generator = torch.Generator().manual_seed(seed)
    expert_LK = torch.randint(shape[2], shape[:2], generator=generator)
    return nn.functional.one_hot(expert_LK, shape[2]).float()
