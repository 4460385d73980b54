"""Measures what a network costs a training step, and sets it against the planner's formula.

    python tests/soak/network.py --hosts 2x2 4x1 --rates 100mbit 1gbit none --rounds 3 --out FILE

Hosts (tests/support/hosts: namespaces, needs root) whose links tbf shapes, so many with so many
ranks each; all share this machine's cores. Measured, round by round and rate by rate in turn: a
message's latency, gloo's collectives as training makes them, an all-to-all in two hops (within
hosts, then across), and whole steps of MT-TaG on MiniLM (embedded suite, fp32, ZeRO 1) with the
seconds of each of their collectives. A step is predicted as what it computed (measured) and what
`ds-moe-mtl plan --nics 1` takes its rings and exchanges to cost at that rate and latency. The
bytes that leave the busiest host are counted by its interface. Prints a table, writes JSON.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

import torch  # noqa: E402

from ds_moe_mtl.benchmark.planning import RunOnPaper, on_paper  # noqa: E402  (the paths come first)
from ds_moe_mtl.benchmark.workload import Workload, find_workload  # noqa: E402
from ds_moe_mtl.config import load_config  # noqa: E402
from ds_moe_mtl.planner.network import Machine, exchange_seconds, ring_seconds  # noqa: E402
from ds_moe_mtl.ranks.machine import device_name  # noqa: E402
from tests.support import network_rank  # noqa: E402
from tests.support.hosts.host import INTERFACE, Host, OnHost  # noqa: E402
from tests.support.hosts.hosts import Hosts  # noqa: E402

CPU = torch.device("cpu")
CONFIG = "embedded_mttag_minilm"
RATES = {"none": None, "1gbit": 1e9 / 8, "100mbit": 1e8 / 8}  # bytes a second
BURST = {"1gbit": "256kb", "100mbit": "16kb"}
"""Of tbf: 2.1 and 1.3 ms of the rate. A shorter one is spent before busy cores come to the shaper
again, and the link stands still: with 64kb a stream over 1gbit was seen to reach 0.4 of it."""

TINY, MB = 16, 10**6  # bytes
STAGE = 1  # of ZeRO, as the configuration has it
EXCHANGES = {TINY: (50, 3), 400_000: (2, 3), 1_600_000: (1, 5), 16 * MB: (1, 3)}
RECEIVES_FIRST = network_rank.RECEIVES_FIRST
COLLECTIVES = {
    # (what, bytes a rank): calls that are timed together, times
    ("all-reduce", TINY): (50, 3),
    ("all-reduce", 4 * MB): (1, 3),
    ("all-reduce", 64 * MB): (1, 1),
    ("gather", 64 * MB): (1, 1),
    ("all-to-all within", 16 * MB): (1, 3),
    **{
        (what + way, size): times
        for size, times in EXCHANGES.items()
        for what in ("all-to-all", "hierarchical")
        for way in ("", RECEIVES_FIRST)
    },
}
PINGS = 100
WIDTHS = (14, 13, 7, 10, 13)  # of a row's numbers
WAIT = 600.0  # seconds for an answer


@dataclass
class Bench:
    """Hosts, the ranks on them, and what has been asked."""

    hosts: Hosts
    each: int
    ranks: list[OnHost] = field(default_factory=list)
    asked: int = 0

    def start(self, overrides: list[str]) -> None:
        """Start the ranks, and return once they have met."""
        script = Path(network_rank.__file__)
        world = {
            "MASTER_ADDR": self.hosts[0].name,
            "MASTER_PORT": "29500",
            "WORLD_SIZE": str(len(self.hosts) * self.each),
            "LOCAL_WORLD_SIZE": str(self.each),
        }
        for rank in range(len(self.hosts) * self.each):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank % self.each)}
            command = [sys.executable, script, self.hosts.shared, CONFIG, *overrides]
            host = self.hosts[rank // self.each]
            self.ranks.append(host.popen(command, {**world, **place}, ROOT))
        self.ask("ping", peer=self.each, repeats=PINGS)

    def ask(self, what: str, **options) -> list:
        """Return all ranks' answers."""
        number, self.asked = self.asked, self.asked + 1
        shared = self.hosts.shared
        ready = shared / f"ask{number}.tmp"
        ready.write_text(json.dumps({"what": what, "options": options}))
        ready.rename(ready.with_suffix(".json"))
        if what == "end":
            return []
        paths = [shared / f"answer{number}.{rank}.json" for rank in range(len(self.ranks))]
        until = time.monotonic() + WAIT
        while not all(path.exists() for path in paths):
            ended = [rank for rank in self.ranks if rank.process.poll() is not None]
            late = time.monotonic() > until
            assert not ended and not late, "".join((ended or self.ranks)[0].output())
            time.sleep(0.02)
        return [json.loads(path.read_text()) for path in paths]

    def sent(self) -> int:
        """Return the most bytes that a host has sent so far."""
        return max(sent_bytes(host) for host in self.hosts)

    def shape(self, rate: str) -> None:
        for host in self.hosts:
            if RATES[rate] is None:
                host.shape(None)
            else:
                host.shape(rate, burst=BURST[rate])

    def stop(self) -> None:
        """End the ranks."""
        self.ask("end")
        for rank in self.ranks:
            rank.wait(60)


def sent_bytes(host: Host) -> int:
    """Return what a host's interface has sent: its tenth number in the kernel's table."""
    table = Path(f"/proc/{host.init}/net/dev").read_text()
    line = next(line for line in table.splitlines() if line.strip().startswith(f"{INTERFACE}:"))
    return int(line.partition(":")[2].split()[8])


@dataclass
class Found:
    """One thing's measurements on one topology at one rate. size: bytes a rank, or an ep_size."""

    hosts: str
    rate: str
    what: str
    size: int
    seconds: list[float] = field(default_factory=list)
    sent: list[float] = field(default_factory=list)  # bytes, by the busiest host
    predicted: float | None = None
    predicted_sent: float | None = None

    @property
    def row(self) -> dict:
        """The measurement as plain values."""
        measured = median(self.seconds)
        return {
            "hosts": self.hosts,
            "rate": self.rate,
            "what": self.what,
            "size": self.size,
            "seconds": measured,
            "least_and_most": [min(self.seconds), max(self.seconds)],
            "times": len(self.seconds),
            "predicted": self.predicted,
            "ratio": None if self.predicted is None else self.predicted / measured,
            "sent": median(self.sent) if self.sent else None,
            "predicted_sent": self.predicted_sent,
        }


Book = dict[tuple[str, str, int], Found]  # by rate, what, size


def main() -> int:
    options = parse()
    rows = []
    workload = find_workload(load_config(CONFIG, options.overrides), None, lambda line: None)
    for hosts in options.hosts:
        count, each = map(int, hosts.split("x"))
        with (
            tempfile.TemporaryDirectory() as folder,
            Hosts(Path(folder) / "of", count=count) as up,
        ):
            bench = Bench(up, each)
            bench.start(options.overrides)
            book = measure(bench, hosts, options)
            bench.stop()
        rows += predict(book, workload, count, each)
        show(rows[-len(book) :])
        if options.out:
            about = {"command": sys.argv, "torch": torch.__version__, "cpu": device_name(CPU)}
            options.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--hosts", nargs="+", default=["2x2", "4x1"], help="so many, with so many ranks on each"
    )
    parser.add_argument("--rates", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--ep", nargs="*", type=int, default=[1, 4], help="of steps; nothing: no steps"
    )
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument(
        "--overrides", nargs="*", default=["train.batch_size=128"], help="section.key=value"
    )
    return parser.parse_args()


def measure(bench: Bench, hosts: str, options: argparse.Namespace) -> Book:
    """Return everything measured on one topology, round by round, the rates in turn."""
    book: Book = {}

    def found(rate: str, what: str, size: int) -> Found:
        return book.setdefault((rate, what, size), Found(hosts, rate, what, size))

    for number in range(options.rounds):
        place = number % len(options.rates)
        for rate in (*options.rates[place:], *options.rates[:place]):
            bench.shape(rate)
            pings = bench.ask("ping", peer=bench.each, repeats=PINGS)
            found(rate, "message", 4).seconds.append(median(pings[0]))
            for (what, size), (calls, repeats) in COLLECTIVES.items():
                if bench.each == 1 and what.startswith(("hier", "all-to-all within")):
                    continue  # one rank a host: nothing is within
                before = bench.sent()
                told = bench.ask("collective", kind=what, size=size, calls=calls, repeats=repeats)
                row = found(rate, what, size)
                row.seconds += [max(each) for each in zip(*told, strict=True)]
                row.sent.append((bench.sent() - before) / (calls * (repeats + (repeats > 1))))
            for ep_size in options.ep:
                bench.ask("ready", ep_size=ep_size)
                before = bench.sent()
                told = bench.ask("step", ep_size=ep_size, number=number)
                sent = bench.sent() - before
                for what, seconds in parts(told).items():
                    found(rate, what, ep_size).seconds.append(seconds)
                found(rate, "step", ep_size).sent.append(sent)
            print(f"{hosts} {rate}: round {number + 1} of {options.rounds}", flush=True)
    return book


def parts(told: list[dict]) -> dict[str, float]:
    """Return a step's seconds, and those of its reduction, its exchanges and all the rest.

    All ranks make the same calls in the same order, and a call's seconds are those of the rank
    that came to it last: the others waited for that one, which computed.
    """
    seconds = defaultdict(float)
    for calls in zip(*(each["calls"] for each in told), strict=True):
        (name,) = {name for name, _ in calls}
        what = "step: all-to-all" if name == "all_to_all_single" else "step: reduction"
        seconds[what] += min(taken for _, taken in calls)
    whole = max(each["seconds"] for each in told)
    return {"step": whole, **seconds, "step: the rest": whole - sum(seconds.values())}


def predict(book: Book, workload: Workload, count: int, each: int) -> list[dict]:
    """Return the rows of a topology, with the formula's seconds and bytes.

    Latency is that of a message in a ring of tiny ones at the same rate, with all ranks at work;
    the bandwidth within a host what an exchange there reached. Of links that are not shaped nobody
    knows the bandwidth.
    """
    paper = on_paper(workload, Machine(count * each, each, *[1.0] * 5, nics=1), gpu=False)
    for (rate, what, size), found in book.items():
        latency = median(book[rate, "all-reduce", TINY].seconds) / (2 * (count * each - 1))
        reached = math.inf
        if within := book.get((rate, "all-to-all within", 16 * MB)):
            seconds = median(within.seconds) - (each - 1) * latency
            reached = 16 * MB * (each - 1) / each / seconds
        machine = paper.machine._replace(nvlink=reached, latency=latency)
        rest = book.get((rate, "step: the rest", size))
        network = RATES[rate]
        if (network is not None or size == TINY) and (what, size) != ("all-reduce", TINY):
            machine = machine._replace(network=network or math.inf)
            found.predicted = seconds_of(what, size, replace(paper, machine=machine), rest)
        # By cards of one byte a second, in no other time.
        bare = machine._replace(nvlink=math.inf, latency=0.0, network=1.0)
        found.predicted_sent = seconds_of(what, size, replace(paper, machine=bare), None)
    return [found.row for found in book.values()]


def seconds_of(what: str, size: int, paper: RunOnPaper, rest: Found | None) -> float | None:
    """Return the formula's seconds; None of what is only measured. rest: what a step computed."""
    machine = paper.machine
    if what in ("all-reduce", "gather"):
        return ring_seconds(size, machine, 2 if what == "all-reduce" else 1).total
    what = what.removesuffix(RECEIVES_FIRST)
    if what in ("all-to-all", "hierarchical"):
        return exchange_seconds(size, machine.gpus, machine, what == "hierarchical").total
    if what.startswith("step") and what != "step: the rest":
        cost = paper.cost(STAGE, size)
        computed = 0.0 if rest is None else median(rest.seconds)
        return {
            "step": computed + cost.reduction + cost.all_to_all,
            "step: reduction": cost.reduction,
            "step: all-to-all": cost.all_to_all,
        }[what]
    return None


def show(rows: list[dict]) -> None:
    """Print a topology's table: seconds in ms, bytes in MB."""
    titles = ("measured, ms", "formula, ms", "ratio", "sent, MB", "formula, MB")
    line = f"\n{'hosts':<7}{'rate':<9}{'what':<30}{'size':>11}"
    print(line + "".join(f"{text:>{width}}" for text, width in zip(titles, WIDTHS, strict=True)))
    for row in rows:
        told = [
            f"{value * factor:{form}}" if value is not None else ""
            for value, factor, form in (
                (row["seconds"], 1e3, ",.2f"),
                (row["predicted"], 1e3, ",.2f"),
                (row["ratio"], 1, ".2f"),
                (row["sent"], 1e-6, ",.2f"),
                (row["predicted_sent"], 1e-6, ",.2f"),
            )
        ]
        line = f"{row['hosts']:<7}{row['rate']:<9}{row['what']:<30}{row['size']:>11,}"
        print(line + "".join(f"{text:>{width}}" for text, width in zip(told, WIDTHS, strict=True)))


if __name__ == "__main__":
    sys.exit(main())
