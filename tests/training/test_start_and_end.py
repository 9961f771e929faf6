"""What a signal does after the last step, and what JAX is asked before the first."""

from __future__ import annotations

import os
import signal
import time

import jax
import pytest

from configs import diffusion
from vision_lang.errors import InputError
from vision_lang.training import devices
from vision_lang.training.signals import Signals, Stopped


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("before", [False, True])
def test_a_signal_ends_the_last_evaluation_at_once(number, before):
    stops = pytest.raises(Stopped, match="at step 20, state saved")
    with stops as stopped, Signals() as signals:
        if before:
            os.kill(os.getpid(), number)
        assert signals.received == (number if before else 0)
        signals.end_at_once(20)
        os.kill(os.getpid(), number)
        time.sleep(60)  # an evaluation
    assert stopped.value.exit_code == 128 + number


def test_machines_of_a_pod_that_do_not_know_of_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="one of 2 machines .* --coordinator=auto"):
        devices.check(diffusion.get_config("tiny"))


def test_processes_with_unequal_devices_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: jax.local_device_count() + 1)
    with pytest.raises(InputError, match="all of them need as many"):
        devices.check(diffusion.get_config("tiny"))


def test_deterministic_is_told_to_xla_once_before_it_starts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    devices._set_deterministic()
    devices._set_deterministic()
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x --xla_gpu_deterministic_ops=true"
