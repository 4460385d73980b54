"""What a checkpoint says of its model, so that a model folder can be made of the checkpoint alone.

<checkpoint>/description.json    what the model folder's config.json says (models.description)
<checkpoint>/tokenizer/          the tokenizer's files

Both are small beside the weights and the optimizer (MiniLM: 0.7 MB of 0.5 GB, 30 ms), so every
checkpoint has its own: it is whole by itself, and its manifest's checksums hold for them too.
"""

from dataclasses import dataclass
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.config.files import read_json, write_json
from ds_moe_mtl.models.description import encoder_config_of
from ds_moe_mtl.models.tokenizer import limits_by, load_tokenizer
from ds_moe_mtl.training.network import described
from ds_moe_mtl.training.plan import RunPlan
from ds_moe_mtl.training.results import data_notes, encoder_facts

DESCRIPTION = "description.json"
TOKENIZER = "tokenizer"


@dataclass(frozen=True)
class ModelFiles:
    """A network's description and its tokenizer: a model folder but for the weights."""

    description: dict
    tokenizer: object

    def write(self, folder: Path) -> None:
        """Write both into a checkpoint's folder. Raises OSError or RuntimeError where it cannot."""
        write_json(folder / DESCRIPTION, self.description)
        try:
            self.tokenizer.save_pretrained(folder / TOKENIZER)
        except Exception as error:  # of tokenizers: of no class of its own, for a full disk too
            raise RuntimeError(str(error)) from error


def model_files(network, plan: RunPlan, encoder_sha256: str) -> ModelFiles:
    """Return the files of a run's network, in DeepSpeed's form or the plain one."""
    about = {"encoder": encoder_facts(plan, encoder_sha256), "notes": data_notes(plan)}
    return ModelFiles(described(network, plan, about), plan.tokenizer)


def read_model_files(checkpoint: Path) -> ModelFiles | None:
    """Return what a checkpoint says of its model; None: it is of before they were there.

    Raises UserError where the tokenizer cannot be read.
    """
    description = read_json(checkpoint / DESCRIPTION)
    if description is None:
        return None
    try:
        limits = limits_by(encoder_config_of(description))
        return ModelFiles(description, load_tokenizer(checkpoint / TOKENIZER, limits))
    except ValueError as error:
        raise UserError(str(error)) from error
