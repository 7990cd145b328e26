"""A run goes on, and a checkpoint is measured, with the classes and images it is made for."""

import shutil

import pytest
import tiny
import torch

from dqnet.config import EvalConfig
from dqnet.errors import UserError

STEPS = 4  # of an epoch: 8 images in batches of 2


@pytest.fixture
def settings(image_folder, tmp_path):
    """A network for the images below ``tmp_path / "images-2"``, of cats and dogs."""
    root = image_folder("cat", "dog")
    data = "data=imagefolder", f"data.root={root}", "data.batch_size=2", "data.workers=0"
    return *data, "quant=none", "trainer.epochs=2", "trainer.checkpoint_steps=1"


@pytest.fixture
def cut_off(run, settings, tmp_path):
    """``cut_off(update, ...)``: a run's folder, ended like a killed one before an update."""

    def start(update, *more):
        tiny.cut_off(run, update, *settings, *more, folder=tmp_path / "run")
        return tmp_path / "run"

    return start


def fewer(part):
    return lambda root: [path.unlink() for path in (root / part).glob("*/0.png")]


def renamed(root):
    for part in ("train", "test"):
        (root / part / "cat").rename(root / part / "felis")


def another_class(root):
    for part in ("train", "test"):
        shutil.copytree(root / part / "cat", root / part / "eel")


CHANGES = [
    (fewer("train"), "with 8 training, 0 validation, 4 test images, .* has 6, 0, 4: restore"),
    (fewer("test"), "with 8 training, 0 validation, 4 test images, .* has 8, 0, 2: restore"),
    (renamed, "calls class 0 'cat', the data in .*images-2 'dog': restore the data"),
    (another_class, "classifies 2 classes, the data in .*images-2 has 3: restore the data"),
]


@pytest.mark.parametrize("update", [STEPS - 1, STEPS])
@pytest.mark.parametrize(("change", "message"), CHANGES)
def test_run_does_not_go_on_with_other_data(
    run, settings, cut_off, tmp_path, update, change, message
):
    folder = cut_off(update)
    change(tmp_path / "images-2")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match=rf"last\.pt .*{message}"):
        run(*settings, folder=folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_validation_part_of_another_size(run, settings, cut_off, tmp_path):
    folder = cut_off(2, "data.val_fraction=0.25")
    for path in (tmp_path / "images-2/train").glob("*/0.png"):
        for i in range(4, 7):
            shutil.copy(path, path.with_stem(str(i)))
    with pytest.raises(UserError, match=r"6 training, 2 validation, .* has 10, 4, 4: restore"):
        run(*settings, "data.val_fraction=0.25", folder=folder)


def test_another_damaged_image_that_is_left_out(run, settings, cut_off, tmp_path):
    skip = "data.damaged=skip"
    folder = cut_off(2, skip)
    (tmp_path / "images-2/train/dog/1.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"with 8 training, .* has 7, 0, 4: restore the data"):
        run(*settings, skip, folder=folder)


def test_run_of_an_earlier_version_goes_on(run, settings, cut_off):
    """It does not say how many images it had."""
    folder = cut_off(2)
    content = torch.load(folder / "last.pt", weights_only=True)
    del content["images"]
    torch.save(content, folder / "last.pt")
    assert "after epoch 0 of 2 and 2 of 4 steps" in run(*settings, folder=folder).text


@pytest.fixture
def measured_on(measure, tmp_path):
    """``measured_on(checkpoint, root)``: its figures there."""

    def start(path, root, **changes):
        data = EvalConfig().data
        data.root = str(root)
        return measure(path, data=data, output=str(tmp_path / "out"), **changes)

    return start


def test_evaluation_compares_the_classes_names(run, settings, measured_on, tmp_path):
    path = run(*settings, folder=tmp_path / "run").folder / "best.pt"
    images = tmp_path / "images-2"
    renamed(images)
    named = rf"{path} calls class 0 'cat', the data in {images} 'dog': name the data it was"
    with pytest.raises(UserError, match=named):
        measured_on(path, images)
    assert not (tmp_path / "out").exists()
    content = torch.load(path, weights_only=True)
    del content["class_names"]  # as in a checkpoint of an earlier version
    torch.save(content, path)
    assert measured_on(path, images)["images"] == 4


def test_evaluation_on_other_images_of_the_same_classes(run, settings, measured_on, tmp_path):
    folder = run(*settings, folder=tmp_path / "run").folder
    images = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images-2", images)
    fewer("train")(images)
    fewer("test")(images)
    assert measured_on(folder, images)["images"] == 2


def test_curve_on_other_images_of_the_same_number(run, settings, measured_on, tmp_path):
    dynamic = "quant=dorefa", "quant.widths=[2,3]", "trainer.epochs=0"
    folder = run(*settings, *dynamic, folder=tmp_path / "run").folder
    shutil.copytree(tmp_path / "images-2", tmp_path / "elsewhere")
    measured_on(folder, tmp_path / "images-2", curve=True)
    measured_on(folder, tmp_path / "images-2")
    assert (tmp_path / "out/curve.csv").exists()
    measured_on(folder, tmp_path / "elsewhere")
    assert not (tmp_path / "out/curve.csv").exists()
