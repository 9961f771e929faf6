"""The background thread that brings batches to the device."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from vision_lang.data.pipeline import prefetch


def threads() -> int:
    return sum(thread.name == "prefetch" for thread in threading.enumerate())


class Closable(Iterator[int]):
    def __init__(self) -> None:
        self.made, self.closed = 0, False

    def __next__(self) -> int:
        self.made += 1
        return self.made

    def close(self) -> None:
        self.closed = True


def test_order_placement_and_end() -> None:
    with prefetch(iter(range(50)), lambda b: b * 10) as batches:
        assert list(batches) == [10 * n for n in range(50)]
        with pytest.raises(StopIteration):
            next(batches)
    assert threads() == 0


@pytest.mark.parametrize("where", ["iterator", "place"])
def test_errors_reach_the_consumer_after_the_good_batches(where: str) -> None:
    def source() -> Iterator[int]:
        yield from (1, 2)
        if where == "iterator":
            raise OSError("disk gone")
        yield 3

    def place(batch: int) -> int:
        if batch == 3:
            raise OSError("disk gone")
        return batch

    with prefetch(source(), place) as batches:
        assert [next(batches), next(batches)] == [1, 2]
        for _ in range(2):
            with pytest.raises(OSError, match="disk gone"):
                next(batches)
    assert threads() == 0


def test_it_runs_ahead_by_its_depth_and_no_further() -> None:
    source = Closable()
    with prefetch(source, lambda b: b, depth=2):
        deadline = time.time() + 5
        while source.made < 3 and time.time() < deadline:
            time.sleep(0.01)
        time.sleep(0.1)
        assert source.made == 3  # two wait in the queue, one in the thread's hand
    assert source.closed and threads() == 0


def test_dropping_it_ends_the_thread() -> None:
    batches = prefetch(Closable(), lambda b: b)
    assert next(batches) == 1 and threads() == 1
    del batches
    deadline = time.time() + 5
    while threads() and time.time() < deadline:
        time.sleep(0.02)
    assert threads() == 0


def test_waiting_is_counted() -> None:
    def slow() -> Iterator[int]:
        while True:
            time.sleep(0.05)
            yield 0

    with prefetch(slow(), lambda b: b) as batches:
        for _ in range(4):
            next(batches)
        assert 0.1 < batches.waited < 2
    with prefetch(Closable(), lambda b: b) as batches:
        next(batches)
        start = batches.waited
        for _ in range(4):
            time.sleep(0.03)
            next(batches)
        assert batches.waited - start < 0.1
