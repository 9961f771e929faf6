"""The set-up: requirements, locks and code agree, and make sets up once, when it should."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted((ROOT / "requirements").glob("lock-*.txt"))
# Not imported by our code, but by a library that does not declare it, and without which it fails.
UNDECLARED = {"importlib-resources": "tensorflow-datasets 4.9.10, when it builds a data set"}
FORBIDDEN = {"tensorflow", "tensorflow-cpu", "tf-nightly", "keras", "torch", "torchvision"}

each_lock = pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)


def requirements(name: str) -> dict[str, Requirement]:
    """The requirements of a file, and of those it includes, by canonical name."""
    found: dict[str, Requirement] = {}
    for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
        if line.startswith("-r "):
            found |= requirements(str(Path(name).parent / line.removeprefix("-r ")))
        elif line and not line.startswith("#"):
            requirement = Requirement(line.split(" #")[0])
            found[canonicalize_name(requirement.name)] = requirement
    return found


def locked(lock: Path) -> dict[str, Version]:
    lines = [line for line in lock.read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    return {canonicalize_name(name): Version(version) for name, version in map(parts, lines)}


def parts(line: str) -> tuple[str, str]:
    name, version = line.split("==")
    return name, version


def third_party_imports() -> Iterator[tuple[str, set[str]]]:
    """(place, the installed distributions that provide it) for each import in the code."""
    owners = metadata.packages_distributions()
    for path in sorted([*(ROOT / "vision_lang").rglob("*.py"), *(ROOT / "configs").glob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for root in {name.split(".")[0] for name in names}:
                if root not in {*sys.stdlib_module_names, "vision_lang", "configs"}:
                    place = f"{path.relative_to(ROOT)} imports {root}"
                    yield place, {canonicalize_name(owner) for owner in owners.get(root, [])}


def test_there_is_a_lock_for_each_python():
    names = {lock.stem.split("-")[1] for lock in LOCKS}
    assert names >= {"py3.11", "py3.12"}


@each_lock
def test_a_lock_names_exact_versions_and_no_place(lock: Path):
    for line in lock.read_text(encoding="utf-8").splitlines():
        assert line.startswith("# ") or re.fullmatch(r"[\w.-]+==[\w.]+", line), line


@each_lock
def test_a_lock_satisfies_the_ranges(lock: Path):
    versions = locked(lock)
    for name, requirement in requirements("requirements/dev.txt").items():
        assert versions[name] in requirement.specifier, f"{requirement} but {versions[name]}"


@each_lock
def test_a_lock_holds_neither_tensorflow_nor_torch(lock: Path):
    assert not FORBIDDEN & set(locked(lock))
    assert not [name for name in locked(lock) if name.startswith("nvidia-")]


def test_every_import_is_required_and_every_requirement_imported():
    required = set(requirements("requirements.txt"))
    used = set()
    for place, owners in third_party_imports():
        if place == "vision_lang/pretrained/from_torch.py imports torch":
            continue  # a script for where torch is installed
        # A namespace such as google.* has several owners: one in the requirements is enough.
        assert owners & required, f"{place}, which requirements.txt does not name"
        used |= owners
    assert required - used == set(UNDECLARED), "in requirements.txt, but never imported"


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )


@pytest.fixture
def ready(tmp_path: Path) -> Path:
    """What an environment looks like to make once it is set up."""
    environment = tmp_path / "venv"
    environment.mkdir()
    (environment / ".ready").touch()
    return environment


@pytest.mark.parametrize("target", ["setup", "train", "test", "lint"])
def test_a_second_call_sets_nothing_up(target: str, ready: Path):
    again = make("--dry-run", target, f"VENV={ready}")
    assert again.returncode == 0, again.stderr
    assert "pip" not in again.stdout
    first = make("--dry-run", target, f"VENV={ready / 'none'}")
    assert "-m venv" in first.stdout and "pip install" in first.stdout


def test_changed_requirements_set_up_again(ready: Path):
    os.utime(ready / ".ready", (0, 0))
    assert "pip install" in make("--dry-run", "train", f"VENV={ready}").stdout


def test_an_accelerator_is_remembered(ready: Path):
    assert "jax[cuda13]" in make("-n", "setup", f"VENV={ready}", "ACCELERATOR=cuda13").stdout
    (ready / "accelerator").write_text("cuda13\n", encoding="utf-8")
    (ready / ".ready-cuda13").touch()
    assert "pip" not in make("-n", "train", f"VENV={ready}").stdout
    os.utime(ready / ".ready-cuda13", (0, 0))
    assert "jax[cuda13]" in make("-n", "train", f"VENV={ready}").stdout


def test_an_unknown_accelerator_is_refused():
    refused = make("setup", "ACCELERATOR=cuda31")
    assert refused.returncode != 0 and "cuda31 is not known" in refused.stderr


def test_an_old_python_is_refused_with_a_sentence(tmp_path: Path):
    old = tmp_path / "python3.10"
    pretend = "import sys; sys.version_info = (3, 10, 14); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec '{sys.executable}' -c '{pretend}' \"$2\"\n", encoding="utf-8")
    old.chmod(0o755)
    refused = make("setup", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}")
    assert refused.returncode != 0
    assert "needs Python 3.11 or later" in refused.stderr
    assert not (tmp_path / "venv").exists()
