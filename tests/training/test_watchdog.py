"""A stage that lasts is told once, with where it stands; others are not."""

from __future__ import annotations

import re
import threading
import time

from vision_lang.training.watchdog import Watchdog, stacks


def test_each_stage_that_lasts_is_told_once(caplog):
    with Watchdog(0.4) as watch:
        watch.enter("data", 3)
        time.sleep(1.2)
        for step in range(4, 14):  # together long, each short
            watch.enter("step", step)
            time.sleep(0.05)
        watch.enter("save", 14)
        time.sleep(0.9)
    told, over, saved = caplog.messages
    assert re.match(r"Step 3: the stage 'data' has taken [01]\.\d+ s so far", told)
    assert re.match(r"Step 3: the stage 'data' was over after [12]\.?\d* s", over)
    assert re.match(r"Step 14: the stage 'save' has taken 0\.\d+ s so far", saved)
    assert f"{__file__}:" in told and "test_each_stage_that_lasts" in told


def test_nothing_is_watched_where_nothing_is_asked_for(caplog):
    threads = threading.active_count()
    with Watchdog(0) as watch:
        watch.enter("data", 1)
        assert threading.active_count() == threads
        time.sleep(0.05)
    assert not caplog.messages


def test_a_step_does_not_feel_it():
    with Watchdog(600.0) as watch:
        best = min(_seconds(watch) for _ in range(5))
    assert best < 20e-6  # 0.4 us here


def _seconds(watch, times=1000):
    began = time.perf_counter()
    for step in range(times):
        watch.enter("step", step)
    return (time.perf_counter() - began) / times


def test_the_stack_of_every_other_thread_is_shown():
    ready, over = threading.Event(), threading.Event()

    def waiting_for_the_end():
        ready.set()
        over.wait()

    thread = threading.Thread(target=waiting_for_the_end, name="a thread of ours")
    thread.start()
    ready.wait()
    text = stacks()
    over.set()
    thread.join()
    ours = text[text.index("thread a thread of ours") :]
    assert f"{__file__}:" in ours and "waiting_for_the_end" in ours
    assert "test_the_stack_of_every_other" not in text  # it is the one that asks
