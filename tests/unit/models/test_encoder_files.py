"""An encoder's folder whose files are not what config.json says is refused in one line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, BertConfig, BertForMaskedLM, BertModel

from ds_moe_mtl.models.encoder_files import load_pretrained
from ds_moe_mtl.models.pretrained import EncoderSource, encoder_config, find_encoder
from tests.support.tiny import BERT

WEIGHTS = "model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def written(folder, model_class=BertModel):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, max_position_embeddings=40, **BERT)
    model_class(config).save_pretrained(folder)
    return folder


def loaded(folder, pooler=False):
    config = encoder_config(find_encoder(str(folder)))
    return load_pretrained(AutoModel, config, str(folder), "the/name", pooler)


def with_weights(change):
    def mend(folder):
        state = load_file(folder / WEIGHTS)
        save_file(change(state), folder / WEIGHTS, {"format": "pt"})

    return mend


def with_config(**values):
    def mend(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return mend


def halved(folder):
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def as_pickle(more):
    def mend(folder):
        torch.save(load_file(folder / WEIGHTS) | more, folder / "pytorch_model.bin")
        (folder / WEIGHTS).unlink()

    return mend


class Calling:
    """A pickle of it calls a function where it is read."""

    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


DISTANCES = "encoder.layer.0.attention.self.distance_embedding.weight"
BAD = {
    "a prefix": (with_weights(lambda s: {f"module.{k}": v for k, v in s.items()}), "module.emb"),
    "a layer too few": (with_config(num_hidden_layers=1), "does not use, encoder.layer.1.*15 more"),
    "a layer too many": (with_config(num_hidden_layers=3), "lack its weights encoder.layer.2"),
    "another width": (with_config(vocab_size=70), r"has shape \[60, 32\] in the files"),
    "positions of another kind": (
        with_weights(lambda s: s | {DISTANCES: torch.zeros(79, 8)}),
        "distance_embedding",
    ),
    "NaN": (
        with_weights(lambda s: s | {"embeddings.LayerNorm.bias": torch.full((32,), torch.nan)}),
        "embeddings.LayerNorm.bias has values that are NaN",
    ),
    "a pointer": (lambda f: (f / WEIGHTS).write_text(POINTER), "git-lfs pointer"),
    "a configuration that is a pointer": (
        lambda f: (f / "config.json").write_text(POINTER),
        "config.json is a git-lfs pointer",
    ),
    "a web page": (lambda f: (f / WEIGHTS).write_text("<!DOCTYPE html><html>"), "is a web page"),
    "half a file": (halved, "cut off"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "cut off"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no file named model.safetensors"),
    "a pickle that calls": (as_pickle({"x": Calling()}), "Weights only load failed"),
    "no JSON": (lambda f: (f / "config.json").write_text("{no"), "not a valid JSON"),
    "an unknown type": (with_config(model_type="nosuch"), "nosuch"),
    "code of its own": (
        with_config(model_type="nosuch", auto_map={"AutoConfig": "x.Y", "AutoModel": "x.Z"}),
        "custom code",
    ),
    "heads that do not divide": (with_config(num_attention_heads=5), "not a multiple"),
    "a word for a number": (with_config(num_attention_heads="two"), "num_attention_heads"),
    "an unknown activation": (with_config(hidden_act="nosuch"), "nosuch"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_folder_that_does_not_hold_the_encoder_is_refused_in_one_line(tmp_path, name):
    change, words = BAD[name]
    change(written(tmp_path))
    with pytest.raises(ValueError, match=words) as refusal:
        loaded(tmp_path)
    assert "\n" not in str(refusal.value) and "model.encoder: " in str(refusal.value)


@pytest.mark.parametrize("change", [lambda folder: None, as_pickle({})])
def test_all_weights_come_from_the_files(tmp_path, change):
    state = BertModel.from_pretrained(written(tmp_path)).state_dict()
    change(tmp_path)
    model = loaded(tmp_path, pooler=True)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_heads_may_be_left_over_and_a_pooler_missing_unless_it_is_asked_for(tmp_path):
    written(tmp_path, BertForMaskedLM)
    with_weights(lambda s: s | {"bert.embeddings.position_ids": torch.arange(40)[None]})(tmp_path)
    assert isinstance(loaded(tmp_path), BertModel)
    with pytest.raises(ValueError, match="lack its pooler's weights; allowed: model.pooler false"):
        loaded(tmp_path, pooler=True)


def test_a_trained_models_source_has_the_configuration_of_its_encoder(tmp_path):
    values = AutoConfig.for_model("bert", vocab_size=77).to_dict()
    description = {"format": 1, "kind": "mt_dense", "encoder": values, "tasks": [], "about": {}}
    (tmp_path / "config.json").write_text(json.dumps(description))
    source = EncoderSource("name", "resolved", str(tmp_path), trained=True)
    assert encoder_config(source).vocab_size == 77
