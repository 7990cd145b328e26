"""SmartDeal's decomposition against NumPy's least squares and its own definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.layers import QuantConv2d
from dqnet.quantizers.power_of_two import PowerOfTwo
from dqnet.quantizers.smart_deal import SmartDealWeight


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smart_deal(*bits, **options):
    return SmartDealWeight([Format(own) for own in bits], **options)


def error(quantizer, weight):
    return ((quantizer(weight, 0) - weight) ** 2).sum().item()


SHAPES = [
    ((4, 8, 3, 3), {}, (4, 24, 3)),
    ((4, 2, 5, 5), {}, (4, 10, 5)),
    ((4, 50, 3, 3), {"rows": 60}, (12, 50, 3)),  # 150 rows in parts of equal size
    ((4, 8, 1, 1), {}, (4, 3, 3)),  # nine numbers, of which the last is no weight
    ((6, 20), {"width": 4}, (6, 5, 4)),
    ((6, 10), {"rows": 2}, (12, 2, 3)),
    ((5, 1, 3, 3), {}, (5, 3, 3)),
]


@pytest.mark.parametrize(("shape", "options", "matrices"), SHAPES)
@pytest.mark.parametrize("bits", [2, 4, 5])
def test_a_weight_is_powers_of_two_times_a_basis(shape, options, matrices, bits):
    weight = weights(*shape)
    quantizer = smart_deal(bits, **options)
    codes = quantizer.encode(weight, 0)
    assert codes.codes.shape == matrices and codes.basis.dtype == torch.int8
    values = np.unique(codes.table.numpy()[codes.codes.numpy()])
    levels = [2.0**-n for n in range(2 ** (bits - 1) - 1)]
    assert set(values) <= {0.0, *levels, *(-own for own in levels)}
    # In twice the precision: sums and products are exact, and the scale rounds once.
    coefficients = codes.table.double().numpy()[codes.codes.numpy()]
    products = coefficients @ codes.basis.double().numpy()
    flat = (products * codes.scale.double().numpy()).reshape(shape[0], -1)
    expected = flat[:, : weight[0].numel()].reshape(shape).astype(np.float32)
    assert np.array_equal(quantizer(weight, 0).numpy(), expected)
    assert torch.equal(codes.values(), quantizer(weight, 0))


def test_the_basis_is_that_of_least_squares():
    weight = weights(6, 32, 3, 3)
    codes = smart_deal(4).encode(weight, 0)
    for i in range(6):
        coefficients = codes.table[codes.codes[i].long()].double().numpy()
        target = weight[i].reshape(96, 3).double().numpy()
        basis = np.linalg.lstsq(coefficients, target)[0]
        step = codes.scale[i].item()
        found = codes.basis[i].double().numpy() * step
        assert np.abs(found - basis).max() <= 0.51 * step + 1e-5
        assert 120 <= codes.basis[i].abs().max() <= 127


def test_it_is_nearer_than_powers_of_two_alone_and_nearer_with_every_turn():
    weight = weights(16, 16, 3, 3)
    alone = PowerOfTwo([Format(4)], granularity="per_channel")
    errors = [error(smart_deal(4, iterations=n), weight) for n in (1, 2, 3, 6, 12)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.9 * errors[0] < error(alone, weight)


def test_smaller_matrices_are_nearer():
    weight = weights(8, 64, 3, 3)
    assert error(smart_deal(4, rows=12), weight) < error(smart_deal(4, rows=192), weight)


@pytest.mark.parametrize("shape", [(4, 16, 3, 3), (4, 50, 1, 1)])
def test_the_rows_of_least_norm_are_zero(shape):
    weight = weights(*shape)
    codes = smart_deal(3, sparsity=0.6).encode(weight, 0)
    coefficients = codes.table[codes.codes.long()]
    zeros = (coefficients == 0).all(2).flatten()
    filters = weight.flatten(1)
    padded = nn.functional.pad(filters, (0, coefficients[0].numel() - filters.shape[1]))
    norms = padded.reshape(-1, 3).norm(dim=1)
    assert zeros.sum() == round(0.6 * len(norms))
    assert norms[zeros].max() <= norms[~zeros].min()


def test_coefficients_below_the_threshold_are_zero():
    weight = weights(4, 32, 3, 3)
    codes = smart_deal(4, threshold=0.3).encode(weight, 0)
    nonzero = codes.table[codes.codes.long()].abs().unique()
    assert nonzero.tolist() == [0.0, 0.25, 0.5, 1.0]


def test_zeros_of_a_pruned_row_stay():
    weight = weights(4, 8, 3, 3)
    weight[:, ::2] = 0
    assert torch.equal(smart_deal(4)(weight, 0)[:, ::2], torch.zeros(4, 4, 3, 3))
    assert torch.equal(smart_deal(4)(torch.zeros(4, 8, 3, 3), 0), torch.zeros(4, 8, 3, 3))


def test_a_weight_that_is_not_a_number_is_none_afterwards():
    weight = weights(4, 8, 3, 3)
    weight[1, 0, 0, 0] = torch.nan
    y = smart_deal(4)(weight, 0)
    assert y[1].isnan().any() and y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("size", [1e-30, 1e20])
def test_the_size_of_a_weight_does_not_matter(size):
    weight = weights(4, 8, 3, 3)
    expected = smart_deal(4)(weight, 0)
    torch.testing.assert_close(
        smart_deal(4)(weight * size, 0) / size, expected, rtol=0.02, atol=0.02
    )


def test_the_gradient_goes_straight_through():
    weight = weights(4, 8, 3, 3).requires_grad_()
    upstream = weights(4, 8, 3, 3, seed=1)
    smart_deal(4, sparsity=0.5)(weight, 0).backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_the_memory_format_stays_and_half_precision_too():
    weight = weights(4, 8, 3, 3).to(memory_format=torch.channels_last)
    y = smart_deal(4)(weight, 0)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y, smart_deal(4)(weight.contiguous(), 0))
    assert smart_deal(4)(weight.half(), 0).dtype == torch.float16


def test_mixed_precision_changes_nothing():
    weight = weights(4, 8, 3, 3)
    expected = smart_deal(4)(weight, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(smart_deal(4)(weight, 0), expected)
        codes = smart_deal(4).encode(weight, 0)
    assert torch.equal(codes.values(), expected)


def test_an_integer_network_has_no_such_weights(tmp_path):
    pytest.importorskip("onnx")
    model = network()
    dqnet.calibrate(model, [torch.rand(4, 3, 9, 9)])
    with pytest.raises(UserError, match=r"has a table of values .SmartDealWeight."):
        dqnet.export_onnx(model.eval(), tmp_path / "model.onnx", form="integer")


def test_a_layer_of_two_widths_trains():
    torch.manual_seed(0)
    conv = QuantConv2d(3, 8, 3, widths=("w3a8", "w4a8"), quantizer=("smart_deal", "affine"))
    x, choice = torch.rand(8, 3, 8, 8), torch.eye(2).repeat(4, 1)
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1)
    losses = []
    for _ in range(10):
        loss = (conv(x, choice) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def network(**options):
    """Of three layers, the middle one quantized."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(400, 5)
    )
    return dqnet.quantize(
        net, torch.zeros(1, 3, 9, 9), widths=("w4a8",), quantizer=("smart_deal", "affine"),
        options=(options, {}),
    )  # fmt: skip


def test_the_energy_of_zeros_is_that_of_the_rows_that_are_zero():
    model = network(sparsity=0.5)
    images = [torch.rand(4, 3, 9, 9)]
    dqnet.calibrate(model, images)
    rows = dqnet.costs.sparsity.measure_sparsity(model, images)
    shares = [share for _, tensor, _, share in rows if tensor == "weight"]
    assert len(shares) == 1
    assert 0.5 <= shares[0] < 0.52


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smart_deal(8), "at least 2 bits and at most 5, not 8"),
        (lambda: smart_deal(4, sparsity=1.0), "sparsity 1.0 of smart_deal must be from 0 to below"),
        (lambda: smart_deal(4, sparsity="half"), "sparsity 'half' of smart_deal"),
        (lambda: smart_deal(4, threshold=-1), "threshold -1 of smart_deal"),
        (lambda: smart_deal(4, rows=0), "rows 0 of smart_deal must be a number from 1"),
        (lambda: smart_deal(4, width=2.5), "width 2.5 of smart_deal must be a number from 1"),
        (lambda: smart_deal(4, iterations=True), "iterations True of smart_deal"),
    ],
)
def test_bad_options_are_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
