"""NaN at chosen steps of real runs: what is skipped, counted, said and stopped."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from tests import commands
from tests.data.conftest import encode, plain, write_folder
from tests.test_main import metrics, steps
from tests.training import going_wrong
from tests.training.test_profile import traced
from vision_lang import main
from vision_lang.data import pipeline, sources
from vision_lang.runs import config as config_lib
from vision_lang.runs import manifest
from vision_lang.training import loop

FILE = f"--config={going_wrong.__file__}"
PICTURES = 30


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures whose grey is the number that names them; two classes."""
    directory = tmp_path_factory.mktemp("grey")
    lines = [
        {"file_name": f"{n}.png", "label": "ab"[n % 2], "split": "train" if n < 26 else "val"}
        for n in range(PICTURES)
    ]
    write_folder(directory / "x", {f"{n}.png": encode(plain(n)) for n in range(PICTURES)}, lines)
    return (f"--config.data.path={directory}/x", f"--config.data.dir={directory}/data")


@pytest.fixture
def train(command, monkeypatch, tmp_path, pictures):
    """train(folder, fields...) -> how the command ended."""
    going_wrong.install(monkeypatch.setattr)
    monkeypatch.chdir(tmp_path)

    def run(folder, *fields, new=True):
        arguments = (f"{FILE}:grey", *pictures) if new else ()
        return command(
            main.main, *arguments, f"--workdir={folder}", *(f"--config.{f}" for f in fields)
        )

    return run


PERIODS = ("steps=12", "log_every=3", "save_every=6", "eval_every=0")


def files_in(run, step):
    """Which pictures the batch of a step holds, told by their grey."""
    config = config_lib.of_run((run / "config.json").read_text())
    source = sources.prepare(config.data).open("train")
    batches = pipeline.train_batches(
        source, None, data=config.data, batch_size=config.batch_size, seed=config.seed,
        step=step - 1,
    )  # fmt: skip
    return [f"{grey}.png" for grey in next(batches)["image"][:, 0, 0, 0]]


def end(run):
    """All that must be equal in two runs that did the same."""
    final, results = (json.loads((run / f"{n}.json").read_text()) for n in ("final", "results"))
    log = [{n: v for n, v in m.items() if n != "skipped_steps"} for m in metrics(run)]
    return final["digests"], results, log


def skipped(run):
    return [m["skipped_steps"] for m in metrics(run) if "skipped_steps" in m]


def test_a_run_goes_on_as_if_the_batch_had_not_been(train, tmp_path, caplog):
    """And after a resume, whose count is that of the whole run."""
    wrong = train("wrong", *PERIODS, "nan_at=(4,5,9)", "max_bad_steps=2")
    assert wrong.code == 0, wrong.err
    assert train("left_out", *PERIODS, "skip_at=(4,5,9)").code == 0
    assert end(tmp_path / "wrong") == end(tmp_path / "left_out")
    assert skipped(tmp_path / "wrong") == [0, 2, 3, 3]
    said = re.findall(
        r"Step (\d+): NaN or Inf .* (\d+) in a row, (\d+) in all\..*: (.*)", caplog.text
    )
    assert [tuple(map(int, s[:3])) for s in said] == [(4, 1, 1), (5, 2, 2), (9, 1, 3)]
    assert [s[3].split(", ") for s in said] == [files_in(tmp_path / "wrong", n) for n in (4, 5, 9)]

    shutil.copytree(tmp_path / "wrong", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "12")
    assert train("again", new=False).code == 0
    assert end(tmp_path / "again") == end(tmp_path / "left_out")
    assert skipped(tmp_path / "again") == [0, 2, 3, 3]


def test_a_run_stops_and_says_where(train, tmp_path):
    """What it says helps: with a larger max_bad_steps it goes on."""
    sentence = train("run", *PERIODS, "nan_at=(8,9)", "max_bad_steps=1").sentence
    batch = files_in(tmp_path / "run", 9)
    assert "Step 9: NaN or Inf in the loss or the gradients, 2 update(s) in a row" in sentence
    assert "last good checkpoint is step 6." in sentence
    assert f"The batch: {', '.join(batch[:5])} and 3 more, all of them in the log" in sentence
    assert steps(tmp_path / "run") == [6] and len(batch) == 8

    assert train("run", "max_bad_steps=2", "profile=(10,11)", new=False).code == 0
    assert traced(tmp_path / "run") == [10, 11]
    assert skipped(tmp_path / "run") == [0, 0, 2, 2]
    notes = manifest.read(epath.Path("run/checkpoints/12"))["notes"]
    losses = [m["loss"] for m in metrics(tmp_path / "run") if "loss" in m]
    assert notes == {"skipped_steps": 2, "loss_window": 3, "losses": losses}


def test_the_stage_that_is_stuck_is_named(train, monkeypatch, caplog):
    """One of each kind takes 0.8 s longer than it would, where 0.3 s are allowed."""

    def slow(place, name, when):
        function = getattr(place, name)

        def late(*arguments, **more):
            if when(*arguments):
                time.sleep(0.8)
            return function(*arguments, **more)

        monkeypatch.setattr(place, name, late)

    slow(loop.InFlight, "add", lambda flying, step, bad: step == 4)
    slow(loop.Checkpoints, "save", lambda saved, step, *_: step == 8)
    slow(loop, "evaluate", lambda evaluators, state, writer, step: step == 10)
    slow(pipeline._MakeBatch, "__call__", lambda make, step: step == 21)  # far from these
    ended = train("run", "steps=24", "save_every=8", "eval_every=10", "stuck_after=0.3")
    assert ended.code == 0
    stage = r"Step (\d+): the stage '(\w+)' "
    told = re.findall(stage + "has taken 0.[3-9]", caplog.text)
    injected = {("4", "step"), ("8", "save"), ("10", "evaluation"), ("22", "data")}
    assert injected <= set(told) and len(told) == len(set(told))
    assert injected <= set(re.findall(stage + "was over after", caplog.text))
    assert "thread MainThread" in caplog.text and "thread prefetch" in caplog.text
    assert caplog.text.count(f"{__file__}:") >= 4  # where it sleeps


# What takes minutes. ------------------------------------------------------------------------------

TASKS = ("diffusion", "recognition", "captioning", "contrastive", "clip", "autoencoder")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "devices"), [*((task, 2) for task in TASKS), ("diffusion", 1), ("recognition", 1)]
)
def test_every_task_goes_on_as_if_the_batch_had_not_been(task, devices, trained, tmp_path):
    """Both are of the same program but for the numbers of the steps, none of which must be equal:
    a program that is simplified rounds another way."""

    def train(folder, *fields):
        arguments = [f"{FILE}:{task}", f"--workdir={folder}", "--config.steps=12"]
        arguments += [f"--config.data.dir={trained.parent}/data", "--config.log_every=3"]
        arguments += [f"--config.cpu_devices={devices}", "--config.eval_every=0"]
        return subprocess.run(
            [sys.executable, "-m", "tests.training.going_wrong", *arguments,
             *(f"--config.{field}" for field in fields)],
            cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
            capture_output=True, text=True,
        )  # fmt: skip

    wrong = train("wrong", "nan_at=(4,5,9)", "max_bad_steps=2")
    assert wrong.returncode == 0, wrong.stderr
    assert f"{devices} local of {devices} devices" in wrong.stderr
    left_out = train("left_out", "skip_at=(4,5,9)", "nan_at=(104,105,109)")
    assert left_out.returncode == 0, left_out.stderr
    assert end(tmp_path / "wrong") == end(tmp_path / "left_out")
    assert skipped(tmp_path / "wrong") == [0, 2, 3, 3]
    stopped = train("stopped", "nan_at=(11,12,13)")
    assert stopped.returncode == 2
    assert re.search(r"error: Step 11: .*is step 10\. The batch: train\[\d+\], ", stopped.stderr)


@pytest.mark.slow
def test_a_stuck_worker_is_a_stage_that_lasts(trained, tmp_path):
    arguments = (commands.TINY, f"--config.data.dir={trained.parent}/data", "--workdir=run")
    more = ("--config.steps=100000", "--config.workers=1", "--config.stuck_after=2")
    process = commands.start(tmp_path, "main", *arguments, *more)
    lines: queue.Queue[str] = queue.Queue()

    def read():
        for line in process.stderr or ():
            lines.put(line)

    threading.Thread(target=read, daemon=True).start()

    def wait_for(pattern):
        while not re.search(pattern, lines.get(timeout=300)):
            pass

    try:
        wait_for(r" [1-9]\d*/100000 ")
        own = subprocess.check_output(
            ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", f"{process.pid}"], text=True
        )
        (worker,) = [int(line.split()[0]) for line in own.splitlines() if "spawn_main" in line]
        os.kill(worker, signal.SIGSTOP)
        wait_for(r"the stage 'data' has taken 2\S* s so far")
        os.kill(worker, signal.SIGCONT)
        wait_for(r"the stage 'data' was over after")
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
