"""A run's checkpoints: what one belongs to, saving, and continuing from the newest whole one.

checkpoints/step_00000100/    DeepSpeed's own files, model_files.py's and manifest.json
"""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import distributed as dist

from ds_moe_mtl.config import RankError, UserError
from ds_moe_mtl.engine.checkpoints import (
    MANIFEST,
    SAVING,
    damage,
    finish,
    list_checkpoints,
    read_manifest,
    remove,
)
from ds_moe_mtl.engine.reshape import TOPOLOGY, load_reshaped, optimizer_order
from ds_moe_mtl.engine.unpickle import restrict_loading
from ds_moe_mtl.training.contents import WHAT_TO_DO, data_changes
from ds_moe_mtl.training.model_files import ModelFiles
from ds_moe_mtl.training.plan import RunPlan

BYTES_PER_WEIGHT = 22
"""At most: fp32 weights, an fp32 copy, Adam's two fp32 moments, an fp32 average, and some."""


@dataclass(frozen=True)
class Identity:
    """What a checkpoint and a run must share; where only the topology differs, it is reshaped."""

    world_size: int
    ep_size: int
    zero_stage: int
    precision: str
    model_kind: str
    tasks: list[str]
    encoder_sha256: str
    data: dict[str, dict] = field(default_factory=dict)  # RunPlan.contents

    def difference(self, stored: dict) -> str:
        """Return in words what makes a manifest's identity another run's; "" if nothing."""
        return self._differing(stored, lambda key: key not in TOPOLOGY)

    def other_topology(self, stored: dict) -> str:
        """Return in words what differs in topology from a manifest's identity; "" if nothing."""
        return self._differing(stored, lambda key: key in TOPOLOGY)

    def data_changes(self, stored: dict) -> str:
        """Return in words which tasks' data differs from a manifest's; "" where it has none."""
        return data_changes(stored["data"], self.data) if "data" in stored else ""

    def _differing(self, stored: dict, counts: Callable[[str], bool]) -> str:
        return "; ".join(
            f"{key} is {stored.get(key)} there and {value} here"
            for key, value in asdict(self).items()
            if key != "data" and counts(key) and stored.get(key) != value
        )


def identity_of(plan: RunPlan, encoder_sha256: str, world_size: int, deepspeed: dict) -> Identity:
    """Return the identity of a run's checkpoints; deepspeed is the resolved configuration."""
    config = plan.config
    return Identity(
        world_size=world_size,
        ep_size=config.moe.ep_size,
        zero_stage=deepspeed["zero_optimization"]["stage"],
        precision=config.train.precision,
        model_kind=config.model.kind,
        tasks=[spec.name for spec in plan.specs],
        encoder_sha256=encoder_sha256,
        data=plan.contents,
    )


def save_checkpoint(
    engine,
    folder: Path,
    step: int,
    identity: Identity,
    loader_state: dict,
    keep: int,
    model: ModelFiles | None = None,
    write_more: Callable[[Path], None] | None = None,
) -> Path:
    """Save after `step` steps and return the checkpoint's folder; a collective call.

    model: what makes a model folder of the checkpoint without the run's encoder and data; None
    leaves it out. write_more(folder): writes what a rank has to keep beside DeepSpeed's files. The
    newest `keep` stay; one more is on disk while writing. Raises UserError where the disk has no
    room, RankError where one rank's write fails: the checkpoints before stay whole.
    """
    name = f"step_{step:08d}"
    saving, final = folder / SAVING, folder / name
    first = dist.get_rank() == 0
    _make_saving(folder, step)
    _agree_on_room(engine, folder)
    with _told_as_ours(folder, step):
        engine.save_checkpoint(str(saving), tag=name, save_latest=False)
        if first and model is not None:
            model.write(saving / name)
        if write_more is not None:
            write_more(saving / name)
            dist.barrier()
        if first:
            manifest = {"step": step, "identity": asdict(identity), "loader": loader_state}
            if not identity.zero_stage:
                manifest["optimizer_order"] = optimizer_order(engine)
            finish(saving / name, final, manifest)
    if first:
        shutil.rmtree(saving, ignore_errors=True)
        for old in list_checkpoints(folder)[keep:]:
            remove(old)
    dist.barrier()
    return final


def check_can_save(engine, folder: Path, step: int) -> None:
    """Raise what `save_checkpoint` would for a folder that takes none; a collective call.

    Called before training goes on after `step` steps, so that none of them is done in vain.
    """
    _make_saving(folder, step)
    _agree_on_room(engine, folder)
    if dist.get_rank() == 0:
        shutil.rmtree(folder / SAVING)


def _make_saving(folder: Path, step: int) -> None:
    with _told_as_ours(folder, step):
        if dist.get_rank() == 0:
            shutil.rmtree(folder / SAVING, ignore_errors=True)
            (folder / SAVING).mkdir(parents=True)


@contextlib.contextmanager
def _told_as_ours(folder: Path, step: int) -> Iterator[None]:
    """Have what the system says of a full or read-only disk told as one line, a RankError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        shutil.rmtree(folder / SAVING, ignore_errors=True)
        raise RankError(
            f"run.dir: cannot write a checkpoint into {folder} at step {step}: "
            f"{_reason(error)}{_before(folder)}"
        ) from error


def find_resume(resume: str, folder: Path, identity: Identity) -> list[Path]:
    """Return the checkpoints a run may continue from, newest first; empty to start afresh.

    Raises UserError where run.resume names no checkpoint, or the newest one is of another run or
    of other data: it says what differs.
    """
    if resume == "never":
        return []
    if resume == "auto":
        found = list_checkpoints(folder)
    else:
        found = [Path(resume)]
        if read_manifest(found[0]) is None:
            raise UserError(
                f"run.resume: {resume} is not a checkpoint folder (no {MANIFEST}); allowed: auto, "
                f"never, or a folder such as <run>/checkpoints/step_00000100"
            )
    for path in found:
        manifest = read_manifest(path)
        if manifest is None:
            continue
        difference = identity.difference(manifest["identity"])
        if difference:
            raise UserError(f"run.resume: {path} is of another run: {difference}")
        changes = identity.data_changes(manifest["identity"])
        if changes:
            then = manifest["loader"]["examples"]
            now = [task["examples"] for task in identity.data.values()]
            counts = f"the checkpoint's loader has examples {then}, this run has {now}; "
            raise UserError(
                f"run.resume: {path} is of other data: {changes}; "
                f"{counts if then != now else ''}{WHAT_TO_DO}"
            )
        break
    return found


def choose_whole(found: list[Path], say: Callable[[str], None]) -> Path | None:
    """Return the newest checkpoint whose files match their checksums; None to start afresh.

    A collective call: rank 0 looks, all ranks get its answer. Says which ones are damaged.
    Raises UserError where there are checkpoints but none is whole.
    """
    answer = [None, ""]
    if dist.get_rank() == 0:
        for path in found:
            fault = damage(path)
            if not fault:
                answer[0] = str(path)
                break
            say(f"checkpoint {path.name} is damaged ({fault}); trying the one before")
        if found and answer[0] is None:
            answer[1] = (
                f"run.resume: no checkpoint in {found[0].parent} is whole; set run.resume=never "
                f"to start afresh (the damaged ones are kept aside)"
            )
    dist.broadcast_object_list(answer, src=0)
    if answer[1]:
        raise UserError(answer[1])
    return None if answer[0] is None else Path(answer[0])


def load_checkpoint(
    engine, path: Path, identity: Identity, say: Callable[[str], None]
) -> tuple[int, dict]:
    """Load weights and optimizer; return the step and the loader's state. A collective call.

    Exact on the topology that saved it, reshaped (reshape.py) on another. Only checkpoints whose
    checksums match their manifest come this far, and only what unpickle.py lists is read of them.
    """
    manifest = read_manifest(path)
    if "data" not in manifest["identity"]:
        say(f"note: {path.name} is of before data was recorded: it could not be compared")
    reshaped = identity.other_topology(manifest["identity"])
    if reshaped:
        say(f"reshaping {path.name}: {reshaped}")
        load_reshaped(engine, path, manifest)
        return manifest["step"], manifest["loader"]
    restrict_loading(engine)
    loaded, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
    if loaded is None:
        raise UserError(f"run.resume: DeepSpeed finds nothing to load in {path}")
    return manifest["step"], manifest["loader"]


def _agree_on_room(engine, folder: Path) -> None:
    """Raise UserError on every rank where the disk has too little room for one checkpoint."""
    answer = [""]
    if dist.get_rank() == 0:
        before = list_checkpoints(folder)
        if before:
            sizes = [entry["bytes"] for entry in read_manifest(before[0])["files"].values()]
            needed = sum(sizes)
        else:
            weights = sum(p.numel() for p in engine.module.parameters())
            needed = weights * BYTES_PER_WEIGHT
        free = shutil.disk_usage(folder).free
        if free < needed:
            answer[0] = (
                f"run.dir: no room for a checkpoint in {folder}: about {needed / 1e6:,.0f} MB "
                f"needed, {free / 1e6:,.0f} MB free{_before(folder)}"
            )
    dist.broadcast_object_list(answer, src=0)
    if answer[0]:
        shutil.rmtree(folder / SAVING, ignore_errors=True)
        raise UserError(answer[0])


def _before(folder: Path) -> str:
    return "; the checkpoints before it are whole" if list_checkpoints(folder) else ""


def _reason(error: BaseException) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    if "inline_container" in str(error):  # torch's own writer tells no reason of the system's
        return "a file could not be written whole: no room, a quota, or a limit of files' sizes"
    return str(error).strip().splitlines()[0]
