"""A cascade against its two passes, run on all images and combined in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from scipy.special import log_softmax, softmax

import dqnet
from dqnet import Cascade, UserError
from dqnet.cascade import threshold_of


def network(seed, widths=(3,), **kwargs):
    torch.manual_seed(seed)
    net = timm.create_model("resnet8_cifar", num_classes=5)
    model = dqnet.quantize(net, torch.zeros(1, 3, 16, 16), widths=widths, **kwargs)
    return model.double().eval()


def images(count=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 16, 16, generator=generator, dtype=torch.float64)


def numpy(tensor):
    return tensor.detach().cpu().numpy()


def median(probabilities):
    """The confidence that half of the images do not exceed."""
    return probabilities.amax(1).median().item()


@pytest.mark.parametrize("combine", ["committee", "replace"])
@pytest.mark.parametrize("form", ["another", "mirror", "dynamic"])
def test_a_cascade_is_its_two_passes(form, combine):
    first = network(0, (2, 3) if form == "dynamic" else (3,))
    second = None if form == "mirror" else network(1, (5,))
    view = "mirror" if form == "mirror" else None
    cascade = Cascade(first, second, 0.3, view, combine).eval()
    cascade.temperatures.copy_(torch.tensor([0.7, 1.9], dtype=torch.float64))
    cascade.weight.fill_(0.35)
    x = images()
    again = first(x.flip(-1)) if second is None else second(x)
    z = numpy(first(x).logits) / 0.7, numpy(again.logits) / 1.9
    confidence = softmax(z[0], 1).max(1)
    cascade.threshold.fill_(np.sort(confidence)[9:11].mean())
    unsure = confidence <= cascade.threshold.item()
    assert unsure.sum() == 10
    one, two = (log_softmax(part, 1) for part in z)
    both = two if combine == "replace" else log_softmax(0.35 * one + 0.65 * two, 1)
    logits, passes, cost = cascade(x)
    np.testing.assert_allclose(numpy(logits), np.where(unsure[:, None], both, one), rtol=1e-9)
    assert passes.tolist() == (1 + unsure).tolist()
    network_again = first if second is None else second
    outputs = (first, first(x)), (network_again, again)
    costs = [dqnet.bit_flops(net, output.routing) for net, output in outputs]
    np.testing.assert_array_equal(numpy(cost), numpy(costs[0]) + unsure * numpy(costs[1]))


def test_thresholds_of_zero_and_one_are_none_and_all():
    first, second, x = network(0), network(1), images()
    never = Cascade(first, second, 0.0)(x)
    torch.testing.assert_close(never.logits, first(x).logits.log_softmax(1))
    assert never.passes.tolist() == [1] * 24
    always = Cascade(first, second, 1.0, combine="replace")(x)
    torch.testing.assert_close(always.logits, second(x).logits.log_softmax(1))
    assert always.passes.tolist() == [2] * 24


def test_the_second_pass_runs_the_unsure_images_and_no_others():
    first, second, seen = network(0), network(1), []
    second.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    cascade = Cascade(first, second)
    for count in (0, 7, 24):
        confidence = first(images()).logits.softmax(1).amax(1)
        cascade.threshold.fill_(threshold_of(confidence, count / 24))
        cascade(images())
    assert seen == [7, 24]


def test_three_stages():
    first, second, third, x = network(0), network(1, (4,)), network(2, (6,)), images()
    inner = Cascade(first, second, median(first(x).logits.softmax(1)))
    one = inner(x)
    outer = Cascade(inner, third, median(one.logits.exp()))
    unsure = one.logits.exp().amax(1) <= outer.threshold
    assert unsure.sum() == 12
    out = outer(x)
    assert torch.equal(out.passes, one.passes + unsure)
    assert set(out.passes.tolist()) == {1, 2, 3}
    static = dqnet.static_bit_flops(third, 6)
    assert torch.equal(out.bit_flops, one.bit_flops + unsure * static)
    assert out.logits.exp().sum(1).allclose(torch.ones(24).double())


def test_what_is_fitted_has_the_least_cross_entropy_on_a_fine_grid():
    first, second, x = network(0), network(1), images(200)
    labels = first(x).logits.argmax(1)
    labels[::3] = second(x).logits.argmax(1)[::3]
    labels[::7] = torch.arange(29) % 5
    cascade = Cascade(first, second).train()
    cascade.fit([(x[:90], labels[:90]), (x[90:], labels[90:])], share=0.3)
    assert cascade.training
    cascade.eval()
    one, two, target = numpy(first(x).logits), numpy(second(x).logits), numpy(labels)

    def loss(log_p, rows=slice(None)):
        return -log_p[rows][np.arange(len(target[rows])), target[rows]].mean()

    grid = np.linspace(0.1, 10, 20001)
    for k, z in enumerate((one, two)):
        found = loss(log_softmax(z / cascade.temperatures[k].item(), 1))
        assert found <= min(loss(log_softmax(z / t, 1)) for t in grid[::10]) + 1e-9
    tempered = [
        log_softmax(z / t, 1) for z, t in zip((one, two), numpy(cascade.temperatures), strict=True)
    ]
    confidence = np.exp(tempered[0]).max(1)
    unsure = confidence <= cascade.threshold.item()
    assert unsure.sum() == 60
    w = cascade.weight.item()
    assert 0 < w < 1

    def committee(weight):
        return loss(log_softmax(weight * tempered[0] + (1 - weight) * tempered[1], 1), unsure)

    assert committee(w) <= min(map(committee, np.linspace(0, 1, 501))) + 1e-9


def test_it_is_saved_and_loaded_with_what_was_fitted():
    cascade = Cascade(network(0), network(1), view="mirror")
    labels = torch.arange(24) % 5
    cascade.fit([(images(), labels)], share=0.5)
    other = Cascade(network(2), network(3), view="mirror").eval()
    other.load_state_dict(cascade.state_dict())
    assert torch.equal(other(images()).logits, cascade.eval()(images()).logits)
    looks_again = Cascade(network(0), view="mirror")
    assert not any(name.startswith("second") for name in looks_again.state_dict())
    assert sum(p.numel() for p in looks_again.parameters()) == sum(
        p.numel() for p in looks_again.first.parameters()
    )


def test_gradients_reach_both_passes():
    first, second = network(0), network(1)
    cascade = Cascade(first, second, median(first(images()).logits.softmax(1)))
    out = cascade(images())
    assert (out.passes == 2).sum() == 12
    out.logits[:, 0].sum().backward()
    for net in (first, second):
        assert all(p.grad.abs().sum() > 0 for n, p in net.named_parameters() if "weight" in n)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a, b: Cascade(a), "would repeat the first"),
        (lambda a, b: Cascade(a, a), "would repeat the first"),
        (lambda a, b: Cascade(a, b, view="miror"), "unknown view 'miror'; did you mean 'mirror'"),
        (lambda a, b: Cascade(a, b, combine="mean"), "unknown combine 'mean'; valid: committee"),
        (lambda a, b: Cascade(a, b, 1.2), r"threshold 1\.2 must be a confidence, in \[0, 1\]"),
        (lambda a, b: Cascade(a.backbone, b), "of converted networks, .* this is a ResNetCifar"),
        (lambda a, b: Cascade(a, b).fit([]), "at least one batch of held-out images"),
        (lambda a, b: Cascade(a, b).fit([], 2), "share 2 must be a part"),
    ],
)
def test_bad_input_is_one_line(make, message):
    with pytest.raises(UserError, match=message) as raised:
        make(network(0), network(1))
    assert "\n" not in str(raised.value)
