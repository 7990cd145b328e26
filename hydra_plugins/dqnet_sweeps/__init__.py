"""Hydra's side of sweeps that finish: two sweepers, and ways to launch that lose no job.

Hydra finds sweepers in the namespace package ``hydra_plugins`` only, which therefore must not have
an ``__init__.py``. It imports every module here whose name has no underscore at each start.
"""
