"""Kills a training run again and again, and proves that its end is as if it never was.

    python tests/soak/kills.py --kills 30 --ranks 2

A tiny MT-TaG run (dropout 0.1, ZeRO 1, experts over all ranks) trains once undisturbed. The same
run then loses a random rank to kill -9 at a random moment, starts again, and so on, until `--kills`
have landed and it may finish. Both ends must be the same bit for bit: weights, logged rows and
results. Writes OUT/kills.json and OUT/starts.log; status 1 where something differs.
"""

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.config import dump_config  # noqa: E402  (the paths above come first)
from ds_moe_mtl.engine.checkpoints import SAVING, damage, list_checkpoints  # noqa: E402
from tests.support.ends import differences  # noqa: E402
from tests.support.launch import ROOT as SOURCES  # noqa: E402
from tests.support.launch import Running, launch, start  # noqa: E402
from tests.support.tiny import tiny_config, write_tiny  # noqa: E402

SAVE_EVERY = 5
STEPS_A_KILL = 8
"""A start gains five or six before it is killed, so that every kill finds the run unfinished."""

MOMENTS = {"training": 6, "write": 3, "start": 1}
"""What a kill aims at, with its weight: any step, an open checkpoint, the first seconds."""

RUN_LIMIT = 7200.0  # seconds for a whole run: the machine may be busy with other work
HUNG = 120.0  # seconds after a kill within which the launcher must have ended the other ranks


@dataclass
class Kill:
    """One kill: where it hit and what it cost. Steps count from the run's beginning."""

    moment: str
    rank: int
    first_step: int  # the start continued after this step
    at_step: int  # the last step logged before the kill
    kept_step: int  # the newest whole checkpoint after it
    half_written: bool  # a checkpoint was open
    damaged: int  # finished checkpoints that do not match their checksums
    seconds_to_end: float  # until the launcher and all other ranks were gone


def main() -> int:
    options = parse()
    out = Path(options.out).resolve()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    steps = options.steps or STEPS_A_KILL * options.kills
    began = time.monotonic()
    whole = write_run(out, "whole", steps, options.ranks)
    script = [SOURCES / "train.py", whole]
    undisturbed = launch(script, options.ranks, options.launcher, time_limit=RUN_LIMIT)
    assert undisturbed.returncode == 0, undisturbed.text
    print(f"undisturbed: {steps} steps in {undisturbed.seconds:.0f} s", flush=True)

    broken = write_run(out, "broken", steps, options.ranks)
    kills, starts, said = kill_and_restart(broken, out / "broken", options)
    faults = differences(out / "broken", out / "whole")
    if len(kills) < options.kills:
        faults.append(f"only {len(kills)} kills landed before the end: raise --steps")
    summary = {
        "kills": len(kills),
        "by moment": dict(Counter(kill.moment for kill in kills)),
        "by rank": dict(sorted(Counter(kill.rank for kill in kills).items())),
        "starts": starts,
        "steps of the run": steps,
        "steps between checkpoints": SAVE_EVERY,
        "steps lost, median": median(lost(kills)),
        "steps lost, most": max(lost(kills)),
        "steps lost, all kills": sum(lost(kills)),
        "half-written checkpoints met": sum(kill.half_written for kill in kills),
        "damaged checkpoints met": sum(kill.damaged for kill in kills),
        "checkpoints refused at a start": said.count("is damaged"),
        "longest wait for the other ranks' end, s": round(max(k.seconds_to_end for k in kills), 1),
        "wall time, s": round(time.monotonic() - began),
        "differs from the undisturbed run": faults or "nothing, bit for bit",
    }
    report = {"command": sys.argv, "summary": summary, "each": [asdict(kill) for kill in kills]}
    (out / "kills.json").write_text(json.dumps(report, indent=2) + "\n")
    for key, value in summary.items():
        print(f"{key:<44}{value}")
    return 1 if faults else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, help=f"default: {STEPS_A_KILL} a kill")
    parser.add_argument("--launcher", choices=("mpirun", "torchrun"), default="mpirun")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="runs/soak_kills", help="emptied first")
    return parser.parse_args()


def write_run(out: Path, name: str, steps: int, ranks: int) -> Path:
    """Write the YAML of a run in out/name and return its path."""
    config = tiny_config(
        write_tiny(out / "tiny"),
        run={"dir": str(out / name)},
        model={"dropout": 0.1},
        moe={"ep_size": ranks},
        train={"steps": steps, "save_every": SAVE_EVERY, "eval_every": 50, "log_every": 1},
        deepspeed=str(SOURCES / "ds_configs/deepspeed/zero1.json"),
    )
    path = out / f"{name}.yaml"
    path.write_text(dump_config(config))
    return path


def kill_and_restart(yaml: Path, run: Path, options: argparse.Namespace):
    """Return (kills, number of starts, all that the starts said) of a run brought to its end."""
    draw = random.Random(options.seed)
    kills: list[Kill] = []
    starts, said = 0, ""
    with (run.parent / "starts.log").open("w") as log:
        while not (run / "results.json").exists():
            starts += 1
            with start([SOURCES / "train.py", yaml], options.ranks, options.launcher) as running:
                if len(kills) < options.kills:
                    kill = kill_once(running, run, options.ranks, draw)
                    if kill is not None:
                        kills.append(kill)
                        print(f"kill {len(kills)}: {kill}", flush=True)
                else:
                    ended = running.wait(RUN_LIMIT)
                    assert ended.returncode == 0, ended.text
                text = "\n".join(running.output())
            log.write(f"start {starts}\n{text}\n")
            log.flush()
            said += text
    return kills, starts, said


def kill_once(running: Running, run: Path, ranks: int, draw: random.Random) -> Kill | None:
    """Kill one rank and wait for the others to go; None where the run finished first."""
    moment = draw.choices(list(MOMENTS), list(MOMENTS.values()))[0]
    rank, first_step, log_before = draw.randrange(ranks), kept_step(run), log_number(run)
    began = time.monotonic()

    def trained(steps: int):
        return log_number(run) != log_before and last_step(run) >= first_step + steps

    wait(running, lambda: len(running.ranks()) == ranks)
    victims = running.ranks()
    if moment == "start":
        until = began + draw.uniform(0.5, 8)
        wait(running, lambda: time.monotonic() > until)
    elif moment == "training":
        steps = draw.randint(1, 3 * SAVE_EVERY)
        wait(running, lambda: trained(steps))
        time.sleep(draw.uniform(0, 0.1))
    else:
        steps = draw.randint(1, 2 * SAVE_EVERY)
        wait(running, lambda: trained(steps) and (run / "checkpoints" / SAVING).exists())
        time.sleep(draw.uniform(0, 0.05))
    if running.process.poll() is not None:
        assert running.process.returncode == 0, "\n".join(running.output())
        return None
    victims[rank].kill()
    killed = time.monotonic()
    while running.process.poll() is None or running.processes():
        assert time.monotonic() - killed < HUNG, "\n".join(running.output())
        time.sleep(0.05)
    seconds = time.monotonic() - killed
    faults = [damage(path) for path in list_checkpoints(run / "checkpoints")]
    return Kill(
        moment=moment,
        rank=rank,
        first_step=first_step,
        at_step=last_step(run) if log_number(run) != log_before else first_step,
        kept_step=kept_step(run),
        half_written=(run / "checkpoints" / SAVING).exists(),
        damaged=sum(fault != "" for fault in faults),
        seconds_to_end=seconds,
    )


def wait(running: Running, happened) -> None:
    """Return once `happened()`, or once the launch has ended by itself."""
    until = time.monotonic() + 300
    while running.process.poll() is None and not happened():
        assert time.monotonic() < until, "\n".join(running.output())
        time.sleep(0.002)


def kept_step(run: Path) -> int:
    """Return the step of the newest whole checkpoint, 0 where there is none."""
    found = [path for path in list_checkpoints(run / "checkpoints") if not damage(path)]
    return int(found[0].name.removeprefix("step_")) if found else 0


def log_number(run: Path) -> int:
    """Return the inode of metrics.jsonl: every start that comes to train writes a new file."""
    path = run / "metrics.jsonl"
    return path.stat().st_ino if path.exists() else 0


def last_step(run: Path) -> int:
    """Return the last step that is logged in full, 0 where there is none."""
    path = run / "metrics.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def lost(kills: list[Kill]) -> list[int]:
    """Return, kill by kill, the steps that were logged and must be done again."""
    return [max(0, kill.at_step - kill.kept_step) for kill in kills]


if __name__ == "__main__":
    sys.exit(main())
