"""The loss of questions with options against their cross-entropy, and the head they share."""

import math

import pytest
import torch

from ds_moe_mtl.models.heads import HeadSpec, TaskHeads
from ds_moe_mtl.models.losses import option_losses


def test_a_questions_loss_is_its_cross_entropy_over_log_options():
    scores = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.1], requires_grad=True)
    labels = torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])
    weights = torch.tensor([1 / 3, 1 / 3, 1 / 3, 0.5, 0.5])
    tasks, questions = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([4, 4, 4, 4, 4])
    losses = option_losses(scores, labels, weights, tasks, questions)
    first = -scores[:3].log_softmax(0)[1] / math.log(3)
    second = -scores[3:].log_softmax(0)[0] / math.log(2)
    weighted = losses * weights
    torch.testing.assert_close(weighted[:3].sum(), first)
    torch.testing.assert_close(weighted[3:].sum(), second)
    (gradient,) = torch.autograd.grad(weighted.sum(), scores, retain_graph=True)
    (expected,) = torch.autograd.grad(first + second, scores)
    torch.testing.assert_close(gradient, expected)


def test_an_example_that_is_drawn_twice_counts_as_two():
    scores, labels = torch.tensor([0.4, -0.2]), torch.tensor([1.0, 0.0])
    half, zeros = torch.full((2,), 0.5), torch.zeros(2, dtype=torch.long)
    once = (option_losses(scores, labels, half, zeros, zeros) * half).sum()
    twice = option_losses(
        scores.repeat(2), labels.repeat(2), half.repeat(2), zeros.repeat(2), zeros.repeat(2)
    )
    torch.testing.assert_close((twice * half.repeat(2)).sum(), 2 * once)


def test_huge_scores_do_not_overflow():
    zeros = torch.zeros(2, dtype=torch.long)
    losses = option_losses(
        torch.tensor([1e4, -1e4]), torch.tensor([0.0, 1.0]), torch.full((2,), 0.5), zeros, zeros
    )
    assert float((losses * 0.5).sum()) == pytest.approx(2e4 / math.log(2))


def test_tasks_with_options_share_one_head_and_others_have_their_own():
    specs = [
        HeadSpec("a", 1, shared="options"),
        HeadSpec("b", 3),
        HeadSpec("c", 1, shared="options"),
    ]
    heads = TaskHeads(8, specs, 0.0)
    shared, own = heads.linears
    torch.manual_seed(0)
    hidden = torch.randn(3, 8)
    spans = torch.full((3, 2, 2), -1)
    out = heads(hidden, hidden, torch.arange(3), torch.tensor([0, 1, 2]), spans)
    assert out.shape == (3, 3)
    torch.testing.assert_close(out[[0, 2], :1], shared(hidden[[0, 2]]))
    torch.testing.assert_close(out[1], own(hidden[1]))
    assert torch.isinf(out[0, 1:]).all()
