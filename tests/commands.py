"""Starting the commands of vision_lang, in a process of their own or in this one."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import absl.logging
import pytest
from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
TINY = f"--config={ROOT}/configs/diffusion.py:tiny=true"
# Compiles in two fifths of the time, for programs that run once. jaxlib 0.12 needs no second flag
# and does not know it, for which XLA would end the process.
QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"


def start(directory: Path, module: str, *arguments: str, quick: bool = True) -> subprocess.Popen:
    """Starts `python -m vision_lang.<module>` in `directory`, in a process group of its own.

    Args:
      quick: compile as the tests do, see `QUICK`; False: as users do.
    """
    environment = dict(os.environ)
    if not quick:
        del environment["XLA_FLAGS"]
    return subprocess.Popen(
        [sys.executable, "-m", f"vision_lang.{module}", *arguments],
        cwd=directory,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


class Outcome(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error, which stands on stderr alone, behind the log."""
        assert self.code == 2, self
        assert "Traceback" not in self.err
        return self.err[self.err.index("error: ") :]


Command = Callable[..., Outcome]  # (main, *arguments) -> how it ended


@contextmanager
def clean_flags() -> Iterator[None]:
    """Flags that are defined and logging that is set inside are gone afterwards."""
    app.define_help_flags()
    before, parsed = set(flags.FLAGS), flags.FLAGS.is_parsed()
    root = absl.logging.logging.root  # type: ignore[attr-defined]
    handlers, level = list(root.handlers), absl.logging.get_verbosity()
    try:
        yield
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        if not parsed:
            flags.FLAGS.unparse_flags()
        root.handlers[:] = handlers
        absl.logging.set_verbosity(level)


def make_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Command:
    """A command's `main` in this process, without the seconds that imports take."""
    # Imported here, not by the first command: grain's flags are defined once and for all.
    import vision_lang.data.pipeline  # noqa: F401
    from vision_lang.training import devices

    monkeypatch.setattr(devices, "_keep_freed_memory", lambda: None)

    def run(main: Callable[[], None], *arguments: object) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        code = 0
        with clean_flags():
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Outcome(code, *capsys.readouterr())

    return run
