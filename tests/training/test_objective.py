"""The training loss against the formula, written out in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dqnet.errors import UserError
from dqnet.network import ScoredOutput
from dqnet.training.build import build_model
from dqnet.training.objective import Objective

WIDTHS = (2, 3, 4)
N, C = 6, 10


@pytest.fixture
def settings(config):
    return lambda **changes: replace(config("quant.widths=[2,3,4]").loss, **changes)


@pytest.fixture
def model(config):
    def build(*overrides):
        chosen = config("quant.widths=[2,3,4]", "quant.static_width=3", *overrides)
        return build_model(chosen.model, chosen.quant, C, (1, 8, 8))

    return build


def some_output(layers, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(N, layers, len(WIDTHS), generator=generator)
    chosen = torch.randint(len(WIDTHS), (N, layers), generator=generator)
    routing = torch.nn.functional.one_hot(chosen, len(WIDTHS)).float()
    logits = torch.randn(N, C, generator=generator)
    return ScoredOutput(logits, routing, scores), torch.arange(N)


def loss_of(objective, output, labels):
    return objective.total(objective.terms(output, labels))


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def cross_entropy(output, labels, smoothing):
    log_p = log_softmax(output.logits.double().numpy())
    right = log_p[np.arange(N), labels.numpy()]
    return -((1 - smoothing) * right + smoothing * log_p.mean(1)).mean()


def cost_ratio(model, output, target_bits):
    """Mean Bit-FLOPs over those of the static network of target_bits, from the layer list."""
    widths = output.routing.numpy() @ np.array(WIDTHS)
    routed = [layer.macs for layer in model.layers if layer.role == "routed"]
    static = [layer.macs for layer in model.layers if layer.role == "static"]
    cost = (widths**2 @ np.array(routed)).mean() + 9 * sum(static)
    return cost / (target_bits**2 * sum(routed + static))


def information(output):
    log_p = log_softmax(output.scores.double().numpy())
    p = np.exp(log_p)
    mean = p.mean(0)
    return ((p * log_p).sum(-1).mean(0) - (mean * np.log(mean)).sum(-1)).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("target_bits", [2.7, 3.3])
def test_loss_with_the_price_of_bit_flops(model, settings, target_bits, beta, smoothing):
    built = model()
    output, labels = some_output(4)
    chosen = settings(
        penalty="bit_flops",
        target_bits=target_bits,
        alpha=2.0,
        mutual_information=beta,
        label_smoothing=smoothing,
    )
    excess = cost_ratio(built, output, target_bits) - 1
    assert (excess > 0) == (target_bits < 3)  # one case on each side of the hinge
    expected = cross_entropy(output, labels, smoothing) + 2 * max(0, excess)
    expected -= beta * information(output)
    assert loss_of(Objective(built, chosen), output, labels).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("progress, beta", [(0.0, 0.3), (0.49, 0.3), (0.5, 0.0), (0.9, 0.0)])
def test_information_counts_until_a_part_of_the_training(model, settings, progress, beta):
    output, labels = some_output(4)
    chosen = settings(alpha=0.0, mutual_information=0.3, mutual_information_until=0.5)
    objective = Objective(model(), chosen)
    total = objective.total(objective.terms(output, labels), progress).item()
    expected = cross_entropy(output, labels, 0) - beta * information(output)
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("routed", [4, 0])
def test_loss_with_a_teacher(model, settings, routed):
    (logits, routing, scores), labels = some_output(4)
    output = ScoredOutput(logits, routing[:, :routed], scores[:, :routed])
    teacher_logits = torch.randn(N, C, generator=torch.Generator().manual_seed(1))
    chosen = settings(alpha=0.0, mutual_information=0.0, distillation=0.7, label_smoothing=0.1)
    objective = Objective(model(), chosen)
    total = objective.total(objective.terms(output, labels, teacher_logits), 0.9).item()
    ours, theirs = (log_softmax(x.double().numpy()) for x in (logits, teacher_logits))
    divergence = (np.exp(theirs) * (theirs - ours)).sum(1).mean()
    expected = cross_entropy(output, labels, 0.1) + 0.7 * divergence
    assert total == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("target_bits", [2.7, 3.3])
def test_loss_with_the_price_of_width(model, settings, target_bits):
    output, labels = some_output(4)
    chosen = settings(
        penalty="mean_width",
        target_bits=target_bits,
        alpha=2.0,
        mutual_information=0.0,
        label_smoothing=0.0,
    )
    mean_width = (output.routing.numpy() @ np.array(WIDTHS)).mean()
    assert (mean_width > target_bits) == (target_bits < 3)
    expected = cross_entropy(output, labels, 0) + 2 * max(0, mean_width - target_bits)
    assert loss_of(Objective(model(), chosen), output, labels).item() == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize("form", ["quant=none", "quant.widths=[3]"])
def test_without_routing_the_loss_is_cross_entropy(model, settings, form):
    output, labels = some_output(0)
    loss = loss_of(Objective(model(form), settings(alpha=9.0, label_smoothing=0.1)), output, labels)
    assert loss.item() == pytest.approx(cross_entropy(output, labels, 0.1), rel=1e-5)


def test_price_reaches_the_routing(model, settings):
    output, labels = some_output(4)
    output.routing.requires_grad_()
    chosen = settings(target_bits=2.7, alpha=1.0)
    loss_of(Objective(model(), chosen), output, labels).backward()
    gradient = output.routing.grad
    assert (gradient[..., 0] < gradient[..., 1]).all()
    assert (gradient[..., 1] < gradient[..., 2]).all()


@pytest.mark.parametrize(
    "form, target_bits, expected",
    [
        ("quant=none", None, None),
        ("quant.widths=[3]", None, 3.0),
        ("quant.widths=[2,3,4]", None, 3.0),
        ("quant.widths=[2,3,4]", 2.8, 2.8),
    ],
)
def test_target_is_the_middle_width_unless_given(model, settings, form, target_bits, expected):
    built = model(form)
    objective = Objective(built, settings(target_bits=target_bits))
    assert objective.target_bits == expected
    if expected is not None:
        macs = sum(layer.macs for layer in built.layers if layer.role != "full")
        assert objective.target == pytest.approx(expected**2 * macs)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"penalty": "bits"}, "unknown loss.penalty 'bits'; did you mean 'bit_flops'"),
        ({"alpha": -1.0}, "loss.alpha -1.0 must not be negative"),
        ({"mutual_information": -1.0}, "loss.mutual_information -1.0 must not be negative"),
        ({"distillation": -1.0}, "loss.distillation -1.0 must not be negative"),
        (
            {"mutual_information_until": 1.5},
            r"loss.mutual_information_until 1.5 must be in \[0, 1\]",
        ),
        ({"label_smoothing": 1.0}, r"loss.label_smoothing 1.0 must be in \[0, 1\)"),
        ({"target_bits": 9.0}, r"target_bits=9 cannot be reached: .* from 2\.\d+ to 3\.\d+ bits"),
    ],
)
def test_settings_out_of_range(model, settings, changes, message):
    with pytest.raises(UserError, match=message):
        Objective(model(), settings(**changes))
