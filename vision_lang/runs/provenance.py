"""Where a run comes from: code, versions, devices, data, command. No environment, no secrets."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
    "array-record", "ml-collections", "absl-py", "numpy", "tokenizers", "pillow",
)  # fmt: skip
# Of the environment only what changes the numbers or the speed.
VARIABLES = (
    "XLA_FLAGS", "JAX_PLATFORMS", "LIBTPU_INIT_ARGS", "JAX_DEFAULT_MATMUL_PRECISION",
    "GLIBC_TUNABLES",
)  # fmt: skip
VECTORS = ("avx512f", "avx2", "avx", "sve", "asimd")  # a CPU's vector instructions, widest first
DIFF_LIMIT = 200_000  # characters of an uncommitted diff that are kept


def collect(
    command: Sequence[str], config_hash: str, data_fingerprint: str | dict[str, str]
) -> dict[str, Any]:
    """Returns all that is needed to make a run again, as JSON values.

    Args:
      command: the command line (sys.argv).
      config_hash: `config.fingerprint` of the resolved config.
      data_fingerprint: of the prepared data set, or {name: fingerprint}.
    """
    return {
        "command": list(command),
        "config_sha256": config_hash,
        "data_fingerprint": data_fingerprint,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": git_state(Path(__file__).resolve().parents[2]),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: version(name) for name in PACKAGES},
        "backend": jax.default_backend(),
        "device_kind": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "local_devices": jax.local_device_count(),
        "processes": jax.process_count(),
        "host_cpu": cpu_kind(Path("/proc/cpuinfo")),
        "host_cpus": usable_cpus(),
        "environment": {name: os.environ[name] for name in VARIABLES if name in os.environ},
    }


def git_state(directory: Path) -> dict[str, Any]:
    """Returns commit, branch, and what is not committed; says so where there is no checkout.

    Args:
      directory: the root of the checkout. A copy of the code that lies inside another checkout
        is not mistaken for it.
    """
    try:
        top = _git(directory, "rev-parse", "--show-toplevel").strip()
        if not os.path.samefile(top, directory):
            return {"note": "the code is not a git checkout"}
        commit = _git(directory, "rev-parse", "--verify", "HEAD").strip()
        diff = _git(directory, "diff", "HEAD", "--no-color", "--no-ext-diff")
        untracked = _git(directory, "ls-files", "--others", "--exclude-standard").splitlines()
        branch = _git(directory, "rev-parse", "--abbrev-ref", "HEAD").strip()
    except FileNotFoundError:
        return {"note": "git is not installed"}
    except subprocess.TimeoutExpired:
        return {"note": "git did not answer in time"}
    except subprocess.CalledProcessError:
        return {"note": "the code is not a git checkout"}
    state: dict[str, Any] = {"commit": commit, "branch": branch, "dirty": bool(diff or untracked)}
    if diff:
        state["diff"] = diff[:DIFF_LIMIT]
    if len(diff) > DIFF_LIMIT:
        state["diff_cut"] = f"{DIFF_LIMIT} of {len(diff)} characters"
    if untracked:
        state["untracked"] = untracked[:100]
    return state


def _git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *arguments],
        check=True, capture_output=True, text=True, errors="replace", timeout=20,
    )  # fmt: skip
    return done.stdout


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_kind(cpuinfo: Path) -> str:
    """The processor and its widest vectors, which speed and last bits on a CPU depend on.

    Args:
      cpuinfo: the file in which Linux describes it; elsewhere there is none.
    """
    try:
        lines = cpuinfo.read_text().partition("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    features = fields.get("flags", fields.get("Features", "")).split()  # x86, Arm
    widest = next((name for name in VECTORS if name in features), "")
    numbers = (f"{name} {fields[name]}" for name in ("cpu family", "model") if name in fields)
    kind = fields.get("model name", platform.machine())
    return ", ".join([kind, *numbers, *([widest] if widest else [])])


def usable_cpus() -> int:
    """The processors this process may use, which a container can make fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
