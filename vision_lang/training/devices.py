"""What the program runs on: said at the start, checked, and set up."""

from __future__ import annotations

import ctypes
import os
import sys

import jax
from absl import logging
from ml_collections import ConfigDict

from vision_lang.errors import InputError

CACHE = "~/.cache/vision_lang/jax"  # compiled programs; JAX_COMPILATION_CACHE_DIR overrides it


def set_up(cpu_devices: int = 1, deterministic: bool = False) -> None:
    """To be called before the first computation: compilation cache, the CPU backend.

    Args:
      cpu_devices: that the CPU counts as, where XLA_FLAGS does not say it. Each works on its own
        rows of a batch, which keeps the cores busier than one device whose operations are split
        among threads: operations of small networks are too short for that.
      deterministic: kernels of a GPU that add in a fixed order.
    """
    if deterministic:
        _set_deterministic()
    if "device_count" not in os.environ.get("XLA_FLAGS", ""):
        try:
            jax.config.update("jax_num_cpu_devices", cpu_devices)
        except RuntimeError:  # JAX has begun (a notebook, a test): the devices stay as they are
            pass
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if sys.platform == "linux":
        _keep_freed_memory()


def _set_deterministic() -> None:
    """XLA reads its flags when JAX starts, so they must be in the environment before."""
    wanted = "--xla_gpu_deterministic_ops=true"
    if wanted not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()


def _keep_freed_memory() -> None:
    """Tells glibc to keep freed memory for the next step.

    XLA's CPU backend allocates the temporaries of a step anew each time; handed back to the
    system and faulted in again, 250 MB a step cost a twentieth of the default config's step. (A
    single arena for all threads would keep more, but they wait for each other: a third more for
    a step, two fifths more for its compilation.) A block of more than 64 MB a thread's arena still
    maps anew each time: large pages make that cheap, but only the environment can ask for them
    before the process starts (GLIBC_TUNABLES, in the Makefile).
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # malloc.h
    settings = {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 2**28}
    try:
        libc = ctypes.CDLL("libc.so.6")
        for name, value in settings.items():
            libc.mallopt(name, value)
    except (OSError, AttributeError):  # another libc: nothing is lost but the speed
        logging.info("glibc's mallopt is not available.")


def check(config: ConfigDict) -> None:
    """Logs backend, devices, processes and versions.

    Raises:
      InputError: an accelerator is required and there is none; the processes do not know of each
        other, or have not as many devices.
    """
    logging.info(
        "backend %s, device %s, %d local of %d devices, process %d of %d, jax %s, python %s",
        jax.default_backend(),
        jax.local_devices()[0].device_kind,
        jax.local_device_count(),
        jax.device_count(),
        jax.process_index(),
        jax.process_count(),
        jax.__version__,
        sys.version.split()[0],
    )
    if jax.default_backend() == "cpu":
        if config.require_accelerator:
            raise InputError(
                "config.require_accelerator is set, but JAX finds only the CPU. Install the GPU or "
                "TPU build of JAX (see the README), or train with "
                "--config.require_accelerator=false."
            )
        logging.warning("Training on the CPU: JAX finds no GPU or TPU.")
    count = jax.process_count()
    if count > 1 and not jax.distributed.is_initialized():  # a TPU pod counts its machines itself
        raise InputError(
            f"This is one of {count} machines that have to train together: start the command on "
            "all of them with --coordinator=auto."
        )
    if jax.device_count() != count * jax.local_device_count():
        raise InputError(
            f"This process has {jax.local_device_count()} of the {jax.device_count()} devices of "
            f"{count} processes; all of them need as many."
        )
