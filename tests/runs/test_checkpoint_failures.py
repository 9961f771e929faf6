"""Checkpoints: damage, full disks and kills cost at most the step that was being written."""

import logging
import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.runs.states import state
from vision_lang.runs.checkpoint import CheckpointError, Checkpoints, restore_part
from vision_lang.runs.records import digest

ROOT = Path(__file__).resolve().parents[2]


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(step):
    return max(
        (p for p in (step / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )


def folder_at(path):
    path.unlink()
    path.mkdir()


def empty(step):
    shutil.rmtree(step)
    step.mkdir()


def another(step):
    shutil.rmtree(step)
    shutil.copytree(step.parent / "10", step)


DAMAGES = {
    "empty": empty,
    "no manifest": lambda step: (step / "manifest.json").unlink(),
    "orbax's temporary directory": lambda step: [
        (step / "manifest.json").unlink(),
        (step / "state").rename(step / "state.orbax-checkpoint-tmp"),
    ],
    "truncated": lambda step: largest(step).write_bytes(largest(step).read_bytes()[:-1]),
    "a flipped bit": lambda step: flip(largest(step)),
    "a missing file": lambda step: largest(step).unlink(),
    "an emptied file": lambda step: largest(step).write_bytes(b""),
    "half a manifest": lambda step: (step / "manifest.json").write_text('{"content": {"step":'),
    "a flipped bit in the manifest": lambda step: flip(step / "manifest.json"),
    "another number in the manifest": lambda step: (step / "manifest.json").write_text(
        (step / "manifest.json").read_text().replace('"step": 20', '"step": 21')
    ),
    "a folder in a file's place": lambda step: folder_at(largest(step)),
    "a folder as manifest": lambda step: folder_at(step / "manifest.json"),
    "another step under its name": another,
    "an empty manifest": lambda step: (step / "manifest.json").write_text(""),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_broken_step_is_passed_over_and_does_not_block(two_steps, tmp_path, caplog, damage):
    directory = shutil.copytree(two_steps, tmp_path / "checkpoints")
    DAMAGES[damage](directory / "20")
    had_manifest = (directory / "20" / "manifest.json").exists()
    with Checkpoints(directory) as checkpoints, caplog.at_level(logging.WARNING):
        step, restored = checkpoints.restore(state())
        assert step == 10 and digest(restored) == digest(state(10))
        assert checkpoints.steps() == [10]
        assert any(
            "20" in r.getMessage() and "passed over" in r.getMessage() for r in caplog.records
        )
        with pytest.raises(CheckpointError, match=r"20' is .*last good checkpoint is step 10"):
            checkpoints.restore(state(), step=20)
        assert restore_part(directory, ["step"])[0] == 10
        checkpoints.save(20, state(21))
        assert checkpoints.restore(state())[0] == 20
        assert digest(checkpoints.restore(state())[1]) == digest(state(21))
    assert (directory / "20.damaged-1").exists() == had_manifest


def test_a_folder_without_a_good_step_says_what_it_has(two_steps, tmp_path):
    with pytest.raises(CheckpointError, match="no good checkpoint.*nothing there"):
        Checkpoints(tmp_path / "none").restore(state())
    directory = shutil.copytree(two_steps, tmp_path / "checkpoints")
    shutil.rmtree(directory / "10")
    flip(largest(directory / "20"))
    (directory / "20-notes").mkdir()  # not ours
    with pytest.raises(CheckpointError, match="no good checkpoint.*20: damaged"):
        restore_part(directory, ["params"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax's own end
def test_a_full_disk_stops_the_run_and_loses_nothing(tmp_path, file_limit):
    directory = tmp_path / "run" / "checkpoints"
    checkpoints = Checkpoints(directory, keep=1)
    checkpoints.save(10, state(10))
    checkpoints.wait()
    with file_limit(100_000), pytest.raises(CheckpointError) as caught:
        checkpoints.save(20, state(20, size=500_000))
        for _ in range(1_000):  # as the loop does
            checkpoints.check()
            time.sleep(0.01)
    text = str(caught.value)
    assert str(directory) in text and "File too large" in text and "\n" not in text
    assert "last good checkpoint is step 10" in text and f"--workdir={tmp_path / 'run'}" in text
    with pytest.raises(CheckpointError, match="step 10"):
        checkpoints.save(30, state(30))  # a failure is not forgotten
    with pytest.raises(CheckpointError, match="step 10"):
        checkpoints.close()
    assert not (directory / "20").exists()  # it would fill the disk
    with Checkpoints(directory) as again:
        assert digest(again.restore(state())[1]) == digest(state(10))
        again.save(20, state(20))


def test_a_folder_that_cannot_be_made_is_named_at_once(tmp_path):
    (tmp_path / "file").touch()
    checkpoints = Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(CheckpointError, match="Step 1 could not be saved in .*file/checkpoints"):
        checkpoints.save(1, state())


REFUSED = """
    import pathlib, sys
    import numpy as np
    from vision_lang.runs.checkpoint import Checkpoints

    directory = pathlib.Path(sys.argv[1])
    checkpoints = Checkpoints(directory)
    checkpoints.save(10, {"w": np.zeros(9)})
    checkpoints.wait()
    directory.chmod(0o555)
    checkpoints.save(20, {"w": np.zeros(9)})
    checkpoints.wait()
"""
# Root may else write where nobody may.
AS_OTHERS = ["setpriv", "--bounding-set=-dac_override"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(AS_OTHERS) and not shutil.which("setpriv"), reason="as root")
def test_a_save_that_is_not_permitted_does_not_hold_up_the_end(tmp_path):
    done = subprocess.run(
        [*AS_OTHERS, sys.executable, "-c", textwrap.dedent(REFUSED), str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    tmp_path.chmod(0o755)
    assert done.returncode == 1 and "CheckpointError: Step 20 could not be saved" in done.stderr
    assert "Permission denied. The last good checkpoint is step 10." in done.stderr


KILLED = """
    import os, signal, sys, threading, time
    import numpy as np
    from vision_lang.runs import manifest
    from vision_lang.runs.checkpoint import Checkpoints

    directory, moment = sys.argv[1:]
    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    tree = lambda step: {"w": np.random.default_rng(step).standard_normal(2_000_000)}
    checkpoints = Checkpoints(directory, keep=1)
    checkpoints.save(10, tree(10))
    checkpoints.wait()
    if moment == "before the manifest":
        manifest.write = kill
    if moment == "while pruning":
        from etils import epath
        type(epath.Path(directory)).rmtree = kill
    checkpoints.save(20, tree(20))
    if moment.startswith("after"):
        time.sleep(float(moment.split()[1]))
        kill()
    checkpoints.wait()
"""


@pytest.mark.parametrize(
    ("moment", "survivor"),
    [
        ("after 0.0 s", 10),
        ("before the manifest", 10),
        ("while pruning", 20),
        *[
            pytest.param(f"after {moment} s", 10, marks=pytest.mark.slow)
            for moment in (0.005, 0.01, 0.02, 0.03)
        ],
    ],
)
def test_a_kill_in_the_middle_of_a_save(tmp_path, moment, survivor):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(tmp_path), moment], cwd=ROOT
    )
    assert done.returncode == -9
    assert (tmp_path / "20").exists()  # it was in the middle
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        step, restored = checkpoints.restore({"w": np.zeros(2_000_000)})
        assert step == survivor
        wanted = np.random.default_rng(step).standard_normal(2_000_000)
        np.testing.assert_array_equal(restored["w"], wanted)
        if survivor == 10:
            checkpoints.save(20, {"w": wanted})
            checkpoints.wait()
            assert checkpoints.steps() == [20]
