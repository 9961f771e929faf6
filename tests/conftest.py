"""The environment that all tests, and the programs that they start, share.

Set here, before JAX is imported, and through the environment, so that sub-processes have it too:
the CPU (unless the caller names another platform), and one compilation cache in the repository,
so that a program that one test compiled is read from disk by the next test, process and run.
"""

import os
from pathlib import Path

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
