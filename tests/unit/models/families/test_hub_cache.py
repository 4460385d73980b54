"""A Hub id of a family's encoder, found without a network in a cache as huggingface_hub lays it."""

import json
import shutil

import pytest
import torch
from huggingface_hub import constants

from ds_moe_mtl.models.pretrained import find_encoder, load_transformer, source_limits
from ds_moe_mtl.models.tokenizer import load_tokenizer
from tests.support.families import write_family

COMMIT = "0123456789" * 4
CODE = {"AutoModel": "modeling_theirs.TheirModel"}  # as EuroBERT's page has it beside its weights
IDS = {
    "modernbert": "answerdotai/ModernBERT-base",
    "eurobert": "EuroBERT/EuroBERT-210m",
    "deberta-v2": "microsoft/deberta-v3-base",
}


def cache_of(folder, hub_id, encoder):
    """Lay an encoder's files into a cache: blobs, and links to them under a commit."""
    repository = folder / f"models--{hub_id.replace('/', '--')}"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    for path in (snapshot, blobs, repository / "refs"):
        path.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for number, file in enumerate(sorted(encoder.iterdir())):
        shutil.copyfile(file, blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))


@pytest.mark.parametrize("kind", IDS)
def test_an_id_in_the_cache_is_loaded_by_its_name_and_its_code_is_not_run(
    kind, tmp_path, monkeypatch
):
    encoder = write_family(tmp_path / "made", kind) / "encoder"
    config = json.loads((encoder / "config.json").read_text())
    (encoder / "config.json").write_text(json.dumps({**config, "auto_map": CODE}))
    (encoder / "modeling_theirs.py").write_text("raise RuntimeError('their code was run')")
    cache_of(tmp_path / "cache", IDS[kind], encoder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    source = find_encoder(IDS[kind])
    assert source.resolved == IDS[kind]
    model = load_transformer(source, dropout=0.1, pooler=False, kind="mt_tag")
    assert model.config.model_type == kind
    tokenizer = load_tokenizer(source.folder, source_limits(source))
    assert tokenizer("red")["input_ids"][0] == tokenizer.cls_token_id
    shutil.rmtree(tmp_path / "made")
    assert all(not torch.isnan(weight).any() for weight in model.parameters())
