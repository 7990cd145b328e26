from small_runs import config, few_digits, measure, run  # noqa: F401
