"""Observers against NumPy, a search written out, and TensorRT's calibration written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import entropy

from dqnet.quantizers.observers import observer_factory
from dqnet.quantizers.observers.histogram import BINS, Histogram
from dqnet.quantizers.observers.kl import CANDIDATES


def values(rows=3, count=2000, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.logspace(-1, 1, rows)[:, None]
    return (
        torch.distributions.Laplace(0.1, 1).icdf(
            torch.rand(rows, count, generator=generator) * 0.9998 + 0.0001
        )
        * spread
    )


def observed(name, *parts, bits=4, momentum=0.9, percentile=99.0):
    """The range, and what quantizes in one: round to nearest of 2ᵇ values from low to high."""
    observer = observer_factory(name, momentum, percentile)()
    for part in parts:
        observer.see(part)

    def quantize(rows, low, high):
        low, step = low[:, None], ((high - low) / (2**bits - 1)).clamp_min(1e-12)[:, None]
        return ((rows - low) / step).round().clamp(0, 2**bits - 1) * step + low

    low, high = observer.range(quantize, 2**bits)
    assert (low <= 0).all() and (high >= 0).all()
    return low.numpy(), high.numpy(), quantize


def test_min_max_is_of_all_parts_and_contains_zero():
    a, b = values(), values(seed=1).abs() + 20
    low, high, _ = observed("min_max", a, b)
    both = np.concatenate([a, b], 1)
    np.testing.assert_allclose(low, both.min(1))
    np.testing.assert_allclose(high, both.max(1))
    assert observed("min_max", b)[0].tolist() == [0, 0, 0]


def test_the_moving_average_is_a_mean_until_it_is_as_long_as_its_momentum():
    parts = [values(seed=seed) for seed in range(15)]
    _, high, _ = observed("moving_average", *parts, momentum=0.9)
    expected = np.mean([part.numpy().max(1) for part in parts[:10]], 0)
    for part in parts[10:]:
        expected = 0.9 * expected + 0.1 * part.numpy().max(1)
    np.testing.assert_allclose(high, expected, rtol=1e-5)


@pytest.mark.parametrize("percentile", [99.87, 95.01, 100.0])
def test_percentiles_of_one_part_are_numpys(percentile):
    x = values()
    low, high, _ = observed("percentile", x, percentile=percentile)
    expected = np.percentile(x, [100 - percentile, percentile], axis=1, method="inverted_cdf")
    np.testing.assert_allclose([low, high], expected, rtol=1e-6)


def test_percentiles_of_many_parts_are_numpys_within_a_bin():
    parts = [values(seed=seed) * (1 + seed) for seed in range(5)]
    low, high, _ = observed("percentile", *parts)
    both = np.concatenate(parts, 1)
    expected = np.percentile(both, [1, 99], axis=1, method="inverted_cdf")
    bins = 2 * 2 ** np.ceil(np.log2(np.abs(both).max(1))) / BINS
    assert (np.abs([low, high] - expected) <= bins).all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_mse_is_the_best_of_a_hundred_ranges(bits):
    x = values()
    low, high, quantize = observed("mse", x, bits=bits)
    for row in range(len(x)):

        def error(share, one=x[row : row + 1]):
            y = quantize(one, one.min()[None] * share, one.max()[None] * share)
            return (y - one).square().sum().item()

        errors = [error(i / 100) for i in range(1, 101)]
        share = high[row] / x[row].max().item()
        np.testing.assert_allclose(low[row], x[row].min() * share, rtol=1e-5)
        assert error(share) <= min(errors) * (1 + 1e-5)
        assert share < 1  # a Laplace distribution has tails that are worth clipping


def tensorrt_divergences(magnitudes, levels):
    """Slides 30 to 38 with plain loops: every 16th threshold or so, and its divergence."""
    histogram, edges = np.histogram(magnitudes[magnitudes > 0], 2048, (0, magnitudes.max()))
    found = {}
    for end in range(2048, levels - 1, -((2048 - levels) // CANDIDATES)):
        p = histogram[:end].astype(float)
        p[-1] += histogram[end:].sum()
        q = np.zeros(end)
        owner = np.arange(end) * levels // end
        for level in range(levels):
            own = (owner == level) & (histogram[:end] > 0)
            if own.any():
                q[own] = histogram[:end][own].sum() / own.sum()
        found[edges[end]] = entropy(p, np.maximum(q / q.sum(), 1e-10))
    return found


def tensorrt_threshold(magnitudes, levels):
    found = tensorrt_divergences(magnitudes, levels)
    return min(found, key=found.get)


@pytest.mark.parametrize("bits", [4, 5, 8])
@pytest.mark.parametrize("one_sided", [False, True])
def test_kl_is_tensorrts_calibration(bits, one_sided):
    x = values(1, 60_000)
    x = x.abs() if one_sided else x
    low, high, _ = observed("kl", x, bits=bits)
    levels = 2**bits if one_sided else 2 ** (bits - 1)
    np.testing.assert_allclose(high[0], tensorrt_threshold(x[0].abs().numpy(), levels), rtol=1e-3)
    assert bits != 4 or high[0] < 0.9 * x.abs().max()
    assert low[0] == (0 if one_sided else -high[0])


def test_a_histogram_that_grows_is_that_of_all_values():
    parts = [values(seed=seed) * 3.0**seed for seed in range(4)]
    histogram = Histogram(3, torch.device("cpu"))
    for part in parts:
        histogram.add(part)
    both = np.concatenate(parts, 1)
    for row in range(3):
        reach = 2 ** np.ceil(np.log2(np.abs(both[row]).max()))
        expected, edges = np.histogram(both[row], BINS, (-reach, reach))
        # Values within rounding of an edge may fall on either side.
        assert np.abs(np.cumsum(expected) - np.cumsum(histogram.counts[row].numpy())).max() <= 1
        np.testing.assert_allclose(histogram.values()[0][row, :-1], (edges[1:] + edges[:-1]) / 2)


def test_zeros_are_counted_apart():
    x = values(2, 1000)
    x[0, ::3] = 0
    x[1] = 0
    histogram = Histogram(2, torch.device("cpu"))
    histogram.add(x)
    numbers, counts = histogram.values()
    assert counts.sum(1).tolist() == [1000, 1000]
    assert numbers[:, -1].tolist() == [0, 0]
    assert counts[:, -1].tolist() == [334, 1000]


def test_magnitudes_are_spread_evenly_over_the_bins_they_are_in():
    parts = [values(1, 5000, seed=seed) for seed in range(3)]
    histogram = Histogram(1, torch.device("cpu"))
    for part in parts:
        histogram.add(part)
    counts, largest = histogram.magnitudes(700)
    both = np.abs(np.concatenate(parts, 1)[0])
    width = 2 * 2 ** np.ceil(np.log2(both.max())) / BINS
    assert both.max() <= largest[0] < both.max() + width
    fine, edges = np.histogram(both, BINS // 2, (0, width * BINS / 2))
    expected = np.interp(np.arange(701) / 700 * largest[0].item(), edges, np.cumsum([0, *fine]))
    np.testing.assert_allclose(counts[0], np.diff(expected), atol=1.001)  # a value on an edge
    assert counts.sum().item() == pytest.approx(15_000)


@pytest.mark.parametrize("one_sided", [False, True])
def test_kl_of_many_parts_is_that_of_all_values_also_behind_a_relu(one_sided):
    parts = [values(1, 40_000, seed=seed) for seed in range(4)]
    parts = [part.relu() if one_sided else part for part in parts]
    low, high, _ = observed("kl", *parts, bits=8)
    both = torch.cat(parts, 1).abs().numpy()
    found = tensorrt_divergences(both, 256 if one_sided else 128)
    # Thresholds around the best one are about as good; counted as small values, a ReLU's zeros
    # would lead to the least one.
    nearest = min(found, key=lambda threshold: abs(threshold - high[0]))
    assert found[nearest] <= 1.1 * min(found.values())
    assert found[min(found)] > 5 * min(found.values())
    assert (low[0] == 0) == one_sided


@pytest.mark.parametrize("name", ["min_max", "moving_average", "percentile", "mse", "kl"])
def test_zeros_have_an_empty_range(name):
    low, high, _ = observed(name, torch.zeros(2, 50))
    assert low.tolist() == high.tolist() == [0, 0]
