"""What QuantConv2d computes and keeps: K + 2 passes instead of 3K, and only its input."""

from __future__ import annotations

import copy
import pickle
import weakref

import pytest
import torch
from comparison import float_conv, one_hot, quantized, random_tensor, relative_error
from torch.utils._python_dispatch import TorchDispatchMode

from dqnet.layers import QuantConv2d
from dqnet.layers.routed import routed
from dqnet.layers.width_groups import WidthGroups

QUANTIZERS = ["dorefa", "pact", "lsq"]
WIDTHS = (2, 3, 4, 8)
ROUTINGS = {
    "every width": [3, 0, 1, 2, 0, 1, 3],
    "two widths": [3, 1, 1, 3, 3, 1, 1],
    "one width": [2] * 7,
    "no image": [],
}


class ConvolutionCount(TorchDispatchMode):
    """Counts calls and images of the forward and the backward convolutions under it."""

    def __init__(self) -> None:
        super().__init__()
        self.forward: list[int] = []
        self.backward: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.forward.append(len(args[0]))
        elif func is torch.ops.aten.convolution_backward.default:
            self.backward.append(len(args[0]))
        return func(*args, **(kwargs or {}))


def case(name: str, columns: list[int]):
    layer = quantized(float_conv(3, 4, 3, padding=1), WIDTHS, name)
    x = random_tensor(len(columns), 3, 8, 8, seed=5).requires_grad_()
    return layer, x, one_hot(columns, len(WIDTHS)).requires_grad_()


@pytest.fixture(params=ROUTINGS.values(), ids=ROUTINGS.keys())
def columns(request) -> list[int]:
    return request.param


@pytest.mark.parametrize("name", QUANTIZERS)
def test_evaluation_convolves_every_image_once_in_a_call_for_each_chosen_width(name, columns):
    layer, x, choice = case(name, columns)
    with torch.no_grad(), ConvolutionCount() as count:
        layer.eval()(x, choice)
    assert len(count.forward) <= max(len(set(columns)), 1)
    assert sum(count.forward) == len(columns)
    assert count.backward == []


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_takes_k_plus_2_passes(name, columns):
    """K forward passes and one backward call an image, which has two passes in it."""
    layer, x, choice = case(name, columns)
    with ConvolutionCount() as count:
        layer(x, choice).sum().backward()
    assert sum(count.forward) == len(columns) * len(WIDTHS)
    assert sum(count.backward) == len(columns)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_training_with_a_frozen_choice_takes_3_passes_as_at_one_width(name, columns):
    layer, x, choice = case(name, columns)
    with ConvolutionCount() as count:
        layer(x, choice.detach()).sum().backward()
    assert sum(count.forward) == sum(count.backward) == len(columns)


def saved_storages(run) -> dict[int, int]:
    """Address and bytes of every storage that ``run`` keeps for the backward pass."""
    kept, tensors = {}, []

    def pack(t: torch.Tensor) -> torch.Tensor:
        tensors.append(t)  # alive, so that no address is used twice
        storage = t.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        run()
    return kept


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("routing", ["every width", "one width"])
def test_the_routed_convolution_keeps_its_input_k_weights_and_the_live_parameters(name, routing):
    layer, x, choice = case(name, ROUTINGS[routing])
    weights = tuple(w.detach().requires_grad_() for w in layer.quantized_weights())
    kept = saved_storages(
        lambda: routed(x, choice, weights, layer.bias, layer.pass_of(WidthGroups.of(choice)))
    )
    parameters = list(layer.input_quantizer.parameters())  # not copies: they exist in any case
    expected = {t.untyped_storage().data_ptr() for t in (x, *weights, *parameters)}
    assert set(kept) == expected


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("routing", ["every width", "one width"])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect"])
def test_the_layer_keeps_no_activation_but_its_input(name, routing, padding_mode):
    """Everything else that is kept is as small as the weight, which is much smaller than x."""
    columns = ROUTINGS[routing]
    conv = float_conv(2, 3, 3, padding=1, padding_mode=padding_mode)
    layer = quantized(conv, WIDTHS, name)
    x = random_tensor(len(columns), 2, 12, 12, seed=5).requires_grad_()
    choice = one_hot(columns, len(WIDTHS)).requires_grad_()
    kept = saved_storages(lambda: layer(x, choice))
    weight_bytes = layer.weight.untyped_storage().nbytes()
    assert weight_bytes * 20 < x.untyped_storage().nbytes()
    assert kept.pop(x.untyped_storage().data_ptr()) == x.untyped_storage().nbytes()
    assert max(kept.values()) <= weight_bytes


def test_a_static_layer_keeps_its_input_alone():
    conv = float_conv(2, 3, 3, padding=1)
    layer = quantized(conv, (4,))
    x = random_tensor(7, 2, 12, 12, seed=5).requires_grad_()
    kept = saved_storages(lambda: layer(x))
    assert kept.pop(x.untyped_storage().data_ptr()) == x.untyped_storage().nbytes()
    assert max(kept.values()) <= layer.weight.untyped_storage().nbytes()


def test_in_evaluation_a_weight_is_quantized_once_until_it_changes(monkeypatch):
    layer, x, choice = case("dorefa", ROUTINGS["every width"])
    layer.eval()
    quantize, calls = layer.weight_quantizer.all_formats, []
    monkeypatch.setattr(
        layer.weight_quantizer, "all_formats", lambda w: (calls.append(1), quantize(w))[1]
    )
    with torch.no_grad():
        first = layer(x, choice)
        assert torch.equal(layer(x, choice), first) and len(calls) == 1
        layer.weight.mul_(torch.linspace(0.5, 1, layer.weight.numel()).view_as(layer.weight))
        changed = layer(x, choice)
        assert len(calls) == 2 and not torch.equal(changed, first)
        layer.load_state_dict({k: v.clone() for k, v in layer.state_dict().items()})
        layer(x, choice)
    assert len(calls) == 2  # the same values
    layer(x, choice).sum().backward()
    assert len(calls) == 3 and layer.weight.grad is not None


def test_a_changed_step_of_lsq_is_seen_in_evaluation():
    layer, x, choice = case("lsq", ROUTINGS["every width"])
    layer.eval()
    with torch.no_grad():
        before = layer(x, choice)
        layer.weight_quantizer.step.mul_(1.7)
        assert not torch.equal(layer(x, choice), before)


# Whatever a weight is changed by, evaluation must not run with the one before.


def by_data(p):
    p.data.copy_(p.detach() * 0.5)


def by_numpy(p):
    p.detach().numpy()[...] *= 0.5


def by_fused_step(p):
    p.grad = p.detach().clone()
    torch.optim.SGD([p], 0.5, fused=True).step()


def by_another_storage(p):
    p.data = p.detach() * 0.5


def by_another_type(p):
    p.data = p.data.half().double()


@pytest.mark.parametrize(
    "change", [by_data, by_numpy, by_fused_step, by_another_storage, by_another_type]
)
@pytest.mark.parametrize("which", ["weight", "weight_quantizer.step", "affine.gain"])
def test_evaluation_sees_every_change_of_a_parameter(change, which):
    conv = float_conv(3, 4, 3, padding=1)
    layer = QuantConv2d.from_float(conv, WIDTHS, "lsq", width_affine=True).double().eval()
    x, choice = random_tensor(4, 3, 8, 8, seed=5), one_hot([3, 0, 1, 2], 4)
    with torch.no_grad():
        layer.weight_quantizer.step.div_(7)
        layer.affine.gain.mul_(0.9)
        before = layer(x, choice)
    change(layer.get_parameter(which))
    with torch.no_grad():
        after = layer(x, choice)
    expected = layer(x, choice).detach()  # with gradients nothing is kept
    assert relative_error(after, expected) < 1e-12 < relative_error(after, before)


@pytest.mark.parametrize(
    ("quantizer", "buffer"),
    [("affine", "high"), ("fixed_point", "reach"), ("codebook", "centroids")],
)
def test_evaluation_notices_a_range_that_is_no_parameter(quantizer, buffer):
    layer = QuantConv2d.from_float(float_conv(3, 4, 3), (4,), quantizer).double().eval()
    x = random_tensor(4, 3, 8, 8, seed=5)
    with torch.no_grad():
        before = layer(x)
        getattr(layer.weight_quantizer, buffer).mul_(0.5)
        after = layer(x)
    expected = layer(x).detach()  # with gradients nothing is kept
    assert relative_error(after, expected) < 1e-12 < relative_error(after, before)


def test_a_weight_at_the_address_of_another_is_not_taken_for_it():
    layer = QuantConv2d(3, 8, 3, widths=(3,)).eval()
    x = torch.randn(1, 3, 8, 8)
    for _ in range(20):
        with torch.no_grad():
            layer(x)
            freed = torch.randn(8, 3, 3, 3)
            layer.weight.data = freed
            del freed
            layer.weight.data = torch.randn(8, 3, 3, 3)
            assert torch.equal(layer(x), QuantConv2d.from_float(layer, (3,))(x))


def test_evaluation_in_inference_mode_with_inference_parameters():
    with torch.inference_mode():
        layer = QuantConv2d(3, 8, 3, widths=(2, 4), width_affine=True).eval()
        x = torch.randn(2, 3, 8, 8)
        expected = layer.train()(x, torch.eye(2))
        assert torch.equal(layer.eval()(x, torch.eye(2)), expected)
        layer.weight.mul_(-1)
        assert not torch.equal(layer(x, torch.eye(2)), expected)


def test_what_evaluation_keeps_is_not_copied_nor_saved_nor_kept_for_training():
    layer = QuantConv2d(3, 8, 3, widths=(2, 4)).eval()
    fresh = len(pickle.dumps(layer))
    with torch.no_grad():
        layer(torch.randn(2, 3, 8, 8), torch.eye(2))
    kept = weakref.ref(layer._weights._kept[1][0])
    assert len(pickle.dumps(layer)) == fresh == len(pickle.dumps(copy.deepcopy(layer)))
    layer.train()
    assert kept() is None
