"""Which layer becomes what, for every family of backbones, and what conversion refuses."""

import fnmatch

import numpy as np
import pytest
import timm
import torch
import torch.nn.utils.prune
from timm.layers import CondConv2d, ScaledStdConv2d
from torch import nn

import dqnet
from dqnet import ControllerConfig, UserError
from dqnet.layers import QuantConv2d, QuantLayer, QuantLinear

# name: (first convolution, classifier, modules up to the split point, routed layers).
# The last is counted from the papers' tables: e.g. 3 convolutions in each of the 4 + 6 + 3
# bottlenecks behind ResNet-50's first stage.
FAMILIES = {
    "resnet18": ("conv1", "fc", ["layer1.*"], 2 * (2 + 2 + 2)),
    "resnet34": ("conv1", "fc", ["layer1.*"], 2 * (4 + 6 + 3)),
    "resnet50": ("conv1", "fc", ["layer1.*"], 3 * (4 + 6 + 3)),
    "resnet101": ("conv1", "fc", ["layer1.*"], 3 * (4 + 23 + 3)),
    # inverted residuals 2, 3, 4, 3, 3, 1 times, and the last convolution
    "mobilenetv2_100": (
        "conv_stem",
        "classifier",
        ["blocks.0.*"],
        3 * (2 + 3 + 4 + 3 + 3 + 1) + 1,
    ),
    # with two squeeze-and-excite layers each, 2, 2, 3, 3, 4, 1 times
    "efficientnet_b0": (
        "conv_stem",
        "classifier",
        ["blocks.0.*"],
        5 * (2 + 2 + 3 + 3 + 4 + 1) + 1,
    ),
    # 1, 1, 4, 7 blocks
    "regnetx_002": ("stem.conv", "head.fc", ["s1.*"], 3 * (1 + 4 + 7)),
    "regnety_002": ("stem.conv", "head.fc", ["s1.*"], 5 * (1 + 4 + 7)),
    "resnet20_cifar": ("conv1", "linear", ["layer1.*"], 2 * (3 + 3)),
    "resnet110_cifar": ("conv1", "linear", ["layer1.*"], 2 * (18 + 18)),
}
#: a last scale of zero gives the layers before it, and so the controller, no gradient at all
ZERO_INIT = ("resnet18", "resnet34", "resnet50", "resnet101", "regnetx_002", "regnety_002")
SIZE = 32


def create(name, **kwargs):
    if name in ZERO_INIT:
        kwargs["zero_init_last"] = False
    return timm.create_model(name, num_classes=5, **kwargs)


def images(n=3, size=SIZE):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """A family's name, its float parameters and modules by name, and the converted model."""
    torch.manual_seed(0)
    model = create(request.param)
    parameters = dict(model.named_parameters())
    weighted = [n for n, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    converted = dqnet.quantize(model, torch.zeros(1, 3, SIZE, SIZE), (2, 3, 4))
    return request.param, parameters, weighted, converted


class Net(nn.Module):
    """Declares its layers in another order than it runs them."""

    def __init__(self, conv=nn.Conv2d):
        super().__init__()
        self.fc2 = nn.Linear(6, 3)
        self.fc1 = nn.Linear(8, 6)
        self.late = conv(8, 8, 3, padding=1)
        self.early = nn.Conv2d(4, 8, 3, padding=1)
        self.shortcut = nn.Conv2d(4, 8, 1)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU()
        self.unused = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.act(self.early(x)) + self.shortcut(x)
        x = self.act(self.late(x)).mean((2, 3))
        return self.fc2(self.act(self.fc1(x)))


def convert(model=None, widths=(2, 3, 4), shared_until="act", **kwargs):
    sample = torch.zeros(1, 3, 8, 8)
    return dqnet.quantize(model or Net(), sample, widths, shared_until=shared_until, **kwargs)


def roles(model):
    return {layer.name: layer.role for layer in model.layers}


def named(model, role):
    return [layer.name for layer in model.layers if layer.role == role]


# Every family


def test_first_convolution_and_classifier_stay_in_full_precision(family):
    name, _, _, model = family
    assert named(model, "full") == list(FAMILIES[name][:2])


def test_shared_layers_and_shortcut_projections_are_static(family):
    name, _, weighted, model = family
    expected = [
        layer
        for layer in weighted
        if "downsample" in layer or any(fnmatch.fnmatch(layer, p) for p in FAMILIES[name][2])
    ]
    assert named(model, "static") == expected


def test_the_rest_is_routed_in_execution_order(family):
    """These backbones declare their layers in the order in which they run them."""
    name, _, weighted, model = family
    kept = {*named(model, "full"), *named(model, "static")}
    assert named(model, "routed") == [layer for layer in weighted if layer not in kept]
    assert len(model.routed_layers) == FAMILIES[name][3]


def test_layers_have_the_widths_of_their_role(family):
    model = family[3]
    widths = {"full": (), "static": (3,), "routed": (2, 3, 4)}
    assert all(layer.widths == widths[layer.role] for layer in model.layers)


def test_modules_are_swapped_according_to_their_role(family):
    model = family[3]
    for layer in model.layers:
        module = model.backbone.get_submodule(layer.name)
        if layer.role == "full":
            assert not isinstance(module, (QuantConv2d, QuantLinear)), layer.name
        else:
            assert isinstance(module, QuantConv2d) and module.widths == layer.widths, layer.name


def test_the_backbone_holds_the_float_models_own_parameters(family):
    _, parameters, _, model = family
    own = dict(model.backbone.named_parameters())
    own = {name: p for name, p in own.items() if ".affine." not in name}
    assert own.keys() == parameters.keys()
    assert all(own[name] is parameters[name] for name in parameters)


def test_a_training_step_reaches_the_controller_and_every_weight(family):
    model = family[3].train()
    model.zero_grad()
    torch.manual_seed(0)
    logits, routing = model(images())
    logits.square().mean().backward()
    assert logits.shape == (3, 5) and routing.shape == (3, len(model.routed_layers), 3)
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert model.controller.fc1.weight.grad.abs().sum() > 0
    for layer in model.routed_layers:
        assert model.backbone.get_submodule(layer.name).weight.grad.any(), layer.name


def test_training_draws_a_routing_of_its_own_for_every_image(family):
    model = family[3].train()
    torch.manual_seed(0)
    with torch.no_grad():
        routing = model(images()).routing
    assert (routing.sum(-1) == 1).all()
    assert not torch.equal(routing[0], routing[1])


def test_evaluation_is_deterministic(family):
    model = family[3].eval()
    with torch.no_grad():
        torch.manual_seed(1)
        first = model(images())
        torch.manual_seed(2)
        second = model(images())
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.routing, second.routing)


# Roles on a small network


def test_execution_order_counts_not_the_order_of_declaration():
    assert [layer.name for layer in convert().layers] == [
        "stem",
        "early",
        "shortcut",
        "late",
        "fc1",
        "fc2",
    ]


def test_roles_of_a_small_network():
    assert roles(convert()) == {
        "stem": "full",
        "early": "routed",
        "shortcut": "static",
        "late": "routed",
        "fc1": "static",  # fully connected layers always are
        "fc2": "full",
    }


def test_layers_before_the_split_points_first_output_are_shared():
    """``act`` is called four times; its first output is the split."""
    assert named(convert(shared_until="early"), "routed") == ["late"]


def test_a_layer_that_never_ran_stays_as_it_was():
    model = convert()
    assert "unused" not in roles(model)
    assert type(model.backbone.unused) is nn.Conv2d


def test_one_width_makes_every_other_layer_static_at_it():
    model = convert(widths=(5,))
    assert model.controller is None and model.split_point is None
    assert named(model, "routed") == []
    assert {layer.widths for layer in model.layers if layer.role == "static"} == {(5,)}


@pytest.mark.parametrize(
    ("widths", "static_width", "expected"),
    [((2, 3, 4), None, 3), ((2, 4), None, 4), ((2, 3, 4, 5), None, 4), ((2, 3, 4), 8, 8)],
)
def test_static_width(widths, static_width, expected):
    model = convert(widths=widths, static_width=static_width)
    assert {layer.widths for layer in model.layers if layer.role == "static"} == {(expected,)}


def test_full_precision_patterns_replace_the_default():
    model = convert(full_precision=["*c1", "late"])
    assert named(model, "full") == ["late", "fc1"]
    assert roles(model)["stem"] == "static" and roles(model)["fc2"] == "static"


def test_no_full_precision_pattern_quantizes_every_layer():
    assert named(convert(full_precision=[]), "full") == []


def test_static_patterns_replace_the_default():
    model = convert(static=["late"])
    assert named(model, "static") == ["late", "fc1"]
    assert named(model, "routed") == ["early", "shortcut"]


def test_full_precision_goes_before_static():
    assert roles(convert(static=["late"], full_precision=["late"]))["late"] == "full"


def test_the_default_static_patterns_may_match_nothing():
    model = dqnet.quantize(timm.create_model("resnet20_cifar"), images(1))
    assert not [layer for layer in named(model, "static") if "layer1" not in layer]


def test_the_separate_controller_shares_nothing():
    model = dqnet.quantize(
        create("resnet20_cifar"), images(1), controller=ControllerConfig(kind="separate")
    )
    names = [layer.name for layer in model.layers]
    assert model.split_point is None
    assert named(model, "routed") == names[1:-1] and len(names) == 20


def test_the_separate_controller_routes_and_learns():
    model = dqnet.quantize(
        create("resnet20_cifar"), images(1), controller=ControllerConfig(kind="separate")
    )
    model(images()).logits.square().mean().backward()
    assert model.controller.body[0].weight.grad.abs().sum() > 0


def test_a_module_with_two_names_is_swapped_under_both():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.a = nn.Conv2d(4, 4, 1)
            self.b = self.a
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.b(self.a(self.stem(x))).mean((2, 3)))

    model = convert(Tied(), widths=(2,), shared_until="auto")
    assert isinstance(model.backbone.a, QuantConv2d)
    assert model.backbone.b is model.backbone.a


def test_the_training_mode_is_kept():
    model = Net().eval()
    assert not any(module.training for module in convert(model).backbone.modules())


def test_conversion_twice_gives_the_same_layers():
    assert convert().layers == convert().layers


@pytest.mark.parametrize("quantizer", ["dorefa", "pact", "lsq"])
def test_signs_of_inputs_reach_the_quantizers(quantizer):
    """``late`` reads the sum of a ReLU and a projection without one."""
    backbone = convert(full_precision=["fc2"], quantizer=quantizer).backbone
    layers = {n: m for n, m in backbone.named_modules() if isinstance(m, QuantLayer)}
    assert all(layer.weight_quantizer.signed for layer in layers.values())
    signs = {name: layer.input_quantizer.signed for name, layer in layers.items()}
    assert signs == {"stem": True, "early": False, "shortcut": False, "late": True, "fc1": False}


def test_options_reach_the_quantizers():
    backbone = convert(quantizer="pact", options={"alpha_init": 2.5}).backbone
    layers = [backbone.get_submodule(name) for name in ("early", "fc1")]
    assert [layer.input_quantizer.alpha.item() for layer in layers] == [2.5] * 2


# Errors


@pytest.mark.parametrize("kind", ["full_precision", "static"])
def test_a_pattern_that_matches_nothing_names_the_nearest(kind):
    with pytest.raises(UserError, match=f"unknown {kind} layer 'erly'; did you mean 'early'"):
        convert(**{kind: ["late", "erly"]})


def test_an_unknown_split_point_names_the_nearest():
    with pytest.raises(UserError, match="unknown split point 'layr1'; did you mean 'layer1'"):
        dqnet.quantize(create("resnet20_cifar"), images(1), shared_until="layr1")


def test_an_empty_split_point_is_unknown():
    with pytest.raises(UserError, match="unknown split point ''"):
        convert(shared_until="")


def test_a_split_point_that_leaves_nothing_to_route():
    with pytest.raises(UserError, match="'layer3' leaves nothing to route"):
        dqnet.quantize(create("resnet20_cifar"), images(1), shared_until="layer3")


def test_a_split_point_that_returns_a_vector():
    with pytest.raises(UserError, match=r"'fc1' returns shape .*feature maps"):
        convert(shared_until="fc1")


def test_a_split_point_that_never_ran():
    with pytest.raises(UserError, match="'unused' never returned a tensor"):
        convert(shared_until="unused")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18d", "layer1"),
        ("resnet20_cifar", "layer1"),
        ("regnetx_002", "s1"),
        ("vgg13_bn", "features.12"),  # the second pooling: VGG lists no stages, but their ends
        ("mobilenetv2_100", "blocks.0"),
        ("mobilenetv3_small_100", "blocks.0"),
        ("convnext_atto", "stages.0"),
        ("mobileone_s0", "stages.0"),
        ("densenet121", "features.denseblock1"),
    ],
)
def test_the_split_point_is_the_end_of_the_first_stage(name, expected):
    net = timm.create_model(name, num_classes=5)
    assert dqnet.quantize(net, torch.zeros(1, 3, 64, 64)).split_point == expected


@pytest.mark.parametrize("name", ["hrnet_w18_small", "selecsls42"])
def test_a_listed_stage_that_cannot_be_the_split_point_is_not_blamed_on_the_user(name):
    with pytest.raises(UserError, match="lists it as its first stage, so name another with shared"):
        dqnet.quantize(timm.create_model(name), torch.zeros(1, 3, 64, 64))


def test_a_model_without_listed_stages_needs_a_split_point():
    with pytest.raises(UserError, match="name the last shared module with shared_until"):
        convert(shared_until="auto")


def test_the_shared_controller_needs_a_split_point():
    with pytest.raises(UserError, match="name it in shared_until"):
        convert(shared_until=None)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ([], "widths is empty"),
        ([0, 2], "width 0 is out of range; valid: 1 to 16"),
        ([4, 17], "width 17 is out of range"),
        ([4, 32], "full precision, which is the unconverted model"),
        ([2.5, 3], "2.5 is not an integer"),
        ([True, 3], "True is not an integer"),
        ([3, 2], r"e.g. \(2, 3\)"),
        ([2, 2, 3], r"e.g. \(2, 3\)"),
    ],
)
def test_bad_widths(widths, message):
    with pytest.raises(UserError, match=message):
        convert(widths=widths)


@pytest.mark.parametrize("width", [0, 17, 2.5])
def test_bad_static_width(width):
    with pytest.raises(UserError, match=f"width {width} is"):
        convert(static_width=width)


def test_an_unknown_quantizer_names_the_nearest():
    with pytest.raises(UserError, match="unknown quantizer 'dorfa'; did you mean 'dorefa'"):
        convert(quantizer="dorfa")


def test_a_bad_controller_setting():
    with pytest.raises(UserError, match="unknown controller pool"):
        convert(controller=ControllerConfig(pool="max"))


def test_a_convolution_that_computes_something_else_is_refused():
    with pytest.raises(UserError, match=r"'late' is a ScaledStdConv2d.*full_precision=.*'late'"):
        convert(Net(ScaledStdConv2d))


def test_a_convolution_that_computes_something_else_may_stay():
    model = convert(Net(ScaledStdConv2d), full_precision=["stem", "fc2", "late"])
    assert type(model.backbone.late) is ScaledStdConv2d


def test_nothing_left_to_quantize():
    with pytest.raises(UserError, match="full_precision matches every one"):
        convert(widths=(3,), full_precision=["*"])


@pytest.mark.parametrize(
    "mistake",
    [{"full_precision": ["none"]}, {"shared_until": "fc1"}, {"controller": ControllerConfig("x")}],
)
def test_a_refused_conversion_leaves_the_model_as_it_was(mistake):
    model = Net()
    with pytest.raises(UserError):
        convert(model, **mistake)
    assert [type(m) for m in model.modules()] == [type(m) for m in Net().modules()]


@pytest.mark.parametrize("widths", [(3,), (2, 3)])
def test_a_misspelt_split_point_is_refused_in_static_networks_too(widths):
    with pytest.raises(UserError, match="unknown split point 'actt'; did you mean 'act'"):
        convert(widths=widths, shared_until="actt")


def test_an_option_that_the_quantizer_does_not_take_is_refused_by_name():
    with pytest.raises(
        UserError,
        match="unknown option of DoReFaWeight and PACT 'alpha'; did you mean 'alpha_init'",
    ):
        convert(quantizer="pact", options={"alpha": 1.0})


def test_a_single_pattern_may_be_a_string():
    one, many = convert(static="late"), convert(static=["late"])
    assert one.layers == many.layers
    assert [layer.role for layer in one.layers if layer.name == "late"] == ["static"]


def test_converting_twice_is_refused():
    with pytest.raises(UserError, match="already converted"):
        dqnet.quantize(convert().backbone, torch.zeros(1, 3, 8, 8))


def test_the_separate_controller_reads_the_image_whatever_the_split_point():
    model = convert(shared_until="act", controller=ControllerConfig(kind="separate"))
    assert model.split_point is None and model.controller.input_shape[0] == 3


# What is counted, and what stays in full precision


def test_convolutions_that_are_not_2d_are_counted_and_left_as_they_are():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 2, 2),
        nn.Flatten(2), nn.AdaptiveAvgPool1d(9), nn.Conv1d(4, 2, 3), nn.Flatten(), nn.Linear(14, 5),
        nn.Unflatten(1, (5, 1)), nn.ConvTranspose1d(5, 5, 1),
    )  # fmt: skip
    model = convert(net, widths=(3,), shared_until=None)
    assert roles(model) == {
        "0": "full", "2": "static", "3": "full", "6": "full", "8": "full", "10": "full",
    }  # fmt: skip
    macs = {layer.name: layer.macs for layer in model.layers}
    assert macs["3"] == 64 * 4 * 4 * 4 and macs["6"] == 7 * 2 * 4 * 3
    full = sum(macs.values()) - macs["2"]
    cost = dqnet.bit_flops(model, model(images(2, 8)).routing, full_precision=True)
    assert cost.tolist() == 2 * [9 * macs["2"] + 1024 * full]


def test_what_cannot_be_counted_is_named_once():
    class Mixed(Net):
        def __init__(self):
            super().__init__()
            self.mixed = CondConv2d(3, 3, 1)

        def forward(self, x):
            return super().forward(self.mixed(x, torch.ones(len(x), 4)))

    with pytest.warns(UserWarning, match="Bit-FLOPs leave out what mixed multiply") as found:
        convert(Mixed())
    assert len(found) == 1


@pytest.mark.parametrize("name", ["mobileone_s0", "repvgg_a0", "fastvit_t8"])
def test_every_convolution_that_reads_the_image_stays_in_full_precision(name):
    net = timm.create_model(name, num_classes=5)
    convs = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d)]
    linear = [n for n, m in net.named_modules() if isinstance(m, nn.Linear)]
    readers = [n for n in convs if net.get_submodule(n).weight.shape[1] == 3]
    assert len(readers) > 1
    model = dqnet.quantize(net, torch.zeros(1, 3, 32, 32), widths=(3,))
    assert set(named(model, "full")) == {*readers, linear[-1]}


# What a model may be, and how it may call its layers


def held_in_a_list(container):
    class Listed(Net):
        def __init__(self):
            super().__init__()
            self.held = container([self.early, self.late])

        def forward(self, x):
            first, last = self.held.values() if isinstance(self.held, dict) else self.held
            x = self.act(self.stem(x))
            return self.fc2(self.act(self.fc1(self.act(last(self.act(first(x)))).mean((2, 3)))))

    return Listed()


@pytest.mark.parametrize("container", [list, lambda layers: dict(enumerate(layers))])
def test_a_layer_that_a_plain_list_holds_too_is_swapped_there(container):
    model = convert(held_in_a_list(container), widths=(1,)).eval()
    ran = []
    for name in ("early", "late"):
        layer = model.backbone.get_submodule(name)
        layer.register_forward_hook(lambda m, *rest: ran.append(m))
    model(images(2, 8))
    assert [type(m) for m in ran] == [QuantConv2d] * 2


def test_hooks_of_a_layer_go_on_with_its_quantized_form():
    net, calls = Net(), []
    forward = net.late.register_forward_hook(lambda m, args, out: calls.append("forward"))
    net.late.register_forward_pre_hook(lambda m, a, k: calls.append("before"), with_kwargs=True)
    net.fc1.register_full_backward_hook(lambda *args: calls.append("backward"))
    model = convert(net)
    calls.clear()
    model(images(2, 8)).logits.sum().backward()
    assert calls == ["before", "forward", "backward"]
    forward.remove()
    model(images(2, 8))
    assert calls[3:] == ["before"]


def test_layers_may_be_called_with_their_input_by_name():
    class Named(Net):
        def forward(self, x):
            x = self.act(self.stem(input=x))
            x = self.act(self.late(input=self.act(self.early(input=x)))).mean((2, 3))
            return self.fc2(input=self.act(self.fc1(input=x)))

    assert convert(Named())(images(2, 8)).logits.shape == (2, 3)


def test_a_model_may_have_parameters_of_any_number_of_axes():
    net = Net()
    net.volume = nn.Parameter(torch.zeros(1, 1, 1, 1, 1))
    weight = convert(net).backbone.late.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "change",
    [
        nn.utils.weight_norm,
        nn.utils.spectral_norm,
        lambda conv: nn.utils.prune.l1_unstructured(conv, "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_a_layer_that_computes_its_weight_is_refused_or_stays(change):
    net = Net()
    change(net.late)
    with pytest.raises(UserError, match=r"'late' computes its weight.*full_precision=.*'late'"):
        convert(net)
    assert type(net.early) is nn.Conv2d
    model = convert(net, full_precision=["stem", "fc2", "late"])
    assert model(images(2, 8)).logits.shape == (2, 3)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("resnet18", "the model is a str; it must be an nn.Module"),
        (nn.Conv2d(3, 4, 1), "single layer; convert it with QuantConv2d.from_float"),
        (nn.DataParallel(Net()), "convert what is in the DataParallel: its .module"),
    ],
)
def test_what_is_no_float_network_is_refused(model, message):
    with pytest.raises(UserError, match=message):
        convert(model)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        ((1, 3, 8, 8), "sample_input is a tuple; give a tensor"),
        (torch.zeros(3, 8, 8), r"must be images \[N, C, H, W\].* not torch.float32 \[3, 8, 8\]"),
        (torch.zeros(1, 3, 8, 8).byte(), "of floating point, not torch.uint8"),
        (torch.zeros(1, 1, 8, 8), r"does not run on .* \[1, 1, 8, 8\]: .*channels"),
        (torch.zeros(1, 3, 8, 8).double(), "does not run on the sample_input, torch.float64"),
    ],
)
def test_a_sample_that_the_model_does_not_take_is_refused(sample, message):
    with pytest.raises(UserError, match=message) as error:
        dqnet.quantize(Net(), sample, shared_until="act")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"controller": {"hidden": 3}}, "is not a dqnet.ControllerConfig"),
        ({"controller": "separate"}, "'separate' is not a dqnet.ControllerConfig"),
        ({"controller": ControllerConfig(hidden=2.5)}, "hidden 2.5 must be at least 1, an integer"),
        ({"quantizer": QuantConv2d}, "is neither a name .*dorefa.* nor a subclass of Quantizer"),
        ({"quantizer": None}, "quantizer None is neither a name"),
        ({"shared_until": nn.ReLU()}, "shared_until is a ReLU; give the module's name"),
        ({"choice_gradient": None}, "unknown choice_gradient None"),
        ({"gradient_bits": 0}, "gradient_bits 0 must be an integer from 1 to 16, or none"),
        ({"gradient_bits": 2.5}, r"gradient_bits 2\.5 must be an integer"),
        ({"winograd": 4}, r"winograd 4 is not a dqnet.layers.Winograd, e.g. Winograd\(4\)"),
        ({"widths": (3,), "static_width": 5}, r"static_width 5 does nothing with widths \(3,\)"),
    ],
)
def test_an_argument_of_another_type_is_refused(argument, message):
    with pytest.raises(UserError, match=message):
        convert(**argument)


@pytest.mark.parametrize(
    "widths", [np.array([2, 3]), [np.int64(2), np.int8(3)], torch.arange(2, 4)]
)
def test_widths_may_be_numpys(widths):
    assert convert(widths=widths).widths == (2, 3)


def test_one_width_may_be_named_twice():
    assert convert(widths=(3,), static_width=3).widths == (3,)
