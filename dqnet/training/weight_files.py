"""Files of weights, also those that a package on PyPI brings along."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from dqnet.errors import UserError

#: begins the name of a file inside an installed package: ``package:NAME/PATH``
PACKAGE = "package:"


def file_of(path: str | Path) -> Path:
    """The file that ``model.checkpoint_path`` names; the code of a package does not run.

    Raises:
        UserError: if the package is not installed, or its name is not that of a package.
    """
    text = str(path)
    if not text.startswith(PACKAGE):
        return Path(path)
    name, _, inner = text.removeprefix(PACKAGE).partition("/")
    if not name.isidentifier():
        raise UserError(f"model.checkpoint_path={text}: {name!r} is not the name of a package")
    found = importlib.util.find_spec(name)  # a name without dots: nothing is imported
    if found is None or not found.submodule_search_locations:
        raise UserError(
            f"the weights are in the package {name}, which is not installed: "
            f"pip install {name.replace('_', '-')}"
        )
    return Path(found.submodule_search_locations[0], inner)
