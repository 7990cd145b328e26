"""Affine and symmetric quantization against PyTorch's fake quantization and the written formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers.affine import AffineInput, AffineWeight
from dqnet.quantizers.grid import affine, affine_grid
from dqnet.quantizers.symmetric import SymmetricInput, SymmetricWeight

WIDTHS = [2, 3, 4, 8, 12, 16]


def observed(cls, tensor, bits=8, **options):
    quantizer = cls([Format(bits)], **options)
    quantizer.observe(tensor)
    quantizer.complete()
    return quantizer


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (6, 1, 3, 3), (6, 10)])
def test_weights_per_channel_are_pytorchs(bits, shape):
    weight = weights(*shape) * torch.logspace(-2, 1, 6).view(-1, *[1] * (len(shape) - 1))
    weight[1] = weight[1].abs()  # a channel that never crosses zero
    quantizer = observed(AffineWeight, weight, bits, channels=6)
    low = weight.flatten(1).amin(1).clamp_max(0)
    high = weight.flatten(1).amax(1).clamp_min(0)
    scale = (high - low) / (2**bits - 1)
    zero_point = (-low / scale).round().int()
    mine, theirs = (weight.clone().requires_grad_() for _ in range(2))
    expected = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point, 0, 0, 2**bits - 1)
    actual = quantizer(mine, 0)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-7)
    expected.square().sum().backward()
    actual.square().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("bits", WIDTHS)
def test_one_range_for_a_weight_is_that_of_all_its_values(bits):
    weight = weights(6, 3, 3, 3) + 0.3
    quantizer = observed(AffineWeight, weight, bits, granularity="per_tensor", channels=6)
    scale = (weight.max() - weight.min()).item() / (2**bits - 1)
    zero_point = round(-weight.min().item() / scale)
    expected = torch.fake_quantize_per_tensor_affine(weight, scale, zero_point, 0, 2**bits - 1)
    torch.testing.assert_close(quantizer(weight, 0), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize(("low", "high"), [(0.0, 6.0), (-0.37, 5.1), (-3.0, 0.0), (0.5, 2.0)])
def test_inputs_are_the_written_formula_beyond_their_range_too(bits, low, high):
    quantizer = observed(AffineInput, torch.tensor([[low, high]]), bits).double()
    x = torch.linspace(-8, 8, 3001, dtype=torch.float64).requires_grad_()
    bottom, top = (float(np.float32(end)) for end in (min(low, 0.0), max(high, 0.0)))
    scale = (top - bottom) / (2**bits - 1)
    zero_point = np.round(-bottom / scale)
    code = np.clip(np.round(x.detach().numpy() / scale) + zero_point, 0, 2**bits - 1)
    y = quantizer(x, 0)
    np.testing.assert_allclose(y.detach(), (code - zero_point) * scale, rtol=1e-9, atol=1e-9)
    y.sum().backward()
    rounded = np.round(x.detach().numpy() / scale) + zero_point
    np.testing.assert_array_equal(x.grad, (rounded >= 0) & (rounded <= 2**bits - 1))


@pytest.mark.parametrize("cls", [AffineInput, SymmetricInput])
@pytest.mark.parametrize("bits", WIDTHS)
def test_zero_is_exact(cls, bits):
    for low, high in [(-0.123, 4.56), (-5.0, 0.01), (0.2, 0.7)]:
        quantizer = observed(cls, torch.tensor([[low, high]]), bits)
        assert quantizer(torch.zeros(1), 0).item() == 0


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("narrow", [True, False])
def test_symmetric_weights(bits, narrow):
    weight = weights(5, 4, 3, 3)
    quantizer = observed(SymmetricWeight, weight, bits, channels=5, narrow_range=narrow)
    top = 2 ** (bits - 1) - 1
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / top
    expected = (weight / scale).round().clamp(-top if narrow else -top - 1, top) * scale
    torch.testing.assert_close(quantizer(weight, 0), expected)
    beyond = quantizer(-9 * weight.abs().amax() * torch.ones_like(weight), 0)
    assert torch.equal((beyond / scale).round(), torch.full_like(weight, -top - (not narrow)))


@pytest.mark.parametrize(("low", "signed"), [(0.0, False), (-1.0, True)])
def test_signs_of_inputs_come_from_what_was_observed(low, signed):
    quantizer = observed(SymmetricInput, torch.tensor([[low, 3.0]]), 4, signed=not signed)
    assert quantizer.signed is signed
    assert quantizer.signed_form == float(signed)
    codes = quantizer.encode(torch.tensor([-9.0, 9.0]), 0).codes
    assert codes.tolist() == ([-8, 7] if signed else [0, 15])


def test_stochastic_rounding_is_unbiased_in_training_and_off_in_evaluation():
    torch.manual_seed(0)
    x = torch.tensor([[0.0, 0.31, 1.77, 2.5, 15.0]])
    quantizer = observed(AffineInput, x, 4, rounding="stochastic")  # a scale of 1
    draws = torch.stack([quantizer(x, 0) for _ in range(4000)])
    share = x - x.floor()
    assert set(draws[:, 0, 1].tolist()) == {0.0, 1.0}
    tolerance = 5 * (share * (1 - share) / 4000).sqrt() + 1e-6
    assert ((draws.mean(0) - x).abs() <= tolerance).all()
    quantizer.eval()
    assert torch.equal(quantizer(x, 0), x.round())


def test_ranges_of_weights_follow_training_and_its_last_step():
    weight = weights(3, 2, 1, 1)
    quantizer = observed(AffineWeight, weight, 8, channels=3)
    quantizer.follow(2 * weight)
    torch.testing.assert_close(quantizer.high[0], 2 * weight.flatten(1).amax(1).clamp_min(0))
    fixed = observed(AffineWeight, weight, 8, channels=3, observer="mse")
    before = fixed.high.clone()
    fixed.follow(2 * weight)
    assert torch.equal(fixed.high, before)


def test_ranges_of_inputs_follow_as_moving_averages_or_grow():
    moving = observed(AffineInput, torch.tensor([[-1.0, 2.0]]), momentum=0.9)
    moving.follow(torch.tensor([[-2.0, 4.0]]))
    torch.testing.assert_close(moving.low, torch.tensor([[-1.1]]))
    torch.testing.assert_close(moving.high, torch.tensor([[2.2]]))
    growing = observed(AffineInput, torch.tensor([[-1.0, 2.0]]), observer="min_max")
    growing.follow(torch.tensor([[-0.5, 4.0]]))
    assert (growing.low.item(), growing.high.item()) == (-1.0, 4.0)
    growing.follow(torch.tensor([[float("nan")]]))
    assert (growing.low.item(), growing.high.item()) == (-1.0, 4.0)


def test_the_fast_path_is_the_plain_one():
    x = weights(4, 50) * 3
    for cls in (AffineInput, SymmetricInput):
        quantizer = observed(cls, weights(4, 50), 4)
        out = torch.empty_like(x)
        scale = quantizer.codes_into(x, 0, out)
        torch.testing.assert_close(out * scale, quantizer(x, 0))
        grad, wanted = weights(4, 50), x.clone().requires_grad_()
        quantizer(wanted, 0).backward(grad)
        assert quantizer.input_gradients(grad.clone(), x, 0, out) == []
        assert torch.equal(out, wanted.grad)


def test_half_precision_is_computed_in_single():
    x = weights(4, 50)
    quantizer = observed(AffineInput, x, 16)
    for dtype in (torch.float16, torch.bfloat16):
        y = quantizer(x.to(dtype), 0)
        assert y.dtype == dtype
        assert torch.equal(y, quantizer(x.to(dtype).float(), 0).to(dtype))


def test_a_tensor_of_zeros_stays_zeros():
    weight = torch.zeros(3, 2, 1, 1)
    assert torch.equal(observed(AffineWeight, weight, channels=3)(weight, 0), weight)


def test_the_function_is_the_formula():
    x = torch.tensor([-3.0, 0.24, 0.26, 100.0])
    y = affine(x, torch.tensor(0.5), torch.tensor(2.0), 3)
    assert y.tolist() == [-1.0, 0.0, 0.5, 2.5]


def test_a_grid_of_an_unset_range_is_finite():
    grid = affine_grid(torch.zeros(1), torch.zeros(1), 8)
    assert (grid.scale.item(), grid.zero_point.item()) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AffineInput([Format(8)], granularity="per_channel"), "is of weights"),
        (lambda: AffineInput([Format(8)], granularity="channel"), "granularity 'channel'"),
        (lambda: AffineWeight([Format(8)]), "needs the number of output channels"),
        (lambda: AffineWeight([Format(8)], channels=2, observer="minmax"), "min_max"),
        (lambda: AffineWeight([Format(8)], channels=2, rounding="up"), "rounding 'up'"),
        (lambda: AffineWeight([Format(1)], channels=2), "at least 2 bits"),
        (lambda: AffineInput([Format(8)], momentum=1.0), "momentum 1.0"),
        (lambda: AffineInput([Format(8)], percentile=50.0), "percentile 50.0"),
        (lambda: AffineInput([Format(8)])(torch.zeros(2), 0), "no range yet: run dqnet.calibrate"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
