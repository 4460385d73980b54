"""A checkpoint of one topology (ranks, ep_size, ZeRO stage) loaded into an engine of another.

DeepSpeed 0.19.8 loads a native MoE optimizer into the topology that saved it and no other. Its
files still hold everything: ZeRO 1 and 2 keep flat float32 partitions and the place of every
parameter's fragment in them, stage 0 keeps one state a parameter. Here each tensor is put
together from them under its plain name (moe.keys) and cut anew for the engine it goes into.

Files are memory-mapped: a rank holds one parameter's state at a time.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ds_moe_mtl.config import UserError
from ds_moe_mtl.engine.unpickle import load_pickled
from ds_moe_mtl.models.heads import INSIDE, ON_DISK
from ds_moe_mtl.moe.keys import is_expert_key, plain_key

TOPOLOGY = ("world_size", "ep_size", "zero_stage")
"""The keys of a checkpoint's identity that may differ from those of the run that continues it."""

_MODEL_FILE = "mp_rank_00_model_states.pt"
_COUNTERS = ("global_steps", "global_samples", "skipped_steps")


@dataclass(frozen=True)
class ParameterState:
    """One whole parameter: its weight and the optimizer's tensors (exp_avg, ...), float32, flat.

    scalars: what the optimizer counts for it (step).
    """

    weight: torch.Tensor
    moments: dict[str, torch.Tensor]
    scalars: dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Fragment:
    """Where a piece of a flattened parameter lies: elements [start, start + numel) of a flat."""

    weight: torch.Tensor
    moments: dict[str, torch.Tensor]
    start: int
    numel: int

    def of(self, flat: torch.Tensor) -> torch.Tensor:
        return flat.reshape(-1)[self.start : self.start + self.numel]


def load_reshaped(engine, path: Path, manifest: dict) -> None:
    """Load weights, optimizer state, loss scale and counters of a checkpoint of any topology.

    Every rank reads for itself what it needs. Raises UserError where the checkpoint lacks a
    parameter or holds one of another size.
    """
    from ds_moe_mtl.moe.convert import expert_layout

    stored = StoredTraining(path, manifest)
    _, place, num_local = expert_layout(engine.module)
    for name, parameter in engine.module.named_parameters():
        plain = plain_key(name, place, num_local)
        if not parameter.requires_grad:
            parameter.data.copy_(stored.untrained(plain))
            continue
        state = stored.parameter(plain)
        if state.weight.numel() != parameter.numel():
            raise UserError(
                f"run.resume: {path}: {name} has {state.weight.numel():,} elements there and "
                f"{parameter.numel():,} here"
            )
        parameter.data.copy_(state.weight.view_as(parameter))
        if engine.zero_optimization():
            _fill_partition(engine.optimizer, parameter, state)
        else:
            _fill_state(engine.optimizer, parameter, state)
    for name, buffer in kept_buffers(engine.module).items():
        buffer.copy_(stored.untrained(plain_key(name, place, num_local)))
    if engine.zero_optimization():
        engine.optimizer._hp_optimizer_states_linked = False  # its views are of older tensors
        if stored.loss_scaler is not None:
            vars(engine.optimizer.loss_scaler).update(stored.loss_scaler)
    for key in _COUNTERS:
        setattr(engine, key, stored.counters[key])


class StoredTraining:
    """The training state in a checkpoint folder, by the parameters' plain names."""

    def __init__(self, path: Path, manifest: dict) -> None:
        self.path = path
        identity = manifest["identity"]
        self.ep_size, self.world_size = identity["ep_size"], identity["world_size"]
        self.loss_scaler: dict | None = None
        model = load_pickled(path / _MODEL_FILE)
        self.counters = {key: model[key] for key in _COUNTERS}
        self._module = {plain_key(name): tensor for name, tensor in model["module"].items()}
        self._num_local = max(model.get("num_experts") or [0]) // self.ep_size
        self._scalars: dict[str, dict[str, torch.Tensor]] = {}
        self._fragments: dict[str, list[_Fragment]] = defaultdict(list)
        if identity["zero_stage"]:
            self._index_partitions()
        else:
            self._index_states(model, manifest["optimizer_order"])
        self._number_heads(list(model["module"]))

    def names(self) -> set[str]:
        """Return the plain names of all parameters."""
        return set(self._fragments)

    def parameter(self, name: str) -> ParameterState:
        """Return a parameter by its plain name, put together.

        Raises UserError where the checkpoint has no such parameter.
        """
        fragments = self._fragments.get(name)
        if not fragments:
            raise UserError(f"run.resume: {self.path} has no optimizer state of {name}")
        moments = {
            key: torch.cat([fragment.of(fragment.moments[key]) for fragment in fragments])
            for key in fragments[0].moments
        }
        weight = torch.cat([fragment.of(fragment.weight) for fragment in fragments])
        return ParameterState(weight, moments, self._scalars[name])

    def untrained(self, name: str) -> torch.Tensor:
        """Return a tensor that no optimizer knows, a buffer or a frozen parameter, as it was held.

        Raises UserError where the checkpoint has no such tensor.
        """
        if name not in self._module:
            raise UserError(f"run.resume: {self.path} has no {name}")
        return self._module[name]

    def fill(self, network: torch.nn.Module) -> None:
        """Load the state of a network in the plain form, its buffers and all, in its own dtype.

        Raises UserError where the checkpoint lacks a tensor or holds one of another size.
        """
        tensors = {**dict(network.named_parameters()), **kept_buffers(network)}
        for name, tensor in tensors.items():
            trained = name in self._fragments
            found = self.parameter(name).weight if trained else self.untrained(name)
            if found.numel() != tensor.numel():
                raise UserError(
                    f"{self.path}: {name} has {found.numel():,} elements there and "
                    f"{tensor.numel():,} in the model that it describes"
                )
            tensor.data.copy_(found.view_as(tensor))

    def _index_partitions(self) -> None:
        """ZeRO 1 and 2: a file a rank; ranks in order hold a parameter's fragments in order."""
        for rank in range(self.world_size):
            (file,) = self.path.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
            state = load_pickled(file)["optimizer_state_dict"]
            self.loss_scaler = vars(state["loss_scaler"])
            place = rank % self.ep_size
            for group, names in enumerate(state["param_slice_mappings"]):
                scalars, flats = _split_state(state["base_optimizer_state"]["state"].get(group, {}))
                weight = state["single_partition_of_fp32_groups"][group]
                for name, address in names.items():
                    plain = plain_key(name, place, self._num_local)
                    self._scalars[plain] = scalars
                    self._fragments[plain].append(
                        _Fragment(weight, flats, address.start, address.numel)
                    )

    def _index_states(self, model: dict, order: list[str]) -> None:
        """Stage 0: a state a parameter in the optimizer's order; experts in files by place."""
        weights = dict(model["module"])
        for file in self.path.glob("layer_*_expert_*_mp_rank_00_model_states.pt"):
            weights.update(load_pickled(file))  # under global expert numbers
        weights = {plain_key(name): tensor for name, tensor in weights.items()}
        for place, optimizer in self._optimizers(model):
            for number, name in enumerate(order):
                plain = plain_key(name, place, self._num_local)
                if place and not is_expert_key(name):
                    continue  # every place's file has the shared parameters too
                self._scalars[plain], flats = _split_state(optimizer["state"].get(number, {}))
                weight = weights[plain]
                self._fragments[plain].append(_Fragment(weight, flats, 0, weight.numel()))

    def _number_heads(self, names: list[str]) -> None:
        """Give heads their numbers where a checkpoint of before has them by their tasks' names."""
        before, now = f"heads.{ON_DISK}.", f"heads.{INSIDE}."
        heads = dict.fromkeys(n.split(".")[2] for n in names if n.startswith(before))
        for number, head in enumerate(heads):
            for of_name in (self._fragments, self._scalars):
                for name in [n for n in of_name if n.startswith(f"{before}{head}.")]:
                    renamed = f"{now}{number}.{name.rpartition('.')[2]}"
                    of_name[renamed] = of_name.pop(name)

    def _optimizers(self, model: dict) -> Iterator[tuple[int, dict]]:
        if not model.get("num_experts"):
            yield 0, model["optimizer"]
            return
        for place in range(self.ep_size):
            file = self.path / f"expp_rank_{place}_mp_rank_00_optim_states.pt"
            yield place, load_pickled(file)["optimizer"]


def kept_buffers(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that are part of a network's state, by name (a task router's step)."""
    kept = network.state_dict().keys()
    return {name: buffer for name, buffer in network.named_buffers() if name in kept}


def optimizer_order(engine) -> list[str]:
    """Return the names of the parameters in the order of a stage 0 optimizer's state."""
    return [
        engine.param_names[parameter]
        for group in engine.optimizer.param_groups
        for parameter in group["params"]
    ]


def _split_state(state: dict) -> tuple[dict, dict]:
    """Return an optimizer's (counts, tensors an element)."""
    flats = {k: v for k, v in state.items() if isinstance(v, torch.Tensor) and v.dim()}
    return {k: v for k, v in state.items() if k not in flats}, flats


def _fill_partition(optimizer, parameter: torch.nn.Parameter, state: ParameterState) -> None:
    """Put this rank's fragment of a parameter into the ZeRO optimizer's flat partition."""
    mapping = parameter._hp_mapping
    if mapping is None:
        return
    whole, own = mapping.lp_fragment_address, mapping.hp_fragment_address
    partition = optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
    piece = slice(whole.start, whole.start + whole.numel)
    mapping.hp_fragment.data.copy_(state.weight[piece])
    kept = optimizer.optimizer.state[partition]
    kept.update(state.scalars)
    for key, moment in state.moments.items():
        if key not in kept:
            kept[key] = torch.zeros_like(partition)
        kept[key].narrow(0, own.start, own.numel).copy_(moment[piece])


def _fill_state(optimizer, parameter: torch.nn.Parameter, state: ParameterState) -> None:
    moments = {k: v.view_as(parameter).to(parameter.device) for k, v in state.moments.items()}
    optimizer.state[parameter] = {**state.scalars, **moments}
