"""Both forms of the layer agree under every lever, in output and every gradient, to the bit."""

import copy

import pytest
import torch
from torch import nn

from ds_moe_mtl.models import FeedForward, MoELayer, RoutingOptions
from ds_moe_mtl.moe import TaskMoE, to_deepspeed
from ds_moe_mtl.moe.convert import load_plain_state, plain_key, plain_state

HIDDEN = 16
LEVERS = {
    "merged": {"combine": "merged"},
    "shared_share": {"shared_share": 0.6},
    "route_by": {"route_by": "sequence"},
}


def holder_of(**options) -> nn.Module:
    """Return a module with one plain layer `moe` whose gates are spread and experts differ."""
    torch.manual_seed(0)
    holder = nn.Module()
    routing = RoutingOptions(4, 3, "preserve", **options)
    holder.moe = MoELayer(HIDDEN, FeedForward(HIDDEN, 24), routing)
    for parameter in holder.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return holder


@pytest.mark.parametrize("lever", LEVERS)
def test_both_forms_agree_and_a_plain_state_goes_through_unchanged(lever):
    plain = holder_of(**LEVERS[lever])
    deep = to_deepspeed(copy.deepcopy(plain))
    assert isinstance(deep.moe, TaskMoE)
    torch.manual_seed(5)
    x, ids, mask = torch.randn(4, 6, HIDDEN), torch.tensor([0, 2, 1, 2]), torch.ones(4, 6)
    mask[1, 3:] = 0
    answers = []
    for holder in (plain, deep):
        own_x = x.clone().requires_grad_()
        y, aux, counts = holder.moe(own_x, gate_ids=ids, used_token=mask)
        y.sin().sum().backward()
        answers.append((y, counts, own_x.grad, aux))
    for mine, other in zip(*answers, strict=True):
        assert torch.equal(mine, other)
    grads = {name: p.grad for name, p in plain.named_parameters()}
    for name, parameter in deep.named_parameters():
        assert torch.equal(parameter.grad, grads[plain_key(name)]), name
    state = {key: tensor + 1 for key, tensor in plain.state_dict().items()}
    load_plain_state(deep, state)
    found = plain_state(deep)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_merged_experts_on_other_ranks_are_refused():
    with pytest.raises(ValueError, match="ep_size = 2 with combine = merged"):
        TaskMoE(
            HIDDEN,
            FeedForward(HIDDEN, 24),
            num_gates=3,
            ep_size=2,
            gate_scale="preserve",
            combine="merged",
        )
