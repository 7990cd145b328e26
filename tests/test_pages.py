"""README.md and docs/: commands are read as the programs do, short ones run, links lead on."""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from markdown_it import MarkdownIt
from markdown_it.token import Token
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from dqnet.cli import to_object
from dqnet.config import EvalConfig, TrainConfig
from dqnet.costs import base as costs
from dqnet.overrides import as_hydra_reads
from dqnet.quantizers import Quantizer
from hydra_plugins.dqnet_sweeps._resumable import ResumableSweeper

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
README = Path("README.md")
PAGES = [README, *sorted(p.relative_to(ROOT) for p in ROOT.glob("docs/*.md"))]
PAGES += [Path("results/README.md")]
SCHEMAS = {"train.py": TrainConfig, "eval.py": EvalConfig}
#: names that stand for a user's own choice, where a choice of conf/ is needed
CHOICES = {"sweep=NAME": "sweep=digits", "sweep=mine": "sweep=template"}
#: a user's files, which pages tell how to make
OWN_FILES = {"dqnet/quantizers/max_abs.py", "conf/quant/max_abs.yaml"}
OWN_FILES |= {"conf/experiment/mine.yaml", "conf/sweep/mine.yaml"}
OWN_FILES |= {"dqnet/costs/weight_bits.py"}
#: added to commands that run here
QUICK = ["trainer.device=cpu", "trainer.progress=false"]


# What is on a page


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """Everything on a page, from top to bottom; what is within a line as well."""
    parsed = MarkdownIt("commonmark").enable("table").parse((ROOT / page).read_text("utf-8"))
    return tuple(inner for token in parsed for inner in (token, *(token.children or ())))


def blocks(page: Path, *languages: str) -> list[str]:
    """The code blocks of a page; an indented one has the language ``""``."""
    kinds = ("fence", "code_block")
    return [t.content for t in tokens(page) if t.type in kinds and t.info.strip() in languages]


def code_in_text(page: Path) -> list[str]:
    return [token.content for token in tokens(page) if token.type == "code_inline"]


@dataclass(frozen=True)
class Command:
    """A command of a page: ``script`` is ``train.py``, ``eval.py`` or the module of ``-m``."""

    script: str
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join((self.script, *self.arguments))

    @property
    def sweeps(self) -> bool:
        return self.script == "train.py" and "-m" in self.arguments

    @property
    def overrides(self) -> list[str]:
        """Its settings, without Hydra's own flags."""
        rest = list(self.arguments)
        if "--cfg" in rest:
            at = rest.index("--cfg")
            assert rest[at + 1] in ("job", "plan")
            del rest[at : at + 2]
        return [CHOICES.get(argument, argument) for argument in rest if argument != "-m"]


def command_of(line: str) -> Command | None:
    """The command in a line of a shell; ``None``: it starts none of this project's programs."""
    words = [word for word in shlex.split(line, comments=True) if word not in ("&", "…")]
    for script in SCHEMAS:
        if script in words:
            return Command(script, tuple(words[words.index(script) + 1 :]))
    if words[:2] == ["python", "-m"]:
        return Command(words[2], tuple(words[3:]))
    return None


def commands(page: Path) -> Iterator[Command]:
    """All of a page's commands."""
    lines = [*code_in_text(page)]
    for block in blocks(page, "", "bash"):
        lines += block.replace("\\\n", " ").splitlines()
    for line in lines:
        if re.match(r"(python|torchrun|srun|OMP_NUM_THREADS=1|eval\.py|train\.py) ", line.strip()):
            command = command_of(line)
            if command is not None:
                yield command


def all_commands() -> list[Command]:
    return list(dict.fromkeys(command for page in PAGES for command in commands(page)))


SINGLE = [c for c in all_commands() if c.script in SCHEMAS and not c.sweeps]
#: once for each sweep, whatever its paths are called
SWEEPS = {re.sub(r"=\S*/\S*\.pt", "", str(c)): c for c in all_commands() if c.sweeps}.values()
MODULES = [c for c in all_commands() if c.script not in SCHEMAS]


def test_pages_have_commands():
    """So that no test below passes for want of any."""
    assert len(SINGLE) >= 40
    assert len(SWEEPS) >= 6
    assert len(MODULES) >= 6


# Commands are read as the program reads them


def composed(script, overrides, conf=CONF):
    with initialize_config_dir(str(conf), version_base="1.3"):
        return compose(script.removesuffix(".py"), [as_hydra_reads(o) for o in overrides])


@pytest.mark.parametrize("one", SINGLE, ids=str)
def test_settings_of_a_command_exist(one):
    to_object(SCHEMAS[one.script], composed(one.script, one.overrides))


class Planned(BaseException):
    """A sweep got as far as its first run."""


@pytest.mark.parametrize("sweep", SWEEPS, ids=str)
def test_a_sweep_gets_as_far_as_its_first_run(sweep, command, monkeypatch):
    composed_job = ResumableSweeper.job

    def job(self, *arguments):
        composed_job(self, *arguments)
        raise Planned

    monkeypatch.setattr(ResumableSweeper, "job", job)
    with pytest.raises(Planned):
        command("train.py", "-m", *sweep.overrides)


class Parsed(BaseException):
    """A module's command line was understood."""


@pytest.mark.parametrize("one", MODULES, ids=str)
def test_arguments_of_a_module_exist(one, monkeypatch):
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *arguments):
        parse(self, *arguments)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [one.script, *one.arguments])
    module = importlib.import_module(one.script)
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"{one.script}.__main__")
    with pytest.raises(Parsed):
        module.main()


def settings_in_text() -> list[tuple[str, ...]]:
    """What is said to be a setting in running text, as in `trainer.epochs=0`."""
    roots = {*composed("train.py", []), *composed("eval.py", []), "hydra", "hydra/launcher"}
    roots = "|".join(root for root in sorted(map(str, roots), key=len, reverse=True))
    one = re.compile(rf"\+?({roots})(\.[\w.]+)?=[^ ]+")
    found = dict.fromkeys(
        tuple(text.split(" "))
        for page in PAGES
        for text in code_in_text(page)
        if all(one.fullmatch(word) for word in text.split(" "))
    )
    return [words for words in found if not {"experiment=mine", "quant=max_abs"} & {*words}]


@cache
def of_choices(script: str, choices: tuple[str, ...]) -> DictConfig:
    """What is composed for choices of files; settings differ among fewer of these than settings."""
    return composed(script, choices)


def with_settings(script: str, words: list[str]) -> DictConfig:
    """What ``composed`` returns; values are set as Hydra sets them once it has composed."""
    parsed = [OverridesParser.create().parse_override(as_hydra_reads(word)) for word in words]
    values = [
        o for o in parsed if not (CONF / o.key_or_group).is_dir() and "hydra" not in o.key_or_group
    ]
    choices = [word for word, o in zip(words, parsed, strict=True) if o not in values]
    config = deepcopy(of_choices(script, tuple(choices)))
    for one in values:
        with open_dict(config) if one.is_add() else nullcontext():
            OmegaConf.update(
                config, one.key_or_group, one.value(), merge=True, force_add=one.is_add()
            )
    return config


def test_values_are_set_as_by_hydra():
    words = ["quant=lsq", "quant.widths=[w4a8]", "+quant.options.x=1", "optim.lr=0.5"]
    assert with_settings("train.py", words) == composed("train.py", words)
    for wrong in ("optim.lrr=1", "optim.new.lr=1"):
        with pytest.raises((HydraException, OmegaConfBaseException)):
            with_settings("train.py", [wrong])


def test_settings_in_the_text_exist():
    found = settings_in_text()
    assert len(found) >= 30
    wrong = {}
    for words in found:
        errors = []
        for script, schema in SCHEMAS.items():
            overrides = [CHOICES.get(word, word) for word in words]
            try:
                to_object(schema, with_settings(script, overrides))
                break
            except Exception as error:
                errors.append(str(error).splitlines()[0])
        else:
            wrong[words] = errors
    assert wrong == {}


def test_files_of_settings_compose(tmp_path):
    """The YAML of docs/quantization.md, where the page says that it belongs."""
    conf = tmp_path / "conf"
    shutil.copytree(CONF, conf)
    experiment, method = blocks(Path("docs/quantization.md"), "yaml")
    (conf / "experiment/mine.yaml").write_text(experiment)
    (conf / "quant/max_abs.yaml").write_text(method)
    quant = to_object(TrainConfig, composed("train.py", ["experiment=mine"], conf)).quant
    written = yaml.safe_load(experiment)["quant"]
    assert (quant.first_last, quant.layers) == (written["first_last"], written["layers"])
    assert [*quant.layers] == [*written["layers"]]  # the last match wins
    assert composed("train.py", ["quant=max_abs"], conf).quant.quantizer == "max_abs"


def test_other_commands_name_what_there_is():
    lines = [line.split() for page in PAGES for b in blocks(page, "") for line in b.splitlines()]
    targets = {words[1] for words in lines if words[:1] == ["make"]}
    assert targets == {"train", "test"}
    assert targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    copied = [words[1] for words in lines if words[:1] == ["cp"]]
    assert copied and all((ROOT / name).is_file() for name in copied)


# Short commands run, and print what the page says


def documented(start: str, page: Path = README) -> list[str]:
    """The arguments of the shortest command of a page that begins so."""
    return list(min((c.arguments for c in commands(page) if str(c).startswith(start)), key=len))


def test_the_commands_of_the_first_minute_run(command, tmp_path, monkeypatch):
    """A float network, its 8-bit form, its plan edited and handed back."""
    float_run = ["quant=none", "trainer.epochs=0", "hydra.run.dir=runs/float", *QUICK]
    assert command("train.py", *float_run).status == 0
    shutil.copy("runs/float/best.pt", "float.pt")

    ready = documented("train.py experiment=ptq_w8a8")
    assert command("train.py", *ready, "hydra.run.dir=runs/ready", *QUICK).err == []
    summary = json.loads(Path("runs/ready/summary.json").read_text())
    assert (summary["epochs"], summary["mean_width"]) == (0, 8)

    shown = documented("train.py quant=lsq quant.widths=[8] --cfg", Path("docs/quantization.md"))
    eight = [word for word in shown if word not in ("--cfg", "plan")]
    eight += ["trainer.epochs=0", "model.checkpoint_path=float.pt"]
    assert command("train.py", *eight, "hydra.run.dir=runs/eight", *QUICK).err == []
    summary = json.loads(Path("runs/eight/summary.json").read_text())

    text = Path("runs/eight/plan.json").read_text()
    (shown,) = (b for b in blocks(Path("docs/quantization.md"), "text") if '"layers"' in b)
    assert text.startswith(shown.removesuffix("  ...\n"))
    Path("plan.json").write_text(text.replace('"precisions": [8]', '"precisions": ["w4a8"]'))
    planned = documented("train.py quant=lsq quant.plan", Path("docs/quantization.md"))
    assert command("train.py", *planned, "hydra.run.dir=runs/planned", *QUICK).err == []
    again = json.loads(Path("runs/planned/summary.json").read_text())
    assert again["bit_flops"] == summary["bit_flops"] / 2


def test_the_result_is_printed_as_the_pages_show_it(command, monkeypatch):
    """But for the figures, which an untrained network does not have."""
    monkeypatch.setenv("COLUMNS", "80")
    trained = command("train.py", "trainer.epochs=0", "hydra.run.dir=runs/default", *QUICK)
    evaluated = command("eval.py", *documented("eval.py checkpoint=runs/default"), QUICK[0])
    ((short,), (whole,)) = (blocks(page, "text") for page in (README, Path("docs/training.md")))
    assert [line for line in short.splitlines() if line not in whole.splitlines()] == ["..."] * 2
    for result, shown in ((trained, short), (trained, whole), (evaluated, whole)):
        assert result.err == []
        rest = [in_outline(line) for line in result.out.splitlines()]
        for line in shown.splitlines():
            if line != "...":
                assert in_outline(line) in rest, line
                del rest[: rest.index(in_outline(line)) + 1]


def in_outline(line: str) -> str:
    """A line of a table without its figures and their widths."""
    if line.startswith("│"):
        return line.split("│")[1].strip()
    return re.sub(r"([ ━─])\1+", r"\1", line.rstrip())


ON_DIGITS = [
    c
    for c in SINGLE
    if c.script == "train.py"
    and not any(
        a.startswith(("data=", "data.", "experiment=cifar", "--cfg", "quant.plan", "trainer.prec"))
        for a in c.arguments
    )
]


@pytest.mark.slow
@pytest.mark.parametrize("one", ON_DIGITS, ids=str)
def test_commands_on_digits_run(one, command):
    float_run = ["quant=none", "trainer.epochs=0", "hydra.run.dir=runs/float", *QUICK]
    assert command("train.py", *float_run).status == 0
    shutil.copy("runs/float/best.pt", "float.pt")
    if any("pruned.pt" in a or "RUN/" in a for a in one.arguments):
        pruned = ["quant=none", "prune=magnitude", "prune.ratio=0.5", "hydra.run.dir=RUN"]
        assert command("train.py", *pruned, "trainer.epochs=1", *QUICK).status == 0
        shutil.copy("RUN/best.pt", "pruned.pt")
    shutil.copy(ROOT / "results/layer_latencies_cpu.csv", "latency.csv")
    untrained = any(a.startswith(("trainer.epochs=0", "experiment=ptq")) for a in one.arguments)
    short = [] if untrained else ["trainer.epochs=1"]
    result = command("train.py", *one.overrides, *QUICK, *short)
    assert (result.status, result.err) == (0, [])


OF_DEFAULT = [c for c in SINGLE if str(c).startswith("eval.py checkpoint=runs/default ")]


@pytest.mark.slow
def test_evaluations_of_the_default_run(command):
    assert command("train.py", "trainer.epochs=2", *QUICK, "hydra.run.dir=runs/default").err == []
    for name, widths in (("static", "quant.widths=[3]"), ("float", "quant=none")):
        run = [f"hydra.run.dir=runs/{name}", "trainer.epochs=0", widths, *QUICK]
        assert command("train.py", *run).err == []
    for one in OF_DEFAULT:
        if "data.root=PATH" not in one.arguments and "logger=wandb" not in one.arguments:
            result = command("eval.py", *one.overrides)
            assert (result.status, result.err) == (0, []), one


# Python on the pages runs


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p, "python")], ids=str)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    """From top to bottom in one session, without a download and with small images."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Quantizer, "registry", {**Quantizer.registry})
    monkeypatch.setattr(costs, "_MODELS", {**costs._MODELS})
    session = {"__name__": "page"}
    for code in blocks(page, "python"):
        if "sys.argv" in code:  # a program, which tests/export/test_deploy_page.py runs
            continue
        smaller = code.replace("pretrained=True", "pretrained=False").replace("224, 224", "32, 32")
        exec(compile(smaller, str(page), "exec"), session)


# Pages and links


def links(page: Path) -> list[str]:
    """Where a page's links and pictures lead within the repository."""
    given = [t.attrGet("href") or t.attrGet("src") for t in tokens(page)]
    return [str(link) for link in given if link and not re.match(r"\w+:", str(link))]


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub does it."""
    every = tokens(page)
    titles = [every[i + 1].content for i, t in enumerate(every) if t.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def target(page: Path, link: str) -> tuple[Path, str]:
    name, _, anchor = link.partition("#")
    file = (ROOT / page.parent / name).resolve() if name else ROOT / page
    return file.relative_to(ROOT), anchor


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_to_a_file_and_a_heading(page):
    for link in links(page):
        file, anchor = target(page, link)
        assert (ROOT / file).exists(), link
        assert not anchor or anchor in anchors(file), link


def test_every_page_is_two_clicks_away():
    seen = {README}
    for _ in range(2):
        seen |= {target(page, link)[0] for page in seen if page in PAGES for link in links(page)}
    assert seen >= {*PAGES}
    assert seen >= {p.relative_to(ROOT) for p in (ROOT / "docs").iterdir()}


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_that_are_named_exist(page):
    named = {t for t in code_in_text(page) if re.fullmatch(r"(dqnet|conf|tests)/[\w./]*", t)}
    assert [name for name in named - OWN_FILES if not (ROOT / name).exists()] == []


def test_the_readme_is_read_in_five_minutes():
    assert len((ROOT / README).read_bytes()) <= 9000
