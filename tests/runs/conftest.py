"""What the tests of the run folder share."""

import contextlib
import resource
from collections.abc import Iterator

import pytest

from tests.runs.states import save


@pytest.fixture
def file_limit():
    """A context in which no file may grow beyond some bytes: writing fails as on a full disk."""

    @contextlib.contextmanager
    def limit(size: int) -> Iterator[None]:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def two_steps(tmp_path_factory):
    """A folder with the good steps 10 and 20; copy it before changing it."""
    directory = tmp_path_factory.mktemp("two") / "checkpoints"
    save(directory, 10, 20)
    return directory
