from small_runs import config, few_digits, image_folder, measure, run  # noqa: F401
