"""Times how experts' rows cross hosts: the flat and the hierarchical exchange, over shaped links.

    python tests/soak/exchange.py --hosts 2 --each 2 --rates none 1gbit 100mbit

The hosts are namespaces of this machine (tests/support/hosts, needs root), so all ranks share its
cores; --rates shapes what each host may send and get. All ranks share one set of experts. Measured
are a layer's forward exchange (counts, rows of MiniLM's width there and back) for several numbers
of rows, and whole training steps of MT-TaG, tiny and MiniLM. Both ways alternate in one process
and see the same rows and batches; a figure is the median of what the slowest rank took. Prints a
line of JSON for each.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import distributed as dist

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "kernels")]

from ds_moe_mtl.benchmark.steps import EngineSteps  # noqa: E402  (the paths above come first)
from ds_moe_mtl.config import RunConfig, load_config  # noqa: E402
from ds_moe_mtl.engine.engine import start_process_group  # noqa: E402
from ds_moe_mtl.models.attention.choice import UNPADDED  # noqa: E402
from ds_moe_mtl.moe.exchange import Exchange, flat_exchange, hierarchical_exchange  # noqa: E402
from ds_moe_mtl.moe.hosts import HostGroups, host_groups, hosts_of_ranks  # noqa: E402
from ds_moe_mtl.moe.layer import TaskMOELayer  # noqa: E402
from ds_moe_mtl.ranks.rendezvous import Ranks, rendezvous  # noqa: E402
from ds_moe_mtl.training.network import new_network  # noqa: E402
from ds_moe_mtl.training.plan import make_plan, task_specs  # noqa: E402
from tests.support.hosts.hosts import Hosts  # noqa: E402
from tests.support.tiny import tiny_config, write_tiny  # noqa: E402

HIDDEN, LOCAL = 384, 2  # MiniLM's width, experts a rank
ROWS = (16, 64, 512, 2048)  # a rank routes in one layer call
WAYS = ("flat", "hierarchical")
ZERO = ROOT / "ds_configs/deepspeed/zero1.json"
LIMIT = 1200.0  # seconds that the ranks have for one rate
PORT = 29500


def main() -> int:
    options = parse()
    if options.folder is not None:
        be_a_rank(options)
        return 0
    with (
        tempfile.TemporaryDirectory() as folder,
        Hosts(Path(folder) / "of", options.hosts) as hosts,
    ):
        write_tiny(hosts.shared / "tiny")
        words = [sys.executable, __file__, *sys.argv[1:], "--folder", hosts.shared]
        world, each = options.hosts * options.each, options.each
        ranks = []
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank % each, "LOCAL_WORLD_SIZE": each}
            environ = {**place, "WORLD_SIZE": world, "MASTER_ADDR": "node0", "MASTER_PORT": PORT}
            environ = {key: str(value) for key, value in environ.items()}
            ranks.append(hosts[rank // each].popen(words, environ, ROOT))
        for rate in options.rates:
            for host in hosts:
                host.shape(None if rate == "none" else rate)
            (hosts.shared / f"go-{rate}").touch()
            done = hosts.shared / f"done-{rate}"
            ranks[0].wait_until(done.exists, LIMIT)
            for line in done.read_text().splitlines():
                print(line, flush=True)
        for rank in ranks:
            rank.wait()
    return 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("--each", type=int, default=2, help="ranks a host")
    parser.add_argument("--rates", nargs="+", default=["none", "1gbit", "100mbit"])
    parser.add_argument("--models", nargs="*", default=["tiny", "minilm"])
    parser.add_argument("--repeats", type=int, default=20, help="of a layer's exchange")
    parser.add_argument("--steps", type=int, default=5, help="of each model and way")
    parser.add_argument("--batch", type=int, default=32, help="examples a step, all ranks")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def be_a_rank(options: argparse.Namespace) -> None:
    """Measure at each rate, and leave the lines in the shared folder."""
    ranks = rendezvous(os.environ)
    start_process_group(ranks)
    groups = host_groups(ranks.world_size, hosts_of_ranks())
    trained = {name: Trained(name, options, ranks, groups) for name in options.models}
    for rate in options.rates:
        while ranks.rank == 0 and not (options.folder / f"go-{rate}").exists():
            time.sleep(0.05)
        dist.barrier()
        about = {"hosts": options.hosts, "ranks_a_host": options.each, "rate": rate}
        lines = [about | of_rows(rows, groups, options.repeats) for rows in ROWS]
        lines += [about | each.steps(options.steps) for each in trained.values()]
        if ranks.rank == 0:
            aside = options.folder / f"aside-{rate}"
            aside.write_text("".join(json.dumps(line) + "\n" for line in lines))
            aside.rename(options.folder / f"done-{rate}")
    dist.destroy_process_group()
    sys.stdout.flush()
    os._exit(0)  # as train.py


def of_rows(rows: int, groups: HostGroups, repeats: int) -> dict:
    """Return the median ms of a layer's forward exchange, each rank sending as much to each."""
    world = dist.get_world_size()
    sent_PL = torch.full((world, LOCAL), rows // (world * LOCAL), dtype=torch.int32)
    x = torch.randn(int(sent_PL.sum()), HIDDEN)

    def there_and_back(exchange: Exchange) -> None:
        exchange.back(exchange.there(x))

    works = {
        "flat": lambda: there_and_back(flat_exchange(sent_PL, dist.group.WORLD)),
        "hierarchical": lambda: there_and_back(hierarchical_exchange(sent_PL, groups)),
    }
    return {"measured": "exchange", "rows": rows} | alternated(works, repeats)


def alternated(works: dict[str, Callable[[], None]], repeats: int) -> dict:
    """Return the median ms of what the slowest rank took, by way, and the ratio of the two.

    The ratio is taken within a round: [first quartile, median, third quartile].
    """
    took = {name: [] for name in works}
    for repeat in range(-1, repeats):  # the first is not counted
        for name in list(works) if repeat % 2 else list(works)[::-1]:
            dist.barrier()
            began = time.perf_counter()
            works[name]()
            took[name].append(time.perf_counter() - began)
    found, slowest = {}, {}
    for name, seconds in took.items():
        slowest[name] = 1e3 * torch.tensor(seconds[1:])
        dist.all_reduce(slowest[name], op=dist.ReduceOp.MAX)
        found[name] = round(median(slowest[name].tolist()), 3)
    ratios = slowest["hierarchical"] / slowest["flat"]
    quartiles = ratios.quantile(torch.tensor([0.25, 0.5, 0.75])).tolist()
    return found | {"hierarchical / flat": [round(ratio, 3) for ratio in quartiles]}


class Trained:
    """An engine whose steps go either way."""

    def __init__(
        self, name: str, options: argparse.Namespace, ranks: Ranks, groups: HostGroups
    ) -> None:
        config = config_of(name, options, ranks.world_size)
        plan = make_plan(config, task_specs(config), lambda line: None)
        network, device = new_network(plan)[0], torch.device("cpu")
        padded = network.attention_on(device, torch.float32) not in UNPADDED
        self.name, self.groups = name, groups
        self.engine = EngineSteps(network, plan, ranks.world_size, device)
        self.loader = plan.super_batches(ranks.rank, ranks.world_size, padded, None)
        self.layers = [m for m in network.modules() if isinstance(m, TaskMOELayer)]
        self.position = self.loader.order.start

    def steps(self, count: int) -> dict:
        """Return the median ms of a step, always the same batch."""
        micro_batches, examples, self.position = self.loader.build(self.position)
        state = {"tokens": micro_batches[0].num_tokens}

        def step(way: str) -> None:
            for layer in self.layers:
                layer.hosts = None if way == "flat" else self.groups
            self.engine.take((micro_batches, examples))

        works = {way: lambda way=way: step(way) for way in WAYS}
        return {"measured": "step", "model": self.name} | state | alternated(works, count)


def config_of(name: str, options: argparse.Namespace, world_size: int) -> RunConfig:
    moe = {"ep_size": world_size, "num_experts": LOCAL * world_size}
    if name == "tiny":
        train = {"batch_size": options.batch}
        return tiny_config(options.folder / "tiny", moe=moe, train=train, deepspeed=str(ZERO))
    words = [f"moe.{key}={value}" for key, value in moe.items()]
    words += [f"train.batch_size={options.batch}", f"data.cache={options.folder / 'cache'}"]
    return load_config(ROOT / "ds_configs/experiments/embedded_mttag_minilm.yaml", words)


if __name__ == "__main__":
    sys.exit(main())
