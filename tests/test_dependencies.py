"""Dependencies point one way: what computes knows nothing of reports, and reports read files."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: The rooms, the lowest first; those of one line may know each other. A room is a folder or a file.
#: DESIGN's order, with what DESIGN does not name: ``measurement``, the pass over labelled images
#: that the loop makes after every epoch and that an evaluation builds on, is below both.
ORDER = [
    "errors units circumstances overrides standard_output config ranges processes recording",
    "formats",
    "quantizers",
    "layers",
    "trace dataflow norm_pairs graph residual module_swap same_function plan rules split "
    "state_dicts structure backbone_interface controllers",
    "network",
    "convertible",
    "convert fold calibration transforms",
    "post_training pruning",
    "costs",
    "search",
    "losses cascade",
    "models data",
    "runtime",
    "measurement",
    "training",
    "evaluation",
    "export",
    "report",
    "sweep",
    "cli",
    "__init__",  # what users import from dqnet itself
]
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms.split()}
#: all of runtime and evaluation that a report may load: what reads and writes files
FILES = {"dqnet.runtime", "dqnet.runtime.files", "dqnet.evaluation", "dqnet.evaluation.samples"}


def modules():
    """Name → path of every module of dqnet."""
    found = {}
    for path in (ROOT / "dqnet").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, known):
    """The modules of dqnet that a file imports anywhere: in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            inside = names & known
            found |= inside if inside else {node.module}
            if inside != names:
                found.add(node.module)
    return found & known


def graph():
    paths = modules()
    return {name: imports(path, paths.keys()) - {name} for name, path in paths.items()}


def room(module):
    return [*module.split("."), "__init__"][1]


def test_no_circle():
    try:
        TopologicalSorter(graph()).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_every_import_goes_down():
    upward = [
        f"{module} imports {imported}"
        for module, found in graph().items()
        for imported in found
        if LEVEL[room(imported)] > LEVEL[room(module)]
    ]
    assert upward == []


def test_a_hidden_import_is_found(tmp_path):
    known = {"dqnet.plan", "dqnet.trace", "dqnet.data", "dqnet.data.load"}
    file = tmp_path / "module.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from dqnet.plan import Plan\n"
        "def lazily():\n    import dqnet.trace\n    from dqnet.data import load, Splits\n"
    )
    assert imports(file, known) == known


def test_a_report_loads_nothing_that_computes():
    modules = "page.html", "page.figures.trade_off", "page.wandb", "compare.__main__"
    names = ", ".join(f"dqnet.report.{module}" for module in modules)
    code = f"import sys, {names}; print(*sys.modules)"
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rooms = tuple(f"dqnet.{name}" for name in ("runtime", "measurement", "training", "evaluation"))
    loaded = {name for name in process.stdout.split() if name.startswith(rooms)}
    assert loaded <= FILES
