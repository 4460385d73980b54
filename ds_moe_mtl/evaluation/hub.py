"""A trained model on the Hub: found there by its name, and sent there."""

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from ds_moe_mtl.config import UserError
from ds_moe_mtl.models.description import CONFIG, model_folder
from ds_moe_mtl.models.pretrained import hub_folder

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def found_folder(name: str | Path) -> Path:
    """Return the model folder that a path, a run's folder or a Hub id ("user/name") leads to.

    A folder on this machine comes first; offline a Hub id is looked for in the Hub's cache. Raises
    UserError for a Hub id whose model cannot be had, and where there is no such folder.
    """
    folder = model_folder(Path(name))
    if (folder / CONFIG).is_file() or Path(name).exists() or not _HUB_ID.fullmatch(str(name)):
        return folder
    found = hub_folder(str(name))
    if found is None:
        raise UserError(
            f"{name} is not a model folder (no {CONFIG}), and no model of the Hub that can be "
            f"reached; allowed: the model/ of a finished run, or user/name"
        )
    return Path(found)


def push(
    save: Callable[[Path], None],
    name: str,
    private: bool = True,
    token: str | None = None,
    dry_run: bool = False,
) -> list[str]:
    """Send what `save` writes into a folder to the Hub's model `name`; return its files' names.

    dry_run: nothing is sent. Raises UserError, one line, for no Hub id, while offline, and for
    whatever the Hub has against it.
    """
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"push_to_hub: {name!r}; allowed: user/name")
    if not dry_run and os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
        raise UserError("push_to_hub: HF_HUB_OFFLINE is set; allowed: without it, or dry_run=True")
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        files = sorted(path.name for path in Path(folder).iterdir())
        if not dry_run:
            _upload(name, folder, private, token)
    return files


def _upload(name: str, folder: str, private: bool, token: str | None) -> None:
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Upload the model")
    except Exception as error:  # of the Hub's client or the network's, of many classes
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0] if lines else type(error).__name__
        raise UserError(f"push_to_hub: {name}: {said:.200}") from error
