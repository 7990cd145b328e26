"""Data sets and how they are fed to the network.

A data set is a function ``load(config) -> Splits`` in a file of its own here, and a file in
``conf/data`` that names it.
"""

from dqnet.data.load import load_data, loaders
from dqnet.data.loader import Loader, Loaders
from dqnet.data.splits import ImageArray, ImageFiles, Part, Splits

__all__ = [
    "ImageArray",
    "ImageFiles",
    "Loader",
    "Loaders",
    "Part",
    "Splits",
    "load_data",
    "loaders",
]
