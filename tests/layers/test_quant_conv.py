"""QuantConv2d equals its textbook form: outputs and every gradient, in float64."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from comparison import (
    assert_equal_to_textbook,
    errors,
    float_conv,
    one_hot,
    quantized,
    random_tensor,
    relative_error,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dqnet.layers import QuantConv2d

QUANTIZERS = ["dorefa", "pact", "lsq"]
WIDTHS = (2, 3, 5)
COLUMNS = [2, 0, 1, 0, 2]


def leaf(t: torch.Tensor) -> torch.Tensor:
    return t.detach().clone().requires_grad_()


def usual_case(name: str = "dorefa", widths: tuple[int, ...] = WIDTHS, **kwargs):
    """A small convolution, its quantized form, an input and a choice, both with gradients."""
    conv = float_conv(3, 4, 3, padding=1, **kwargs)
    x, choice = random_tensor(5, 3, 6, 7, seed=5), one_hot(COLUMNS, len(widths))
    return conv, quantized(conv, widths, name), leaf(x), leaf(choice)


# ---------------------------------------------------------------------------------------------
# Any geometry, any routing


@st.composite
def geometries(draw) -> dict:
    """Arguments of a convolution and an input size that fits it."""
    pair = st.tuples(st.integers(1, 2), st.integers(1, 2))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    per_group = draw(st.integers(1, 2))  # 1 with groups > 1 is depthwise
    arguments = {
        "in_channels": groups * per_group,
        "out_channels": groups * draw(st.integers(2 if groups == 1 else 1, 2)),
        "kernel_size": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "stride": draw(pair),
        "dilation": draw(pair),
        "groups": groups,
        "bias": draw(st.booleans()),
    }
    reach = [
        (size - 1) * dilation + 1
        for size, dilation in zip(arguments["kernel_size"], arguments["dilation"], strict=True)
    ]
    kind = draw(st.sampled_from(["number", "number", "same", "reflect", "replicate", "circular"]))
    if kind == "same":
        if arguments["stride"] == (1, 1):
            arguments["padding"] = "same"
        else:
            arguments["same"] = True
    else:
        arguments["padding"] = draw(st.tuples(st.integers(0, 2), st.integers(0, 2)))
        if kind != "number":
            arguments["padding_mode"] = kind
    # Reflection needs more pixels than the padding of at most 2.
    size = tuple(max(r, 3) + draw(st.integers(0, 3)) for r in reach)
    return {"arguments": arguments, "size": size}


width_sets = st.sets(st.integers(1, 16), min_size=1, max_size=4).map(lambda s: tuple(sorted(s)))


@settings(max_examples=150, deadline=None)
@given(
    geometry=geometries(),
    widths=width_sets,
    name=st.sampled_from(QUANTIZERS),
    signed=st.booleans(),
    routing=st.lists(st.integers(0, 11), max_size=6),
    seed=st.integers(0, 10**6),
)
def test_equal_to_textbook_over_geometries_batches_and_widths(
    geometry, widths, name, signed, routing, seed
):
    arguments = geometry["arguments"]
    conv = float_conv(**arguments, seed=seed)
    shape = (len(routing), arguments["in_channels"], *geometry["size"])
    x = random_tensor(*shape, seed=seed + 1)
    choice = leaf(one_hot([r % len(widths) for r in routing], len(widths)))
    layer = quantized(conv, widths, name, signed)
    assert_equal_to_textbook(layer, conv, name, leaf(x), choice if len(widths) > 1 else None)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(
    "columns",
    [[], [1], [2, 0, 1, 0, 2], [0, 2, 2, 0], [1, 1, 1]],
    ids=["empty batch", "one image", "odd batch", "a width nobody chose", "all on one width"],
)
def test_equal_to_textbook_for_every_kind_of_batch(name, signed, columns):
    conv = float_conv(3, 4, 3, stride=2, padding=1)
    x, choice = random_tensor(len(columns), 3, 7, 6, seed=5), one_hot(columns, 3)
    layer = quantized(conv, WIDTHS, name, signed)
    assert_equal_to_textbook(layer, conv, name, leaf(x), leaf(choice))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, (2, 3)])
@pytest.mark.parametrize("size", [(6, 7), (9, 8)])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, (1, 3)])
def test_same_padding_equals_timms(kernel, size, dilation, stride):
    conv = float_conv(2, 3, kernel, stride=stride, dilation=dilation, same=True)
    x, choice = random_tensor(2, 2, *size, seed=5), one_hot([1, 0], 2)
    layer = quantized(conv, (2, 4))
    assert layer(x, choice).shape[-2:] == conv(x).shape[-2:]
    assert_equal_to_textbook(layer, conv, "dorefa", leaf(x), leaf(choice))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, (4, 3)])
@pytest.mark.parametrize("dilation", [1, 2, (2, 1)])
def test_same_padding_without_stride_equals_torchs(kernel, dilation):
    conv = float_conv(2, 3, kernel, dilation=dilation, padding="same")
    x, choice = random_tensor(2, 2, 8, 9, seed=5), one_hot([1, 0], 2)
    assert_equal_to_textbook(quantized(conv, (2, 4)), conv, "dorefa", leaf(x), leaf(choice))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_inputs_equals_textbook(name, mode):
    """Also to LSQ's step, whose gradient scale counts the features before the padding."""
    conv = float_conv(2, 3, 3, padding=(2, 1), padding_mode=mode)
    x, choice = random_tensor(3, 2, 5, 6, seed=5), one_hot([1, 0, 1], 2)
    assert_equal_to_textbook(quantized(conv, (2, 4), name), conv, name, leaf(x), leaf(choice))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("groups", [2, 6])
def test_grouped_and_depthwise_convolutions_equal_textbook(name, groups):
    conv = float_conv(6, 12, 3, padding=1, groups=groups)
    x, choice = random_tensor(5, 6, 5, 5, seed=5), one_hot(COLUMNS, 3)
    assert_equal_to_textbook(quantized(conv, WIDTHS, name), conv, name, leaf(x), leaf(choice))


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_one_width_needs_no_choice_and_equals_textbook(name, signed, width):
    conv = float_conv(3, 4, 3, padding=1)
    x = leaf(random_tensor(5, 3, 6, 7, seed=5))
    assert_equal_to_textbook(quantized(conv, (width,), name, signed), conv, name, x, None)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_one_width_equals_every_image_choosing_it(name):
    conv, layer, x, _ = usual_case(name)
    for k, width in enumerate(WIDTHS):
        alone = quantized(conv, (width,), name)
        together = layer(x, one_hot([k] * len(x), len(WIDTHS)))
        torch.testing.assert_close(alone(x), together, rtol=1e-12, atol=1e-12)


# ---------------------------------------------------------------------------------------------
# What wants a gradient and what does not


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    "frozen",
    [
        {"x"},
        {"choice"},
        {"weight"},
        {"bias"},
        {"quantizer"},
        {"x", "choice"},
        {"x", "weight"},
        {"x", "quantizer"},
        {"x", "weight", "bias", "quantizer"},
        {"choice", "weight", "bias", "quantizer"},
        {"x", "choice", "weight", "quantizer"},
    ],
    ids=lambda frozen: "+".join(sorted(frozen)),
)
def test_what_is_not_frozen_gets_its_right_gradient(name, frozen):
    conv, layer, x, choice = usual_case(name)
    x.requires_grad_("x" not in frozen)
    choice.requires_grad_("choice" not in frozen)
    layer.weight.requires_grad_("weight" not in frozen)
    layer.bias.requires_grad_("bias" not in frozen)
    layer.weight_quantizer.requires_grad_("quantizer" not in frozen)
    layer.input_quantizer.requires_grad_("quantizer" not in frozen)
    assert_equal_to_textbook(layer, conv, name, x, choice)


@pytest.mark.parametrize("frozen", ["weight_quantizer", "input_quantizer"])
def test_one_of_two_steps_can_be_frozen(frozen):
    conv, layer, x, choice = usual_case("lsq")
    getattr(layer, frozen).step.requires_grad_(False)
    assert_equal_to_textbook(layer, conv, "lsq", x, choice)


def test_a_frozen_layer_and_input_give_an_output_without_gradient():
    _, layer, x, choice = usual_case("lsq")
    layer.requires_grad_(False)
    assert not layer(x.detach(), choice.detach()).requires_grad


def test_gradients_of_two_passes_add_up():
    _, layer, x, choice = usual_case("lsq")
    total = torch.autograd.grad(layer(x, choice).sum(), layer.weight)[0]
    layer(x, choice).sum().backward()
    layer(x, choice).sum().backward()
    torch.testing.assert_close(layer.weight.grad, 2 * total, rtol=1e-12, atol=1e-12)


def test_differentiating_twice_is_refused():
    _, layer, x, choice = usual_case()
    (gradient,) = torch.autograd.grad(layer(x, choice).pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


# ---------------------------------------------------------------------------------------------
# How its tensors lie in memory and what the network does around it


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    "laid_out",
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        lambda x: x.repeat_interleave(2, dim=3)[..., ::2],
        lambda x: x.flip(0).flip(0)[:, :1].expand(-1, 3, -1, -1),
    ],
    ids=["channels_last", "transposed", "strided", "expanded"],
)
def test_memory_layout_does_not_matter(name, laid_out):
    conv, layer, x, choice = usual_case(name)
    x = laid_out(x.detach())
    assert not x.is_contiguous()
    assert_equal_to_textbook(layer, conv, name, x.requires_grad_(), choice)


@pytest.mark.parametrize("columns", [COLUMNS, [1] * 5], ids=["mixed", "one width"])
@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    "after",
    [F.relu_, lambda y: y.mul_(2.5).add_(1), lambda y: y[:, 1:].relu_()],
    ids=["relu_", "mul_ and add_", "relu_ of a slice"],
)
def test_output_may_be_modified_in_place(name, columns, after):
    conv, layer, x, _ = usual_case(name)
    assert_equal_to_textbook(layer, conv, name, x, leaf(one_hot(columns, 3)), after=after)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("columns", [COLUMNS, [1] * 5], ids=["mixed", "one width"])
def test_input_weight_and_choice_are_left_as_they_were(name, columns):
    _, layer, x, _ = usual_case(name)
    choice = leaf(one_hot(columns, 3))
    before = [t.detach().clone() for t in (x, choice, *layer.parameters())]
    layer(x, choice).sum().backward()
    after = [x, choice, *layer.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


def test_an_input_modified_between_the_passes_is_refused_and_not_silently_wrong():
    _, layer, x, choice = usual_case()
    hidden = x * 1
    y = layer(hidden, choice)
    hidden.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("name", QUANTIZERS)
def test_values_are_the_same_in_training_evaluation_and_without_gradients(name):
    _, layer, x, choice = usual_case(name)
    expected = layer.train()(x, choice)
    assert torch.equal(layer.eval()(x, choice), expected)
    with torch.no_grad():
        assert torch.equal(layer(x, choice), expected)
    with torch.inference_mode():
        assert torch.equal(layer(x, choice), expected)


def test_an_image_gets_the_same_values_whatever_the_others_choose():
    _, layer, x, choice = usual_case()
    together = layer(x, choice)
    for n in range(len(x)):
        alone = layer(x[n : n + 1], choice[n : n + 1])
        torch.testing.assert_close(together[n : n + 1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.bfloat16])
def test_the_choices_dtype_does_not_change_the_output(dtype):
    _, layer, x, choice = usual_case()
    assert torch.equal(layer(x, choice.to(dtype)), layer(x, choice))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_large_batch_is_counted_exactly_whatever_the_choices_dtype(dtype):
    """bfloat16 has no 257 and float16 no 4,097: counting in them would lose images."""
    conv = float_conv(1, 2, 1)
    layer = quantized(conv, (2, 3))
    x, choice = random_tensor(4099, 1, 1, 1, seed=5), one_hot([0, *[1] * 4097, 0], 2)
    assert torch.equal(layer(x, choice.to(dtype)), layer(x, choice))


# ---------------------------------------------------------------------------------------------
# Smaller number formats


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("signed", [False, True])
def test_float32_is_equal_to_float64_textbook_within_its_precision(name, signed):
    # With seed 1 nothing lies so near to the middle of two levels that float32 rounds it away.
    conv = float_conv(8, 6, 3, padding=1, seed=1).float()
    layer = quantized(conv, (2, 3, 4), name, signed).float()
    x = random_tensor(5, 8, 9, 9, seed=5).float()
    choice = one_hot(COLUMNS, 3).float()
    double = copy.deepcopy(conv).double()
    assert_equal_to_textbook(layer, double, name, leaf(x), leaf(choice), tolerance=1e-5)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_bfloat16_autocast_is_close_to_float32(name):
    conv = float_conv(8, 6, 3, padding=1).float()
    layer = quantized(conv, (2, 3, 4), name).float()
    # Inputs that bfloat16 can hold, so that both forms see the same levels.
    x = leaf(random_tensor(5, 8, 9, 9, seed=5).bfloat16().float())
    choice = leaf(one_hot(COLUMNS, 3).float())
    leaves = [x, choice, *layer.parameters()]
    expected = layer(x, choice)
    upstream = random_tensor(*expected.shape, seed=6).float()
    expected_gradients = torch.autograd.grad(expected, leaves, upstream)
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer(x, choice)
    assert actual.dtype == torch.bfloat16
    gradients = torch.autograd.grad(actual, leaves, upstream.bfloat16())
    assert relative_error(actual, expected) < 0.01
    for got, want in zip(gradients, expected_gradients, strict=True):
        assert got.dtype == want.dtype
        assert relative_error(got, want) < 0.02


# ---------------------------------------------------------------------------------------------
# Its life as a module


@pytest.mark.parametrize("kind", ["plain", "same", "no bias"])
def test_from_float_shares_the_very_parameters(kind):
    conv = float_conv(2, 3, 3, same=kind == "same", bias=kind != "no bias")
    layer = QuantConv2d.from_float(conv, (2, 3))
    assert layer.weight is conv.weight
    assert layer.bias is conv.bias


@pytest.mark.parametrize("training", [True, False])
def test_from_float_keeps_the_mode(training):
    layer = QuantConv2d.from_float(nn.Conv2d(2, 3, 3).train(training), (2,))
    assert layer.training == layer.input_quantizer.training == training


@pytest.mark.parametrize("name", QUANTIZERS)
def test_from_float_leaves_the_random_stream_alone(name):
    conv = nn.Conv2d(2, 3, 3)
    state = torch.get_rng_state()
    QuantConv2d.from_float(conv, (2, 3), name)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_float_checkpoint_has_the_layers_parameter_names():
    conv = nn.Conv2d(2, 3, 3)
    layer = QuantConv2d.from_float(nn.Conv2d(2, 3, 3), (2, 3), "lsq")
    missing, unexpected = layer.load_state_dict(conv.state_dict(), strict=False)
    assert not unexpected
    assert missing and all("_quantizer." in key for key in missing)
    assert torch.equal(layer.weight, conv.weight)


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_gives_the_same_values_and_gradients_and_shares_nothing(name, copied):
    conv, layer, x, choice = usual_case(name)
    layer(x, choice)
    other = copied(layer)
    assert torch.equal(other(x, choice), layer(x, choice))
    assert not any(a is b for a, b in zip(other.parameters(), layer.parameters(), strict=True))
    assert_equal_to_textbook(other, conv, name, x, choice)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_a_state_dict_carries_everything_the_output_depends_on(name):
    _, layer, x, choice = usual_case(name)
    other = QuantConv2d.from_float(float_conv(3, 4, 3, padding=1, seed=9), WIDTHS, name).double()
    assert not torch.equal(other(x, choice), layer(x, choice))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x, choice), layer(x, choice))


def test_lsq_initialises_the_steps_of_widths_that_no_image_chose():
    conv = float_conv(3, 4, 3)
    layer = QuantConv2d.from_float(conv, (2, 4, 8), "lsq").double()
    x = random_tensor(4, 3, 5, 5, seed=5)
    layer(x, one_hot([1] * 4, 3))
    levels = torch.tensor([3, 15, 255], dtype=torch.float64)
    expected = 2 * x.abs().mean() / levels.sqrt()
    torch.testing.assert_close(layer.input_quantizer.step.detach(), expected, rtol=1e-12, atol=0)
    expected = 2 * conv.weight.abs().mean() / torch.tensor([1.0, 7, 127]).double().sqrt()
    torch.testing.assert_close(layer.weight_quantizer.step, expected, rtol=1e-12, atol=0)


def test_constructed_like_a_float_convolution_it_equals_textbook():
    layer = QuantConv2d(3, 4, 3, stride=2, padding=1, widths=(2, 4), quantizer="dorefa").double()
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
    x, choice = random_tensor(3, 3, 6, 6), one_hot([0, 1, 1], 2)
    assert_equal_to_textbook(layer, conv, "dorefa", leaf(x), leaf(choice))


def test_errors_helper_sees_a_wrong_gradient():
    """The comparison itself: a layer that is off by 1e-9 in one weight does not pass."""
    conv, layer, x, choice = usual_case("lsq")
    moved = copy.deepcopy(layer)
    moved.weight.register_hook(lambda grad: grad * (1 + 1e-9))
    assert max(errors(layer, conv, "lsq", x, choice).values()) <= 1e-10
    assert errors(moved, conv, "lsq", x, choice)["weight"] > 1e-10
