"""Fixed point against the formula of *Embedded Deep Learning*, written out in NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from formats import nearest, spread_values
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.layers import QuantConv2d
from dqnet.quantizers.fixed_point import FixedPointInput, FixedPointWeight, fixed_point

WIDTHS = range(2, 17)


def formula(x, bits, n=0):
    """The book's, of x divided by 2ⁿ, multiplied back."""
    m = 2.0 ** (bits - 1)
    return 2.0**n * np.clip(np.round(m * (x / 2.0**n)) / m, -1, 1 - 2.0 ** (1 - bits))


def formula_without_sign(x, bits, n=0):
    m = 2.0**bits
    return 2.0**n * np.clip(np.round(m * (x / 2.0**n)) / m, 0, 1 - 2.0**-bits)


def observed(x, bits, cls=FixedPointInput, signed=True, **options):
    quantizer = cls([Format(bits)], signed=signed, **options)
    quantizer.observe(x)
    quantizer.complete()
    return quantizer


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("n", [-5, 0, 3])
def test_values_are_the_books_formula(bits, n):
    x = spread_values(2.0**n)
    assert np.array_equal(fixed_point(x, bits, True, 2.0**n), formula(x.numpy(), bits, n))
    actual = fixed_point(x, bits, False, 2.0**n)
    assert np.array_equal(actual, formula_without_sign(x.numpy(), bits, n))


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_every_level_is_taken_and_no_other(bits, signed):
    x = torch.linspace(-3, 3, 6001).double()
    values = fixed_point(x, bits, signed)
    step = 2.0 ** (1 - bits if signed else -bits)
    levels = np.arange(-1 if signed else 0, 1, step)
    assert len(levels) == 2**bits
    assert np.array_equal(np.unique(values), levels)
    clipped = np.clip(x.numpy(), levels[0], levels[-1])
    distance = np.abs(values.numpy() - clipped)
    assert (distance <= np.abs(nearest(clipped, levels) - clipped) + 1e-12).all()


def test_by_hand():
    x = torch.tensor([-9.0, -1.0, -0.7, -0.1, 0.1, 0.3, 0.6, 0.9, 9.0])
    assert fixed_point(x, 2).tolist() == [-1, -1, -0.5, 0, 0, 0.5, 0.5, 0.5, 0.5]
    assert fixed_point(x, 2, False).tolist() == [0, 0, 0, 0, 0, 0.25, 0.5, 0.75, 0.75]
    assert fixed_point(4 * x, 2, True, 4.0).tolist() == [-4, -4, -2, 0, 0, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("signed", "passed"),
    # -1.3 -1.2 -1  0 0.7 0.8
    [(True, [0, 1, 1, 1, 1, 0]), (False, [0, 0, 0, 1, 1, 1])],
)
def test_the_gradient_is_passed_on_where_no_code_is_clipped(signed, passed):
    x = torch.tensor([-1.3, -1.2, -1.0, 0.0, 0.7, 0.8]).requires_grad_()
    fixed_point(x, 2, signed).backward(torch.full((6,), 5.0))
    assert (x.grad / 5).tolist() == passed


@pytest.mark.parametrize("largest", [1.0, 0.75, 0.5, 0.5000001, 3.9, 4.0, 4.001, 1e-3, 700.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_scale_is_the_smallest_power_of_two_that_covers_what_was_seen(largest, sign):
    x = sign * torch.tensor([[0.0, largest / 3, largest]])
    n = math.ceil(math.log2(np.float32(largest)))
    quantizer = observed(x, 6)
    assert quantizer.reach == 2.0**n
    wide = spread_values(largest)
    assert np.array_equal(quantizer(wide, 0), formula(wide.numpy(), 6, n))


def test_the_scale_covers_all_batches_and_the_next_calibration_forgets_them():
    quantizer = FixedPointInput([Format(4)], signed=True)
    for largest in (0.3, 5.0, 1.0):
        quantizer.observe(torch.tensor([[-largest, math.inf, math.nan]]))
    quantizer.complete()
    assert quantizer.reach == 8
    quantizer.prepare(torch.full((1, 2), 90.0))  # it is set already
    assert quantizer.reach == 8
    quantizer.observe(torch.tensor([[0.3]]))
    quantizer.complete()
    assert quantizer.reach == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1e-30, 3e4, math.nan])
def test_extreme_tensors_have_finite_steps(dtype, value):
    x = torch.full((2, 3), value).to(dtype)
    quantizer = FixedPointInput([Format(8)], signed=True).to(dtype)
    quantizer.observe(x)
    quantizer.complete()
    out = quantizer(x, 0)
    assert out.dtype == dtype
    torch.testing.assert_close(out, x, rtol=0.1, atol=1e-19, equal_nan=True)


@pytest.mark.parametrize("signed", [True, False])
def test_the_fast_path_is_the_plain_one(signed):
    x = spread_values(3.0).view(1, -1)
    quantizer = observed(x, 4, signed=signed).double()
    wanted = x.clone().requires_grad_()
    expected = quantizer(wanted, 0)
    written = x.clone()
    scale = quantizer.codes_into(written, 0, written)
    assert torch.equal(written * scale, expected)
    codes = quantizer.encode(x, 0)
    assert torch.equal(codes.values(), expected) and codes.zero_point == 0
    grad = spread_values(1.0, seed=1).view(1, -1)
    expected.backward(grad)
    out = torch.empty_like(x)
    assert quantizer.input_gradients(grad.clone(), x, 0, out) == []
    assert torch.equal(out, wanted.grad)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = (nn.Conv2d(c, 4, 3, padding=1) for c in (3, 4, 4))
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.b(40 * self.a(self.stem(x).relu()).relu()).mean((2, 3)))


IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def converted(**options):
    torch.manual_seed(0)
    net = Net()
    with torch.no_grad():
        net.b.weight *= 9
    return dqnet.quantize(
        net, IMAGES[:1], (4,), "fixed_point", full_precision=["stem"], options=options
    )


def scales(model):
    layers = [m for m in model.modules() if hasattr(m, "input_quantizer")]
    assert len(layers) == 3
    return (
        [layer.weight_quantizer.reach.item() for layer in layers],
        [layer.input_quantizer.reach.item() for layer in layers],
    )


def test_layers_have_scales_of_their_own_or_the_network_has_one_for_weights_and_one_for_inputs():
    layerwise, uniform = converted(), converted(rescaling="uniform")
    for model in (layerwise, uniform):
        dqnet.calibrate(model, IMAGES.split(3))
    weights, inputs = scales(layerwise)
    assert weights[0] < weights[1] and inputs[0] < inputs[1]
    assert scales(uniform) == ([max(weights)] * 3, [max(inputs)] * 3)
    assert max(weights) != max(inputs)


def test_a_uniform_scale_needs_a_calibration_and_a_layers_own_does_not():
    model = converted(rescaling="uniform")
    with pytest.raises(UserError, match=r"whole network.*dqnet\.calibrate"):
        model(IMAGES)
    dqnet.calibrate(model, [IMAGES])
    model(IMAGES)
    model = converted()
    model(IMAGES)
    assert all(reach != 1 for reach in scales(model)[1])


def test_a_static_layer_is_the_convolution_of_the_formulas():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    layer = QuantConv2d.from_float(conv, ("w4a6",), "fixed_point", signed=True).double()
    x = 3 * IMAGES.double()
    actual = layer(x)
    w, v = conv.weight.detach().numpy(), x.numpy()
    n_w, n_x = (math.ceil(math.log2(np.abs(t).max())) for t in (w, v))
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(formula(v, 6, n_x)),
        torch.from_numpy(formula(w, 4, n_w)),
        conv.bias,
        padding=1,
    )
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_bad_settings_are_refused():
    with pytest.raises(UserError, match=r"unknown rescaling 'layer_wise'.*'layerwise'"):
        FixedPointWeight([Format(4)], rescaling="layer_wise")
    with pytest.raises(UserError, match="at least 2 bits and at most 16, not 1"):
        FixedPointWeight([Format(1)])
