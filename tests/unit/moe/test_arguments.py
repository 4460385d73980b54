"""TaskMoE stands wherever a MoE does: its arguments, its positions, and what it says no to."""

import inspect

import pytest
import torch
from deepspeed.moe.layer import MoE
from torch import nn

from ds_moe_mtl.moe import TaskMoE

HIDDEN = 16
STOCK = {"drop_tokens": False, "use_rts": False, "min_capacity": 0}


class WithBias(nn.Module):
    """An expert of Megatron's kind, which hands its bias on."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x):
        return self.linear(x), self.linear.bias


def pair(expert: nn.Module, **options) -> tuple[TaskMoE, MoE]:
    """Return our layer and stock's with the same weights."""
    torch.manual_seed(0)
    ours = TaskMoE(HIDDEN, expert, 4, 1, 1, num_gates=1, gate_scale="paper", **STOCK, **options)
    stock = MoE(HIDDEN, expert, 4, 1, 1, **STOCK, **options)
    for parameter in ours.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def test_positional_arguments_are_moes():
    for ours, stock in (
        (TaskMoE.__init__, MoE.__init__),
        (TaskMoE.forward, MoE.forward),
    ):
        kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [
            [name for name, p in inspect.signature(function).parameters.items() if p.kind in kinds]
            for function in (ours, stock)
        ]
        assert names[0] == names[1]


@pytest.mark.parametrize("expert", [nn.Linear(HIDDEN, HIDDEN), WithBias()])
@pytest.mark.parametrize("use_residual", [False, True])
@pytest.mark.parametrize("flat", [False, True])
def test_outputs_and_gradients_are_stocks(expert, use_residual, flat):
    ours, stock = pair(expert, use_residual=use_residual)
    mask = torch.ones(3, 8, dtype=torch.long)  # stock takes no other type
    mask[1, 5:] = 0
    x, answers = torch.randn(3, 8, HIDDEN), []
    for layer in (ours, stock):
        own_x = x.clone().requires_grad_()
        used = mask.view(-1) if flat or layer is stock else mask
        y, _, counts = layer(own_x, used)
        y.sin().sum().backward()
        grads = [p.grad for p in layer.parameters() if p.grad is not None]
        answers.append((y, counts.long(), own_x.grad, *grads))
    assert len(answers[0]) == len(answers[1])
    for mine, other in zip(*answers, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    assert ours.deepspeed_moe.l_aux == 0
    assert torch.equal(ours.deepspeed_moe.exp_counts.long(), answers[0][1])


def test_stocks_names_for_our_options():
    expert = nn.Linear(HIDDEN, HIDDEN)
    dropping = TaskMoE(HIDDEN, expert, drop_tokens=True, capacity_factor=2.0)
    assert (dropping.options.dispatch, dropping.options.capacity_factor) == ("capacity", 2.0)
    assert TaskMoE(HIDDEN, expert, drop_tokens=False).options.dispatch == "dropless"
    assert TaskMoE(HIDDEN, expert, noisy_gate_policy="Jitter").options.jitter == 0.01
    # As many as there are, where nothing is dropped: they have no meaning, and do no harm.
    TaskMoE(HIDDEN, expert, 4, 1, 1, 1.0, 1.0, 4, False, None, None, True, False, False, True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 2}, "does not do k = 2; allowed: 1"),
        ({"use_tutel": True}, "use_tutel = True"),
        ({"enable_expert_tensor_parallelism": True}, "enable_expert_tensor_parallelism = True"),
        ({"noisy_gate_policy": "RSample"}, "noisy_gate_policy = 'RSample'"),
        ({"drop_tokens": True, "dispatch": "dropless"}, "drop_tokens = True; allowed: dispatch="),
        ({"drop_tokens": True, "min_capacity": 4}, "min_capacity = 4"),
        ({"drop_tokens": True, "use_rts": True}, "use_rts = True"),
        (
            {"drop_tokens": True, "capacity_factor": 1.0, "eval_capacity_factor": 2.0},
            "eval_capacity_factor = 2.0",
        ),
    ],
)
def test_what_the_layer_does_not_do_is_refused_by_name(options, words):
    with pytest.raises(ValueError, match=words):
        TaskMoE(HIDDEN, nn.Linear(HIDDEN, HIDDEN), **options)
