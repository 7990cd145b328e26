"""NormalFloat against the published values and SciPy's quantiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import norm

from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.quantizers import find_quantizers
from dqnet.quantizers.nf4 import NormalFloat, constructed, normal_float

#: QLoRA, appendix E
PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def weights(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_four_bits_are_the_published_values():
    assert normal_float(4).float().tolist() == np.float32(PUBLISHED).tolist()
    np.testing.assert_allclose(constructed(4), PUBLISHED, atol=2e-7)


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
def test_any_number_of_bits_is_the_same_construction(bits):
    """As the authors write it in create_normal_map of bitsandbytes, of any length."""
    count = 2**bits
    offset = 1 - (1 / (2 * count) + 1 / (2 * (count - 1))) / 2
    if bits == 4:
        assert round(offset, 7) == 0.9677083
    positive = norm.ppf(np.linspace(offset, 0.5, count // 2 + 1)[:-1])
    negative = -norm.ppf(np.linspace(offset, 0.5, count // 2)[:-1])
    expected = np.sort(np.concatenate([positive, [0], negative]))
    assert len(expected) == count
    np.testing.assert_allclose(constructed(bits), expected / expected.max(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", [(8, 8, 2, 2), (7, 5, 3, 3), (3, 10)])  # the last one: one block
def test_blocks_are_scaled_by_their_largest_magnitude(bits, shape):
    weight = weights(*shape)
    quantizer = NormalFloat([Format(bits)], channels=shape[0])
    table = normal_float(bits).numpy()
    expected = []
    for block in weight.double().flatten().split(64):
        scaled = block.numpy() / block.abs().max().item()
        nearest = np.abs(scaled[:, None] - table).argmin(1)
        expected.append(table[nearest] * block.abs().max().item())
    actual = quantizer(weight, 0)
    np.testing.assert_allclose(actual.flatten(), np.concatenate(expected), rtol=1e-5, atol=1e-7)
    codes = quantizer.encode(weight, 0)
    assert torch.equal(codes.values(), actual)
    assert codes.scale.numel() == -(-weight.numel() // 64)
    assert codes.codes.min() >= 0 and codes.codes.max() < 2**bits


def test_the_gradient_goes_straight_through():
    weight, upstream = weights(4, 30).requires_grad_(), weights(4, 30)
    NormalFloat([Format(4)], channels=4)(weight, 0).backward(upstream)
    assert torch.equal(weight.grad, upstream)


def test_a_block_of_zeros_stays_zeros_and_nan_is_not_hidden():
    weight = torch.zeros(2, 64)
    weight[1, 3] = torch.nan
    y = NormalFloat([Format(4)], channels=2)(weight, 0)
    assert torch.equal(y[0], torch.zeros(64))
    assert y[1, 3].isnan() and y.isnan().sum() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: find_quantizers("nf4"), "'nf4' is not for a layer's input; valid: .*affine"),
        (lambda: NormalFloat([Format(1)]), "at least 2 bits and at most 8, not 1"),
        (lambda: NormalFloat([Format(9)]), "at least 2 bits and at most 8, not 9"),
        (lambda: NormalFloat([Format.parse("e2m1")]), "writes integers such as 4, not e2m1"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message):
        make()
