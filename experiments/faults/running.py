"""Starts the real command, and reads what it says, how far its run has come and how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vision_lang.runs import manifest, provenance, writer
from vision_lang.runs.comparison import WALL_CLOCK

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 900.0  # after which whatever is waited for will not come


class Started:
    """`python -m vision_lang.main` in `directory`, in a process group of its own.

    Args:
      directory: holds the run; `log.txt` in it takes what the command prints.
      arguments: of the command.
      by: a program that starts it, with that one's arguments.
    """

    def __init__(self, directory: Path, *arguments: str, by: Sequence[str] = ()) -> None:
        self._log = directory / "log.txt"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [*by, sys.executable, "-m", "vision_lang.main", *arguments],
                cwd=directory,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        """What it has printed so far."""
        return self._log.read_text()

    @property
    def trains(self) -> bool:
        """Whether its first step is done."""
        return "\ntrain " in self.said

    def until(self, condition: Callable[[], bool], every: float = 0.001) -> bool:
        """Waits for a condition; returns whether it held before the command ended."""
        end = time.monotonic() + SECONDS
        while not condition():
            if self.process.poll() is not None:
                return False
            if time.monotonic() > end:
                self.kill()
                raise TimeoutError(f"It did not come in {SECONDS} s: {self.said}")
            time.sleep(every)
        return True

    def end(self) -> int:
        """Waits for the end and returns the exit code."""
        self.until(lambda: False, every=0.02)
        return self.process.returncode

    def kill(self) -> None:
        """SIGKILL, to the main process alone: what it started has to end by itself."""
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + 30
        with contextlib.suppress(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(self.process.pid, 0)
                time.sleep(0.01)
            os.killpg(self.process.pid, signal.SIGKILL)
            raise AssertionError("Processes of a command that was killed went on without it.")


def train(directory: Path, *arguments: str) -> tuple[float, float]:
    """Runs the command to its end; returns the seconds before its first step and from there on."""
    began = time.monotonic()
    started = Started(directory, *arguments)
    started.until(lambda: started.trains, every=0.02)
    first = time.monotonic()
    code = started.end()
    if code:
        raise RuntimeError(f"Exit code {code}: {started.said}")
    return first - began, time.monotonic() - first


def logged(run: Path) -> list[dict[str, float]]:
    """What metrics.jsonl holds but for what the clock decides."""
    records = writer.read_metrics(run / "metrics.jsonl")
    return [{n: v for n, v in record.items() if n not in WALL_CLOCK} for record in records]


def ending(run: Path) -> dict[str, Any]:
    """All that a finished run leaves and that another such run has to leave as well: digests of
    parameters, averages, optimizer and batch statistics, results, what was logged, pictures."""
    files = {name: json.loads((run / name).read_text()) for name in ("final.json", "results.json")}
    pictures = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "samples").iterdir())
    }
    return files | {"metrics.jsonl": logged(run), "samples": pictures}


def good_steps(run: Path) -> list[int]:
    """The steps whose checkpoints are whole, ascending."""
    found = manifest.survey(run / "checkpoints")
    return [int(name) for name, problem in found.items() if not problem]


@contextlib.contextmanager
def messages() -> Iterator[list[str]]:
    """The messages that are logged inside."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("absl")
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)


def as_the_tests_do() -> None:
    """Sets the environment for commands to come: the CPU, and every program that was compiled once
    is read from a cache in the repository."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def where() -> dict[str, Any]:
    """What figures depend on, for a record: code, versions, processor."""
    return {
        "commit": provenance.git_state(ROOT).get("commit", ""),
        "python": platform.python_version(),
        "jax": provenance.version("jax"),
        "orbax": provenance.version("orbax-checkpoint"),
        "cpu": provenance.cpu_kind(Path("/proc/cpuinfo")),
        "cores": provenance.usable_cpus(),
    }
