"""Weights of every method of quantization, written in every coding and read back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import dqnet
from dqnet.costs.size import contents
from dqnet.export.coding import CODINGS
from dqnet.export.weight_codes import codes_from_zero, read, written

pytest.importorskip("constriction")

SAMPLE = torch.zeros(1, 3, 9, 9)
BLOCKS = {"granularity": "block", "block": 32}
METHODS = [
    ("dorefa", (1, 2, 5), {}),
    ("lsq", (1, 3), {}),
    ("affine", (8,), {}),
    ("symmetric", (4,), {}),
    ("minifloat", ("e2m1", "e4m3", "float16"), {}),
    ("minifloat", ("e3m2",), BLOCKS),
    ("fixed_point", (4,), {}),
    ("qnn", (1,), {}),
    ("lsq_plus", (3,), {}),
    ("nf4", (3, 4), {}),
    ("power_of_two", (3,), {}),
    ("codebook", (2, 4), {}),
    ("codebook", (3,), {"keep_zero": True}),
    ("smart_deal", (3, 4), {"sparsity": 0.4}),
]


def stored(method, widths, options, share=0.6):
    """A pruned network's weights."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3),
        nn.Flatten(), nn.Linear(36, 5),
    )  # fmt: skip
    with torch.no_grad():
        for weight in (net[2].weight, net[4].weight):
            weight *= weight.abs() > weight.abs().quantile(share)
    model = dqnet.quantize(
        net, SAMPLE, widths=[f"w{own}a8" if method != "minifloat" else own for own in widths],
        quantizer=(method, "affine" if method != "minifloat" else "minifloat"),
        options=(options, {}), shared_until="0",
    )  # fmt: skip
    dqnet.calibrate(model, [torch.rand(4, 3, 9, 9)])
    return contents(model)


@pytest.mark.parametrize(("method", "widths", "options"), METHODS)
def test_what_is_written_is_read(method, widths, options):
    content = stored(method, widths, options)
    assert len(content.weights) == 2 * len(widths)
    tables = {f"table.{i}": table for i, table in enumerate(content.tables)}
    for weight in content.weights:
        for coding in CODINGS:
            entry, tensors = written(weight, coding)
            found = read(entry, tensors | tables)
            assert torch.equal(found.values(), weight.codes.values()), coding
            if method != "minifloat":  # whose −0 becomes 0
                assert torch.equal(found.codes, weight.codes.codes), coding


@pytest.mark.parametrize(("method", "widths", "options"), METHODS)
def test_codes_are_counted_from_zero(method, widths, options):
    for weight in stored(method, widths, options).weights:
        codes = replace(weight.codes, basis=None)  # the codes' own values, not the weight's
        zeros = (codes.table[codes.codes.long()] if method == "smart_deal" else codes.values()) == 0
        zeros = zeros.flatten().numpy()
        counted = codes_from_zero(weight.codes, int(weight.codes.codes.min()), weight.format.bits)
        assert counted.min() >= 0 and counted.max() < 2**weight.format.bits
        if zeros.any():
            assert ((counted == 0) == zeros).all()
