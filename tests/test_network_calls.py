"""How a converted network may be called, and what is refused: no call reads another's routing."""

import copy
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import dqnet
from dqnet import UserError


class Net(nn.Module):
    """A stem, a shared convolution and two routed ones; ``part`` of it runs in a checkpoint."""

    def __init__(self, part=None, reentrant=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.shared, self.a, self.b = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.fc = nn.Linear(8, 5)
        self.part, self.reentrant = part, reentrant

    def routed(self, x):
        return F.relu(self.b(F.relu(self.a(x))))

    def behind_stem(self, x):
        return self.run("routed", F.relu(self.shared(x)))

    def run(self, part, x):
        function = getattr(self, part)
        if self.part == part and self.training:
            return checkpoint(function, x, use_reentrant=self.reentrant)
        return function(x)

    def forward(self, x):
        return self.fc(self.run("behind_stem", F.relu(self.stem(x))).mean((2, 3)))


def images(n=6, seed=0):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def converted(net=None, widths=(2, 3, 4)):
    torch.manual_seed(0)
    model = dqnet.quantize(net or Net(), images(1), widths, shared_until="shared")
    if model.controller is not None:  # images differ in their routing
        for p in model.controller.parameters():
            p.data.add_(torch.randn_like(p))
    return model


def test_the_backbone_alone_is_refused_and_leaves_nothing_behind():
    model = converted().eval()
    with torch.no_grad():
        expected = model(images())
        with pytest.raises(UserError, match=r"'shared' ran outside .* call the model"):
            model.backbone(images(4, seed=1))
        output = model(images())
    assert torch.equal(output.routing, expected.routing)
    assert torch.equal(output.logits, expected.logits)


def test_a_static_networks_backbone_may_be_called():
    model = converted(widths=(3,))
    assert torch.equal(model.backbone(images()), model(images()).logits)


@pytest.mark.parametrize("part", ["routed", "behind_stem"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_inside_the_network_is_refused(part, reentrant):
    model = converted(Net(part, reentrant)).train()
    routing = F.one_hot(torch.zeros(6, 2, dtype=torch.long), 3).float()
    loss = model(images(), routing).logits.square().sum()
    with pytest.raises(UserError, match="gradient checkpointing"):
        loss.backward()
    model.eval()
    assert torch.equal(model(images(4)).routing, model(images(4)).routing)


def test_gradient_checkpointing_around_the_network_gives_the_same_gradients():
    def gradients(run):
        model = converted().train()
        torch.manual_seed(1)
        run(model, images()).logits.square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    expected = gradients(lambda model, x: model(x))
    actual = gradients(lambda model, x: checkpoint(model, x, use_reentrant=False))
    assert len(actual) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_layer_whose_batch_is_not_the_models_is_refused_by_name():
    class Doubled(Net):
        def routed(self, x):
            return super().routed(torch.cat((x, x.flip(3))))

    model = converted(Doubled())
    with pytest.raises(UserError, match=r"'a' got a batch of 12, the model one of 6.*static="):
        model(images())
    with pytest.raises(UserError, match="'a' got a batch of 2, the model one of 1"):
        model(images(1))


class Inside(nn.Module):
    """Calls ``then`` while the network runs, behind its split point."""

    def __init__(self):
        super().__init__()
        self.then = lambda: None

    def forward(self, x):
        self.then()
        return x


def with_call_inside():
    net = Net()
    net.b = nn.Sequential(Inside(), net.b)
    return converted(net).eval(), net.b[0]


def in_a_thread(call):
    errors = []

    def run():
        try:
            call()
        except UserError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return errors


def test_a_call_in_another_thread_is_refused_while_the_model_runs():
    model, inside = with_call_inside()
    expected = model(images())
    found = []
    inside.then = lambda: found.extend(
        in_a_thread(lambda: model(images(3, seed=1)))
        + in_a_thread(lambda: model.backbone(images(3, seed=1)))
    )
    output = model(images())
    inside.then = lambda: None
    assert ["running already" in found[0], "ran outside" in found[1]] == [True, True]
    assert torch.equal(output.logits, expected.logits)
    assert not in_a_thread(lambda: model(images()))  # later it may


def test_a_call_inside_itself_is_refused():
    model, inside = with_call_inside()
    inside.then = lambda: model(images(3, seed=1))
    with pytest.raises(UserError, match="running already"):
        model(images())
    inside.then = lambda: None
    model(images())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_made_at_any_time_runs_on_its_own(copied):
    model = converted().eval()
    copies = []
    model.backbone.b.register_forward_pre_hook(
        lambda *args: None if copies else copies.append(copied(model.backbone.a))
    )
    expected = model(images())
    clone = copied(converted().eval())
    assert torch.equal(clone(images()).logits, expected.logits)
    assert clone.backbone.a.router is clone.backbone.b.router is clone._router
    with pytest.raises(UserError, match="before the controller"):  # copied while a routing was open
        copies[0](torch.zeros(6, 8, 8, 8))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8])
def test_a_given_routing_may_be_of_any_type(dtype):
    model = converted()
    routing = model.eval()(images()).routing.detach()
    given, expected = model(images(), routing.to(dtype)), model(images(), routing)
    assert torch.equal(given.logits, expected.logits)
    assert torch.equal(given.routing, routing)
    layer, x = model.backbone.a, torch.randn(6, 8, 4, 4)
    assert torch.equal(layer(x, routing[:, 0].to(dtype)), layer(x, routing[:, 0]))


@pytest.mark.parametrize("part", [lambda r: r[0], lambda r: r[:, :1], lambda r: r[:, :, :2]])
def test_the_cost_of_a_routing_of_another_shape_is_refused(part):
    model = converted()
    routing = part(model(images()).routing)
    with pytest.raises(UserError, match=r"has shape \[.*it must be \[N, 2, 3\]"):
        dqnet.bit_flops(model, routing)


def test_data_parallel_replicas_are_refused():
    with pytest.raises(UserError, match="use torchrun"):
        nn.ModuleList([converted()])[0]._replicate_for_data_parallel()
