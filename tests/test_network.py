"""A converted network against the same network written out, and its state dicts."""

import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

import dqnet
from dqnet import ControllerConfig, UserError
from dqnet.costs import cost_table

WIDTHS = (2, 3, 4)
QUANTIZERS = ("dorefa", "pact", "lsq")


class Tiny(nn.Module):
    """A stem, a shared stage, and two routed convolutions with a residual around them."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.stage = nn.Conv2d(6, 8, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.ReLU()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.fc = nn.Linear(8, 5)
        self.stem_act, self.act1, self.act2 = nn.ReLU(), nn.ReLU(), nn.ReLU()

    def forward(self, x):
        x = self.act(self.norm(self.stage(self.stem_act(self.stem(x)))))
        y = self.conv2(self.act1(self.conv1(x)))
        return self.fc(self.act2(x + y).mean((2, 3)))


def images(n=4, size=8, seed=0):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def tiny(seed=0, **kwargs):
    torch.manual_seed(seed)
    kwargs = {"widths": WIDTHS, "shared_until": "act"} | kwargs
    return dqnet.quantize(Tiny(), images(1), **kwargs)


def resnet20(seed=0, **kwargs):
    torch.manual_seed(seed)
    model = timm.create_model("resnet20_cifar")
    return dqnet.quantize(model, images(1, 32), **{"widths": WIDTHS} | kwargs)


def some_routing(model, n, seed=0, dtype=torch.float32):
    shape = n, len(model.routed_layers)
    columns = torch.randint(len(model.widths), shape, generator=torch.Generator().manual_seed(seed))
    return F.one_hot(columns, len(model.widths)).to(dtype)


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# The written-out forward pass, in float64


def dorefa_weight(weight, width):
    """DoReFa, eq. 9."""
    levels = 2**width - 1
    squashed = torch.tanh(weight)
    unit = squashed / (2 * squashed.abs().max()) + 0.5
    return 2 * torch.round(unit * levels) / levels - 1


def dorefa_conv(x, weight, width, bias=None, **geometry):
    """DoReFa, eqs. 9 and 10; one image or a batch at one width."""
    levels = 2**width - 1
    x = torch.round(x.clamp(0, 1) * levels) / levels
    return F.conv2d(x, dorefa_weight(weight, width), bias, **geometry)


def static(x, state, name, width, **geometry):
    return dorefa_conv(x, state[f"{name}.weight"], width, **geometry)


def routed(x, state, name, width, **geometry):
    """A routed layer: the scale and the offset of its width behind the convolution."""
    k = WIDTHS.index(width)
    gain, shift = (state[f"{name}.affine.{key}"][k].view(-1, 1, 1) for key in ("gain", "shift"))
    norms = [dorefa_weight(state[f"{name}.weight"], w).norm() for w in (WIDTHS[-1], width)]
    gain = gain * norms[0] / norms[1]
    y = gain * dorefa_conv(x, state[f"{name}.weight"], width, **geometry) + shift
    return y + state[f"{name}.bias"].view(-1, 1, 1) if f"{name}.bias" in state else y


def normalise(x, state, name):
    def channels(key):
        return state[f"{name}.{key}"].view(1, -1, 1, 1)

    unit = (x - channels("running_mean")) / torch.sqrt(channels("running_var") + 1e-5)
    return unit * channels("weight") + channels("bias")


def written_out_tiny(state, x, widths):
    """One image ``[1, 3, H, W]`` at the widths of its two routed layers."""
    x = F.conv2d(x, state["stem.weight"], state["stem.bias"], padding=1).relu()
    x = dorefa_conv(x, state["stage.weight"], 3, stride=2, padding=1)
    x = normalise(x, state, "norm").relu()
    y = routed(x, state, "conv1", widths[0], padding=1).relu()
    y = routed(y, state, "conv2", widths[1], padding=1, groups=2)
    return (x + y).relu().mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def written_out_resnet20(state, x, widths):
    widths = [3] * 6 + list(widths)
    x = F.conv2d(x, state["conv1.weight"], padding=1)
    x = normalise(x, state, "bn1").relu()
    for stage in (1, 2, 3):
        for block in (0, 1, 2):
            name = f"layer{stage}.{block}"
            halved = stage > 1 and block == 0
            layer = static if stage == 1 else routed
            stride = 2 if halved else 1
            y = layer(x, state, f"{name}.conv1", widths.pop(0), stride=stride, padding=1)
            y = normalise(y, state, f"{name}.bn1").relu()
            y = layer(y, state, f"{name}.conv2", widths.pop(0), padding=1)
            y = normalise(y, state, f"{name}.bn2")
            if halved:
                x = x[:, :, ::2, ::2]
                zeros = torch.zeros_like(x[:, : x.shape[1] // 2])
                x = torch.cat((zeros, x, zeros), 1)
            x = (x + y).relu()
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


def with_statistics(model, size):
    """Batch norms that are not the identity: statistics of data, random scales and shifts."""
    generator = torch.Generator().manual_seed(7)
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.uniform_(-0.2, 0.5, generator=generator)
    with torch.no_grad():
        for step in range(3):
            model.train()(images(8, size, seed=step))
    return model.eval()


@pytest.mark.parametrize(
    ("model", "written_out", "size"),
    [(tiny, written_out_tiny, 8), (resnet20, written_out_resnet20, 16)],
    ids=["tiny", "resnet20"],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_logits_equal_the_forward_pass_written_out(model, written_out, size, seed):
    model = with_statistics(model(seed), size)
    model.backbone.double()
    x, routing = images(4, size).double(), some_routing(model, 4, seed, torch.float64)
    with torch.no_grad():
        logits = model(x, routing).logits
    state = model.backbone.state_dict()
    widths = torch.tensor(WIDTHS)[routing.argmax(-1)].tolist()
    for i in range(4):
        expected = written_out(state, x[i : i + 1], widths[i])
        assert relative(logits[i : i + 1], expected) < 1e-10


def test_the_controllers_own_routing_is_what_the_layers_run_with():
    model, x = with_statistics(tiny(), 8), images(16)
    with torch.no_grad():
        # Scores around zero, so that images differ in their routing.
        model.controller.fc2.bias -= model(x, with_scores=True).scores.mean(0).flatten()
        logits, routing = model(x)
        assert len(routing.unique(dim=0)) > 1
        for i in range(16):
            widths = torch.tensor(WIDTHS)[routing[i].argmax(-1)].tolist()
            expected = written_out_tiny(model.backbone.state_dict(), x[i : i + 1], widths)
            assert relative(logits[i : i + 1], expected) < 1e-5


# 16 bits


def float_model(name, size):
    """A float model whose batch norms know the data."""
    kwargs = {} if name.endswith("cifar") else {"zero_init_last": False}
    torch.manual_seed(0)
    return calibrate(timm.create_model(name, num_classes=5, **kwargs), size)


def calibrate(model, size):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    with torch.no_grad():
        for step in range(3):
            model.train()(images(16, size, seed=step))
    return model.eval()


def normalised_and_clipped(model, names, clip, size):
    """The float model with weights tanh w / max|tanh w| and the inputs of layers clipped."""
    model = copy.deepcopy(model)
    for name in names:
        layer = model.get_submodule(name)
        squashed = layer.weight.data.tanh()
        layer.weight.data = squashed / squashed.abs().max()
        layer.register_forward_pre_hook(lambda m, args: (args[0].clamp(0, clip),))
    return calibrate(model, size)  # the scale of the weights has changed


# Measured relative errors of the logits: 2e-3 to 4e-3 and 3e-2 to 4e-2. LSQ's first step is
# 2 · mean|v| / √Q_P, which at 16 bits is mean|v| / 90: the range is ample, the resolution is not.
@pytest.mark.parametrize(
    ("name", "size", "bound"), [("resnet20_cifar", 32, 1e-2), ("resnet18", 64, 0.1)]
)
def test_16_bit_lsq_is_close_to_the_float_model(name, size, bound):
    model, x = float_model(name, size), images(8, size, seed=9)
    with torch.no_grad():
        expected = model(x)
        quantized = dqnet.quantize(model, x, (16,), "lsq")
        assert relative(quantized(x).logits, expected) < bound


# Measured: DoReFa 9e-4 and 2e-2, PACT 5e-5 and 6e-4. An untrained network with inputs clipped at
# 1 amplifies a relative change of its images 20 and 250 times.
@pytest.mark.parametrize(
    ("name", "size", "quantizer", "clip", "bound"),
    [
        ("resnet20_cifar", 32, "dorefa", 1.0, 2.5e-3),
        ("resnet20_cifar", 32, "pact", 8.0, 1.5e-4),
        ("resnet18", 64, "dorefa", 1.0, 5e-2),
        ("resnet18", 64, "pact", 8.0, 1.5e-3),
    ],
)
def test_16_bits_equal_normalised_weights_and_clipped_inputs(name, size, quantizer, clip, bound):
    model, x = float_model(name, size), images(8, size, seed=9)
    quantized = dqnet.quantize(copy.deepcopy(model), x, (16,), quantizer).eval()
    names = [layer.name for layer in quantized.layers if layer.role != "full"]
    expected = normalised_and_clipped(model, names, clip, size)
    quantized.load_state_dict(model.state_dict())
    for key, value in expected.named_buffers():
        quantized.backbone.get_buffer(key).copy_(value)
    with torch.no_grad():
        assert relative(quantized(x).logits, expected(x)) < bound


# State dicts


def warm(model):
    """Brings data-dependent quantizers to life and moves their parameters."""
    with torch.no_grad():
        model.eval()(images())
        for name, parameter in model.named_parameters():
            if "_quantizer." in name:
                parameter.mul_(1.25)
    return model


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("widths", [(3,), WIDTHS])
def test_float_weights_load_before_or_after_conversion(quantizer, widths):
    torch.manual_seed(5)
    pretrained = Tiny()
    state = pretrained.state_dict()
    kwargs = {"widths": widths, "quantizer": quantizer, "shared_until": "act"}
    before = dqnet.quantize(pretrained, images(1), **kwargs).eval()
    after = warm(tiny(seed=6, **kwargs))
    after.load_state_dict(state)
    if len(widths) > 1:
        after.controller.load_state_dict(before.controller.state_dict())
    else:
        assert after.controller is None
    if quantizer == "pact":  # α belongs to the quantized model, a float state dict leaves it
        for name, parameter in after.named_parameters():
            if name.endswith("alpha"):
                before.get_parameter(name).data.copy_(parameter)
    with torch.no_grad():
        assert same(before(images(seed=1)), after(images(seed=1)))


def test_a_float_state_dict_leaves_the_controller_as_it_is():
    model = tiny()
    before = copy.deepcopy(model.controller.state_dict())
    model.load_state_dict(Tiny().state_dict())
    assert all(torch.equal(v, before[k]) for k, v in model.controller.state_dict().items())


def test_a_float_state_dict_is_not_changed_by_loading():
    state = Tiny().state_dict()
    keys = list(state)
    tiny(quantizer="lsq").load_state_dict(state)
    assert list(state) == keys


def test_lsq_initialises_its_steps_again_from_loaded_float_weights():
    model = warm(tiny(quantizer="lsq"))
    state = Tiny().state_dict()
    state["conv1.weight"] *= 10
    model.load_state_dict(state)
    with torch.no_grad():
        model(images())
    step = model.backbone.conv1.weight_quantizer.step
    mean = state["conv1.weight"].abs().mean().item()
    expected = [2 * mean / math.sqrt(2 ** (b - 1) - 1) for b in WIDTHS]
    assert step.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("widths", [(3,), WIDTHS])
def test_a_quantized_state_dict_survives_a_file(quantizer, widths, tmp_path):
    model = warm(tiny(widths=widths, quantizer=quantizer))
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = tiny(seed=1, widths=widths, quantizer=quantizer).eval()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    # Data unlike what the steps were initialised from: they must not be initialised again.
    x = 3 * images(seed=2)
    with torch.no_grad():
        assert same(model(x), other(x))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a_state_dict_of_another_model_is_not_strict(quantizer):
    model = tiny(quantizer=quantizer)
    with pytest.raises(RuntimeError, match=r"size mismatch|Missing key|Unexpected key"):
        model.load_state_dict(resnet20(quantizer=quantizer).state_dict())


@pytest.mark.parametrize("kind", ["float", "quantized"])
@pytest.mark.parametrize("mistake", ["unexpected", "missing", "shape"])
def test_a_wrong_key_is_an_error(kind, mistake):
    model = tiny()
    prefix = "backbone." if kind == "quantized" else ""
    state = model.state_dict() if kind == "quantized" else Tiny().state_dict()
    if mistake == "unexpected":
        state[prefix + "conv9.weight"] = torch.zeros(1)
    elif mistake == "missing":
        del state[prefix + "conv1.weight"]
    else:
        state[prefix + "conv1.weight"] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=r"conv[19]\.weight"):
        model.load_state_dict(state)


def test_a_float_model_may_have_a_part_named_backbone():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = Tiny()

        def forward(self, x):
            return self.backbone(x)

    float_model = Named()
    state = {k: v.clone() for k, v in float_model.state_dict().items()}
    model = dqnet.quantize(float_model, images(1), WIDTHS, shared_until="backbone.act")
    nn.init.zeros_(model.backbone.backbone.conv1.weight)
    model.load_state_dict(state)
    assert torch.equal(model.backbone.backbone.conv1.weight, state["backbone.conv1.weight"])


def test_state_dicts_load_inside_a_larger_module():
    outer = nn.ModuleDict({"student": tiny()})
    float_outer = nn.ModuleDict({"student": Tiny()})
    outer.load_state_dict(float_outer.state_dict())
    expected = float_outer["student"].conv1.weight
    assert torch.equal(outer["student"].backbone.conv1.weight, expected)


# Routing


def test_a_given_routing_is_used_and_returned():
    model, x = tiny().eval(), images()
    routing = some_routing(model, 4)
    with torch.no_grad():
        output = model(x, routing)
        other = model(x, routing.roll(1, -1))
    assert torch.equal(output.routing, routing)
    assert not torch.equal(output.logits, other.logits)


def test_a_given_routing_works_in_training_and_without_noise():
    model, x = tiny().train(), images()
    routing = some_routing(model, 4)
    assert same(model(x, routing), model(x, routing))


@pytest.mark.parametrize("shape", [(3, 2, 3), (4, 3, 3), (4, 2, 2), (4, 6)])
def test_a_routing_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(UserError, match=r"must be \[4, 2, 3\]"):
        tiny()(images(), torch.zeros(shape))


@pytest.mark.parametrize("row", [[0.0, 0, 0], [1.0, 1, 0], [0.5, 0.5, 0], [2.0, -1, 0]])
def test_a_routing_that_is_not_one_hot_is_refused(row):
    model = tiny()
    routing = some_routing(model, 4)
    routing[2, 1] = torch.tensor(row)
    with pytest.raises(UserError, match="one-hot"):
        model(images(), routing)


def test_a_static_network_has_an_empty_routing():
    output = tiny(widths=(3,))(images())
    assert output.routing.shape == (4, 0, 1)


def test_scores_are_returned_on_request():
    model = tiny().eval()
    logits, routing, scores = model(images(), with_scores=True)
    assert scores.shape == (4, 2, 3)
    assert torch.equal(routing.argmax(-1), scores.argmax(-1))
    assert same((logits, routing), model(images()))


def test_an_image_is_routed_and_classified_as_it_would_be_alone():
    model, x = tiny().eval(), images(8)
    with torch.no_grad():
        together = model(x)
        for i in range(8):
            alone = model(x[i : i + 1])
            torch.testing.assert_close(alone.logits[0], together.logits[i])
            assert torch.equal(alone.routing[0], together.routing[i])


def test_the_penalty_alone_trains_the_controller_to_lower_the_cost():
    model = tiny(widths=(2, 8), controller=ControllerConfig(batch_norm=False)).train()
    optimizer = torch.optim.SGD(model.controller.parameters(), 1.0)
    x = images(32)

    def expected_cost():
        with torch.no_grad():
            p = model(x, with_scores=True).scores.softmax(-1)
            return (dqnet.bit_flops(model, p).mean() / dqnet.static_bit_flops(model, 8)).item()

    before = expected_cost()
    torch.manual_seed(0)
    for _ in range(20):
        cost = dqnet.bit_flops(model, model(x).routing).mean()
        optimizer.zero_grad()
        (cost / dqnet.static_bit_flops(model, 8)).backward()
        optimizer.step()
    assert expected_cost() < before - 0.1


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_only_the_shared_controllers_gradient_reaches_the_stem(kind):
    until = "act" if kind == "shared" else None
    model = tiny(shared_until=until, controller=ControllerConfig(kind=kind)).train()
    dqnet.bit_flops(model, model(images()).routing).sum().backward()
    reached = model.backbone.stem.weight.grad is not None
    assert reached is (kind == "shared")


# State that must not leak


def test_two_models_do_not_share_state_when_one_runs_inside_the_other():
    inner, outer = tiny(1).eval(), tiny(2).eval()
    x, y = images(4), images(6, seed=1)
    seen = []
    with torch.no_grad():
        alone = inner(y), outer(x)
        # Between the outer model's split point and its routed layers.
        outer.backbone.conv1.register_forward_pre_hook(lambda m, args: seen.append(inner(y)))
        nested = outer(x)
    assert same(seen[0], alone[0]) and same(nested, alone[1])


def test_backward_passes_may_be_interleaved():
    first, second = tiny(1), tiny(2)
    routing = some_routing(first, 4)

    def gradients(model):
        return [p.grad.clone() for p in model.backbone.parameters()]

    expected = []
    for model in (first, second):
        model(images(), routing).logits.square().sum().backward()
        expected.append(gradients(model))
        model.zero_grad()
    losses = [model(images(), routing).logits.square().sum() for model in (first, second)]
    for loss in losses:
        loss.backward()
    assert same(gradients(first), expected[0]) and same(gradients(second), expected[1])


def always(model, column):
    """Makes the controller choose one width for every layer of every image."""
    nn.init.zeros_(model.controller.fc2.weight)
    model.controller.fc2.bias.data.copy_(torch.eye(3)[column].repeat(2))


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_deep_copy_routes_on_its_own(kind):
    until = "act" if kind == "shared" else None
    original = tiny(shared_until=until, controller=ControllerConfig(kind=kind)).eval()
    if kind == "separate":
        nn.init.zeros_(original.controller.fc2.weight)
        layers = len(original.routed_layers)
        original.controller.fc2.bias.data.copy_(torch.eye(3)[0].repeat(layers))
    else:
        layers = 2
        always(original, 0)
    clone = copy.deepcopy(original)
    clone.controller.fc2.bias.data.copy_(torch.eye(3)[2].repeat(layers))
    dear = torch.eye(3)[2].expand(4, layers, 3)
    with torch.no_grad():
        expected = original(images(), dear).logits
        before = original(images())
        output = clone(images())
        after = original(images())
    assert torch.equal(output.routing, dear) and torch.equal(output.logits, expected)
    assert same(before, after) and not torch.equal(before.logits, output.logits)


def test_a_deep_copy_does_not_call_the_originals_controller():
    original = tiny().eval()
    clone = copy.deepcopy(original)
    calls = []
    original.controller.register_forward_hook(lambda *args: calls.append(1))
    clone(images())
    assert not calls


def test_a_deep_copy_loads_state_dicts_of_its_own():
    original = tiny(quantizer="lsq")
    clone = copy.deepcopy(original)
    before = original.backbone.conv1.weight.detach().clone()
    clone.load_state_dict(Tiny().state_dict())
    assert torch.equal(original.backbone.conv1.weight, before)
    assert not torch.equal(clone.backbone.conv1.weight, before)


def test_the_router_is_closed_after_a_forward_pass():
    model = tiny()
    model(images())
    with pytest.raises(UserError, match="ran before the controller"):
        model.backbone.conv1(torch.zeros(4, 8, 4, 4))


def test_the_router_is_closed_after_an_error_in_the_backbone():
    model = tiny().eval()
    expected = model(images())

    def fail(module, args):
        raise RuntimeError("in the middle")

    handle = model.backbone.conv2.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        model(images(), some_routing(model, 4))
    handle.remove()
    with pytest.raises(UserError, match="ran before the controller"):
        model.backbone.conv1(torch.zeros(4, 8, 4, 4))
    assert same(model(images()), expected)  # neither the given routing nor the scores stay


def test_a_split_point_that_runs_twice_routes_once():
    class Twice(Tiny):
        def forward(self, x):
            x = self.act(self.norm(self.stage(self.stem_act(self.stem(x)))))
            return self.fc(self.conv2(self.act(self.conv1(x))).mean((2, 3)))

    torch.manual_seed(0)
    model = dqnet.quantize(Twice(), images(1), WIDTHS, shared_until="act")
    calls = []
    model.controller.register_forward_hook(lambda *args: calls.append(1))
    model(images())
    assert len(calls) == 1


@pytest.mark.parametrize("activation", [nn.ReLU, F.relu_])
def test_a_split_point_whose_output_is_overwritten_learns_as_one_whose_is_not(activation):
    class Overwriting(Tiny):
        def __init__(self):
            super().__init__()
            del self.act
            self.act = activation(inplace=True) if activation is nn.ReLU else activation

    def gradients(net):
        torch.manual_seed(0)
        model = dqnet.quantize(net(), images(1), WIDTHS, shared_until="norm")
        torch.manual_seed(0)
        logits, routing = model(images())
        (logits.square().sum() + dqnet.bit_flops(model, routing).sum() / 1e5).backward()
        return [p.grad for p in model.parameters()]

    expected = gradients(Tiny)
    assert all(grad is not None and grad.any() for grad in expected[:2])
    assert same(gradients(Overwriting), expected)


def test_costs_follow_the_model_to_another_type_unrounded():
    model = resnet20(widths=(2, 11)).to(torch.bfloat16)
    assert cost_table(model)[0].tolist() == [4 * 1_179_648, 121 * 1_179_648]


def test_a_frozen_controllers_choice_gets_no_gradient():
    model = dqnet.quantize(timm.create_model("resnet20_cifar"), torch.zeros(1, 3, 8, 8))
    model.controller.requires_grad_(False)
    logits, routing = model.train()(torch.randn(2, 3, 8, 8))
    assert logits.requires_grad and not routing.requires_grad
