"""A sweep trains what its config names: which runs, in which folders, and what happens between.

Most tests let a stand-in train, a program of a few lines that leaves what vision_lang.main does.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from configs import common
from tests import commands
from tests.test_main import metrics, wait_for
from vision_lang import main, sweep
from vision_lang.errors import InputError
from vision_lang.runs import config as config_lib

STUDY = f"{commands.ROOT}/tests/fixtures/study.py"
FILE = f"--config={STUDY}"
RATES, SEEDS = (0.001, 0.003), (0, 1)
NAMES = [f"learning_rate={rate}-seed={seed}" for rate in RATES for seed in SEEDS]

# argv: folder, config, seconds, exit code. A signal is counted, and ends it as it ends a run.
STAND_IN = """
import json, pathlib, signal, sys, time
folder, config = pathlib.Path(sys.argv[1]), sys.argv[2]
seconds, code = map(float, sys.argv[3:])
folder.mkdir(exist_ok=True)
told = folder / "told"
def end(number, _):
    told.write_text(f"{told.read_text() if told.exists() else ''}{number} ")
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end); signal.signal(signal.SIGINT, end)
(folder / "began").write_text(str(time.time()))
time.sleep(seconds)
(folder / "ended").write_text(str(time.time()))
if not code:
    (folder / "final.json").write_text(json.dumps({"step": json.loads(config)["steps"]}))
    (folder / "results.json").write_text(json.dumps({"test/top1": 0.5}))
    (folder / "config.json").write_text(config)
sys.exit(int(code))
"""


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """stand_in(name=(seconds, exit code)) -> runs of these names take so long and end so."""
    monkeypatch.chdir(tmp_path)
    started: list[str] = []

    def install(**special):
        def start(run, slot):
            started.append(run.folder.name)
            run.folder.parent.mkdir(parents=True, exist_ok=True)
            how = special.get(run.folder.name.replace("=", "").replace(".", ""), (0.1, 0))
            config = config_lib.to_json(run.config)
            argv = [sys.executable, "-c", STAND_IN, str(run.folder), config, *map(str, how)]
            return subprocess.Popen(argv, start_new_session=True)

        monkeypatch.setattr(sweep, "_start", start)
        monkeypatch.setattr(sweep, "POLL", 0.02)
        return started

    return install


# Which runs. --------------------------------------------------------------------------------------


def test_products_of_fields():
    both = [{"a": 1, "b": 2}, {"a": 3, "b": 4}]
    assert common.product(both, common.seeds(2)) == [
        {"a": 1, "b": 2, "seed": 0}, {"a": 1, "b": 2, "seed": 1},
        {"a": 3, "b": 4, "seed": 0}, {"a": 3, "b": 4, "seed": 1},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "labels"),
    [
        ([{"a.b": 1, "c": "x"}], ["b=1-c=x"]),
        ([{"a.b": 1, "c.b": 2}], ["a.b=1-c.b=2"]),
        ([{"arg": "size=11"}, {"arg": "size=13"}], ["size=11", "size=13"]),
        ([{"path": "/a/b c"}, {"path": "/a/b;c"}], ["path=_a_b_c-0", "path=_a_b_c-1"]),
        ([{"widths": (1, 2), "x": True}], ["widths=_1_2_-x=true"]),
        ([{"x": "y" * 300}], ["x=" + "y" * 98]),
    ],
)
def test_names_of_folders(entries, labels):
    assert sweep._labels(entries) == labels


def test_commands_are_what_main_takes(command, monkeypatch, tmp_path):
    """Each line, read by vision_lang.main itself, is the run with the config that is meant."""
    monkeypatch.chdir(tmp_path)
    ended = command(sweep.main, FILE, "--commands", "--config.batch_size=4", "--out=o")
    lines = [shlex.split(line) for line in ended.out.splitlines()]
    assert [line[:3] for line in lines] == [["python", "-m", "vision_lang.main"]] * 4
    seen = []
    monkeypatch.setattr(main, "_run", lambda: seen.append(main.FLAGS.config))
    for line in lines:
        assert command(main.main, *line[3:]).code == 0
    assert [(c.optimizer.learning_rate, c.seed) for c in seen] == [
        (rate, seed) for rate in RATES for seed in SEEDS
    ]
    assert {(c.batch_size, c.steps) for c in seen} == {(4, 6)}
    assert [line[4] for line in lines] == [f"--workdir=o/{name}" for name in NAMES]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("", "has no function sweep()"),
        ("def sweep(): return []", "names no run"),
        ("def sweep(): return [3]", "{field: value} is wanted, not 3"),
        ("def sweep(): return [{'seed': 1}, {'seed': 1}]", "has a run twice: {'seed': 1}"),
        ("def sweep(): return [{'sead': 1}]", "The run sead=1: "),
        ("def sweep(): return [{'seed': 'x'}]", "The run seed=x: --config.seed=x: a whole number"),
        ("def sweep(): return [{'batch_size': 0}]", "The run batch_size=0: "),
        ("def sweep(): return [{'arg': 'tony'}]", "Unknown config argument 'tony'"),
    ],
)
def test_wrong_sweeps(tmp_path, monkeypatch, command, body, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.py").write_text(f"from configs.recognition import get_config\n{body}\n")
    ended = command(sweep.main, "--config=x.py")
    assert sentence in ended.sentence and not (tmp_path / "runs").exists()


# What happens. ------------------------------------------------------------------------------------


def test_each_is_trained_once(command, monkeypatch, stand_in, tmp_path):
    started = stand_in()
    ended = command(sweep.main, FILE)
    assert ended.code == 0 and started == NAMES
    assert [line.split()[:2] for line in ended.out.splitlines()[-5:-1]] == [
        [name, "over"] for name in NAMES
    ]
    shutil.rmtree(tmp_path / "runs/study" / NAMES[2])
    again = command(sweep.main, FILE)
    assert started == [*NAMES, NAMES[2]] and "4 runs, 3 of them over already" in again.out
    more = command(sweep.main, FILE, "--config.steps=8", "--status")
    assert [line.split()[1] for line in more.out.splitlines()[:4]] == ["step"] * 4


def test_so_many_at_a_time(command, monkeypatch, stand_in, tmp_path):
    stand_in(**{name.replace("=", "").replace(".", ""): (0.6, 0) for name in NAMES})
    assert command(sweep.main, FILE, "--jobs=2", "--out=o").code == 0
    times = [
        [float((tmp_path / "o" / name / what).read_text()) for what in ("began", "ended")]
        for name in NAMES
    ]
    at_once = [sum(b <= begin < e for b, e in times) for begin, _ in times]
    assert max(at_once) == 2


def test_one_that_fails_does_not_keep_the_others(command, monkeypatch, stand_in):
    started = stand_in(**{"learning_rate0001-seed1": (0.1, 3)})
    ended = command(sweep.main, FILE)
    assert ended.code == 1 and started == NAMES
    assert f"{NAMES[1]}  failed with exit code 3, see runs/study/{NAMES[1]}.log" in ended.out
    assert ended.out.count("  over  test/top1 0.5") == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_each_run_once(command, monkeypatch, stand_in, tmp_path, number):
    started = stand_in(**{name.replace("=", "").replace(".", ""): (60, 0) for name in NAMES})
    begin = sweep.time.sleep

    def sleep(seconds):
        folders = [tmp_path / "runs/study" / name for name in NAMES[:2]]
        if all((f / "began").exists() for f in folders) and not any(
            (f / "told").exists() for f in folders
        ):
            signal.raise_signal(number)
            begin(0.5)
        begin(seconds)

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    ended = command(sweep.main, FILE, "--jobs=2")
    assert ended.code == 128 + number and "the same command goes on" in ended.out
    assert started == NAMES[:2]
    for name in NAMES[:2]:
        assert (tmp_path / "runs/study" / name / "told").read_text() == f"{int(number)} "


def test_each_job_has_its_accelerator(monkeypatch, tmp_path):
    """What a started process finds in its environment."""
    monkeypatch.setattr(sweep, "FLAGS", type("Flags", (), {"accelerators": ["3", "5"]}))
    monkeypatch.setattr(sys, "executable", shutil.which("env"))
    found = []
    for slot in range(2):
        run = sweep.Run(sweep.epath.Path(tmp_path / "o" / str(slot)), [], None)
        monkeypatch.setattr(sweep.subprocess, "Popen", lambda argv, **how: found.append(how["env"]))
        sweep._start(run, slot)
    assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["3", "5"]


def test_a_folder_of_another_sweep_is_refused(command, monkeypatch, tmp_path, recogniser):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(recogniser, tmp_path / "o" / NAMES[0])
    ended = command(sweep.main, FILE, "--out=o")
    assert f"The run {NAMES[0]}: The given config differs" in ended.sentence
    assert "optimizer.learning_rate" in ended.sentence


def test_a_file_that_is_not_there():
    with pytest.raises(InputError, match=r"Config file 'x\.py' does not exist"):
        config_lib.sweep("x.py")


# What takes minutes. ------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_that_is_stopped_ends_as_one_that_is_not(recogniser, tmp_path):
    """And what it leaves is what vision_lang.main leaves; one table shows all."""
    (tmp_path / "data").symlink_to(recogniser.parent / "data")
    arguments = (f"--config={STUDY}", "--config.data.dir=data")

    def begin(out):
        return commands.start(tmp_path, "sweep", *arguments, f"--out={out}")

    whole = begin("whole")
    assert whole.wait(600) == 0
    stopped = begin("some")
    second = tmp_path / "some" / NAMES[1] / "metrics.jsonl"
    wait_for(lambda: second.exists() and metrics(second.parent), stopped)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.wait(120) == 143
    time.sleep(0.1)
    assert (tmp_path / "some" / NAMES[0] / "final.json").exists()
    assert not (tmp_path / "some" / NAMES[1] / "final.json").exists()
    assert begin("some").wait(600) == 0
    for name in NAMES:
        one, two = ((tmp_path / out / name / "final.json").read_text() for out in ("whole", "some"))
        assert one == two
    report = commands.start(tmp_path, "report", "some")
    out, err = report.communicate()
    assert report.returncode == 0, err
    assert [line.split("|")[2].strip() for line in out.splitlines()[2:4]] == ["2", "2"]
