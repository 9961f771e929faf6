"""Importing the package: all of it in one process, with nobody asking for TensorFlow or torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# TensorFlow and torch seem to be installed, but whoever imports them fails and is written down:
# the list is printed when the process ends.
WATCH = """
import atexit, importlib, importlib.machinery, json, runpy, sys, traceback

class Watch:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch"):
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        stack = [f.filename for f in traceback.extract_stack() if "importlib" not in f.filename]
        self.asked.append(f"{spec.name}, by {stack[-2]}")
        raise ImportError(f"{spec.name} is not to be imported", name=spec.name)

sys.meta_path.insert(0, Watch())
atexit.register(lambda: print(json.dumps(Watch.asked)))
"""
IMPORT = "for name in sys.argv[1:]: importlib.import_module(name)"
TRAIN = "runpy.run_module('vision_lang.main', run_name='__main__', alter_sys=True)"


def asked_for(program: str, *arguments: str) -> list[str]:
    """Runs a program in a fresh interpreter; returns who asked for TensorFlow or torch."""
    run = subprocess.run(
        [sys.executable, "-c", WATCH + program, *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def all_modules() -> list[str]:
    names = []
    for folder in ("vision_lang", "configs"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return names


@pytest.mark.parametrize("order", [1, -1], ids=["forwards", "backwards"])
def test_all_modules_are_imported_together_without_tensorflow_or_torch(order: int):
    names = all_modules()
    assert len(names) > 20
    assert asked_for(IMPORT, *names[::order]) == []


@pytest.mark.slow
def test_training_asks_for_neither_tensorflow_nor_torch(tmp_path: Path):
    asked = asked_for(
        TRAIN,
        "--config=configs/diffusion.py:tiny=true",
        f"--config.data.dir={tmp_path / 'data'}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert (tmp_path / "run" / "results.json").exists()
    assert asked == []
