"""ds-moe-mtl doctor: this machine, or one encoder."""

import json
import shutil

import pytest

from ds_moe_mtl.cli import main
from tests.support.encoders import tiny_encoder
from tests.support.tiny import write_encoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def of_kind(kind, folder, tokenizer):
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("config.json", "model.*"))
    tiny_encoder(kind).save_pretrained(folder)
    return str(folder)


def test_an_encoder_that_fits_is_right_for_every_kind(folder, capsys):
    assert main(["doctor", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["class"] == "BertModel" and found["longest sequence"] == "64 tokens"
    kinds = ("single, mt_dense", "mt_switch, mt_tag", "task_moe")
    assert all(found[kind].startswith("right: ") for kind in kinds), found


def test_what_an_encoder_cannot_be_is_said(folder, tmp_path, capsys):
    assert main(["doctor", of_kind("albert", tmp_path / "albert", folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("single, mt_dense    right") for line in lines), lines
    assert any(line.startswith("mt_switch, mt_tag   refused") for line in lines), lines


def test_an_encoder_that_would_be_wrong_is_one_line_and_status_2(folder, tmp_path, capsys):
    assert main(["doctor", of_kind("convbert", tmp_path / "convbert", folder)]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and "packed sequences differ by" in errors[0], errors


def test_without_an_encoder_it_looks_at_the_machine(capsys):
    assert main(["doctor", "--json"]) == 0
    assert {"torch", "kernels", "minilm"} <= json.loads(capsys.readouterr().out).keys()
