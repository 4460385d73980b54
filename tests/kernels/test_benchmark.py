"""The benchmark runs on a CPU, checks before it times, and writes what it found."""

import json
import os
import subprocess
import sys
from importlib import import_module


def test_a_small_run_writes_a_line_a_contestant_with_its_ratio_to_dense(root, tmp_path):
    command = [
        sys.executable, str(root / "kernels/benchmarks/bench_top1.py"), "--device", "cpu",
        "--hidden", "16", "--tokens", "256", "--experts", "2", "--dtypes", "float32",
        "--rounds", "2", "--threads", "1", "--modes", "forward", "step", "--out", str(tmp_path),
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr
    assert "agreement of torch in torch.float32" in run.stdout
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert {(row["name"], row["mode"]) for row in rows} == {
        (name, mode) for name in ("dense", "ours torch") for mode in ("forward", "step")
    }
    assert all(row["ratio"] == 1 for row in rows if row["name"] == "dense")
    assert all(row["ratio_graph"] is None for row in rows)  # a CPU has no CUDA graphs
    assert all(row["bound"] > 1 and row["bytes_per_s"] > 0 and row["threads"] == 1 for row in rows)


def test_a_ratio_to_the_graph_is_taken_within_a_round(root, monkeypatch):
    monkeypatch.syspath_prepend(str(root / "kernels/benchmarks"))
    bench = import_module("bench_top1")
    times = {
        "dense": [2.0, 4.0, 9.0],
        "dense, CUDA graph": [1.0, 2.0, 3.0],
        "ours": [3.0, 4.0, 6.0],
    }
    assert bench.graph_ratio(times, "ours") == 2
    assert bench.graph_ratio(times, bench.GRAPH) == 1
    assert bench.graph_ratio({"dense": [1.0]}, "dense") is None


def test_an_unknown_device_is_refused_before_anything_runs(root):
    command = [sys.executable, str(root / "kernels/benchmarks/bench_top1.py"), "--device", "tpu"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 2 and "tpu" in run.stderr


def test_an_encoders_operators_are_compared_and_what_cannot_run_says_why(root):
    command = [
        sys.executable, str(root / "kernels/benchmarks/bench_encoder.py"), "--toy",
        "--dtype", "float32",
    ]  # fmt: skip
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment)
    assert run.returncode == 0, run.stderr
    about, *rows = (json.loads(line) for line in run.stdout.splitlines())
    assert about["interpreter"] and (about["sequences"], about["tokens"]) == (3, 16)
    attention = {row["name"]: row for row in rows if row["part"] == "attention"}
    assert attention.keys() == {"padded SDPA", "flash", "efficient", "ours"}
    assert all("need a GPU" in attention[name]["skipped"] for name in ("flash", "efficient"))
    ran = [row for row in rows if row["skipped"] is None]
    assert len(ran) == 8 and all(row["error"] <= 2 and row["step_ms"] > 0 for row in ran)
