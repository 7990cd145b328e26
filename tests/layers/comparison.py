"""Runs a layer and its textbook form on the same numbers and says how far apart they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from textbook import routed_conv
from timm.layers import Conv2dSame
from timm.layers.conv2d_same import conv2d_same
from torch import Tensor, nn

from dqnet.layers import QuantConv2d


def random_tensor(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def one_hot(columns: list[int], widths: int) -> Tensor:
    """A float64 choice ``[N, K]``: image n takes width ``columns[n]``."""
    return F.one_hot(torch.tensor(columns, dtype=torch.int64), widths).double()


def float_conv(*args, seed: int = 0, same: bool = False, **kwargs) -> nn.Conv2d:
    """A float64 convolution with random weight and bias."""
    kind = Conv2dSame if same else nn.Conv2d
    conv = kind(*args, **kwargs).double()
    with torch.no_grad():
        for i, parameter in enumerate(conv.parameters()):
            parameter.copy_(random_tensor(*parameter.shape, seed=1000 * seed + i))
    return conv


def quantized(
    conv: nn.Conv2d, widths: tuple[int, ...], name: str = "dorefa", signed: bool = False
) -> QuantConv2d:
    """The quantized form in float64, its parameters set to values at which some inputs clip."""
    options = {"alpha_init": 0.9} if name == "pact" else None
    layer = QuantConv2d.from_float(conv, widths, name, signed, options).double()
    if name == "lsq":
        codes = torch.tensor(widths, dtype=torch.float64)
        with torch.no_grad():
            layer.weight_quantizer.step.copy_(2.3 / 2**codes)
            layer.input_quantizer.step.copy_((4.1 if signed else 2.2) / 2**codes)
            layer.weight_quantizer.initialized.fill_(1)
            layer.input_quantizer.initialized.fill_(1)
    return layer


def quantizer_parameters(layer: QuantConv2d) -> dict[str, nn.Parameter]:
    """By their names in the layer, such as ``input_quantizer.step``."""
    return {name: p for name, p in layer.named_parameters() if "_quantizer." in name}


def convolve_like(conv: nn.Conv2d):
    """The float layer's own arithmetic, without its bias."""
    if isinstance(conv, Conv2dSame):
        return lambda x, weight: conv2d_same(
            x, weight, None, conv.stride, (0, 0), conv.dilation, conv.groups
        )
    return lambda x, weight: conv._conv_forward(x, weight, None)


def textbook_of(
    layer: QuantConv2d, conv: nn.Conv2d, name: str, x: Tensor, choice: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The textbook output in float64, and its leaves: fresh copies, all of them with gradients."""

    def leaf(t: Tensor) -> Tensor:
        return t.detach().double().clone().requires_grad_()

    parameters = {key: leaf(p) for key, p in quantizer_parameters(layer).items()}
    leaves = {"x": leaf(x), "choice": leaf(choice), "weight": leaf(layer.weight)}
    if layer.bias is not None:
        leaves["bias"] = leaf(layer.bias)
    y = routed_conv(
        leaves["x"],
        leaves["choice"],
        leaves["weight"],
        leaves.get("bias"),
        name,
        layer.widths,
        layer.input_quantizer.signed,
        parameters,
        convolve_like(conv),
    )
    return y, leaves | parameters


def layer_leaves(layer: QuantConv2d, x: Tensor, choice: Tensor | None) -> dict[str, Tensor]:
    leaves = {"x": x, "weight": layer.weight, **quantizer_parameters(layer)}
    if choice is not None:
        leaves["choice"] = choice
    if layer.bias is not None:
        leaves["bias"] = layer.bias
    return leaves


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected magnitude; exact where that is zero."""
    assert actual.shape == expected.shape
    if not expected.numel():
        return 0.0
    difference = (actual.double() - expected.double()).abs().max().item()
    scale = expected.abs().max().item()
    return difference / scale if scale else (0.0 if not difference else float("inf"))


def errors(
    layer: QuantConv2d,
    conv: nn.Conv2d,
    name: str,
    x: Tensor,
    choice: Tensor | None,
    after=lambda y: y,
) -> dict[str, float]:
    """Relative errors of the output and of the gradient to every leaf that wants one.

    Args:
        x, choice: leaves; those that require a gradient are compared. No choice means one width.
        after: what the network does to the output before the loss.
    """
    all_ones = torch.ones(len(x), 1, dtype=torch.float64)
    expected, leaves = textbook_of(layer, conv, name, x, all_ones if choice is None else choice)
    expected = after(expected)
    actual = after(layer(x) if choice is None else layer(x, choice))
    found = {"output": relative_error(actual, expected)}
    upstream = random_tensor(*expected.shape, seed=77)
    wanted = {k: t for k, t in layer_leaves(layer, x, choice).items() if t.requires_grad}
    gradients = torch.autograd.grad(actual, list(wanted.values()), upstream.to(actual.dtype))
    expected_gradients = torch.autograd.grad(expected, [leaves[k] for k in wanted], upstream)
    for key, got, want in zip(wanted, gradients, expected_gradients, strict=True):
        found[key] = relative_error(got, want)
    return found


def assert_equal_to_textbook(*args, tolerance: float = 1e-10, **kwargs) -> None:
    found = errors(*args, **kwargs)
    assert all(error <= tolerance for error in found.values()), found
