"""Which folders are classes and which files are images, in folders as they really are.

File managers, notebooks and unpackers leave things behind: ``.ipynb_checkpoints``, ``.DS_Store``,
``__MACOSX``, ``Thumbs.db``. They are neither classes nor images, and are passed over in silence.
"""

from __future__ import annotations

import os
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from dqnet.errors import UserError

#: in any case; ``.jpe`` and ``.jfif`` are JPEG, and of ``.gif`` the first picture is taken
IMAGE_SUFFIXES = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe")
_REMNANTS = {"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini"}


def class_folders(part: Path) -> dict[str, Path]:
    """The classes of a part in alphabetical order: name → folder without links.

    A link to a folder that the part lies in is not a class.

    Raises:
        UserError: the part cannot be read, or two names are one folder.
    """
    try:
        with os.scandir(part) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not _is_remnant(e.name))
    except OSError as error:
        raise unreadable(error) from error
    here, folders = part.resolve(), {name: (part / name).resolve() for name in names}
    folders = {name: real for name, real in folders.items() if not here.is_relative_to(real)}
    first: dict[Path, str] = {}
    for name, real in folders.items():
        if first.setdefault(real, name) != name:
            raise UserError(
                f"{part / first[real]} and {part / name} are the same folder: "
                "each class needs a folder of its own"
            )
    return folders


def files_below(folder: Path, others: set[Path]) -> tuple[list[str], list[str]]:
    """The images below a class's folder, in torchvision's order, and the files that are not images.

    Links are followed, but not to a folder that is read already or that ``folder`` lies in.

    Args:
        folder: of one class.
        others: folders that are read by themselves, without links.

    Raises:
        UserError: a folder cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise unreadable(error) from error

    here = folder.resolve()
    seen, found = set(others), []
    for at, names, files in os.walk(str(folder), onerror=refuse, followlinks=True):
        found += [(at, name) for name in files if not _is_remnant(name)]
        inner, names[:] = sorted(name for name in names if not _is_remnant(name)), []
        for name in inner:
            real = Path(at, name).resolve()
            if real not in seen and not here.is_relative_to(real):
                seen.add(real)
                names.append(name)
    # Of a million files, and not one Path each.
    paths = [f"{at}{os.sep}{name}" for at, name in sorted(found)]
    images = [path for path in paths if is_image(path)]
    return images, [path for path in paths if not is_image(path)]


def images_outside(part: Path) -> list[str]:
    """Images that lie beside the class folders, and so have no class."""
    with os.scandir(part) as entries:
        files = (e.path for e in entries if not e.is_dir() and not _is_remnant(e.name))
        return sorted(filter(is_image, files))


def is_image(path: str) -> bool:
    """Whether a file is an image by its suffix."""
    return path.lower().endswith(IMAGE_SUFFIXES)


def unreadable(error: OSError) -> UserError:
    """The error for a folder that the system does not let us list."""
    return UserError(f"the folder {error.filename} cannot be read: {error.strerror}")


def _is_remnant(name: str) -> bool:
    return name.startswith(".") or name.lower() in _REMNANTS
