"""Who looks on at long work that is done batch by batch: by itself nobody.

A command that is waited for sets a watcher, for example one that shows a progress bar; the work
does not know of it.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
Watcher = Callable[[int], contextlib.AbstractContextManager[Callable[[int], None]]]

_WATCHER: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("watcher", default=None)


@contextlib.contextmanager
def watcher(show: Watcher) -> Iterator[None]:
    """Inside, what is `watched` is shown.

    Args:
      show: the number of batches -> a context whose value is told how many are done.
    """
    token = _WATCHER.set(show)
    try:
        yield
    finally:
        _WATCHER.reset(token)


def watched(batches: Iterable[T], total: int) -> Iterator[T]:
    """The same batches, of which there are `total`, in sight of the watcher if there is one."""
    current = _WATCHER.get()
    if current is None:
        yield from batches
        return
    with current(total) as done:
        for count, batch in enumerate(batches, start=1):
            yield batch
            done(count)
