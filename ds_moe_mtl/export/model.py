"""A run's checkpoint as a model folder, off-line."""

from pathlib import Path

from ds_moe_mtl.config import UserError, load_config
from ds_moe_mtl.config.files import new_folder
from ds_moe_mtl.engine.checkpoints import damage, list_checkpoints, read_manifest
from ds_moe_mtl.engine.reshape import StoredTraining
from ds_moe_mtl.models.description import save_folder
from ds_moe_mtl.models.folder import described_network
from ds_moe_mtl.training.model_files import ModelFiles, model_files, read_model_files
from ds_moe_mtl.training.network import new_network
from ds_moe_mtl.training.plan import make_plan, task_specs


def choose_checkpoint(run: Path, name: str | None) -> Path:
    """Return a run's checkpoint by name, or its newest. Raises UserError where it is not whole."""
    found = list_checkpoints(run / "checkpoints")
    if not (run / "config.yaml").is_file() or not found:
        raise UserError(f"{run} is not a run folder with a checkpoint; allowed: what run.dir named")
    names = [path.name for path in found]
    if name is not None and name not in names:
        raise UserError(f"--checkpoint: no {name} in {run}; allowed: {', '.join(names)}")
    path = found[names.index(name)] if name else found[0]
    fault = damage(path)
    if fault:
        raise UserError(f"{path} is damaged ({fault}); allowed: --checkpoint with another of {run}")
    return path


def export_model(checkpoint: Path, output: Path) -> None:
    """Write the model folder of a checkpoint, its weights in float32 from the optimizer's copy.

    Needs the checkpoint alone; an older one, which does not describe its model, needs the run's
    encoder and data too. Raises UserError where `output` is taken, or where these are missing.
    """
    with new_folder(output) as folder:
        files = read_model_files(checkpoint)
        if files is None:
            network, files = _from_run(checkpoint.parent.parent)
        else:
            network = described_network(files.description, str(checkpoint))
        StoredTraining(checkpoint, read_manifest(checkpoint)).fill(network)
        about = {"checkpoint": checkpoint.name, **files.description["about"]}
        description = {**files.description, "about": about}
        save_folder(folder, description, network.state_dict(), files.tokenizer)


def _from_run(run: Path) -> tuple[object, ModelFiles]:
    """Return a run's network before training, and what its checkpoints would say of it."""
    config = load_config(run / "config.yaml", check_files=False)
    plan = make_plan(config, task_specs(config), lambda line: None)
    network, sha256 = new_network(plan)
    return network, model_files(network, plan, sha256)
