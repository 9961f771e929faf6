"""The environment that all tests, and the programs that they start, share.

Set here, before JAX is imported, and through the environment, so that sub-processes have it too:
the CPU (unless the caller names another platform), and one compilation cache in the repository,
so that a program that one test compiled is read from disk by the next test, process and run.

Programs are compiled without optimisation: most run once, and compiling them takes most of the
tests' time. `make test-slow` also starts commands that are compiled as users have them.
"""

import os
from pathlib import Path

from tests import commands

CACHE = Path(__file__).resolve().parents[1] / ".cache" / "jax"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("XLA_FLAGS", commands.QUICK)

import pytest  # noqa: E402 - after the environment
from filelock import FileLock  # noqa: E402


@pytest.fixture
def command(monkeypatch, capsys) -> commands.Command:
    """Runs a command's `main` in this process: (main, *arguments) -> Outcome(code, out, err)."""
    return commands.make_command(monkeypatch, capsys)


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A finished tiny run of the real command, its data in `../data`; copy it to change it."""
    return _trained(tmp_path_factory, "diffusion", "--config.log_every=4")


@pytest.fixture(scope="session")
def recogniser(tmp_path_factory) -> Path:
    """The same of recognition: the shape of the one object."""
    return _trained(tmp_path_factory, "recognition")


@pytest.fixture(scope="session")
def captioner(tmp_path_factory) -> Path:
    """The same of captioning."""
    return _trained(tmp_path_factory, "captioning")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that train come first, so that two processes end at about the same time."""
    long = ("test_main", "test_generate", "test_resume", "test_configs", "test_words")
    items.sort(key=lambda item: not item.path.stem.startswith(long))


def _trained(tmp_path_factory, name: str, *arguments: str) -> Path:
    """Trains once for all processes of pytest-xdist, whose folders lie side by side in one."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{directory}.lock"):
        if not (directory / "run.out").exists():
            directory.mkdir()
            config = f"--config={commands.ROOT}/configs/{name}.py:tiny=true"
            process = commands.start(
                directory, "main", config, "--workdir=run", "--config.data.dir=data", *arguments
            )
            out, err = process.communicate()
            assert process.returncode == 0, err
            (directory / "run.out").write_text(out)
    return directory / "run"
