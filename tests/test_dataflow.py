"""Which output goes where: modules, operations, changes in place, and what does nothing."""

import timm
import torch
import torch.nn.functional as F
from torch import nn

from dqnet.dataflow import dataflow


class Net(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.way = forward
        self.a, self.b = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.act, self.drop = nn.ReLU(inplace=True), nn.Dropout(0.5)

    def forward(self, x):
        return self.way(self, x)


def users(way):
    """Names of what reads the outputs of ``a``, and of its users' outputs, one after another."""
    net = Net(way)
    flow = dataflow(net, torch.zeros(1, 3, 4, 4))
    (call,) = flow.calls[net.a]
    chain = []
    while call.outputs and (found := flow.users[call.outputs[0]]):
        chain.append([user.name for user in found])
        call = found[0]
    return chain


def test_a_chain_of_modules():
    way = lambda net, x: net.b(net.act(net.a(x)))  # noqa: E731
    assert users(way) == [["act"], ["b"], ["the network's result"]]


def test_what_does_nothing_in_evaluation_is_no_call():
    way = lambda net, x: net.b(net.drop(F.dropout(net.a(x), training=net.training)))  # noqa: E731
    assert users(way) == [["b"], ["the network's result"]]


def test_operations_and_changes_in_place():
    def way(net, x):
        y = net.a(x)
        y += 1
        return net.b(F.relu(y))

    assert users(way) == [["aten.add_"], ["aten.relu"], ["b"], ["the network's result"]]


def test_two_users_and_a_result_that_is_one():
    def way(net, x):
        y = net.a(x)
        return {"sum": net.b(y) + y, "too": [y]}

    assert users(way)[0] == ["b", "aten.add", "the network's result"]


def test_calls_of_a_module_are_counted_and_the_model_stays_as_it_was():
    net = timm.create_model("resnet20_cifar").train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    flow = dataflow(net, torch.zeros(1, 3, 32, 32))
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert [len(flow.calls[conv]) for conv in convs] == [1] * 19
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
