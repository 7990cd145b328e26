"""Batch norms folded in training: the paper's formulas, gradients, gamma of zero, stale values."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from several import connected
from torch import nn

import dqnet
from dqnet.errors import UserError
from dqnet.layers import QuantConv2d, QuantLayer
from dqnet.layers.global_batch_norm import synchronize_batch_norms
from dqnet.quantizers import Quantizer

FORMS = ("corrected", "uncorrected")


class Exact(Quantizer):
    """Quantizes nothing, and keeps what it was given."""

    def forward(self, x, k):
        self.seen = x
        return x


class Rounded(Quantizer):
    """Multiples of 1/8 for the whole tensor; the gradient passes straight through."""

    def forward(self, x, k):
        return x + ((x * 8).round() / 8 - x).detach()


def float_net(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    )  # fmt: skip
    for norm in (net[1], net[4]):
        channels = norm.num_features
        norm.weight.data.copy_(torch.linspace(-0.5, 2, channels))
        norm.bias.data.normal_()
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 4)
    return net.double()


def images(count=5, size=9):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3)).double()


def convert(net, form=False, quantizer=(Rounded, Exact), **kwargs):
    kwargs = {"widths": (4,), "full_precision": ["8"]} | kwargs
    return dqnet.quantize(net, images(1), quantizer=quantizer, fold_batch_norm=form, **kwargs)


def folded_output(x, conv, norm, quantize):
    """y = conv(x, Q(W s)) + beta + (b - mu) s: what an integer network computes."""
    s = norm.weight / (norm.running_var + norm.eps).sqrt()
    bias = 0 if conv.bias is None else conv.bias
    shift = norm.bias + (bias - norm.running_mean) * s
    weight = quantize(conv.weight * s.view(-1, 1, 1, 1))
    return F.conv2d(x, weight, shift, groups=conv.groups)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_evaluation_is_the_folded_network(form):
    net = float_net()
    model = convert(copy.deepcopy(net), form).eval()
    x = images()

    def quantize(weight):
        return (weight * 8).round() / 8

    expected = folded_output(x, net[0], net[1], quantize).relu()
    expected = folded_output(expected, net[3], net[4], quantize).relu()
    expected = net[8](expected.mean((2, 3)))
    torch.testing.assert_close(model(x).logits, expected, rtol=1e-9, atol=1e-9)
    plain = convert(copy.deepcopy(net)).eval()
    assert (plain(x).logits - expected).abs().max() > 1e-3  # without folding it is another one


@pytest.mark.parametrize("form", FORMS)
def test_training_uses_the_batchs_statistics_behind_weights_with_the_chosen_ones(form):
    net = float_net()
    model = convert(copy.deepcopy(net), form).train()
    conv, norm = net[0], net[1]
    x = images()
    var = F.conv2d(x, conv.weight).var((0, 2, 3), correction=0)
    s = norm.weight / ((norm.running_var if form == "corrected" else var) + norm.eps).sqrt()
    s = s.view(-1, 1, 1, 1)
    y = F.conv2d(x, (conv.weight * s * 8).round() / 8 / s)
    running = norm.running_mean.clone(), norm.running_var.clone()
    expected = F.batch_norm(y, *running, norm.weight, norm.bias, training=True)
    seen = []
    model.backbone[1].register_forward_hook(lambda m, a, out: seen.append(out))
    model(x)
    torch.testing.assert_close(seen[0], expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.backbone[1].running_var, running[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_without_rounding_outputs_and_gradients_are_the_float_networks(form):
    net = float_net().train()
    model = convert(copy.deepcopy(net), form, (Exact, Exact)).train()
    x = images().requires_grad_()
    target = torch.randn(5, 2).double()
    expected = torch.autograd.grad((net(x) * target).sum(), [x, *net.parameters()])
    logits = model(x).logits
    torch.testing.assert_close(logits, float_net().train()(x), rtol=1e-9, atol=1e-9)
    own = [p for n, p in model.named_parameters() if "quantizer" not in n]
    grads = torch.autograd.grad((logits * target).sum(), [x, *own])
    for actual, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-8, atol=1e-10)


def test_the_gradient_to_gamma_is_the_papers():
    """Of gamma in conv(x, Q(W gamma/sigma_L)) sigma_L/sigma_B, with a straight-through Q."""
    net = float_net()
    conv, norm = net[0], net[1]
    model = convert(copy.deepcopy(net), "corrected").train()
    x, upstream = images(), torch.randn(5, 4, 7, 7).double()
    long_term = (norm.running_var + norm.eps).sqrt()
    seen = []
    model.backbone[1].register_forward_hook(lambda m, a, out: seen.append(out))
    model(x)
    (actual,) = torch.autograd.grad((seen[0] * upstream).sum(), model.backbone[1].weight)

    gamma = norm.weight.detach().clone().requires_grad_()
    scaled = conv.weight.detach() * (gamma / long_term).view(-1, 1, 1, 1)
    quantized = scaled + ((scaled * 8).round() / 8 - scaled).detach()
    y = F.conv2d(x, quantized)
    s = (gamma / long_term).view(-1, 1, 1)
    # the statistics are those of what the norm sees, conv(x, Q(W s) / s)
    u = y / s
    mean, var = u.mean((0, 2, 3), keepdim=True), u.var((0, 2, 3), correction=0, keepdim=True)
    expected_y = gamma.view(-1, 1, 1) * (u - mean) / (var + norm.eps).sqrt()
    (expected,) = torch.autograd.grad((expected_y * upstream).sum(), gamma)
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("quantizer", ["affine", "symmetric"])
@pytest.mark.parametrize("form", FORMS)
def test_ranges_for_each_channel_make_folding_an_identity(quantizer, form):
    """Q(W s) = Q(W) s if the range of a channel is its own; of "affine" for s above zero."""
    net = float_net()
    if quantizer == "affine":
        for norm in (net[1], net[4]):
            norm.weight.data.abs_()
    x, results = images(), []
    for way in (False, form):
        model = convert(copy.deepcopy(net), way, quantizer, widths=(3,))
        dqnet.calibrate(model, [x])
        results.append([model.train()(x).logits, model.eval()(x).logits])
    for plain, folded in zip(*results, strict=True):
        torch.testing.assert_close(folded, plain, rtol=1e-8, atol=1e-8)


def test_one_range_for_all_channels_is_that_of_the_folded_weight():
    net = float_net()
    options = ({"granularity": "per_tensor"}, {})
    model = convert(copy.deepcopy(net), "corrected", "symmetric", widths=(3,), options=options)
    dqnet.calibrate(model, [images()])
    s = net[1].weight / (net[1].running_var + net[1].eps).sqrt()
    largest = (net[0].weight * s.view(-1, 1, 1, 1)).abs().max()
    quantizer = model.backbone[0].weight_quantizer
    found = torch.maximum(quantizer.high, -quantizer.low).max()
    torch.testing.assert_close(found, largest)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("zeros", [[1], [0, 1, 2, 3]])
def test_gamma_of_zero_divides_nothing_by_zero(form, zeros):
    net = float_net()
    net[1].weight.data[zeros] = 0
    model = convert(net, form).train()
    norm, seen = model.backbone[1], []
    norm.register_forward_hook(lambda m, a, out: seen.append(out))
    model(images()).logits.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    norm.weight.grad = None
    model(images())
    (seen[-1] * torch.randn_like(seen[-1])).sum().backward()
    assert norm.weight.grad[zeros].abs().min() > 0  # so that it can become another number
    with torch.no_grad():
        model.eval()(images())
    expected = norm.bias.detach()[zeros].view(-1, 1, 1).expand(5, len(zeros), 7, 7)
    torch.testing.assert_close(seen[-1][:, zeros], expected, rtol=1e-12, atol=1e-12)


def test_a_channel_with_gamma_of_zero_widens_no_range():
    net = float_net()
    net[1].weight.data[1] = 0
    net[0].weight.data[1] *= 3
    model = convert(net, "corrected", (Exact, Exact)).eval()
    model(images())
    seen = model.backbone[0].weight_quantizer.seen.detach().abs().flatten(1).amax(1)
    assert (seen == 0).tolist() == [False, True, False, False]


@torch.no_grad()
def test_evaluation_notices_changed_statistics():
    model = convert(float_net(), "corrected").eval()
    x = images()
    first = model(x).logits
    for change in (lambda n: n.running_var.mul_(3), lambda n: n.weight.mul_(1.3)):
        change(model.backbone[1])
        again = model(x).logits
        fresh = convert(float_net(), "corrected").eval()
        fresh.load_state_dict(model.state_dict())
        assert torch.equal(again, fresh(x).logits)
        assert not torch.equal(again, first)
        first = again


def test_names_in_the_state_dict_stay_and_copies_are_their_own():
    plain, model = convert(float_net()), convert(float_net(), "corrected")
    assert list(model.state_dict()) == list(plain.state_dict())
    assert len(list(model.parameters())) == len(list(plain.parameters()))
    other = copy.deepcopy(model)
    assert other.backbone[0].following.norm is other.backbone[1]
    assert other.backbone[0].following.norm is not model.backbone[1]


def test_routed_layers_fold_at_every_width():
    model = convert(float_net(), "corrected", widths=(2, 4), shared_until=None,
                    controller=dqnet.ControllerConfig(kind="separate"))  # fmt: skip
    layer = model.backbone[3]
    s = layer.norm_scale()
    for weight in layer.quantized_weights():
        torch.testing.assert_close(weight * s, (layer.weight * s * 8).round() / 8)
    logits, _ = model.train()(images(8))
    logits.sum().backward()
    assert model.backbone[4].weight.grad.isfinite().all()


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm, self.own = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.c = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        y = self.norm(self.a(x)) + self.norm(self.b(x))
        return self.c(y).mean((2, 3))


def test_a_shared_batch_norm_is_refused():
    with pytest.raises(UserError, match=r"^fold_batch_norm: batch norm 'norm' is shared by 'a' an"):
        dqnet.quantize(
            Shared(), torch.zeros(1, 3, 9, 9), widths=(4,), quantizer="lsq", first_last=8,
            fold_batch_norm="corrected",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("form", "quantizer", "message"),
    [
        ("correct", "lsq", r"unknown fold_batch_norm 'correct'; did you mean 'corrected'"),
        (True, "lsq", r"unknown fold_batch_norm 'True'; valid: corrected, uncorrected"),
        ("corrected", "dorefa", "DoReFaWeight brings every weight to a scale of its own"),
        ("corrected", "codebook", "CodebookWeight assigns weights to clusters once"),
        ("corrected", "pact", "DoReFaWeight brings every weight to a scale of its own"),
    ],
)
def test_what_cannot_be_folded_is_refused(form, quantizer, message):
    net = float_net()
    with pytest.raises(UserError, match=message):
        convert(net, form, quantizer)
    assert not any(isinstance(m, QuantLayer) for m in net.modules())


def test_a_network_without_norms_is_refused_and_one_with_others_warns():
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()).double()
    with pytest.raises(UserError, match="no quantized layer has a batch norm of its own behind it"):
        convert(bare, "corrected", full_precision=[])
    net = float_net()
    net[2] = nn.BatchNorm2d(4).double()
    with pytest.warns(UserWarning, match=r"batch norm '2' is not folded: it follows BatchNorm2d"):
        convert(net, "corrected", first_last=8, full_precision=None)


def test_a_norm_that_was_replaced_is_refused():
    model = convert(float_net(), "corrected")
    model.backbone[1] = nn.BatchNorm2d(4).double()
    with pytest.raises(UserError, match=r"batch norm that is folded into layer '0' was replaced"):
        _ = model.plan


def test_norms_over_all_processes_are_the_ones_that_are_folded():
    model = convert(float_net(), "corrected")
    synchronize_batch_norms(model, torch.device("cpu"))
    assert model.backbone[0].following.norm is model.backbone[1]
    assert model.backbone[3].following.norm is model.backbone[4]


def test_several_processes_train_as_one():
    x = images(8)

    def body(rank):
        model = convert(float_net(), "corrected", (Rounded, Exact)).train()
        synchronize_batch_norms(model, torch.device("cpu"))
        for _ in range(2):
            model(x[rank::2])
        return model.backbone[1].running_var

    alone = convert(float_net(), "corrected").train()
    for _ in range(2):
        alone(x)
    for found in connected(body):
        torch.testing.assert_close(found, alone.backbone[1].running_var, rtol=1e-9, atol=1e-9)


def test_depthwise_networks_of_timm_fold_and_train():
    torch.manual_seed(0)
    net = timm.create_model("mobilenetv2_050_cifar")
    model = dqnet.quantize(
        net, torch.zeros(1, 3, 32, 32), widths=(8,), quantizer="affine", fold_batch_norm="corrected"
    )
    layers = [m for m in model.modules() if isinstance(m, QuantConv2d)]
    assert all(layer.following is not None for layer in layers)
    model.train()(torch.randn(4, 3, 32, 32)).logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
