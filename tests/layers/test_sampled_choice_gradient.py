"""The sampled estimate of the choice's gradient: unbiased, and one extra width per image."""

from __future__ import annotations

import itertools

import pytest
import torch
from comparison import float_conv, one_hot, quantized, random_tensor

from dqnet.layers.routed import routed
from dqnet.layers.width_groups import WidthGroups

WIDTHS = (2, 3, 4, 6)
COLUMNS = [0, 3, 1, 1]


def choice_gradient(drawn_widths=None, columns=COLUMNS, widths=WIDTHS):
    layer = quantized(float_conv(2, 3, 3, padding=1), widths)
    x = random_tensor(len(columns), 2, 6, 6, seed=5)
    choice = one_hot(columns, len(widths)).requires_grad_()
    own = layer.pass_of(WidthGroups.of(choice), drawn_widths)
    y = routed(x, choice, layer.quantized_weights(), None, own)
    (y * random_tensor(*y.shape, seed=6)).sum().backward()
    return choice.grad


def test_the_mean_over_every_draw_is_the_exact_gradient():
    """All (K − 1)^N draws are equally likely, so their mean is the expectation itself."""
    others = [[k for k in range(len(WIDTHS)) if k != chosen] for chosen in COLUMNS]
    draws = list(itertools.product(*others))
    total = sum(choice_gradient(WidthGroups.of(one_hot(list(draw), len(WIDTHS)))) for draw in draws)
    torch.testing.assert_close(total / len(draws), choice_gradient(), rtol=1e-10, atol=1e-10)


def test_the_chosen_widths_entry_is_exact_in_every_draw():
    drawn = choice_gradient(WidthGroups.of(one_hot([1, 0, 2, 3], len(WIDTHS))))
    rows = torch.arange(len(COLUMNS))
    torch.testing.assert_close(drawn[rows, COLUMNS], choice_gradient()[rows, COLUMNS])


def test_with_two_widths_there_is_nothing_to_draw():
    columns = [0, 1, 1]
    drawn = choice_gradient(WidthGroups.of(one_hot([1, 0, 0], 2)), columns, (2, 4))
    torch.testing.assert_close(drawn, choice_gradient(None, columns, (2, 4)), rtol=1e-10, atol=0)


def test_drawn_widths_are_uniform_over_the_widths_not_chosen():
    torch.manual_seed(0)
    columns = [n % 3 for n in range(30000)]
    (groups,) = WidthGroups.of_drawn_widths(one_hot(columns, 3).unsqueeze(1))
    drawn = torch.empty(len(columns), dtype=torch.long)
    for k, (start, end) in enumerate(groups.bounds):
        drawn[groups.order[start:end]] = k
    counts = torch.zeros(3, 3).index_put_(
        (torch.tensor(columns), drawn), torch.ones(len(columns)), accumulate=True
    )
    assert counts.diagonal().sum() == 0
    off_diagonal = counts[~torch.eye(3, dtype=torch.bool)]
    # Each is binomial with 10,000 draws of 1/2, whose standard deviation is 50.
    assert (off_diagonal - 5000).abs().max() < 250


@pytest.mark.parametrize("seed", [0, 1])
def test_a_network_trains_with_it_and_its_controller_learns(seed):
    import timm

    import dqnet

    torch.manual_seed(seed)
    model = dqnet.quantize(
        timm.create_model("resnet20_cifar"), torch.zeros(1, 3, 8, 8), choice_gradient="sampled"
    )
    logits, _ = model(torch.randn(4, 3, 8, 8))
    logits.square().sum().backward()
    assert model.controller.fc2.weight.grad.abs().sum() > 0
