"""Progress: right numbers, few lines where nobody watches."""

import io

import pytest

from vision_lang.runs import console


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 100.0

    monkeypatch.setattr(console.time, "monotonic", lambda: Clock.now)
    return Clock


def test_speed_and_time_left_do_not_count_compilation(clock):
    out = io.StringIO()
    progress = console.Progress(1_000, start=100, stream=out, every=10.0)
    clock.now += 60.0  # compilation
    progress.update(101, {"loss": 0.12345678})
    for step in range(102, 201):
        clock.now += 0.5
        progress.update(step)
    progress.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "train 101/1000  loss 0.1235"
    assert lines[-1] == "train 200/1000  2 steps/s  6m40s left  loss 0.1235"
    assert 5 <= len(lines) <= 7  # one in 10 s of 49.5 s, and the last


def test_an_evaluation_counts_neither_in_the_speed_nor_in_the_time_left(clock):
    """Updates every 2 s, an evaluation of 5 minutes after each, in a window that holds few."""
    out = io.StringIO()
    progress = console.Progress(104, stream=out, every=0.0, window=3.0)
    for step in range(1, 5):
        clock.now += 2.0
        progress.update(step, {"loss": 0.5})
        progress.pause()
        clock.now += 300.0
        progress.resume()
    progress.close()
    assert out.getvalue().splitlines() == [
        "train 1/104  loss 0.5",
        "train 2/104  0.5 steps/s  3m24s left  loss 0.5",
        "train 3/104  0.5 steps/s  3m22s left  loss 0.5",
        "train 4/104  0.5 steps/s  3m20s left  loss 0.5",
    ]


def test_a_terminal_gets_a_bar(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    with console.Progress(10, stream=out) as progress:
        progress.update(1, {"loss": 2.0})
        clock.now += 2.0
        progress.update(5, {"loss": 1.0})
    assert "5/10" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (3_599, "59m59s"),
        (7_620, "2h07m"),
        (97_300, "1d03h"),
    ],
)
def test_durations(seconds, text):
    assert console.duration(seconds) == text
