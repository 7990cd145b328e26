"""The controller: its forms, its gradient, and that it samples what its scores say."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import dqnet
from dqnet.config import ControllerConfig
from dqnet.controllers import build_controller
from dqnet.errors import UserError

SHAPE, LAYERS, WIDTHS = (6, 8, 8), 4, 3
PAPER = ControllerConfig(pool="mean", batch_norm=False, activation="none")


def build(config=None, seed=0, **changes):
    torch.manual_seed(seed)
    config = replace(config or ControllerConfig(), **changes)
    return build_controller(SHAPE, LAYERS, WIDTHS, config)


def features(n=5, seed=1):
    return torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def is_one_hot(routing):
    return bool(((routing == 0) | (routing == 1)).all() and (routing.sum(-1) == 1).all())


@pytest.mark.parametrize(
    ("kind", "pool", "batch_norm", "activation"),
    list(
        itertools.product(
            ("shared", "separate"), ("mean", "mean_std"), (True, False), ("relu", "none")
        )
    ),
)
def test_every_form_gives_scores_of_the_right_shape(kind, pool, batch_norm, activation):
    controller = build(kind=kind, pool=pool, batch_norm=batch_norm, activation=activation)
    assert controller(features()).shape == (5, LAYERS, WIDTHS)


def test_the_papers_form_is_two_layers_on_the_mean():
    controller, x = build(PAPER), features()
    pooled = x.numpy().mean((2, 3))
    hidden = (
        pooled @ controller.fc1.weight.detach().numpy().T + controller.fc1.bias.detach().numpy()
    )
    scores = (
        hidden @ controller.fc2.weight.detach().numpy().T + controller.fc2.bias.detach().numpy()
    )
    np.testing.assert_allclose(
        controller(x).detach().numpy(), scores.reshape(5, LAYERS, WIDTHS), rtol=1e-4, atol=1e-5
    )


def test_relu_clips_the_hidden_units():
    linear = build(PAPER)
    relu = build(PAPER, activation="relu")
    relu.load_state_dict(linear.state_dict())
    hidden = linear.fc1(features().mean((2, 3)))
    expected = linear.fc2(hidden.clamp_min(0)).unflatten(1, (LAYERS, WIDTHS))
    torch.testing.assert_close(relu(features()), expected)


def test_mean_std_pools_the_mean_and_the_standard_deviation():
    x = features().double()
    expected = np.concatenate([x.numpy().mean((2, 3)), x.numpy().std((2, 3))], 1)
    np.testing.assert_allclose(build().pool(x).numpy(), expected, rtol=1e-5)


def test_a_constant_channel_has_a_finite_gradient():
    x = torch.ones(2, *SHAPE, requires_grad=True)
    build().pool(x).sum().backward()
    assert x.grad.isfinite().all()


def test_batch_norm_makes_scores_independent_of_the_features_scale():
    controller = build(pool="mean")
    x = 100 * features(16)  # so that the norm's epsilon does not count
    torch.testing.assert_close(controller(x), controller(7 * x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_a_batch_of_one_image_trains(kind):
    controller = build(kind=kind).train()
    controller(features(1)).square().sum().backward()
    assert controller.fc1.weight.grad.abs().sum() > 0


def test_a_batch_of_one_image_uses_the_running_statistics():
    controller = build().train()
    controller(features(16))
    x = features(1)
    in_training = controller(x)
    torch.testing.assert_close(in_training, controller.eval()(x))


def test_images_of_one_batch_do_not_change_each_other_in_evaluation():
    controller, x = build().eval(), features(6)
    torch.testing.assert_close(controller(x)[2:3], controller(x[2:3]))


def test_dropout_acts_in_training_only():
    controller = build(batch_norm=False, dropout=0.5)
    x = features()
    assert not torch.equal(controller(x), controller(x))
    controller.eval()
    assert torch.equal(controller(x), controller(x))


def test_dropout_is_torchs():
    controller, x = build(batch_norm=False, dropout=0.3), features(1000)
    pooled = controller.pool(x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = torch.nn.functional.dropout(pooled, 0.3)
        torch.manual_seed(0)
        torch.testing.assert_close(controller.dropout(pooled), expected)


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_the_gradient_reaches_what_the_controller_reads(kind):
    x = features().requires_grad_()
    (build(kind=kind)(x) * torch.randn(LAYERS, WIDTHS)).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["shared", "separate"])
def test_scores_are_float32_under_bf16_autocast(kind):
    with torch.autocast("cpu", torch.bfloat16):
        assert build(kind=kind)(features()).dtype == torch.float32


@pytest.mark.parametrize("tau", [0.1, 1.0, 5.0])
def test_routing_is_exactly_one_hot_in_training(tau):
    controller = build(tau=tau)
    scores = 5 * torch.randn(500, LAYERS, WIDTHS)
    assert is_one_hot(controller.route(scores))


def test_routing_is_the_arg_max_in_evaluation():
    scores = torch.randn(50, LAYERS, WIDTHS)
    routing = build().eval().route(scores)
    assert is_one_hot(routing)
    np.testing.assert_array_equal(routing.argmax(-1).numpy(), scores.numpy().argmax(-1))


def test_equal_scores_choose_the_first_width_in_evaluation():
    routing = build().eval().route(torch.zeros(2, LAYERS, WIDTHS))
    assert torch.equal(routing[..., 0], torch.ones(2, LAYERS))


def test_evaluation_draws_no_random_numbers():
    controller = build().eval()
    before = torch.get_rng_state()
    controller.route(controller(features()))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("tau", [0.2, 1.0, 3.0])
def test_widths_are_drawn_as_often_as_softmax_says(tau):
    """The Gumbel-max trick: frequencies are softmax(scores) at every temperature."""
    scores = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.0]])
    n = 40_000
    controller = build(tau=tau)
    torch.manual_seed(0)
    frequency = controller.route(scores.expand(n, 2, 3)).mean(0).double().numpy()
    e = np.exp(scores.double().numpy())
    p = e / e.sum(-1, keepdims=True)
    # Pearson's chi-square, 2 degrees of freedom: above 13.8 once in a thousand draws.
    chi_square = (n * (frequency - p) ** 2 / p).sum(-1)
    assert (chi_square < 13.8).all()


def test_layers_and_images_are_drawn_independently():
    torch.manual_seed(0)
    choice = build().route(torch.zeros(20_000, 2, 2))[..., 0].numpy()
    assert abs(np.corrcoef(choice[:, 0], choice[:, 1])[0, 1]) < 0.03
    assert abs(np.corrcoef(choice[:-1, 0], choice[1:, 0])[0, 1]) < 0.03


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
def test_gradient_is_that_of_the_gumbel_softmax(tau):
    """Central differences of Σ c · softmax((s + g)/τ), with the noise of the same seed."""
    controller = build(tau=tau)
    scores = torch.randn(2, LAYERS, WIDTHS, dtype=torch.float64)
    c = torch.randn(2, LAYERS, WIDTHS, dtype=torch.float64)
    torch.manual_seed(3)
    g = -np.log(torch.empty_like(scores).exponential_().numpy())

    def soft(s):
        e = np.exp((s + g) / tau)
        return float((c.numpy() * e / e.sum(-1, keepdims=True)).sum())

    numeric = np.zeros(scores.shape)
    step = 1e-6
    for index in np.ndindex(*scores.shape):
        up, down = scores.numpy().copy(), scores.numpy().copy()
        up[index] += step
        down[index] -= step
        numeric[index] = (soft(up) - soft(down)) / (2 * step)

    scores.requires_grad_()
    torch.manual_seed(3)
    (controller.route(scores) * c).sum().backward()
    np.testing.assert_allclose(scores.grad.numpy(), numeric, rtol=1e-6, atol=1e-9)


def test_the_temperature_in_force_is_the_attribute():
    controller = build(tau=1.0)
    scores = torch.randn(3, LAYERS, WIDTHS, requires_grad=True)
    c = torch.randn(3, LAYERS, WIDTHS)
    grads = []
    for tau in (1.0, 1e6):
        controller.tau = tau
        grads += torch.autograd.grad((controller.route(scores) * c).sum(), scores)
    assert grads[1].norm() < 1e-3 * grads[0].norm()


def macs_by_hand(kind, pool):
    channels, (height, width) = SHAPE[0], SHAPE[1:]
    total = 0
    if kind == "separate":
        for out in (8, 16, 32):
            height, width = height // 2, width // 2
            total += channels * out * 9 * height * width
            channels = out
    statistics = 2 if pool == "mean_std" else 1
    total += statistics * channels * height * width
    return total + statistics * channels * 32 + 32 * LAYERS * WIDTHS


@pytest.mark.parametrize("kind", ["shared", "separate"])
@pytest.mark.parametrize("pool", ["mean", "mean_std"])
def test_macs_equal_a_count_by_hand(kind, pool):
    assert build(kind=kind, pool=pool).macs() == macs_by_hand(kind, pool)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"kind": "seperate"}, "did you mean 'separate'"),
        ({"pool": "max"}, "unknown controller pool 'max'"),
        ({"activation": "gelu"}, "unknown controller activation 'gelu'"),
        ({"hidden": 0}, "hidden 0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout 1.0 must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout -0.1 must be in \[0, 1\)"),
        ({"tau": 0.0}, "above 0"),
        ({"tau_end": -1.0}, "above 0"),
    ],
)
def test_a_bad_setting_is_named(setting, message):
    with pytest.raises(UserError, match=message):
        build(**setting)


def test_hidden_and_dropout_reach_the_layers():
    controller = build(hidden=7, dropout=0.25)
    assert (controller.fc1.out_features, controller.dropout.p) == (7, 0.25)
    assert isinstance(controller.fc2, nn.Linear) and controller.fc2.in_features == 7


def test_a_table_has_one_row_of_scores_for_all_images():
    controller = build(kind="table")
    assert [tuple(p.shape) for p in controller.parameters()] == [(LAYERS, WIDTHS)]
    scores = controller(features())
    assert scores.shape == (5, LAYERS, WIDTHS) and not scores.any() and controller.macs() == 0
    weights = torch.randn(5, LAYERS, WIDTHS)
    (scores * weights).sum().backward()
    torch.testing.assert_close(controller.scores.grad, weights.sum(0))


def test_a_network_with_a_table_routes_from_the_start_and_every_image_alike():
    net = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(4)), nn.Flatten(), nn.Linear(48, 2))
    model = dqnet.quantize(
        net, torch.zeros(1, 3, 4, 4), (2, 4), controller=ControllerConfig(kind="table")
    )
    assert [layer.name for layer in model.routed_layers] == ["1", "2", "3"]
    assert model.split_point is None
    with torch.no_grad():
        model.controller.scores[1, 1] = 1.0
    routing = model.eval()(torch.randn(3, 3, 4, 4)).routing
    assert routing.argmax(-1).tolist() == [[0, 1, 0]] * 3


def test_a_table_learns_which_layer_needs_bits():
    """One layer's width matters to the loss, both cost the same, and the budget is for one."""
    torch.manual_seed(0)
    controller = build_controller((1, 1, 1), 2, 2, ControllerConfig(kind="table"))
    optimizer = torch.optim.Adam(controller.parameters(), 0.1)
    for _ in range(100):
        routing = controller.route(controller(torch.zeros(32, 1, 1, 1)))
        wide = routing[..., 1].mean(0)
        loss = (1 - wide[0]) + 2 * (wide.sum() - 1).clamp_min(0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert controller.scores.argmax(1).tolist() == [1, 0]
