"""Which settings change where or how a run runs, and not what it computes: stated once, here.

They are not part of a run's name, may differ when a run is continued, and do not tell runs apart in
a comparison.
"""

from __future__ import annotations

#: settings and tables of settings, by their dotted names
CIRCUMSTANCES = (
    "data.download",
    "data.workers",
    "trainer.device",
    "trainer.progress",
    "trainer.checkpoint_steps",
    "trainer.checkpoint_minutes",
    "logger",
)


def is_circumstance(name: str) -> bool:
    """Whether a setting is one of them, or in one of their tables: ``logger.project``."""
    return any(name == known or name.startswith(f"{known}.") for known in CIRCUMSTANCES)
