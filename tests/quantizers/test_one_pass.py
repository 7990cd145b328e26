"""Fast passes against the plain ones: comparisons, masks, sums."""

from __future__ import annotations

import pytest
import torch

from dqnet.formats import Format
from dqnet.quantizers.base import Quantizer
from dqnet.quantizers.lsq import LSQInput
from dqnet.quantizers.one_pass import dot, extremes, finite_values, in_memory_order, pass_inside


def images(*shape, seed=0, dtype=torch.float64, last=False):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x.to(memory_format=torch.channels_last) if last else x


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low", [-0.5, 0.0, torch.tensor(-0.1)])
def test_the_ends_of_the_interval_are_inside_and_their_neighbours_are_not(low, dtype):
    high = 0.7
    ends = torch.tensor([float(low), high], dtype=dtype)
    around = [ends, *(ends.nextafter(ends + sign) for sign in (-1, 1))]
    x = torch.cat([images(1000, dtype=dtype), *around, torch.tensor([torch.inf, -torch.inf])])
    x, grad = x.to(dtype), images(1008, seed=1, dtype=dtype)
    low = low.to(dtype) if isinstance(low, torch.Tensor) else low
    expected = grad * ((x >= low) & (x <= torch.tensor(high, dtype=dtype)))
    assert torch.equal(pass_inside(grad, x, low, high, torch.empty_like(x)), expected)
    assert torch.equal(pass_inside(grad, x, low, high, grad), expected)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize("last", [False, True])
def test_finite_values_are_copied_only_where_others_are_left_out(last):
    x = images(2, 3, 4, 5, last=last)
    assert finite_values(x).data_ptr() == x.data_ptr()
    x[0, 1, 2, 3], x[1, 0, 0, 0], x[1, 2, 0, 0] = torch.nan, torch.inf, -torch.inf
    found = finite_values(x)
    assert torch.equal(found.sort()[0], x[x.isfinite()].sort()[0])
    assert finite_values(x[:0]).shape == (0,)


def test_ends_for_each_channel():
    x, grad = images(8, 40), images(8, 40, seed=1)
    low, high = -torch.arange(1.0, 9)[:, None] / 4, torch.arange(1.0, 9)[:, None] / 8
    expected = grad * ((x >= low) & (x <= high))
    assert torch.equal(pass_inside(grad, x, low, high, torch.empty_like(x)), expected)


@pytest.mark.parametrize("last", [False, True])
def test_extremes_and_dot_products_read_memory_as_it_lies(last):
    x, y = images(3, 4, 5, 6, last=last), images(3, 4, 5, 6, seed=1, last=last)
    assert in_memory_order(x).data_ptr() == x.data_ptr()
    assert extremes(x) == (x.min(), x.max())
    assert extremes(x.abs() + 1) == (0, x.abs().max() + 1)
    assert torch.isnan(torch.stack(extremes(torch.where(x == x.max(), torch.nan, x)))).all()
    torch.testing.assert_close(dot(x, y), (x * y).sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(dot(x, y.contiguous()), (x * y).sum(), rtol=1e-13, atol=0)
    torch.testing.assert_close(dot(x[:, 1:3], y[:, 1:3]), (x * y)[:, 1:3].sum(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [1, 3, 8, 16])
def test_lsqs_input_gradients_are_those_of_its_forward_pass(bits, signed):
    quantizer = LSQInput([Format(4), Format(bits)], signed=signed).double()
    with torch.no_grad():
        quantizer.step.copy_(torch.tensor([0.3, 1.0 / 2**bits]))
    quantizer.initialized.fill_(1)
    x, grad = images(6, 4, 5, 5, last=True), images(6, 4, 5, 5, seed=1)
    out = torch.empty_like(x)
    (step,) = quantizer.input_gradients(grad.clone(), x, 1, out)
    expected = torch.empty_like(x)
    (expected_step,) = Quantizer.input_gradients(quantizer, grad, x, 1, expected)
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(step, expected_step, rtol=1e-10, atol=1e-12)
