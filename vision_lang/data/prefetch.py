"""Batches to the device ahead of time, in a background thread."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_POLL = 0.1  # seconds between two looks at whether the consumer has stopped


class Prefetch(Iterator[T], Generic[T]):
    """`place(batch)` of each batch, computed ahead; a context manager.

    Attributes:
      waited: seconds that the consumer has waited for data so far.

    An error in the iterator or in `place` is raised where the consumer would have got that
    batch. `close` (or leaving the with block, or dropping the object) ends the thread and
    closes the iterator, also when the consumer stops early.
    """

    def __init__(self, iterator: Iterable[Any], place: Callable[[Any], T], depth: int = 2):
        self.waited = 0.0
        self._iterator = iterator
        self._queue: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(
            # Not a bound method: a thread that holds `self` would keep it alive for ever.
            target=_produce, args=(iterator, place, self._queue, self._stop),
            name="prefetch", daemon=True,
        )  # fmt: skip
        weakref.finalize(self, self._stop.set)
        self._thread.start()

    def __next__(self) -> T:
        if self._ended is not None:
            raise self._ended
        start = time.perf_counter()
        kind, value = self._queue.get()
        self.waited += time.perf_counter() - start
        if kind == "batch":
            return value
        self._ended = value
        raise value

    def close(self) -> None:
        """Ends the thread, then closes the iterator."""
        self._stop.set()
        self._thread.join()
        self._ended = StopIteration()
        if close := getattr(self._iterator, "close", None):
            close()

    def __enter__(self) -> Prefetch[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _produce(
    iterator: Iterable[Any],
    place: Callable[[Any], T],
    out: queue.Queue[tuple[str, Any]],
    stop: threading.Event,
) -> None:
    """Thread: batches into the queue, then how it ended."""

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                out.put((kind, value), timeout=_POLL)
                return
            except queue.Full:
                continue

    try:
        for batch in iterator:
            put("batch", place(batch))
            if stop.is_set():
                return
        put("end", StopIteration())
    except BaseException as error:  # noqa: BLE001  (handed to the consumer, whatever it is)
        put("end", error)
