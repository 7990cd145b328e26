"""Codebooks against scikit-learn's k-means and sums of gradients written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.formats import Format
from dqnet.layers import QuantConv2d
from dqnet.quantizers.clustering import MOST_VALUES, cluster
from dqnet.quantizers.codebook import CodebookInput, CodebookWeight


def weights(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def prepared(cls, x, *bits, **options):
    quantizer = cls([Format(own) for own in bits], **options)
    quantizer.prepare(x)
    return quantizer


def first_centroids(values, count, init):
    if init == "linear":
        return np.linspace(values.min(), values.max(), count)
    return np.quantile(values, (np.arange(count) + 0.5) / count)


@pytest.mark.parametrize("bits", [1, 2, 4])
@pytest.mark.parametrize("init", ["linear", "density"])
def test_weights_are_the_centers_of_their_clusters(bits, init):
    weight = weights(8, 4, 3, 3)
    values = weight.flatten().double().numpy()
    start = first_centroids(values, 2**bits, init)[:, None]
    model = KMeans(2**bits, init=start, n_init=1).fit(values[:, None])
    expected = model.cluster_centers_[model.labels_, 0]
    quantizer = prepared(CodebookWeight, weight, bits, init=init)
    np.testing.assert_allclose(quantizer(weight, 0).detach().flatten(), expected, rtol=1e-5)
    codes = quantizer.encode(weight, 0)
    assert torch.equal(codes.values(), quantizer(weight, 0).detach())
    assert len(codes.codes.unique()) == 2**bits


def test_a_random_start_is_drawn_by_the_seed():
    weight = weights(1000)
    first, again, other = (
        prepared(CodebookWeight, weight, 4, init="random", seed=seed).centroids
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    values = weight.double().numpy()
    start = np.random.default_rng(1).choice(np.sort(values), 16, replace=False)
    model = KMeans(16, init=start[:, None], n_init=1).fit(np.sort(values)[:, None])
    np.testing.assert_allclose(other, np.sort(model.cluster_centers_[:, 0]), rtol=1e-5)


def test_the_codebook_has_the_summed_gradients_of_its_clusters():
    weight, upstream = weights(6, 5, 3, 3), weights(6, 5, 3, 3, seed=1)
    quantizer = prepared(CodebookWeight, weight, 2, 3)
    quantizer(weight, 1).backward(upstream)
    codes = quantizer.encode(weight, 1).codes
    expected = [upstream[codes == c].sum() for c in range(8)]
    torch.testing.assert_close(quantizer.table.grad[4:], torch.stack(expected))
    assert torch.equal(quantizer.table.grad[:4], torch.zeros(4))  # another format's


def test_clusters_stay_when_the_codebook_is_trained():
    torch.manual_seed(0)
    conv = QuantConv2d(3, 8, 3, widths=(2, 3), quantizer=("codebook", "affine"))
    x = torch.randn(4, 3, 8, 8)
    choice = torch.eye(2).repeat(2, 1)
    conv(x, choice)
    before = conv.weight.clone()
    codes = [conv.weight_quantizer.encode(conv.weight, k).codes for k in (0, 1)]
    optimizer = torch.optim.SGD(conv.parameters(), lr=0.1, weight_decay=0.1)
    table = conv.weight_quantizer.table.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        conv(x, choice).square().mean().backward()
        optimizer.step()
    assert not torch.equal(conv.weight_quantizer.table, table)
    assert torch.equal(conv.weight, before)
    for k in (0, 1):
        encoded = conv.weight_quantizer.encode(conv.weight, k)
        assert torch.equal(encoded.codes, codes[k])
        trained = conv.weight_quantizer.table[[slice(0, 4), slice(4, 12)][k]]
        assert torch.equal(encoded.values(), trained[codes[k].long()].detach())


def test_a_state_dict_holds_the_clusters():
    weight = weights(8, 30)
    quantizer = prepared(CodebookWeight, weight, 3)
    with torch.no_grad():
        quantizer.table += 1
    other = CodebookWeight([Format(3)])
    other.load_state_dict(quantizer.state_dict())
    assert other.ready
    assert torch.equal(other(weight, 0), quantizer(weight, 0))


def test_many_values_are_summarised():
    values = np.random.default_rng(0).normal(size=3 * MOST_VALUES)
    found = cluster(values, 8, "linear", 0)
    start = np.linspace(values.min(), values.max(), 8)[:, None]
    expected = np.sort(KMeans(8, init=start, n_init=1).fit(values[:, None]).cluster_centers_)
    error, best = (
        (np.abs(values[:, None] - table.reshape(1, -1)).min(1) ** 2).mean()
        for table in (found, expected)
    )
    assert error <= 1.005 * best


def test_fewer_distinct_values_than_codes_are_kept_as_they_are():
    weight = torch.tensor([0.0, 1.0, -2.0]).repeat(10)
    quantizer = prepared(CodebookWeight, weight, 3)
    assert torch.equal(quantizer(weight, 0), weight)


def test_inputs_have_the_codebook_of_the_calibration():
    x = weights(20, 400).relu()
    quantizer = CodebookInput([Format(2), Format(4)])
    for part in x.split(5):
        quantizer.observe(part)
    quantizer.complete()
    values = x.flatten().double().numpy()
    start = np.linspace(values.min(), values.max(), 16)[:, None]
    table = np.sort(KMeans(16, init=start, n_init=1).fit(values[:, None]).cluster_centers_[:, 0])
    np.testing.assert_allclose(quantizer.values(1), table, rtol=1e-4, atol=1e-6)
    new = torch.linspace(-1, 9, 777).requires_grad_()
    y = quantizer(new, 1)
    nearest = np.abs(new.detach().double().numpy()[:, None] - table).argmin(1)
    np.testing.assert_allclose(y.detach(), table[nearest], rtol=1e-4, atol=1e-6)
    y.sum().backward()
    inside = (new >= quantizer.values(1)[0]) & (new <= quantizer.values(1)[-1])
    assert torch.equal(new.grad, inside.float())
    assert torch.equal(quantizer.encode(new.detach(), 1).values(), y.detach())


def pruned(weight, share):
    """The smallest weights made zero."""
    return weight * (weight.abs() > weight.abs().quantile(share))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_weights_that_are_zero_stay_zero_and_the_others_are_clustered(bits):
    weight = pruned(weights(8, 4, 3, 3), 0.7)
    left = weight[weight != 0].double().numpy()
    start = first_centroids(left, 2**bits - 1, "linear")[:, None]
    model = KMeans(2**bits - 1, init=start, n_init=1).fit(left[:, None])
    expected = weight.double().clone()
    expected[weight != 0] = torch.from_numpy(model.cluster_centers_[model.labels_, 0])
    quantizer = prepared(CodebookWeight, weight, bits, keep_zero=True)
    y = quantizer(weight, 0).detach()
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert torch.equal(y == 0, weight == 0)
    codes = quantizer.encode(weight, 0)
    assert torch.equal(codes.values(), y)
    assert torch.equal(codes.codes == 0, weight == 0)
    assert codes.codes.max() == 2**bits - 1


def test_a_small_weight_that_was_not_pruned_is_not_zero():
    weight = torch.tensor([0.0, 1e-3, 0.5, 0.6, -0.5, -0.6])
    quantizer = prepared(CodebookWeight, weight, 2, keep_zero=True)
    assert torch.equal(quantizer.encode(weight, 0).codes == 0, weight == 0)


def test_a_weight_without_zeros_may_keep_them():
    weight = weights(200)
    quantizer = prepared(CodebookWeight, weight, 3, keep_zero=True)
    assert quantizer.encode(weight, 0).codes.unique().tolist() == list(range(1, 8))


def test_each_of_several_formats_keeps_zeros():
    weight = pruned(weights(300), 0.5)
    several = prepared(CodebookWeight, weight, 2, 4, keep_zero=True)
    for k, bits in enumerate((2, 4)):
        alone = prepared(CodebookWeight, weight, bits, keep_zero=True)
        assert torch.equal(several(weight, k), alone(weight, 0))


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_zero_is_not_trained_and_the_others_have_summed_gradients(optimizer):
    weight, upstream = pruned(weights(6, 5, 3, 3), 0.8), weights(6, 5, 3, 3, seed=1)
    quantizer = prepared(CodebookWeight, weight, 2, keep_zero=True)
    quantizer(weight, 0).backward(upstream)
    codes = quantizer.encode(weight, 0).codes
    expected = [0.0, *(upstream[codes == c].sum().item() for c in range(1, 4))]
    torch.testing.assert_close(quantizer.table.grad, torch.tensor(expected))
    steps = getattr(torch.optim, optimizer)(quantizer.parameters(), lr=0.1, weight_decay=0.1)
    before = quantizer.table.detach().clone()
    for _ in range(3):
        steps.zero_grad()
        quantizer(weight, 0).backward(upstream)
        steps.step()
    assert (quantizer.table != before).tolist() == [False, True, True, True]
    y = quantizer(weight, 0).detach()
    assert torch.equal(y == 0, weight == 0)
    assert torch.equal(quantizer.encode(weight, 0).values(), y)


def test_a_calibration_clusters_a_network():
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 4, 3), torch.nn.Flatten(), torch.nn.LazyLinear(5),
    )  # fmt: skip
    sample = torch.zeros(1, 3, 9, 9)
    net(sample)
    model = dqnet.quantize(net, sample, widths=(4,), quantizer="codebook").eval()
    dqnet.calibrate(model, [torch.rand(8, 3, 9, 9)])
    layers = [m for m in model.modules() if isinstance(m, dqnet.layers.QuantLayer)]
    assert layers
    for layer in layers:
        (weight,) = layer.quantized_weights()
        assert len(weight.unique()) == 16
        assert not layer.weight.requires_grad
    assert model(torch.rand(2, 3, 9, 9)).logits.isfinite().all()


def test_a_layer_that_is_smaller_than_its_codebook_is_named():
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 1), nn.Flatten())
    model = dqnet.quantize(
        net, torch.zeros(1, 3, 9, 9), widths=(8,), quantizer="codebook", first_last=8
    )
    with pytest.raises(UserError, match=r"^layer '1': a codebook of 256 values is larger than the"):
        dqnet.calibrate(model, [torch.rand(8, 3, 9, 9)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CodebookWeight([Format(9)]), "at least 1 bits and at most 8, not 9"),
        (lambda: CodebookWeight([Format(4)], init="kmeans"), "unknown init 'kmeans'"),
        (
            lambda: prepared(CodebookWeight, weights(4, 10), 6),
            "a codebook of 64 values is larger than the tensor, which has 40: use fewer bits",
        ),
        (
            lambda: prepared(CodebookWeight, weights(90).relu().round(), 6, keep_zero=True),
            "of 63 values beside zero is larger than what is left of the weight, [0-9]+ values",
        ),
        (
            lambda: prepared(CodebookWeight, torch.zeros(90), 2, keep_zero=True),
            "a codebook of 3 values beside zero is larger than what is left of the weight, 0 val",
        ),
        (
            lambda: prepared(CodebookWeight, torch.tensor([1.0, torch.nan, 2.0]), 1),
            "NaN or infinite",
        ),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
