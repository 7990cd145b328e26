"""Compare runs: accuracy against Bit-FLOPs, static against dynamic.

python -m dqnet.report.compare runs                          # everything below runs/, to compare/
python -m dqnet.report.compare runs/a runs/b --out figures --title "ResNet-20"
python -m dqnet.report.compare runs --keep results/NAME      # small copies of the runs as well
python -m dqnet.report.compare results/NAME --out results/NAME         # the same from the copies
python -m dqnet.report.compare runs --relative-to runs/a     # every cost over that of one run
python -m dqnet.report.compare runs --by bytes energy        # single runs against other costs

Written are compare.csv (one row per run), pairs.csv (static against dynamic), cascades.csv (those
that eval.py measured, against static networks), costs.csv (if asked for), compare.md (all of them,
means over seeds) and the figure, compare.png and compare.pdf; by_COST.png and .pdf for each cost
asked for, where bytes are those of the packed network.

A line of the figure is a method (the quantizer) and the recorded settings in which its runs differ
beyond widths, target and seed: the label, which leaves out defaults. Settings that do not change a
result never count. Static and dynamic runs are a pair if the static ones have no setting, epochs
included, that the dynamic ones lack.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dqnet.errors import UserError
from dqnet.report.compare.by_cost import cost_points, draw_by_cost
from dqnet.report.compare.costs import relative_costs
from dqnet.report.compare.export_runs import export_runs
from dqnet.report.compare.figure import draw
from dqnet.report.compare.find_runs import find_runs
from dqnet.report.compare.groups import RUN_COLUMNS, group, run_table
from dqnet.report.compare.pairs import CASCADE_COLUMNS, PAIR_COLUMNS, against_static, pair
from dqnet.report.compare.tables import (
    cascade_table,
    cost_table,
    group_table,
    markdown,
    pair_table,
    show,
)
from dqnet.standard_output import take_every_character


def compare(
    folders: Sequence[Path],
    out: Path,
    title: str,
    exported: Path | None,
    console: Console,
    baseline: Path | None = None,
    by: Sequence[str] = (),
) -> None:
    """Compares all runs below ``folders``; writes tables and figure to ``out``, made if need be.

    ``exported`` is where small copies of the runs are put, see :func:`export_runs`; ``baseline``
    the run that costs are compared with, see :func:`relative_costs`; ``by`` are the costs that
    single runs are drawn against, see :func:`cost_points`.

    Raises:
        UserError: for a missing folder, a run that cannot be read, no run at all, or an ``out``
            that cannot be written.
    """
    runs, unfinished = find_runs(folders)
    plain = {"highlight": False, "soft_wrap": True, "markup": False}
    for folder in unfinished:
        console.print(f"unfinished, not counted: {folder}", **plain)
    if not runs:
        raise UserError(f"no finished run (summary.json) below {', '.join(map(str, folders))}")
    table = run_table(runs)
    groups = group(table)
    pairs, cascades = pair(groups), against_static(groups)
    costs = relative_costs(table, baseline)
    points = {cost: cost_points(table, cost) for cost in by}
    files = {
        "compare.csv": (table, RUN_COLUMNS, group_table(groups)),
        "pairs.csv": (pairs, PAIR_COLUMNS, pair_table(pairs)),
        "cascades.csv": (cascades, CASCADE_COLUMNS, cascade_table(cascades)),
        "costs.csv": (costs, list(costs), cost_table(costs)),
    }
    texts = [text for rows, _, text in files.values() if len(rows)]
    try:
        if exported is not None:
            export_runs(runs, exported)
        out.mkdir(parents=True, exist_ok=True)
        for name, (rows, columns, _) in files.items():
            if len(rows):
                rows.to_csv(out / name, columns=columns, index=False, errors="surrogateescape")
            else:
                (out / name).unlink(missing_ok=True)
        draw(groups, pairs, title, [out / "compare.png", out / "compare.pdf"])
        page = [f"# {title}", "![accuracy against Bit-FLOPs](compare.png)", *map(markdown, texts)]
        for cost, own in points.items():
            draw_by_cost(own, cost, title, [out / f"by_{cost}.png", out / f"by_{cost}.pdf"])
            page.insert(2, f"![accuracy against {cost}](by_{cost}.png)")
        (out / "compare.md").write_text("\n\n".join(page) + "\n", "utf-8", "surrogateescape")
    except OSError as error:
        raise UserError(f"{error.filename or out} cannot be written: {error.strerror}") from error
    for text in texts:
        show(console, text)
    more = "".join(f", {name}" for name in list(files)[1:] if len(files[name][0]))
    more += "".join(f", by_{cost}.png" for cost in by)
    console.print(f"written to {out}: compare.csv, .md, .png and .pdf{more}", **plain)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; a user's mistake ends it with one line and exit status 1."""
    parser = argparse.ArgumentParser(
        prog="python -m dqnet.report.compare",
        description="Accuracy against Bit-FLOPs of finished runs, static against dynamic.",
    )
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+", help="searched for runs")
    parser.add_argument("--out", type=Path, default=Path("compare"), help="default: compare/")
    parser.add_argument("--title", default="Accuracy against cost")
    parser.add_argument(
        "--keep", metavar="DIR", type=Path, help="copy the runs' small files to DIR/NAME"
    )
    parser.add_argument(
        "--relative-to", metavar="RUN", type=Path, help="list every cost over that of this run"
    )
    parser.add_argument(
        "--by", metavar="COST", nargs="+", default=(),
        help="also draw single runs against bytes, or the costs of a cost model, e.g. energy",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    take_every_character()
    try:
        compare(
            options.folders,
            options.out,
            options.title,
            options.keep,
            Console(),
            options.relative_to,
            options.by,
        )
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
