"""What one pass shows of a float model, against counts and signs known another way."""

import copy
import re

import pytest
import timm
import torch
from timm.layers import CondConv2d
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dqnet.trace import trace_model

FAMILIES = [
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "mobilenetv2_100",
    "efficientnet_b0",
    "regnetx_002",
    "regnety_002",
    "resnet20_cifar",
    "resnet110_cifar",
]


def create(name):
    return timm.create_model(name, num_classes=5)


def zeros(size=32, n=1):
    return torch.zeros(n, 3, size, size)


def signed_layers(model, size=32):
    return {name for name, layer in trace_model(model, zeros(size)).layers.items() if layer.signed}


def weighted_names(model):
    return [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


class OutOfOrder(nn.Module):
    """Runs its layers in another order than it declares them, one twice and one never."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 2)
        self.twice = nn.Conv2d(4, 4, 1)
        self.never = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()

    def forward(self, x):
        x = self.act(self.first(x))
        x = self.twice(self.act(self.twice(x)))
        return self.last(x.mean((2, 3)))


class Activated(nn.Module):
    """A second convolution that reads what ``act`` makes of the first one's normalised output."""

    def __init__(self, act):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = act
        self.conv2 = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.conv2(self.act(self.norm(self.conv1(x))))


def as_if_trained(model, scale, size=64):
    """All norm scales at ``scale``, and the running statistics that go with it."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.constant_(module.weight, scale)
            module.momentum = None
    with torch.no_grad():
        model.train()(torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0)))
    return model


@pytest.mark.parametrize("name", FAMILIES)
def test_macs_of_every_layer_equal_pytorchs_counter(name):
    model = create(name).eval()
    with torch.no_grad(), FlopCounterMode(display=False, depth=None) as counter:
        model(zeros(64))
    root = type(model).__name__
    expected = {
        layer: sum(counter.get_flop_counts()[f"{root}.{layer}"].values()) // 2
        for layer in weighted_names(model)
    }
    traced = trace_model(model, zeros(64)).layers
    assert {layer: t.macs for layer, t in traced.items()} == expected


class EveryKind(nn.Module):
    """Convolutions of every kind, some on patches that are folded into the batch."""

    def __init__(self):
        super().__init__()
        self.conv2d = nn.Conv2d(3, 8, 3, padding=1)
        self.on_patches = nn.Conv2d(8, 8, 3, stride=2, groups=2)
        self.fc_on_patches = nn.Linear(9, 8)
        self.up2d = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2)
        self.up3d = nn.ConvTranspose3d(6, 4, 3, stride=2)
        self.conv3d = nn.Conv3d(4, 2, 3)
        self.conv1d = nn.Conv1d(2, 5, 3, dilation=2)
        self.up1d = nn.ConvTranspose1d(5, 4, 2)
        self.table = nn.Linear(3, 4)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        n = len(x)
        x = self.conv2d(x)
        x = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
        x = self.fc_on_patches(self.on_patches(input=x).flatten(2))  # [N * 4, 8, 8]
        x = self.up2d(x.unflatten(0, (n, 4)).transpose(1, 2).flatten(3))
        x = self.conv3d(self.up3d(x[:, :, None, ::2, ::2]))
        x = self.up1d(self.conv1d(x.flatten(2)))
        return self.fc(input=x.mean(2) + self.table(torch.ones(1, 3)))


def test_macs_of_every_kind_of_convolution_equal_pytorchs_counter():
    model = EveryKind().eval()
    with torch.no_grad(), FlopCounterMode(display=False, depth=None) as counter:
        model(zeros(16))
    flops = counter.get_flop_counts()
    names = [name for name, _ in model.named_children()]
    expected = {name: sum(flops[f"EveryKind.{name}"].values()) // 2 for name in names}
    assert all(expected.values())
    for n in (1, 7):
        layers = trace_model(model, zeros(16, n)).layers
        assert {name: layer.macs for name, layer in layers.items()} == expected


def test_modules_with_weights_that_cannot_be_counted_are_listed():
    class Others(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(3, 8)
            self.norm = nn.LayerNorm((8, 8))
            self.bilinear = nn.Bilinear(8, 8, 4)
            self.attention = nn.MultiheadAttention(8, 2)
            self.condconv = CondConv2d(3, 3, 1)
            self.unused = nn.Bilinear(8, 8, 4)

        def forward(self, x):
            x = self.condconv(x, torch.ones(len(x), 4))
            x = self.norm(x).mean(1) + self.embedding(torch.tensor(0))
            return self.bilinear(x, self.attention(x, x, x)[0])

    assert trace_model(Others(), zeros(8)).uncounted == ["condconv", "attention", "bilinear"]


@pytest.mark.parametrize("n", [1, 7])
def test_macs_are_those_of_one_image(n):
    model = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, groups=1), nn.Conv2d(8, 8, 3, groups=4))
    macs = [layer.macs for layer in trace_model(model, zeros(11, n)).layers.values()]
    assert macs == [8 * 5 * 5 * 3 * 9, 8 * 3 * 3 * 2 * 9]


def test_a_linear_layer_on_tokens_counts_every_token():
    model = nn.Sequential(nn.Flatten(2), nn.Linear(64, 5))
    assert trace_model(model, zeros(8)).layers["1"].macs == 3 * 64 * 5


def test_layers_are_listed_in_execution_order():
    assert list(trace_model(OutOfOrder(), zeros()).layers) == ["first", "twice", "last"]


def test_a_layer_called_twice_costs_twice():
    layers = trace_model(OutOfOrder(), zeros(8)).layers
    assert layers["twice"].macs == 2 * 8 * 8 * 4 * 4


def test_a_module_has_finished_before_what_follows_it_starts():
    trace = trace_model(create("resnet18"), zeros())
    inside = [v.order for k, v in trace.layers.items() if k.startswith("layer1.")]
    assert max(inside) < trace.finished["layer1"] < trace.layers["layer2.0.conv1"].order


def test_shapes_are_those_of_the_outputs():
    shapes = trace_model(create("resnet18"), zeros(64)).shapes
    assert [tuple(shapes[f"layer{i}"][1:]) for i in (1, 2, 3, 4)] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]


@pytest.mark.parametrize(
    ("act", "signed"),
    [
        (nn.ReLU(), False),
        (nn.ReLU6(), False),
        (nn.Sigmoid(), False),
        (nn.SiLU(), True),
        (nn.Hardswish(), True),
        (nn.GELU(), True),
        (nn.Identity(), True),
    ],
)
def test_the_activation_decides_the_sign(act, signed):
    assert ("conv2" in signed_layers(Activated(act))) is signed


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet20_cifar", "resnet110_cifar"])
def test_resnets_see_negative_values_in_the_image_only(name):
    assert signed_layers(create(name)) == {"conv1"}


def test_mobilenetv2_sees_negative_values_behind_linear_bottlenecks_only():
    """The bottleneck's output has no ReLU6; it feeds every expansion and the last convolution."""
    names = weighted_names(create("mobilenetv2_100"))
    expansions = {n for n in names if re.fullmatch(r"blocks\.[1-6]\.\d+\.conv_pw", n)}
    expected = {"conv_stem", "conv_head"} | expansions
    assert signed_layers(create("mobilenetv2_100")) == expected


def test_regnety_squeezes_what_a_relu_gave():
    assert signed_layers(create("regnety_002")) == {"stem.conv"}


@pytest.mark.parametrize("seed", [4, 13, 30])
def test_efficientnet_sees_negative_values_everywhere(seed):
    """All its activations are SiLU; squeeze-and-excite layers see as few as 4 numbers an image."""
    torch.manual_seed(seed)
    model = create("efficientnet_b0")
    assert signed_layers(model, 64) == set(weighted_names(model))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "efficientnet_b0", "resnet20_cifar"])
@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0])
def test_signs_do_not_depend_on_how_far_the_model_is_trained(name, scale):
    """Otherwise a checkpoint would act differently loaded before and after conversion."""
    model = create(name)
    fresh = signed_layers(model)
    assert signed_layers(as_if_trained(model, scale)) == fresh


def test_a_zero_initialised_last_scale_hides_no_sign():
    model = Activated(nn.Identity())
    nn.init.zeros_(model.norm.weight)
    assert "conv2" in signed_layers(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_probe_does_not_overflow_in_half_precision(dtype):
    model = create("resnet110_cifar").to(dtype)
    largest = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(lambda m, a: largest.append(a[0].abs().max().item()))
    trace_model(model, zeros(16).to(dtype))
    assert max(largest) < 1e4


def test_the_sample_values_do_not_matter():
    model = create("resnet20_cifar")
    assert trace_model(model, zeros()) == trace_model(model, 100 * torch.randn(1, 3, 32, 32))


def half_frozen():
    model = create("resnet20_cifar").train()
    model.layer1.eval()
    model.conv1.weight.requires_grad_(False)
    return model


def snapshot(model):
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "modes": [m.training for m in model.modules()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    }


def same_state(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_the_model_is_left_as_it_was():
    model = half_frozen()
    before = snapshot(model)
    trace_model(model, zeros())
    after = snapshot(model)
    assert same_state(before.pop("state"), after.pop("state"))
    assert before == after


def test_the_model_is_left_as_it_was_after_an_error():
    model = half_frozen()

    def fail(module, args, output):
        raise RuntimeError("in the middle")

    handle = model.layer2.register_forward_hook(fail)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="in the middle"):
        trace_model(model, zeros())
    after = snapshot(model)
    handle.remove()
    assert same_state(before.pop("state"), after.pop("state"))
    assert before == after


def test_the_random_state_is_left_as_it_was():
    before = torch.get_rng_state()
    trace_model(create_without_drawing(), zeros())
    assert torch.equal(torch.get_rng_state(), before)


def create_without_drawing():
    with torch.random.fork_rng():
        return create("mobilenetv2_100")


def test_a_copy_gives_the_same_trace():
    model = create("efficientnet_b0")
    assert trace_model(copy.deepcopy(model), zeros()) == trace_model(model, zeros())
