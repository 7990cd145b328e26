"""Paths on the command line as people have them; Hydra's own parser says what it reads."""

import json
import shutil

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dqnet.overrides import INPUTS, LISTS, OUTPUTS, as_hydra_reads

NAMES = [
    "été",
    "数据集",
    "Bilder für dqnet",
    "R&D",
    "run#3",
    "wow!",
    "50%",
    "who?",
    "Bob's photos",
    'a "good" one',
    "quant=lsq,quant.widths=[2,3]",
    "f(x) {1}",
    "1e3",
    "1_000",
    "true",
    "back\\slash'",
    " blanks ",
    "two\nlines",
    "\udce9",
]


def read(argument, **options):
    """What Hydra makes of an argument."""
    return OverridesParser.create().parse_override(as_hydra_reads(argument, **options)).value()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["data.root", "checkpoint", "output", "hydra.run.dir"])
def test_a_path_is_read_as_it_is_typed(name, key, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    assert str(read(f"{key}={name}")) == name
    assert str(read(f"{key}=runs/{name}/best.pt", sweeps=False)) == f"runs/{name}/best.pt"


@given(st.text(min_size=1))
def test_a_folder_to_be_made_may_have_any_name(name):
    syntax = name.lower() == "null" or name[0] in "'\"~" or "\\" in name
    assert syntax or str(read(f"output={name}")) == name


@given(st.lists(st.text(st.characters(exclude_characters=",'\"~\\"), min_size=1), min_size=1))
def test_a_list_of_paths(names):
    names = [f"./{name}".strip() for name in names]
    assert [str(name) for name in read(f"report.baselines=[{','.join(names)}]")] == names


def test_a_comma_is_part_of_a_path_that_exists(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["quant=lsq,quant.widths=[2,3]", "seed=1,quant=none", "é"]
    for name in names:
        (tmp_path / name).mkdir()
    assert read(f"report.baselines=[{','.join(names)}]") == names
    swept = OverridesParser.create().parse_override(as_hydra_reads(f"data.root={','.join(names)}"))
    assert [value.text for value in swept.value().list] == names


@pytest.mark.parametrize(
    "argument",
    [
        *("-m", "optim.lr", "=3", "~optim.lr", "data.root=", "data.root=null", "checkpoint=a b"),
        *("data.root='é'", 'data.root="a,b"', "data.root=a\\ b", "data.root=choice(a,b)"),
        *("data.root=a,b", "report.baselines=[a,'é']", "hydra.run.dir=runs/${seed}"),
        *("quant.widths=[2,3]", "seed=0,1", "optim.lr=interval(0.1,1)", "optim.lr=1e-3"),
        *("optim.lr=[1", "model.name=a=b", "logger.project='é'", "+model.args={a: 1}"),
    ],
)
def test_hydras_syntax_stays(argument):
    assert as_hydra_reads(argument) == argument


@pytest.mark.parametrize("argument", [f"data.root={name}" for name in NAMES])
def test_what_was_translated_is_not_translated_again(argument):
    once = as_hydra_reads(argument)
    assert as_hydra_reads(once) == once


def test_a_home_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/home/été")
    assert read("data.root=~/data") == "/home/été/data"


def test_other_settings_take_letters_of_any_script():
    assert read("logger.project=Bob's été") == "Bob's été"


def test_settings_that_are_paths_exist(command):
    scripts = ("train.py",), ("train.py", "cost=energy"), ("train.py", "cost=table"), ("eval.py",)
    shown = [command(*script, "--cfg", "job", "--resolve").out for script in scripts]
    keys = {key.rpartition(".")[2] for key in INPUTS | OUTPUTS | LISTS if "hydra." not in key}
    assert all(f"{key}:" in "".join(shown) for key in keys)
    (line,) = command("train.py", "data=été").err
    assert line.startswith("error: unknown data 'été'; valid: cifar10")


# From end to end


@pytest.fixture
def root(tmp_path):
    """A folder of images whose name Hydra would not read."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "Bob's R&D, été"
    for part in ("train", "test"):
        for name in ("Katze", "犬"):
            (folder / part / name).mkdir(parents=True)
            for i in range(4):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


SETTINGS = ["data=imagefolder", "data.size=8", "data.batch_size=4", "quant.widths=[2]"]
SETTINGS += ["trainer.epochs=0", "trainer.device=cpu", "trainer.progress=false"]


def test_every_path_of_a_run_and_its_evaluation(command, root, tmp_path):
    train = [*SETTINGS, f"data.root={root.name}", "hydra.run.dir=Läufe/#1, gut!"]
    assert command("train.py", *train).status == 0
    run = tmp_path / "Läufe/#1, gut!"
    assert "complete" in command("train.py", *train).out
    start = f"model.checkpoint_path={run.relative_to(tmp_path)}/best.pt"
    assert command("train.py", *train[:-1], "quant=none", start).status == 0
    (named,) = (tmp_path / "runs").iterdir()
    assert "été" in named.name and not set(named.name) & set("'& !#")

    root.rename(tmp_path / "moved & gone")
    evaluation = ["checkpoint=Läufe/#1, gut!", "data.root=moved & gone", "output=e'e/[1,2]"]
    assert command("eval.py", *evaluation, "report=html", f"report.baselines=[{run}]").status == 0
    assert (tmp_path / "e'e/[1,2]/report/index.html").exists()
    second = ["cascade.checkpoint=Läufe/#1, gut!/last.pt", "output=out"]
    assert command("eval.py", *evaluation[:2], *second).status == 0
    assert (tmp_path / "out/cascade.json").exists()


def test_a_missing_path_is_named_as_typed(command):
    (line,) = command("eval.py", "checkpoint=runs/quant=lsq,é").err
    assert "checkpoint runs/quant=lsq,é does not exist" in line
    (line,) = command("train.py", *SETTINGS, "data.root=Bob's").err
    assert "data.root Bob's is not a folder" in line


def test_a_sweep_over_such_folders(command, root, tmp_path):
    shutil.copytree(root, tmp_path / "another & last")
    both = f"data.root={root.name},another & last"
    sweep = ["-m", *SETTINGS, both, "hydra.sweep.dir=été [new]"]
    result = command("train.py", *sweep)
    assert result.status == 0
    assert "runs in été [new]" in result.out
    runs = [path for path in (tmp_path / "été [new]").iterdir() if (path / "summary.json").exists()]
    assert len(runs) == 2
    assert command("train.py", *sweep).out.count("│ complete before") == 2
    # The same as a sweep's file has it, where the folders are lists of words as in a shell.
    grid = "hydra.sweeper.grids=['data.root=\"another & last\"']"
    assert command("train.py", "-m", *SETTINGS, grid, "hydra.sweep.dir=grid").status == 0
    (run,) = (tmp_path / "grid").iterdir()
    assert json.loads((run / "summary.json").read_text())["epochs"] == 0


def test_a_search_keeps_its_trials_in_a_folder_of_any_name(command, root, tmp_path):
    search = ["-m", *SETTINGS, "trainer.epochs=1", "data.val_fraction=0.5", "optim.lr=0.1,0.2"]
    search += [f"data.root={root.name}", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=1"]
    search += ["hydra.sweep.dir=which one? #1 é"]
    before = {path.name for path in tmp_path.iterdir()}
    assert command("train.py", *search).status == 0
    assert {path.name for path in tmp_path.iterdir()} - before == {"which one? #1 é"}
    assert (tmp_path / "which one? #1 é/study.db").exists()
    assert "complete before" in command("train.py", *search).out
