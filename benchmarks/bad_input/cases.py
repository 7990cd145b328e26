"""The whole table; files and folders that arguments name are made by files.py."""

from __future__ import annotations

from benchmarks.bad_input import eval_cases, train_cases

CASES = [
    *train_cases.NAMES,
    *train_cases.SETTINGS,
    *train_cases.TYPES,
    *train_cases.RANGES,
    *train_cases.CONTRADICTIONS,
    *train_cases.COSTS,
    *train_cases.SEARCHES,
    *train_cases.COMPRESSION,
    *train_cases.PLANS,
    *train_cases.FOLDERS,
    *train_cases.IMAGES,
    *train_cases.SHARDS,
    *train_cases.WEIGHTS,
    *eval_cases.EVALUATION,
    *eval_cases.EXPORT,
    *eval_cases.CHECKPOINTS,
    *eval_cases.TRUST,
]
