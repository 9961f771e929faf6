"""Several processes, one run: what one process with as many devices does, and an end when one ends.

Each process has one device of the CPU; they meet on this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from tests import commands
from tests.test_main import metrics, steps, wait_for
from tests.training.test_devices import OTHERS, on_devices
from vision_lang import processes
from vision_lang.errors import InputError

ALONE = "--config.cpu_devices=1"


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def start(directory, count, *arguments, workdir="run", timeout=120):
    """Starts `main` once for each of `count` processes."""
    return [
        commands.start(directory, "main", f"--workdir={workdir}", *arguments, *where)
        for where in places(count, timeout)
    ]


def places(count, timeout=120):
    """The flags of each of `count` processes."""
    port = free_port()
    return [
        (f"--coordinator=localhost:{port}", f"--num_processes={count}", f"--process_id={index}",
         f"--process_timeout={timeout}")
        for index in range(count)
    ]  # fmt: skip


def ends(started, patience=900):
    """Exit code, output and log of each; all are read at the same time, or one would block."""
    with ThreadPoolExecutor(len(started)) as pool:
        outputs = list(pool.map(lambda process: process.communicate(timeout=patience), started))
    return [commands.Outcome(p.returncode, *o) for p, o in zip(started, outputs, strict=True)]


def train(directory, count, *arguments, **more):
    found = ends(start(directory, count, *arguments, **more))
    assert [end.code for end in found] == [0] * count, found
    return found


def on_processes(count, steps, task, patience=900):
    """What tests/training/on_devices.py reports as each of `count` processes of one device."""
    where = f"localhost:{free_port()}"
    flags = commands.QUICK if task == "diffusion" else ""
    arguments = ("-m", "tests.training.on_devices", str(steps), task, where, str(count))
    started = [
        subprocess.Popen(
            [sys.executable, *arguments, str(index)],
            cwd=commands.ROOT,
            env=os.environ | {"XLA_FLAGS": flags},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    found = ends(started, patience)
    assert [end.code for end in found] == [0] * count, found[0].err
    return [json.loads(end.out.splitlines()[-1]) for end in found]


def assert_same_run(run, other):
    """Losses and results to 1e-5; the files that are not numbers, exactly."""
    assert [m.keys() for m in metrics(run)] == [m.keys() for m in metrics(other)]
    for one, two in zip(metrics(run), metrics(other), strict=True):
        assert one == pytest.approx(two, rel=1e-5, abs=1e-5)
    results = [json.loads((place / "results.json").read_text()) for place in (run, other)]
    assert results[0] == pytest.approx(results[1], rel=1e-5, abs=1e-5)
    assert steps(run) == steps(other)
    for name in ("data.json", "tokenizer.json"):
        assert (run / name).read_bytes() == (other / name).read_bytes()


def test_two_processes_are_one_run(recogniser, tmp_path):
    (tmp_path / "data").symlink_to(recogniser.parent / "data")
    config = f"--config={commands.ROOT}/configs/recognition.py:tiny=true"
    first, second = train(tmp_path, 2, config, "--config.data.dir=data", ALONE)
    assert_same_run(tmp_path / "run", recogniser)
    assert "One that dies ends the others within 120 s" in first.err
    assert "test/top1" in first.out and "test/top1" not in second.out
    (record,) = json.loads((tmp_path / "run" / "provenance.json").read_text())["starts"]
    assert (record["processes"], record["devices"], record["local_devices"]) == (2, 2, 1)
    kept = {path.name for path in (tmp_path / "run").iterdir() if "events" not in path.name}
    assert kept == {path.name for path in recogniser.iterdir() if "events" not in path.name}


def test_a_process_that_is_missing_is_told(tmp_path):
    """Be it another than process 0 or process 0."""
    some = places(2, timeout=2)[0], places(2, timeout=2)[1]
    started = [commands.start(tmp_path, "main", commands.TINY, "--workdir=x", *p) for p in some]
    for end in ends(started):
        assert "After 2 s not all processes have met" in end.sentence
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("", 2, None), "--num_processes and --process_id want --coordinator"),
        (("auto", None, 1), "--num_processes and --process_id want --coordinator"),
        (("localhost", 2, 0), "as HOST:PORT is wanted"),
        (("localhost:1234", 2, None), "with --num_processes and --process_id"),
        (("auto", None, None), "JAX cannot join other processes here: no cluster"),
    ],
)
def test_how_processes_meet_is_checked(monkeypatch, given, message):
    def initialize(**_):
        raise ValueError("no cluster")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=message):
        processes.connect(given[0], given[1], given[2], timeout=60)


@pytest.mark.parametrize(("started", "asked"), [("", False), ("1", False), ("2", True)])
def test_srun_is_noticed(monkeypatch, started, asked):
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **how: calls.append(how))
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", started or "1")
    processes.connect("", None, None, 60)
    assert len(calls) == asked
    assert not asked or calls[0].keys() == {
        "initialization_timeout",
        "heartbeat_timeout_seconds",
        "shutdown_timeout_seconds",
    }  # fmt: skip: all else JAX finds out


def test_several_processes_want_a_folder(command, monkeypatch):
    from vision_lang import main

    monkeypatch.setattr(processes, "several", lambda: True)
    monkeypatch.setattr(processes, "wait", lambda name: None)
    monkeypatch.setattr(os, "_exit", sys.exit)
    assert "need --workdir=RUN" in command(main.main, commands.TINY).sentence


# What takes minutes. ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["diffusion", *OTHERS[:3]])
@pytest.mark.parametrize("count", [2, 4])
def test_losses_are_those_of_one_process(count, task):
    reports = on_processes(count, 100, task)
    one = on_devices(8, 100, task)
    for report in reports:
        for way, losses in report["losses_of"].items():
            wanted = one["losses_of"][f"pmap {count}" if way == "pmap" else way]
            assert losses[:30] == pytest.approx(wanted[:30], rel=0, abs=1e-5), way
            assert losses == pytest.approx(wanted, rel=0, abs=1e-3), way
        for name, draws in report.get("draws", {}).items():
            wanted = one["draws"]["pmap 1" if name == "pmap" else "jit"]
            if name == "jit":  # the sum of image and noise may be rounded another way
                draws["digests"]["noisy"] = wanted["digests"]["noisy"]
            assert draws == wanted, name  # bit for bit
        if "spread" in report:
            assert report["spread"]["pmap"] == one["spread"]["pmap 1"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["pmap", "jit", "fsdp"])
@pytest.mark.parametrize(
    "config", ["captioning.py:tiny=true", "contrastive.py:tiny=true", "diffusion.py:tiny=true"]
)
def test_runs_with_all_their_evaluators_are_those_of_one_process(
    config, parallel, recogniser, tmp_path
):
    """Pictures that were drawn are also judged: by a Frechet distance in a recogniser's features,
    and by the nearest of training."""
    arguments = [
        f"--config={commands.ROOT}/configs/{config}", f"--config.data.dir={recogniser.parent}/data",
        f"--config.parallel={parallel}",
    ]  # fmt: skip
    if "diffusion" in config:
        judge = "--config.evaluators.generation"
        arguments += [f"{judge}.features={recogniser}", f"{judge}.allow_few=true"]
        arguments += [f"{judge}.shown=2"]
    train(tmp_path, 2, *arguments, ALONE)
    alone = commands.start(tmp_path, "main", *arguments, "--workdir=alone")
    (end,) = ends([alone])
    assert end.code == 0, end.err
    assert_same_run(tmp_path / "run", tmp_path / "alone")
    names = json.loads((tmp_path / "alone" / "results.json").read_text())
    assert "diffusion" not in config or any(name.startswith("test/fd_vgg") for name in names)


@pytest.mark.slow
def test_processes_evaluate_together(recogniser, tmp_path):
    shutil.copytree(recogniser.parent, tmp_path, dirs_exist_ok=True)
    found = ends([commands.start(tmp_path, "evaluate", "--run=run", *where) for where in places(2)])
    assert [end.code for end in found] == [0, 0], found
    assert "written to run/results.json" in found[0].out and "written" not in found[1].out
    results = [json.loads((p / "results.json").read_text()) for p in (tmp_path / "run", recogniser)]
    assert results[0] == pytest.approx(results[1], rel=1e-5, abs=1e-5)


@pytest.mark.slow
def test_numbers_that_go_wrong_stop_all_processes(recogniser, tmp_path):
    """Each names the whole batch, as one process with as many devices does."""
    arguments = (
        f"--config={commands.ROOT}/configs/recognition.py:tiny=true",
        f"--config.data.dir={recogniser.parent}/data", "--config.optimizer.learning_rate=1e38",
        "--config.save_every=1",
    )  # fmt: skip
    found = ends(start(tmp_path, 2, *arguments, ALONE))
    (alone,) = ends([commands.start(tmp_path, "main", *arguments, "--workdir=alone")])
    assert "NaN or Inf in the loss or the gradients" in alone.sentence
    assert alone.sentence in found[0].err and alone.sentence in found[1].err
    assert [end.code for end in found] == [2, 2]
    assert steps(tmp_path / "run") == steps(tmp_path / "alone") != []


@pytest.mark.slow
def test_a_signal_to_one_stops_all_at_one_step(recogniser, tmp_path):
    shutil.copytree(recogniser.parent, tmp_path, dirs_exist_ok=True)
    config = f"--config={commands.ROOT}/configs/recognition.py:tiny=true"
    started = start(tmp_path, 2, config, "--config.data.dir=data", ALONE, workdir="new")
    wait_for(lambda: (tmp_path / "new/metrics.jsonl").exists() and metrics(tmp_path / "new"),
             started[0])  # fmt: skip
    started[1].send_signal(signal.SIGTERM)
    found = ends(started)
    assert [end.code for end in found] == [143, 143], found
    (stopped,) = steps(tmp_path / "new")
    assert f"stopped by SIGTERM at step {stopped}, state saved" in found[0].out
    train(tmp_path, 2, workdir="new")
    assert_same_run(tmp_path / "new", recogniser)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_others(recogniser, tmp_path, killed):
    shutil.copytree(recogniser.parent, tmp_path, dirs_exist_ok=True)
    config = f"--config={commands.ROOT}/configs/recognition.py:tiny=true"
    more = ("--config.data.dir=data", "--config.save_every=2", ALONE)
    started = start(tmp_path, 2, config, *more, workdir="new", timeout=10)
    wait_for(lambda: (tmp_path / "new/config.json").exists() and steps(tmp_path / "new"),
             started[0])  # fmt: skip
    os.kill(started[killed].pid, signal.SIGKILL)
    began = time.monotonic()
    found = ends(started)
    assert time.monotonic() - began < 20
    left = found[1 - killed]
    # It computed with the other, or waited for it to save, or did neither until JAX aborts it.
    told = {1: "If another was not there", 2: "could not be saved", -6: "another task died"}
    assert told[left.code] in left.err
    train(tmp_path, 2, workdir="new")
    final = [json.loads((tmp_path / n / "final.json").read_text()) for n in ("new", "run")]
    assert final[0]["step"] == final[1]["step"] == 20


@pytest.mark.slow
def test_processes_that_see_different_folders_end(tmp_path):
    started = [
        commands.start(tmp_path, "main", commands.TINY, f"--workdir=run{index}", *where)
        for index, where in enumerate(places(2, timeout=5))
    ]
    first, second = ends(started)
    assert "is not the folder that process 0 sees" in second.sentence
    assert first.code != 0


@pytest.mark.slow
def test_latents_are_encoded_by_one_of_the_processes(trained, tmp_path):
    auto = f"--config={commands.ROOT}/configs/autoencoder.py:tiny=true"
    (tmp_path / "data").symlink_to(trained.parent / "data")
    data = "--config.data.dir=data"
    train(tmp_path, 2, auto, data, ALONE, workdir="auto")
    arguments = [
        f"--config={commands.ROOT}/configs/diffusion.py:tiny=true,autoencoder=tiny", data,
        "--config.init.autoencoder=auto", "--config.data.cache_latents=true",
    ]  # fmt: skip
    train(tmp_path, 2, *arguments, ALONE)
    (end,) = ends([commands.start(tmp_path, "main", *arguments, "--workdir=alone")])
    assert end.code == 0, end.err
    assert_same_run(tmp_path / "run", tmp_path / "alone")
