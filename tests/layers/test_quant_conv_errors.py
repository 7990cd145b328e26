"""What QuantConv2d refuses, in one line that says what would be right."""

from __future__ import annotations

import pytest
import torch
from comparison import one_hot
from torch import nn

from dqnet.errors import UserError
from dqnet.layers import QuantConv2d


@pytest.fixture
def layer() -> QuantConv2d:
    return QuantConv2d(3, 4, 3, widths=(2, 3))


def images(count: int = 2) -> torch.Tensor:
    return torch.zeros(count, 3, 5, 5)


def test_several_widths_need_a_choice(layer):
    with pytest.raises(UserError, match=r"widths \(2, 3\) needs a choice \[N, 2\]"):
        layer(images())


@pytest.mark.parametrize("shape", [(3, 2), (2, 3), (2,), (2, 1, 2), (0, 2)])
def test_a_choice_of_another_shape_is_refused(layer, shape):
    with pytest.raises(UserError, match=r"choice has shape .* must be \[2, 2\]"):
        layer(images(), torch.zeros(shape))


@pytest.mark.parametrize(
    "row", [[0.0, 0.0], [1.0, 1.0], [0.5, 0.5], [2.0, -1.0], [float("nan"), 1.0], [0.999999, 0.0]]
)
def test_a_choice_that_is_not_one_hot_is_refused(layer, row):
    with pytest.raises(UserError, match="one-hot"):
        layer(images(), torch.tensor([[0.0, 1.0], row]))


@pytest.mark.parametrize("shape", [(3, 5, 5), (5,), (1, 2, 3, 5, 5)])
def test_an_input_that_is_not_a_batch_of_images_is_refused(layer, shape):
    with pytest.raises(UserError, match=rf"\[N, C, H, W\], not a tensor of {len(shape)} dim"):
        layer(torch.zeros(shape), one_hot([0], 2))


def test_an_unknown_padding_is_refused():
    with pytest.raises(UserError, match="'smae' is unknown; valid: a number, same, valid"):
        QuantConv2d(3, 4, 3, padding="smae", widths=(2,))


def test_same_padding_with_repeated_inputs_is_refused():
    with pytest.raises(UserError, match="padding='same' goes with padding_mode='zeros'"):
        QuantConv2d(3, 4, 3, padding="same", padding_mode="reflect", widths=(2,))


@pytest.mark.parametrize("widths", [(), (0,), (17,), (3, 2), (2, 2), (2.0,)])
def test_wrong_widths_are_refused(widths):
    with pytest.raises(UserError):
        QuantConv2d(3, 4, 3, widths=widths)
    with pytest.raises(UserError):
        QuantConv2d.from_float(nn.Conv2d(3, 4, 3), widths)


def test_an_unknown_quantizer_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match="did you mean 'dorefa'"):
        QuantConv2d.from_float(nn.Conv2d(3, 4, 3), (2,), "dorfa")


def test_a_clipping_value_changed_before_the_backward_pass_is_noticed():
    layer = QuantConv2d(2, 3, 3, widths=(2, 3), quantizer="pact")
    choice = torch.eye(2)
    y = layer(torch.rand(2, 2, 5, 5), choice)
    with torch.no_grad():
        layer.input_quantizer.alpha.mul_(0.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
