"""Rows gathered within hosts before they cross them arrive as by the flat exchange, to the bit.

The first tests tell eight ranks of this machine which of them share a host; the last has hosts as
namespaces (tests/support/hosts) and is skipped, with the reason printed, where it cannot.
"""

import pytest
import torch
from torch import distributed as dist

from ds_moe_mtl.config import dump_config
from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.models.token_level.gating import route_tokens
from ds_moe_mtl.moe.dispatch import remote_experts
from ds_moe_mtl.moe.exchange import Exchange, flat_exchange, hierarchical_exchange
from ds_moe_mtl.moe.hosts import HostGroups, host_groups
from tests.support.ends import differences
from tests.support.hosts.fixture import hosts_or_skip
from tests.support.hosts.forked import Training
from tests.support.launch import ROOT, run_ranks
from tests.support.tiny import tiny_config, write_tiny

RANKS, EXPERTS, HIDDEN, GATES = 8, 16, 8, 3
LAYOUTS = {
    "two groups, each over two hosts of two": (4, "aabbccdd"),
    "four hosts of two": (8, "aabbccdd"),
    "two hosts of four": (8, "aaaabbbb"),
}
TOKENS = {
    "unequal tokens a rank": ([5, 1, 9, 3, 2, 7, 4, 6], None),
    "ranks without tokens": ([6, 0, 4, 2, 0, 0, 3, 1], None),
    "no tokens at all": ([0] * 8, None),
    "all tokens to one expert": ([5, 2, 3, 4, 1, 6, 2, 3], 6),
}
DRAWS = 12
PORT = 29500


def layer_of(favourite: int | None) -> MoELayer:
    """Return a plain layer; every token goes to `favourite` where there is one."""
    torch.manual_seed(0)
    layer = MoELayer(HIDDEN, FeedForward(HIDDEN, 12), RoutingOptions(EXPERTS, GATES, "paper"))
    for parameter in layer.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if favourite is not None:
        weight = layer.gate.wg.weight.data.view(GATES, EXPERTS, HIDDEN)
        weight.zero_()
        weight[:, favourite, 0] = 1.0
    return layer


def both_ways() -> dict:
    """Return, by layout, what layers left on this rank (flat, hierarchical) and what rows did."""
    found = {}
    for name, (ep_size, names) in LAYOUTS.items():
        hosts, group = host_groups(ep_size, names), dist.new_subgroups(ep_size)[0]
        layers = [of_layers(ep_size, group, each) for each in (None, hosts)]
        found[name] = {"layers": layers, "rows": of_rows(ep_size, group, hosts)}
    return found


def of_layers(ep_size: int, group: dist.ProcessGroup, hosts: HostGroups | None) -> dict:
    """Return, by case, a layer's output, the input's gradient and those of the parameters."""
    rank, local, results = dist.get_rank(), EXPERTS // ep_size, {}
    place = rank % ep_size
    for name, (counts, favourite) in TOKENS.items():
        layer = layer_of(favourite)
        generator = torch.Generator().manual_seed(100 + rank)
        x_TD = torch.randn(counts[rank], HIDDEN, generator=generator)
        x_TD[:, 0] = x_TD[:, 0].abs() + 0.5
        ids = torch.randint(GATES, (1, counts[rank]), generator=generator)
        x_TD.requires_grad_()
        weight, options = layer.gate.wg.weight, layer.options
        routing, _ = route_tokens(x_TD[None], weight, ids, None, options, True)
        experts = layer.experts[place * local : (place + 1) * local]
        y_TD = remote_experts(x_TD, routing, experts, options, group, hosts)
        y_TD.sin().sum().backward()
        gradients = {name: p.grad for name, p in experts.named_parameters()}
        results[name] = {"y": y_TD.detach(), "x": x_TD.grad, "gates": weight.grad, **gradients}
    return results


def of_rows(ep_size: int, group: dist.ProcessGroup, hosts: HostGroups) -> list[tuple[dict, dict]]:
    """Return what random numbers of rows, half of them 0, come to: (flat, hierarchical) a draw."""
    generator = torch.Generator().manual_seed(dist.get_rank())
    shape, results = (ep_size, EXPERTS // ep_size), []
    for draw in range(DRAWS):
        sent_PL = torch.randint(7, shape, generator=generator, dtype=torch.int32)
        sent_PL *= torch.randint(2, shape, generator=generator, dtype=torch.int32)
        rows = torch.randn(int(sent_PL.sum()), 3, generator=generator)
        rows = rows.to(torch.bfloat16 if draw % 2 else torch.float32)
        flat = there_and_back(flat_exchange(sent_PL, group), rows)
        results.append((flat, there_and_back(hierarchical_exchange(sent_PL, hosts), rows)))
    return results


def there_and_back(exchange: Exchange, rows: torch.Tensor) -> dict:
    """Return the rows, what comes, its counts, the answers, and the gradient of the rows.

    Every rank answers with what came times its number, counted from 1.
    """
    rows = rows.clone().requires_grad_()
    came = exchange.there(rows)
    answers = exchange.back(came * (dist.get_rank() + 1.0))
    (answers * rows.detach().cos()).sum().backward()
    assert (len(rows), len(came)) == (exchange.sent, exchange.received)
    return {
        "rows": rows.detach(),
        "came": came.detach(),
        "counts": exchange.received_PL,
        "answers": answers.detach(),
        "gradient": rows.grad,
    }


def assert_equal(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name] is not None and torch.equal(found[name], tensor), name


@pytest.fixture(scope="module")
def found():
    return run_ranks(both_ways, ranks=RANKS, time_limit=240)


@pytest.mark.parametrize("case", TOKENS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layers_output_and_gradients_are_those_of_the_flat_exchange_bit_for_bit(
    found, layout, case
):
    for of_rank in found:
        flat, hierarchical = of_rank[layout]["layers"]
        assert_equal(hierarchical[case], flat[case])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_and_counts_arrive_in_the_order_of_the_flat_exchange_whatever_their_numbers(
    found, layout
):
    for of_rank in found:
        for flat, hierarchical in of_rank[layout]["rows"]:
            assert_equal(hierarchical, flat)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_row_and_its_gradient_come_back_from_the_rank_of_its_expert(found, layout):
    ep_size = LAYOUTS[layout][0]
    for rank, of_rank in enumerate(found):
        place, first = rank % ep_size, rank - rank % ep_size
        ranks = range(first, first + ep_size)
        for draw, (one, _) in enumerate(of_rank[layout]["rows"]):
            received = [found[other][layout]["rows"][draw][0]["counts"][place] for other in ranks]
            factor = torch.tensor([other + 1.0 for other in ranks], dtype=one["rows"].dtype)
            factor = factor.repeat_interleave(torch.stack(received).sum(1))[:, None]
            assert torch.equal(one["answers"], one["rows"] * factor)
            assert torch.equal(one["gradient"], one["rows"].cos() * factor)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Training]:
    """Return a training by each exchange over two hosts of two ranks, both ended."""
    for hosts in hosts_or_skip(tmp_path_factory.mktemp("exchange") / "of", count=4):
        write_tiny(hosts.shared / "tiny")
        trainings, each = {}, {"flat": list(hosts)[:2], "hierarchical": list(hosts)[2:]}
        for exchange, pair in each.items():
            run, yaml = hosts.shared / exchange, hosts.shared / f"{exchange}.yaml"
            config = tiny_config(
                hosts.shared / "tiny",
                run={"dir": str(run)},
                moe={"ep_size": 4, "num_experts": 8, "exchange": exchange},
                train={"hang_timeout": 60.0},
                deepspeed=str(ROOT / "ds_configs/deepspeed/zero1.json"),
            )
            yaml.write_text(dump_config(config))
            run.mkdir()
            (run / "routes.png").touch()  # a picture that is there already is not drawn
            said = hosts.home / "said" / exchange
            trainings[exchange] = Training(pair, said, [yaml], PORT, each=2)
        for training in trainings.values():
            assert training.wait(120) and set(training.statuses) == {0}, training.text
        yield {name: (hosts.shared / name, training) for name, training in trainings.items()}


def test_a_training_over_two_hosts_of_two_ranks_has_the_losses_of_the_flat_exchange(runs):
    run, training = runs["hierarchical"]
    assert differences(run, runs["flat"][0]) == []
    assert "exchange hierarchical" in training.said(0), training.text
    assert "exchange flat" in runs["flat"][1].said(0)
