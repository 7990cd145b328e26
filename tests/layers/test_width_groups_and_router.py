"""The sorting of a batch by width, and how a routing reaches the layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from comparison import float_conv, one_hot, quantized, random_tensor
from hypothesis import given
from hypothesis import strategies as st

from dqnet.errors import UserError
from dqnet.layers.router import Router
from dqnet.layers.width_groups import WidthGroups


@given(columns=st.lists(st.integers(0, 3), max_size=12))
def test_sorting_puts_the_images_of_each_width_side_by_side(columns):
    groups = WidthGroups.of(one_hot(columns, 4))
    images = torch.arange(len(columns))
    ordered = groups.sort(images)
    for k, (start, end) in enumerate(groups.bounds):
        assert ordered[start:end].tolist() == [n for n, c in enumerate(columns) if c == k]
    parts = [ordered[start:end] for start, end in groups.bounds]
    assert torch.equal(groups.unsort(parts), images)


@given(st.data())
def test_groups_of_a_routing_are_those_of_its_columns(data):
    images, layers = data.draw(st.integers(0, 6)), data.draw(st.integers(1, 3))
    row = st.lists(st.integers(0, 2), min_size=layers, max_size=layers)
    chosen = torch.tensor(data.draw(st.lists(row, min_size=images, max_size=images)))
    routing = F.one_hot(chosen.reshape(images, layers).long(), 3).float()
    together = WidthGroups.of_routing(routing)
    assert len(together) == layers
    for column, groups in enumerate(together):
        alone = WidthGroups.of(routing[:, column])
        assert groups.counts == alone.counts
        assert torch.equal(groups.order, alone.order)


def test_a_layer_reads_its_own_column_of_the_open_routing():
    router = Router()
    first, second = (quantized(float_conv(2, 3, 3, seed=i), (2, 4)) for i in range(2))
    x = random_tensor(3, 2, 5, 5, seed=5)
    choices = one_hot([0, 1, 1], 2), one_hot([1, 0, 1], 2)
    for column, layer in enumerate((first, second)):
        layer.router, layer.column = router, column
    with router.forward_pass():
        router.open(torch.stack(choices, 1))
        for layer, choice in zip((first, second), choices, strict=True):
            alone = quantized(layer, (2, 4))
            assert torch.equal(layer(x), alone(x, choice))


def test_a_layer_with_fewer_candidates_reads_its_own_of_them():
    router = Router(sampled=True, candidates=((0, 2), (0, 1, 2)))
    layer = quantized(float_conv(2, 3, 3), (2, 4))
    layer.router, layer.column = router, 0
    x = random_tensor(4, 2, 5, 5, seed=5)
    routing = torch.stack((one_hot([2, 0, 2, 2], 3), one_hot([1, 0, 2, 0], 3)), 1).requires_grad_()
    with router.forward_pass():
        router.open(routing)
        choice = one_hot([1, 0, 1, 1], 2)
        assert torch.equal(layer(x), quantized(layer, (2, 4))(x, choice))
        drawn = router.column(0, 4).drawn_widths
        assert drawn.counts == (3, 1) and drawn.sort(torch.arange(4)).tolist() == [0, 2, 3, 1]
        assert len(router.column(1, 4).drawn_widths.counts) == 3
        layer(x).pow(2).sum().backward()
    assert (routing.grad[:, 0, 1] == 0).all() and (routing.grad[:, 0, [0, 2]] != 0).all()


def test_the_gradient_reaches_the_routing_through_the_router():
    layer = quantized(float_conv(2, 3, 3), (2, 4))
    layer.router, layer.column = Router(), 1
    x = random_tensor(3, 2, 5, 5, seed=5)
    routing = torch.stack((one_hot([0, 1, 1], 2), one_hot([1, 0, 1], 2)), 1).requires_grad_()
    with layer.router.forward_pass():
        layer.router.open(routing)
        layer(x).pow(2).sum().backward()
    choice = routing[:, 1].detach().requires_grad_()
    quantized(layer, (2, 4))(x, choice).pow(2).sum().backward()
    assert (choice.grad != 0).all()
    torch.testing.assert_close(routing.grad[:, 1], choice.grad)
    assert (routing.grad[:, 0] == 0).all()


def test_a_closed_router_refuses():
    layer = quantized(float_conv(2, 3, 3), (2, 4))
    layer.router, layer.column = Router(), 0
    with layer.router.forward_pass():
        layer.router.open(one_hot([0], 2).unsqueeze(1))
    with pytest.raises(UserError, match="before the controller"):
        layer(random_tensor(1, 2, 5, 5))
