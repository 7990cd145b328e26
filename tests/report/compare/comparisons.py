"""Tables of a comparison, without its command."""

import csv

from dqnet.report.compare.find_runs import find_runs
from dqnet.report.compare.groups import group, run_table
from dqnet.report.compare.pairs import pair


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def groups_of(folder):
    return group(run_table(find_runs([folder])[0]))


def pairs_of(folder):
    return list(pair(groups_of(folder)).itertuples())
