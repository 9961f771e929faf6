"""Importing the package: all of it in one process, with nobody asking for TensorFlow or torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Imports the named modules in one interpreter, in the order given. Whoever asks for TensorFlow
# or torch is told that there is none, as on a user's machine, and is written down.
PROGRAM = """
import importlib, json, sys, traceback

class Watch:
    asked = []

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "torch"):
            stack = [f.filename for f in traceback.extract_stack() if "importlib" not in f.filename]
            self.asked.append(f"{name}, by {stack[-2]}")
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

sys.meta_path.insert(0, Watch())
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
print(json.dumps(Watch.asked))
"""


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
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(names[::order])],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout.splitlines()[-1]) == []
