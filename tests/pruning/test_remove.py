"""Removed filters: the network cut by hand is the same one, and a run goes on from it."""

import builtins

import pytest
import timm
import tiny  # noqa: F401  registers resnet8_cifar
import torch
from timm.models import build_model_with_cfg, register_model
from torch import nn

from dqnet.errors import UserError
from dqnet.export.pack import pack
from dqnet.pruning.remove import logits_difference, remove_filters
from dqnet.training.remove_filters import main
from dqnet.training.smaller import with_channel_counts, write_smaller

IMAGE = torch.zeros(1, 1, 8, 8)
CHANNELS = "model.transforms=[{name: channels}]"


class Small(nn.Sequential):
    """With a depthwise convolution, a norm with an activation and pixels that are flattened."""

    def __init__(self, act=nn.ReLU, num_classes=10, in_chans=1, **_):
        super().__init__(
            nn.Conv2d(in_chans, 6, 3, padding=1), nn.BatchNorm2d(6), act(),
            nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), nn.BatchNorm2d(6), act(),
            nn.Conv2d(6, 5, 3, stride=2, bias=False), nn.BatchNorm2d(5), act(), nn.Flatten(),
            nn.Linear(45, num_classes),
        )  # fmt: skip


@register_model
def small_to_remove_from(pretrained=False, **kwargs):
    return build_model_with_cfg(Small, "resnet20_cifar", pretrained, **kwargs)


@torch.no_grad()
def with_zeros(model, zeros):
    """The model with norms of their own, and filters that are zero: module → indices."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    for name, indices in zeros.items():
        for parameter in model.get_submodule(name).parameters():
            parameter[indices] = 0
    return model.eval()


def test_it_is_the_network_that_is_cut_by_hand():
    gone, left = [0, 3, 15], [i for i in range(16) if i not in (0, 3, 15)]
    zeros = {"layer1.0.conv1": gone, "layer1.0.bn1": gone}
    model = with_zeros(timm.create_model("resnet8_cifar", in_chans=1), zeros)
    expected = model.state_dict()
    expected["layer1.0.conv1.weight"] = expected["layer1.0.conv1.weight"][left]
    for name in ("weight", "bias", "running_mean", "running_var"):
        expected[f"layer1.0.bn1.{name}"] = expected[f"layer1.0.bn1.{name}"][left]
    expected["layer1.0.conv2.weight"] = expected["layer1.0.conv2.weight"][:, left]
    smaller, counts = remove_filters(model, IMAGE)
    assert counts == {"layer1.0.conv1": 13}
    state = smaller.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert model.layer1[0].conv1.out_channels == 16


def test_depthwise_layers_and_flattened_pixels_follow():
    zeros = {"0": [1, 4], "1": [1, 4], "3": [1, 4], "4": [1, 4], "6": [2], "7": [2]}
    model = with_zeros(Small(), zeros)
    smaller, counts = remove_filters(model, IMAGE)
    assert counts == {"0": 4, "3": 4, "6": 4}
    assert (smaller[3].groups, smaller[10].in_features) == (4, 36)
    difference, largest = logits_difference(model, smaller, IMAGE)
    assert difference <= 1e-6 * largest


def test_what_is_not_zero_altogether_stays():
    for missing in ("1", "3", "4"):
        zeros = {name: [1, 4] for name in ("0", "1", "3", "4") if name != missing}
        with pytest.raises(UserError, match="no filter can be removed"):
            remove_filters(with_zeros(Small(), zeros), IMAGE)


def test_one_filter_of_a_layer_stays():
    _, counts = remove_filters(with_zeros(Small(), {"6": range(5), "7": range(5)}), IMAGE)
    assert counts == {"6": 1}


def test_classes_stay():
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 10, 6), nn.Flatten())
    with torch.no_grad():
        model[2].weight[3], model[2].bias[3] = 0, 0
    with pytest.raises(UserError, match="no filter can be removed"):
        remove_filters(model, IMAGE)


def test_an_activation_of_zero_that_is_not_zero_is_refused():
    model = with_zeros(Small(nn.Sigmoid), {"6": [2], "7": [2]})
    with pytest.raises(UserError, match=r"the logits differ by .* does not map zero to zero"):
        remove_filters(model, IMAGE)


def test_without_the_library_it_says_what_to_install(monkeypatch):
    original = builtins.__import__

    def without(name, *args):
        if name == "torch_pruning":
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install dqnet\[compression\]"):
        remove_filters(Small(), IMAGE)


@pytest.fixture(scope="module")
def soft(run):
    """A run with soft filters, whose filters are removed."""
    done = run("quant=none", "prune=soft_filters", "prune.ratio=0.5", "trainer.epochs=2")
    write_smaller(done.folder)
    return done


def test_the_smaller_network_answers_as_the_whole_one(soft, measure):
    whole, smaller = measure(soft.folder), measure(soft.folder / "smaller")
    assert (whole["top1"], whole["images"]) == (smaller["top1"], smaller["images"])
    assert whole["loss"] == pytest.approx(smaller["loss"], rel=1e-5)
    assert 0.45 < smaller["macs"] / whole["macs"] < 0.6
    assert smaller["params"] < 0.55 * whole["params"]
    rows = [
        [line.split(",")[:4] for line in (folder / "per_sample.csv").open()]
        for folder in (soft.folder, soft.folder / "smaller")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 61


def test_what_was_written_is_told(soft, capsys, tmp_path):
    main([str(soft.folder), str(tmp_path / "other" / "file.pt")])
    first, filters, parameters, macs, difference = capsys.readouterr().out.splitlines()
    assert first.endswith("file.pt, 3 layers with fewer filters")
    assert filters == "filters: 112 to 56, 50.0% fewer"
    assert parameters.startswith("parameters: 75,002 to ") and macs.startswith("multiply-acc")
    assert float(difference.partition(": ")[2].partition(",")[0]) < 1e-4
    with pytest.raises(SystemExit, match=r"^error: checkpoint .*nowhere does not exist$"):
        main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    "quant", [["quant=none"], ["quant=lsq"], ["quant=affine", "quant.widths=[8]"]]
)
def test_a_run_starts_from_it(soft, run, config, measure, quant, tmp_path):
    start = f"model.checkpoint_path={soft.folder / 'smaller' / 'best.pt'}"
    counts = with_channel_counts(config(*quant, start, CHANNELS)).model.transforms[0]["counts"]
    assert counts == {"layer1.0.conv1": 8, "layer2.0.conv1": 16, "layer3.0.conv1": 32}
    written = f"model.transforms=[{{name: channels, counts: {{{_as_hydra(counts)}}}}}]"
    done = run(*quant, start, written)
    assert measure(done.folder)["top1"] == done.summary["top1"]
    assert pack(str(done.folder)).same


def _as_hydra(counts):
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def test_a_command_starts_from_it_and_goes_on(soft, command, tmp_path):
    small = soft.folder / "smaller" / "best.pt"
    settings = (
        "model.name=resnet8_cifar", "data.size=8", "trainer.device=cpu", "trainer.epochs=0",
        "quant=affine", "quant.widths=[8]", f"model.checkpoint_path={small}", CHANNELS,
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert command("train.py", *settings).status == 0
    again = command("train.py", *settings)
    assert again.status == 0 and "holds this run, complete" in again.out


def test_filters_are_removed_once_more(soft, run, tmp_path):
    small = soft.folder / "smaller" / "best.pt"
    transforms = _transforms(small)
    further = run(
        "quant=none", "prune=soft_filters", f"model.checkpoint_path={small}",
        f"model.transforms=[{{name: channels, counts: {{{_as_hydra(transforms[0]['counts'])}}}}}]",
    )  # fmt: skip
    made = write_smaller(further.folder)
    assert made.counts == {"layer1.0.conv1": 5, "layer2.0.conv1": 10, "layer3.0.conv1": 20}
    (merged,) = _transforms(made.path)
    assert merged == {"name": "channels", "counts": made.counts}


def _transforms(path):
    return torch.load(path, weights_only=True)["config"]["model"]["transforms"]


@pytest.mark.parametrize("named", [True, False])
def test_channels_without_counts_need_a_smaller_network(soft, command, named):
    path = soft.folder / "best.pt"
    start = [f"model.checkpoint_path={path}"] if named else []
    result = command("train.py", CHANNELS, *start)
    assert result.status == 1
    what = f"{path} has none" if named else "none is named"
    assert result.err == [
        "error: transform 'channels' without counts takes those of the checkpoint, and "
        f"{what}: model.checkpoint_path=RUN/smaller/best.pt, of dqnet.training.remove_filters"
    ]


def test_of_a_quantized_network_no_filters_are_removed(run):
    done = run("quant=lsq", "prune=soft_filters")
    with pytest.raises(UserError, match="is of a quantized network: remove filters from the"):
        write_smaller(done.folder)
