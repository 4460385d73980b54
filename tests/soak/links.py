"""Breaks the network, the hosts and the folder of a training run, and proves that nothing is lost.

    python tests/soak/links.py --events 100

A tiny MT-TaG run (dropout 0.1, ZeRO 1, experts over both ranks) trains once undisturbed over two
hosts (tests/support/hosts: namespaces, needs root). The same run then meets an event at a random
moment, goes on or is started again, and so on, until `--events` have come and it may finish. Both
ends must be the same bit for bit: weights, logged rows and results. Prints a line of JSON for each
event, and a summary; status 1 where something differs or an event ended otherwise than told.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.config import dump_config  # noqa: E402  (the paths above come first)
from ds_moe_mtl.engine.checkpoints import damage, list_checkpoints  # noqa: E402
from ds_moe_mtl.ranks.statuses import HUNG  # noqa: E402
from tests.support.ends import differences  # noqa: E402
from tests.support.hosts.forked import KILLED, Training  # noqa: E402
from tests.support.hosts.host import Host  # noqa: E402
from tests.support.hosts.hosts import Hosts  # noqa: E402
from tests.support.tiny import tiny_config, write_tiny  # noqa: E402

SAVE_EVERY, STEPS_AN_EVENT = 4, 5
TIMEOUT, GRACE = 8.0, 12.0  # seconds: train.hang_timeout, and what a busy machine adds to it
ROOM = 128  # MB of the hosts' folders
WAIT = 240.0  # seconds for a step or a start on a busy machine
PORTS = iter(range(20_000, 30_000))
WRONG = 2  # the status of an error that the user can mend


@dataclass
class Bench:
    """Two hosts, the run that they train, and the training that runs."""

    hosts: Hosts
    yaml: Path
    run: Path
    training: Training | None = None
    mounted: list[Host] = field(default_factory=list)

    def start(self, slow: bool = True, more: tuple[str, ...] = ()) -> Training:
        port = next(PORTS)
        words = [self.yaml, *more]
        self.training = Training(
            list(self.hosts), self.hosts.home / f"said{port}", words, port, slow=slow
        )
        return self.training

    def step(self) -> int:
        """Return the last logged step."""
        log = self.run / "metrics.jsonl"
        written = log.read_text().rpartition("\n")[0] if log.exists() else ""  # whole lines
        return max((json.loads(line)["step"] for line in written.splitlines()), default=0)

    def mount(self, host: Host, words: str) -> None:
        """Run mount or umount on a host, where its other processes see it."""
        enter = ["nsenter", "--all", "--target", str(host.init), "sh", "-ec", words]
        subprocess.run(enter, check=True)


def blink(bench: Bench, host: Host) -> None:
    host.link("down")
    time.sleep(2)
    host.link("up")


def forget_names(bench: Bench, host: Host) -> None:
    host.hosts_file.write_text("127.0.0.1 localhost\n")
    time.sleep(3)
    bench.hosts.names()


def fill(bench: Bench, host: Host) -> None:
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={bench.hosts.home / 'filler'}", "bs=64k", f"count={16 * ROOM}"],
        stderr=subprocess.DEVNULL,
        check=False,  # it ends where no room is left
    )


def read_only(bench: Bench, host: Host) -> None:
    run = bench.run
    bench.mount(host, f"mount --bind {run} {run}; mount -o remount,bind,ro {run}")
    bench.mounted.append(host)


@dataclass(frozen=True)
class Kind:
    """An event. ends: the status of the ranks that live to end; None: the run goes on.

    dies: the faulty host's rank says nothing; early: it may come while the run starts.
    """

    make: Callable[[Bench, Host], None]
    ends: int | None
    dies: bool = False
    early: bool = False


KINDS = {
    "link down for 2 s": Kind(blink, None, early=True),
    "link down": Kind(lambda bench, host: host.link("down"), HUNG),
    "nothing comes in": Kind(lambda bench, host: host.link("down", "in"), HUNG),
    "nothing goes out": Kind(lambda bench, host: host.link("down", "out"), HUNG),
    "firewall, all ports of ranks": Kind(lambda bench, host: host.drop("20000-65535"), HUNG),
    "host vanishes": Kind(lambda bench, host: host.kill(silently=True), HUNG, dies=True),
    "host's processes are killed": Kind(lambda bench, host: host.kill(), HUNG, dies=True),
    "host is frozen": Kind(lambda bench, host: host.freeze(), HUNG, dies=True),
    "no name is known for 3 s": Kind(forget_names, None, early=True),
    "shared folder is full": Kind(fill, WRONG),
    "shared folder is read-only on a host": Kind(read_only, WRONG),
}


@dataclass
class Event:
    """One event: where it hit and what it cost. Steps count from the run's beginning."""

    kind: str
    host: str
    moment: str
    at_step: int
    kept_step: int
    seconds: float  # until all that live had ended, or until the next step
    statuses: list[int | None]
    lines: list[str]
    faults: list[str]


def main() -> int:
    options = parse()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOM}m", "links", folder], check=True)
        try:
            with Hosts(Path(folder) / "of", faults=True) as hosts:
                events, faults = soak(hosts, options)
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)
    ended = [event for event in events if KINDS[event.kind].ends is not None]
    lost = [event.at_step - event.kept_step for event in ended]
    summary = {
        "events": len(events),
        "by kind": dict(Counter(event.kind for event in events)),
        "by host": dict(Counter(event.host for event in events)),
        "the run went on": len(events) - len(ended),
        "all that lived ended with a line": sum(not event.faults for event in ended),
        "seconds to the end, median and most": [
            round(f([event.seconds for event in ended] or [0]), 1) for f in (median, max)
        ],
        "steps lost, median and most": [f(lost or [0]) for f in (median, max)],
        "events that ended otherwise than told": sum(bool(event.faults) for event in events),
        "wall time, s": round(time.monotonic() - began),
        "differs from the undisturbed run": faults or "nothing, bit for bit",
    }
    for key, value in summary.items():
        print(f"{key:<40}{value}")
    return 1 if faults or summary["events that ended otherwise than told"] else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--events", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no event after them")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def soak(hosts: Hosts, options: argparse.Namespace) -> tuple[list[Event], list[str]]:
    """Return the events, and what differs at the end."""
    write_tiny(hosts.shared / "tiny")
    steps = STEPS_AN_EVENT * options.events
    whole, bench = (Bench(hosts, *write_run(hosts, name, steps)) for name in ("whole", "broken"))
    undisturbed = whole.start(slow=False)
    assert undisturbed.wait(1800) and undisturbed.statuses == [0, 0], undisturbed.text
    began, draw, events = time.monotonic(), random.Random(options.seed), []
    kinds: list[str] = []
    while len(events) < options.events and time.monotonic() - began < options.seconds:
        kinds = kinds or draw.sample(list(KINDS), len(KINDS))  # each as often as the others
        event = meet(bench, kinds.pop(), draw)
        print(json.dumps(asdict(event)), flush=True)
        events.append(event)
    if bench.training is not None:
        bench.training.kill()
    last = bench.start(slow=False, more=("train.hang_timeout=120",))
    assert last.wait(1800) and last.statuses == [0, 0], last.text
    return events, differences(bench.run, whole.run)


def write_run(hosts: Hosts, name: str, steps: int) -> tuple[Path, Path]:
    """Return the YAML of a run and the run's folder."""
    run, yaml = hosts.shared / name, hosts.shared / f"{name}.yaml"
    config = tiny_config(
        hosts.shared / "tiny",
        run={"dir": str(run)},
        model={"dropout": 0.1},
        moe={"ep_size": 2},
        track=[],  # TensorBoard's thread has a traceback of its own where nothing can be written
        train={"steps": steps, "save_every": SAVE_EVERY, "hang_timeout": TIMEOUT},
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
    )
    yaml.write_text(dump_config(config))
    return yaml, run


def meet(bench: Bench, name: str, draw: random.Random) -> Event:
    """Let an event come at a random moment, and return what followed, all healed again."""
    kind, place = KINDS[name], draw.randrange(2)
    host, before = bench.hosts[place], bench.step()
    moment = "training"
    if bench.training is None:
        training = bench.start()
        if kind.early and draw.random() < 0.5:
            moment = "start"
            time.sleep(draw.uniform(0, 3))
    training = bench.training
    if moment == "training":
        after = before + draw.randint(1, SAVE_EVERY)
        training.wait_until(lambda: bench.step() >= after, WAIT)
        time.sleep(draw.uniform(0, 0.5))
    made = time.monotonic()
    kind.make(bench, host)
    if kind.ends is None:
        now = bench.step()
        training.wait_until(lambda: bench.step() > now, WAIT)
    else:
        training.wait(TIMEOUT + GRACE, [1 - place] if kind.dies else None)
    seconds = round(time.monotonic() - made, 1)
    statuses, at_step = training.statuses, bench.step()
    found = [
        line
        for rank in range(2)
        for line in training.said(rank).splitlines()
        if line.startswith(("hang: ", "lost: ", "error: ")) or " failed in " in line
    ]
    kept, faults = judge(bench, kind, place, found, at_step)
    heal(bench, host, kind)
    return Event(*(name, host.name, moment, at_step, kept, seconds, statuses, found, faults))


def judge(
    bench: Bench, kind: Kind, place: int, found: list[str], at_step: int
) -> tuple[int, list[str]]:
    """Return the newest checkpoint's step, and what is not as it is told."""
    faults = []
    statuses, text = bench.training.statuses, "\n".join(found)
    allowed = [{kind.ends}, {kind.ends}]
    if kind.dies:
        allowed[place] = {None, KILLED + 9}
    if any(status not in each for status, each in zip(statuses, allowed, strict=True)):
        faults.append(f"statuses {statuses}")
    whole = [path for path in list_checkpoints(bench.run / "checkpoints") if not damage(path)]
    kept = int(whole[0].name.removeprefix("step_")) if whole else 0
    if at_step - kept > SAVE_EVERY:
        faults.append(f"{at_step - kept} steps lost")
    named = f"rank {place} on node{place}" in text or "no room for a checkpoint" in text
    if (kind.ends is not None) != named:
        faults.append("no line names the rank and its host" if kind.ends else "a line")
    if "Traceback" in bench.training.text:
        faults.append("a traceback: " + bench.training.text[-2000:])
    return kept, faults


def heal(bench: Bench, host: Host, kind: Kind) -> None:
    """Undo the event; a run that it ended, or should have, has gone."""
    if kind.ends is not None:
        bench.training.kill()
        bench.training = None
    if host.up:
        host.heal()
        host.thaw()
    else:
        bench.hosts.boot(host)
    (bench.hosts.home / "filler").unlink(missing_ok=True)
    while bench.mounted:
        bench.mount(bench.mounted.pop(), f"umount --lazy {bench.run}")


if __name__ == "__main__":
    sys.exit(main())
