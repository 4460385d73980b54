"""The benchmark runs on a CPU, checks before it times, and writes what it found."""

import json
import subprocess
import sys


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
    assert all(row["bound"] > 1 and row["bytes_per_s"] > 0 and row["threads"] == 1 for row in rows)


def test_an_unknown_device_is_refused_before_anything_runs(root):
    command = [sys.executable, str(root / "kernels/benchmarks/bench_top1.py"), "--device", "tpu"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert run.returncode == 2 and "tpu" in run.stderr
