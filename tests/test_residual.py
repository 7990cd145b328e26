"""Quantizers between layers: where they are, and that they are on whatever happens to a network."""

import copy

import pytest
import timm
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from torch import nn

import dqnet
from dqnet.errors import UserError


def converted(name="resnet8_cifar", **how):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=5)
    how = {"quantizer": "lsq", "widths": [4], "first_last": 8, "residual": 8} | how
    return dqnet.quantize(model, torch.zeros(1, 3, 16, 16), **how)


def images(count=8):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_where_they_are():
    """Behind the stem, and behind both branches and the sum of every block."""
    blocks = [f"layer{i}.0" for i in (1, 2, 3)]
    expected = {"act1", *(f"{block}.{name}" for block in blocks for name in ("bn2", "act2"))}
    found = converted().value_quantizers
    assert found.keys() == expected
    signed = {name for name, own in found.items() if own.output_quantizer.signed}
    assert signed == {f"{block}.bn2" for block in blocks}


def test_a_routed_layer_reads_codes():
    found = converted(widths=[3, 4], shared_until="layer1").value_quantizers
    assert {"layer2.0.act1", "layer3.0.act1"} <= found.keys()
    assert "layer1.0.act1" not in found  # read by a static layer alone, which quantizes it


@torch.no_grad()
def test_values_are_codes_on_grids_of_powers_of_two():
    model = converted().eval()
    dqnet.calibrate(model, [images()])
    seen = {}
    for name in model.value_quantizers:
        model.backbone.get_submodule(name).register_forward_hook(
            lambda module, args, output, name=name: seen.update({name: output})
        )
    model(images())
    for name, own in model.value_quantizers.items():
        reach, bits = own.output_quantizer.reach, 8 - own.output_quantizer.signed
        step = reach / 2**bits
        assert reach.log2() == reach.log2().round()
        assert torch.equal(seen[name], (seen[name] / step).round() * step)
        assert seen[name].unique().numel() > 2


@torch.no_grad()
def test_copies_and_state_dicts_keep_them():
    model = converted().eval()
    dqnet.calibrate(model, [images()])
    expected = model(images()).logits
    twin = copy.deepcopy(model)
    for own in model.value_quantizers.values():
        own.output_quantizer.reach.mul_(4)
    assert not torch.equal(model(images()).logits, expected)
    assert torch.equal(twin(images()).logits, expected)
    other = converted().eval()
    other.load_state_dict(twin.state_dict())
    assert torch.equal(other(images()).logits, expected)


@torch.no_grad()
def test_in_full_precision_they_are_off():
    model = converted().eval()
    dqnet.calibrate(model, [images()])
    plain = timm.create_model("resnet8_cifar", num_classes=5).eval()
    plain.load_state_dict(model.backbone.state_dict(), strict=False)
    with model.unquantized():
        assert torch.allclose(model(images()).logits, plain(images()), atol=1e-5)


def test_gradients_pass_through():
    model = converted().train()
    model(images()).logits.square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "conv" in n)


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.other = nn.Conv2d(3, 5, 1)

    def forward(self, x):
        y = self.conv(x)
        y = y + self.conv(x + 1) + y
        return self.other(y).mean((2, 3))


def test_what_no_module_returns_is_refused():
    with pytest.raises(UserError, match="no module returns the output of") as raised:
        dqnet.quantize(Sum(), torch.zeros(1, 3, 8, 8), widths=[4], residual=8, first_last=8)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("bits", [1, 9, True, "8"])
def test_bits_that_hardware_has_not(bits):
    with pytest.raises(UserError, match="must be 2 to 8 bits"):
        converted(residual=bits)
