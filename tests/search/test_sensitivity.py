"""Measures against their formulas, the optimum against every plan, and a search that goes on."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from searched import Small, answers, problem, searchable
from torch import nn

import dqnet
from dqnet.layers import QuantLayer
from dqnet.search.base import Journal
from dqnet.search.measures import by_gradient, by_hessian
from dqnet.search.optimum import cheapest_loss
from dqnet.search.sensitivity import Sensitivity


@pytest.mark.parametrize("seed", range(8))
def test_the_optimum_is_the_best_of_all_plans(seed):
    generator = torch.Generator().manual_seed(seed)
    losses = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    prices = torch.rand(4, 3, generator=generator, dtype=torch.float64)
    prices[1, 2] = prices[3, 0] = torch.inf
    to_spend = 0.3 * prices[prices.isfinite()].sum().item()
    every = [
        (sum(losses[i, k].item() for i, k in enumerate(plan)), list(plan))
        for plan in itertools.product(range(3), repeat=4)
        if sum(prices[i, k].item() for i, k in enumerate(plan)) <= to_spend
    ]
    assert cheapest_loss(losses, prices, to_spend) == min(every)[1]


def test_exactly_what_may_be_spent_is_spent_and_less_is_refused():
    prices = torch.tensor([[0.1, 0.2], [0.1, 0.7]], dtype=torch.float64)
    losses = torch.tensor([[1.0, 0.0], [1.0, -1.0]], dtype=torch.float64)
    assert cheapest_loss(losses, prices, 0.8) == [0, 1]
    with pytest.raises(dqnet.UserError, match=r"costs as little as 0\.1"):
        cheapest_loss(losses, prices, 0.1)


@pytest.mark.parametrize("measure", ["loss", "kl"])
def test_the_loss_of_a_layer_alone(measure):
    model, batches = searchable()
    labels = torch.cat([own for _, own in batches])
    exact = answers(model, batches, [None] * 4)
    with torch.no_grad():
        found = Sensitivity(measure).losses(problem(model, batches))
    for layer, k in itertools.product(range(4), range(3)):
        chosen = [None] * 4
        chosen[layer] = k
        logits = answers(model, batches, chosen)
        p, q = exact.softmax(1), logits.softmax(1)
        expected = (p * (p / q).log()).sum(1).mean()
        if measure == "loss":
            expected = F.cross_entropy(logits, labels) - F.cross_entropy(exact, labels)
        assert found[layer, k].item() == pytest.approx(expected.item(), abs=1e-5)


def tensors_of(model, batch):
    """Name → weight and input of each routed layer, and the loss as a function of those."""
    images, labels = batch
    values, layers = (
        {},
        {own.name: model.backbone.get_submodule(own.name) for own in model.routed_layers},
    )

    def see(name, module, args):
        values[name, "input"] = args[0].detach()
        values[name, "weight"] = module.weight.detach()

    handles = [
        m.register_forward_pre_hook(lambda module, args, n=n: see(n, module, args))
        for n, m in layers.items()
    ]
    with model.unquantized():
        model.backbone(images)
    for handle in handles:
        handle.remove()

    def loss_of(name, tensor):
        def loss(value):
            module = layers[name]
            hook = module.register_forward_pre_hook(lambda m, args: (value,))
            changed = {f"{name}.weight": value}
            if tensor == "weight":
                hook.remove()
            with model.unquantized():
                logits = torch.func.functional_call(
                    model.backbone, changed if tensor == "weight" else {}, (images,)
                )
            hook.remove()
            return F.cross_entropy(logits, labels, reduction="sum")

        return loss

    return values, loss_of


def errors(model, values, name, k):
    layer = model.backbone.get_submodule(name)
    with torch.no_grad():
        weight = layer.quantized_weights()[k] - values[name, "weight"]
        return {
            "weight": weight,
            "input": layer.quantized_input(values[name, "input"], k) - values[name, "input"],
        }


def test_errors_weighed_by_gradients():
    model, batches = searchable(images=6)
    values, loss_of = tensors_of(model, batches[0])
    with torch.no_grad():
        found = by_gradient(problem(model, batches), batches[0])
    for row, own in zip(found, model.routed_layers, strict=True):
        for k in range(3):
            expected = 0.0
            for tensor, error in errors(model, values, own.name, k).items():
                value = values[own.name, tensor].clone().requires_grad_()
                (g,) = torch.autograd.grad(loss_of(own.name, tensor)(value), value)
                expected += (g.square() * error.square()).sum().item() / 2
            assert row[k].item() == pytest.approx(expected, rel=1e-4)


def test_errors_weighed_by_the_trace_of_the_hessian():
    """Hutchinson's estimate of many vectors against the Hessian itself."""
    model, batches = searchable(images=2)
    values, loss_of = tensors_of(model, batches[0])
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = by_hessian(problem(model, batches), batches[0], 400, noise)
    for row, own in zip(found, model.routed_layers, strict=True):
        expected = 0.0
        for tensor, error in errors(model, values, own.name, 0).items():
            value = values[own.name, tensor]
            hessian = torch.autograd.functional.hessian(loss_of(own.name, tensor), value)
            trace = hessian.reshape(value.numel(), value.numel()).trace().clamp_min(0).item()
            expected += trace / value.numel() * error.square().sum().item() / 2
        assert row[0].item() == pytest.approx(expected, rel=0.15)


def test_steps_as_importance():
    model, batches = searchable(quantizer="lsq")
    found = Sensitivity("lsq_step", alpha=2.0).losses(problem(model, batches))
    layer = model.backbone.first
    expected = layer.input_quantizer.step + 2 * layer.weight_quantizer.step
    assert torch.equal(found[1], expected.detach().double())
    model, batches = searchable()
    with pytest.raises(dqnet.UserError, match="reads the steps of LSQ"):
        dqnet.find_plan(model, batches, measure="lsq_step")


@pytest.mark.parametrize("measure", ["loss", "kl", "hessian", "gradient"])
@pytest.mark.parametrize("cost", ["bit_flops", "energy", "size"])
def test_a_plan_meets_its_target_and_is_the_best_that_does(measure, cost):
    model, batches = searchable()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    own, search = problem(model, batches, 4, cost), Sensitivity(measure, samples=1)
    plan = dqnet.find_plan(model, batches, "sensitivity", 4, cost, measure=measure, samples=1)
    with torch.no_grad():
        losses = search.losses(own)
    every = [
        (sum(losses[i, k].item() for i, k in enumerate(chosen)), chosen)
        for chosen in itertools.product(range(3), repeat=4)
        if own.price(chosen) <= own.to_spend * (1 + 1e-9)
    ]
    assert plan == own.plan(min(every)[1])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    layers = [m for m in model.modules() if isinstance(m, QuantLayer)]
    assert not any(layer.unquantized for layer in layers)
    assert all(p.requires_grad for p in model.backbone.parameters())


def test_the_plan_is_carried_out_by_a_conversion():
    model, batches = searchable()
    plan = dqnet.find_plan(model, batches, target_bits=4)
    assert {layer.role for layer in plan.layers} == {"static", "full"}
    torch.manual_seed(0)
    static = dqnet.quantize(Small(), torch.zeros(1, 2, 9, 9), quantizer="affine", plan=plan).eval()
    dqnet.calibrate(static, [torch.cat([images for images, _ in batches])])
    chosen = [model.precisions.index(layer.precisions[0]) for layer in plan.layers[:4]]
    with torch.no_grad():
        ours = torch.cat([static(images).logits for images, _ in batches])
    torch.testing.assert_close(ours, answers(model, batches, chosen), rtol=1e-4, atol=1e-4)


class Notes(Journal):
    """Keeps states, and ends like a killed process after some of them."""

    def __init__(self, ends_after=None):
        self.states, self.ends_after = [], ends_after

    def read(self):
        return self.states[-1] if self.states else {}

    def write(self, state):
        self.states.append(state)
        if len(self.states) == self.ends_after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("measure", ["kl", "hessian"])
def test_a_search_goes_on_where_it_was(measure):
    model, batches = searchable()
    whole = Notes()
    plan = dqnet.find_plan(model, batches, measure=measure, journal=whole)
    cut = Notes(ends_after=2)
    with pytest.raises(KeyboardInterrupt):
        dqnet.find_plan(model, batches, measure=measure, journal=cut)
    assert dqnet.find_plan(model, batches, measure=measure, journal=cut) == plan
    assert cut.states == whole.states and len(whole.states) == len(batches)


def test_what_is_wrong_is_said_in_one_line():
    model, batches = searchable()
    static = dqnet.quantize(
        nn.Sequential(*(nn.Conv2d(2, 2, 1) for _ in range(3))), torch.zeros(1, 2, 4, 4), (4,)
    )
    unset, _ = searchable(quantizer="lsq")
    unset.backbone.first.input_quantizer._ready = False
    unset.backbone.first.input_quantizer.initialized.zero_()
    for arguments, message in (
        ((static, batches), "this one has no layer with several: convert it with widths"),
        ((model, batches, "sensitivty"), "unknown search 'sensitivty'; did you mean 'sensitivity'"),
        (
            (model, batches, "sensitivity", 9),
            r"target_bits=9 .* targets go from 2\.\d+ to 8\.000 bits",
        ),
        ((model, batches, "sensitivity", 4, "energi"), "unknown cost 'energi'"),
        ((model, []), "give at least one batch"),
        ((unset, batches), r"run dqnet\.calibrate first"),
        ((model, batches, "greedy", 4), "search 'greedy' keeps to no cost"),
        (
            (model, batches, "greedy"),
            "'stem' lacks some pairs of its formats: convert with plan=",
        ),
    ):
        with pytest.raises(dqnet.UserError, match=message):
            dqnet.find_plan(*arguments)
    for options, message in (
        (
            {"measur": "kl"},
            "unknown option of search 'sensitivity' 'measur'; did you mean",
        ),
        ({"measure": "trace"}, "unknown measure 'trace'"),
        ({"samples": 0}, "samples 0 of the search must be a whole number from 1"),
        ({"by": "greedy", "accuracy": 1.5}, r"accuracy 1\.5 of the search must be in \(0, 1\]"),
        ({"by": "optuna", "trials": 1.5}, r"trials 1\.5 of the search must be a whole number"),
    ):
        with pytest.raises(dqnet.UserError, match=message):
            dqnet.find_plan(model, batches, **options)
