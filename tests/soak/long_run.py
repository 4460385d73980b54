"""Trains for thousands of steps and says whether memory and open file handles stay flat.

    python tests/soak/long_run.py --ranks 4 --steps 2000

A tiny MT-TaG run (ZeRO 1, experts over two ranks, data-parallel over the pairs), with dev scores
and checkpoints on its way. Every rank's resident memory and open handles are read from outside,
from /proc, every `--every` steps. Flat means: the last quarter's median is above the second
quarter's by no more than is allowed. Writes OUT/long_run.json and OUT/long_run.png; status 1 where
a rank is not flat.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import psutil

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.config import dump_config  # noqa: E402  (the paths above come first)
from tests.support.launch import ROOT as SOURCES  # noqa: E402
from tests.support.launch import start  # noqa: E402
from tests.support.tiny import tiny_config, write_tiny  # noqa: E402

ALLOWED_BYTES_A_STEP = 2048
"""Half of one hidden-state tensor of this run on one rank (32 wide, fp32, about 30 tokens, 4 kB):
a loop that keeps one tensor a step is found, an allocator that takes a block late is not."""

ALLOWED_HANDLES = 0
"""Files and sockets are opened at the start, or closed where they are used."""


def main() -> int:
    options = parse()
    out = Path(options.out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    began = time.monotonic()
    samples = watched_run(out, options)
    seconds = time.monotonic() - began
    rows = [verdict(samples, rank) for rank in range(options.ranks)]
    report = {
        "command": sys.argv,
        "steps": options.steps,
        "seconds": round(seconds),
        "allowed_bytes_a_step": ALLOWED_BYTES_A_STEP,
        "ranks": rows,
        "samples": samples,
    }
    (out / "long_run.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(samples, options.ranks, out / "long_run.png")
    print(f"{options.ranks} ranks, {options.steps} steps, {seconds:.0f} s")
    print(f"{'rank':<6}{'MB, 2nd quarter':>17}{'last quarter':>14}{'allowed':>9}{'handles':>14}")
    for row in rows:
        handles = f"{row['handles_before']:.0f} to {row['handles_after']:.0f}"
        print(
            f"{row['rank']:<6}{row['rss_before'] / 1e6:>17.2f}{row['rss_after'] / 1e6:>14.2f}"
            f"{row['allowed'] / 1e6:>+9.2f}{handles:>14}  {'flat' if row['flat'] else 'GROWS'}"
        )
    return 0 if all(row["flat"] for row in rows) else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--every", type=int, default=100, help="steps between two samples")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--out", default="runs/soak_long", help="emptied first")
    options = parser.parse_args()
    if options.ranks % 2 or options.steps < 8 * options.every:
        parser.error("--ranks must be even, --steps at least 8 x --every: two samples a quarter")
    return options


def watched_run(out: Path, options: argparse.Namespace) -> list[dict]:
    """Return the samples {"step", "rss", "handles"} (a value a rank) of a run to its end."""
    config = tiny_config(
        write_tiny(out / "tiny"),
        run={"dir": str(out / "run")},
        model={"dropout": 0.1},
        moe={"ep_size": 2},
        train={
            "steps": options.steps,
            "batch_size": 4 * options.ranks,
            "save_every": options.steps // 8,
            # Both begin in the first quarter: the imports of the dev scores are 100 MB.
            "eval_every": options.steps // 8,
            "log_every": 5,
            "precision": options.precision,
        },
        deepspeed=str(SOURCES / "ds_configs/deepspeed/zero1.json"),
    )
    yaml = out / "run.yaml"
    yaml.write_text(dump_config(config))
    samples: list[dict] = []
    with start([SOURCES / "train.py", yaml], options.ranks, "mpirun") as running:
        while running.process.poll() is None:
            step = last_step(out / "run/metrics.jsonl")
            if step >= options.every * (len(samples) + 1):
                samples.append({"step": step, **measure(running.ranks())})
                print(samples[-1], flush=True)
            time.sleep(0.1)
        assert running.process.returncode == 0, "\n".join(running.output())
    return samples


def measure(ranks: Sequence[psutil.Process]) -> dict:
    return {
        "rss": [process.memory_info().rss for process in ranks],
        "handles": [process.num_fds() for process in ranks],
    }


def last_step(metrics: Path) -> int:
    """Return the last step that is logged in full, 0 where there is none."""
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def verdict(samples: Sequence[dict], rank: int) -> dict:
    """Return a rank's medians of the second and the last quarter, and whether it is flat."""
    quarter = len(samples) // 4
    before, after = samples[quarter : 2 * quarter], samples[-quarter:]
    rss, handles = (
        [median(sample[key][rank] for sample in part) for part in (before, after)]
        for key in ("rss", "handles")
    )
    steps = median(s["step"] for s in after) - median(s["step"] for s in before)
    allowed = ALLOWED_BYTES_A_STEP * steps
    return {
        "rank": rank,
        "rss_before": rss[0],
        "rss_after": rss[1],
        "allowed": allowed,
        "handles_before": handles[0],
        "handles_after": handles[1],
        "flat": rss[1] - rss[0] <= allowed and handles[1] - handles[0] <= ALLOWED_HANDLES,
    }


def draw(samples: Sequence[dict], ranks: int, path: Path) -> None:
    """Draw memory and handles of every rank over the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots(2, sharex=True)
    steps = [sample["step"] for sample in samples]
    for rank in range(ranks):
        rss = [sample["rss"][rank] / 1e6 for sample in samples]
        axes[0].plot(steps, rss, marker=".", label=f"rank {rank}")
        axes[1].plot(steps, [sample["handles"][rank] for sample in samples], marker=".")
    for axis, what in zip(axes, ("resident memory, MB", "open file handles"), strict=True):
        axis.set_ylabel(what)
        axis.set_ylim(bottom=0)
    axes[0].legend()
    axes[1].set_xlabel("training step")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
