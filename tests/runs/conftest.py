"""What the tests of the run folder share."""

import contextlib
import resource
from collections.abc import Iterator

import pytest


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
