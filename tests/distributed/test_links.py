"""Links that break in training: it goes on where TCP can, or every rank ends with a line.

Six trainings over two hosts each, all at once, for what they cost is mostly waiting. The hosts are
namespaces with a network of their own (tests/support/hosts); skipped, with the reason printed,
where they cannot be had; DS_MOE_MTL_HOSTS=0 leaves them out. tests/soak/links.py has more faults.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ds_moe_mtl.config import dump_config
from ds_moe_mtl.engine.checkpoints import damage, list_checkpoints
from ds_moe_mtl.ranks.statuses import HUNG
from tests.support.ends import differences
from tests.support.hosts.fixture import hosts_or_skip
from tests.support.hosts.forked import KILLED, Training
from tests.support.hosts.host import Host
from tests.support.launch import ROOT
from tests.support.tiny import tiny_config, write_tiny

STEPS, SAVED, TIMEOUT = 8, 2, 8.0  # steps, steps between checkpoints, seconds
GRACE = 12.0  # seconds that ranks take to end after the time-out, on a busy machine
BLINK = 2.0  # seconds without a link
PORT = 29500


def blink(host: Host) -> None:
    host.link("down")
    time.sleep(BLINK)
    host.link("up")


@dataclass(frozen=True)
class Fault:
    """What breaks, on which of the two hosts, and whose ranks live on to end themselves."""

    make: Callable[[Host], None]
    place: int
    survivors: tuple[int, ...]
    lines: tuple[str, ...]  # the beginning of each survivor's line; of one or the other, with |


FAULTS = {
    "blink": Fault(blink, 1, (0, 1), ()),
    "down": Fault(
        lambda host: host.link("down"),
        0,
        (0, 1),
        ("hang: rank 1 on {1} has not answered for ", "hang: rank 0 on {0} does not answer (last"),
    ),
    "deaf": Fault(
        lambda host: host.link("down", "in"),
        1,
        (0, 1),
        (  # what the deaf one says, its end too, is heard
            "hang: rank 1 on {1} has not answered for |lost: rank 1 on {1} has gone: ",
            "hang: rank 0 on {0} does not answer (last",
        ),
    ),
    "vanished": Fault(
        lambda host: host.kill(silently=True), 1, (0,), ("hang: rank 1 on {1} has not answered ",)
    ),
    "killed": Fault(lambda host: host.kill(), 1, (0,), ("lost: rank 1 on {1} has gone: ",)),
    "frozen": Fault(
        lambda host: host.freeze(), 0, (1,), ("hang: rank 0 on {0} does not answer (",)
    ),
}


@dataclass
class Outcome:
    """A training that met a fault, what it left, and the one that went on."""

    run: Path
    names: list[str]
    ended: bool  # every survivor, in time
    statuses: list[int | None]
    said: list[str]
    reached: int  # the last logged step
    kept: int  # the step of the newest checkpoint
    whole: str  # what is wrong with it
    again: Training | None = None


def write_run(hosts, name: str) -> tuple[Path, Path]:
    """Return the YAML of a run and the run's folder."""
    run, yaml = hosts.shared / name, hosts.shared / f"{name}.yaml"
    config = tiny_config(
        hosts.shared / "tiny",
        run={"dir": str(run)},
        model={"dropout": 0.1},
        moe={"ep_size": 2},
        train={"steps": STEPS, "save_every": SAVED, "hang_timeout": TIMEOUT},
        deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
    )
    yaml.write_text(dump_config(config))
    run.mkdir()
    (run / "routes.png").touch()  # a picture that is there already is not drawn, which takes long
    return yaml, run


def step_of(run: Path) -> int:
    """Return the last step logged."""
    log = run / "metrics.jsonl"
    written = log.read_text().rpartition("\n")[0] if log.exists() else ""  # whole lines
    return max((json.loads(line)["step"] for line in written.splitlines()), default=0)


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("links") / "of"
    yield from hosts_or_skip(folder, count=2 * len(FAULTS), faults=True)


@pytest.fixture(scope="module")
def whole(hosts) -> Path:
    """Return the folder of a run that met no fault."""
    write_tiny(hosts.shared / "tiny")
    yaml, run = write_run(hosts, "whole")
    training = Training(list(hosts)[:2], hosts.home / "said" / "whole", [yaml], PORT)
    assert training.wait(120) and training.statuses == [0, 0], training.text
    return run


@pytest.fixture(scope="module")
def outcomes(hosts, whole) -> dict[str, Outcome]:
    """Return every fault's outcome."""
    said = hosts.home / "said"
    pairs = {name: list(hosts)[2 * number : 2 * number + 2] for number, name in enumerate(FAULTS)}
    runs = {name: write_run(hosts, name) for name in FAULTS}
    trainings = {
        name: Training(pair, said / name, [runs[name][0]], PORT + 1, slow=True)
        for name, pair in pairs.items()
    }
    for name, fault in FAULTS.items():
        trainings[name].wait_until(lambda run=runs[name][1]: step_of(run) > SAVED, 120)
        fault.make(pairs[name][fault.place])
    found = {}
    for name, fault in FAULTS.items():
        training, run = trainings[name], runs[name][1]
        ended = training.wait(TIMEOUT + GRACE, fault.survivors)
        newest = list_checkpoints(run / "checkpoints")[0]
        texts = [training.said(rank) for rank in range(2)]
        kept = int(newest.name.removeprefix("step_"))
        names = [host.name for host in pairs[name]]
        found[name] = Outcome(
            run, names, ended, training.statuses, texts, step_of(run), kept, damage(newest)
        )
    for name, fault in FAULTS.items():
        mend(hosts, pairs[name][fault.place], trainings[name])
        words = [runs[name][0], "train.hang_timeout=60"]
        found[name].again = Training(pairs[name], said / f"{name} again", words, PORT + 2)
    return found


def mend(hosts, host: Host, training: Training) -> None:
    """Bring a host back, without what is left of a run that was frozen."""
    training.kill()
    if host.up:
        host.heal()
        host.thaw()
    else:
        hosts.boot(host)


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(("hang: ", "lost: ", "error: "))]


@pytest.mark.parametrize("name", FAULTS)
def test_a_run_goes_on_or_all_that_live_end_in_time_with_one_line_and_the_next_ends_as_ever(
    outcomes, whole, name
):
    fault, outcome = FAULTS[name], outcomes[name]
    text = "\n".join([str(outcome.statuses), *outcome.said])
    assert outcome.ended, text
    assert not any("Traceback" in said or " failed in " in said for said in outcome.said), text
    for rank, status in enumerate(outcome.statuses):
        if name == "blink":
            assert status == 0, text
        elif rank in fault.survivors:
            assert status == HUNG, text
        else:
            assert status in (None, KILLED + 9), text  # None: frozen
    told = [lines(outcome.said[rank]) for rank in fault.survivors]
    assert [len(each) for each in told] == [bool(fault.lines)] * len(fault.survivors), text
    for (line,), begin in zip(told, fault.lines, strict=False):
        assert line.startswith(tuple(begin.format(*outcome.names).split("|"))), line
        assert "; start the run again (it continues after step " in line, line
    assert outcome.whole == "" and outcome.reached - outcome.kept <= SAVED, text
    assert outcome.again.wait(120) and outcome.again.statuses == [0, 0], outcome.again.text
    assert differences(outcome.run, whole) == []
