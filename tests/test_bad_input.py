"""One line for every mistake, and nothing left of it; the table is that of the benchmark."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from benchmarks.bad_input.case import COMMON
from benchmarks.bad_input.cases import CASES
from benchmarks.bad_input.files import make_files
from benchmarks.bad_input.privileges import permissions_enforced
from benchmarks.bad_input.verdict import faults, names_in


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the arguments name."""
    folder = tmp_path_factory.mktemp("files")
    make_files(folder)
    yield folder
    for locked in ("locked_class/train/cat", "locked_image/train/cat/0.png"):
        (folder / locked).chmod(0o700)  # so that pytest can remove it


def test_no_case_is_there_twice():
    assert len(set(CASES)) == len(CASES) >= 40


@pytest.mark.parametrize("case", CASES, ids=str)
def test_mistake_is_one_line_and_leaves_nothing(command, files, tmp_path, case):
    if case.without_gpu and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    before = names_in(tmp_path) | names_in(files)
    with permissions_enforced() if case.unprivileged else nullcontext():
        result = command(case.script, *COMMON[case.script], *case.arguments.split())
    after = names_in(tmp_path) | names_in(files)
    assert faults(case, result.status, result.err, before, after) == []


def test_damaged_images_are_left_out_and_counted(command, files):
    settings = [f"data.root={files}/cut_png", "data.damaged=skip", "data.workers=0"]
    settings += [*COMMON["train.py"], "data=imagefolder", "trainer.epochs=0"]
    result = command("train.py", *settings)
    assert result.status == 0
    assert f"damaged images, left out: 1 ({files}/cut_png/train/dog/1.png)" in result.out
    assert json.loads(Path("run/summary.json").read_text())["damaged_images"] == 1
    assert command("eval.py", "checkpoint=run").status == 0
    assert json.loads(Path("run/eval.json").read_text())["damaged_images"] == 1
