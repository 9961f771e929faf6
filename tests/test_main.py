"""The command that trains, from outside: what it writes, how it goes on, what it refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from etils import epath

from experiments.faults.running import good_steps as steps
from experiments.faults.running import logged as metrics
from tests import commands
from tests.data.conftest import encode, plain, write_folder
from vision_lang import evaluate, main
from vision_lang.data import tokenizer
from vision_lang.runs import config as config_lib
from vision_lang.runs import folder as folder_lib
from vision_lang.runs import manifest
from vision_lang.runs.checkpoint import restore_part
from vision_lang.training import loop, setup, stored


def wait_for(condition, process, seconds=600):
    """Polls; fails if the process ends before the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def is_caught(pid, number):
    """Whether a process handles a signal by itself."""
    with open(f"/proc/{pid}/status") as status:
        (mask,) = [line.split()[1] for line in status if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.fixture
def copy(trained, tmp_path):
    """A copy of the finished run that may be changed, beside its data."""
    (tmp_path / "data").symlink_to(trained.parent / "data")
    os.chdir(tmp_path)
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture(autouse=True)
def stay_here(monkeypatch):
    """Some tests change the directory."""
    monkeypatch.chdir(commands.ROOT)


# What a run leaves behind. ------------------------------------------------------------------------


def test_a_run_writes_every_file(trained):
    out = (trained.parent / "run.out").read_text()
    config = json.loads((trained / "config.json").read_text())
    assert (config["steps"], config["log_every"], config["data"]["dir"]) == (20, 4, "data")
    (record,) = json.loads((trained / "provenance.json").read_text())["starts"]
    assert record["step"] == 0 and "--workdir=run" in record["command"] and record["seconds"] > 0
    assert steps(trained) == [10, 20]
    assert [m["step"] for m in metrics(trained)] == [4, 8, 10, 12, 16, 20]
    evaluated = [m["step"] for m in metrics(trained) if "validation/loss" in m]
    assert evaluated == [10, 20]
    assert all({"loss", "learning_rate"} <= set(m) for m in metrics(trained) if m["step"] != 10)
    results = json.loads((trained / "results.json").read_text())
    assert {"validation/loss", "validation/loss_raw", "test/all_right", "test_unseen/n"} <= set(
        results
    )
    assert {n: m for n, m in metrics(trained)[-1].items() if "/" in n} == results
    final = json.loads((trained / "final.json").read_text())
    assert final["step"] == 20 and {"params", "opt_state", "ema/ema"} <= set(final["digests"])
    assert tokenizer.load(trained / "tokenizer.json").vocab_size > 2
    assert json.loads((trained / "data.json").read_text())["splits"]["train"] == 192
    assert (trained / "samples" / "samples-00000010.png").stat().st_size > 1_000
    assert list(trained.glob("events.out.tfevents.*"))
    for line in (
        "test/all_right",
        f"samples      {'run'}/samples",
        "checkpoints  run",
        "TensorBoard",
    ):
        assert line in out
    assert "-m vision_lang.generate --run=run --prompt='a red circle" in out.splitlines()[-1]


# Going on. ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, trained):
    """The run of `trained` once more, ended by SIGTERM, then by Ctrl-C twice."""
    directory = tmp_path_factory.mktemp("interrupted")
    shutil.copytree(trained.parent / "data", directory / "data")
    run = directory / "run"

    def begin(*arguments):
        return commands.start(directory, "main", "--workdir=run", *arguments)

    first = begin(commands.TINY, "--config.data.dir=data", "--config.log_every=4")
    wait_for(lambda: (run / "metrics.jsonl").exists() and metrics(run), first)
    first.send_signal(signal.SIGTERM)
    out, err = first.communicate()
    assert first.returncode == 143, err
    assert "stopped by SIGTERM" in out and "--workdir=run" in out
    (stopped,) = steps(run)

    second = begin("--config.workers=1", "--config.save_every=3")
    wait_for(lambda: max(steps(run)) > stopped, second)
    assert is_caught(second.pid, signal.SIGINT)
    os.killpg(second.pid, signal.SIGINT)  # as a terminal does, its worker included
    wait_for(lambda: not is_caught(second.pid, signal.SIGINT), second)
    os.killpg(second.pid, signal.SIGINT)
    out, err = second.communicate()
    assert second.returncode == -signal.SIGINT, err  # 130 in a shell
    assert "stopped by" not in out and "Traceback" not in err
    killed = max(steps(run))

    third = begin()
    _, err = third.communicate()
    assert third.returncode == 0, err
    assert "Resumed from step" in err
    return run, stopped, killed


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(trained, interrupted):
    run, stopped, killed = interrupted
    assert 4 <= stopped < killed < 20
    for name in ("final.json", "results.json", "tokenizer.json", "data.json"):
        assert json.loads((run / name).read_text()) == json.loads((trained / name).read_text()), (
            name
        )
    for picture in (trained / "samples").iterdir():
        assert picture.read_bytes() == (run / "samples" / picture.name).read_bytes()


def test_an_interrupted_run_logs_the_same_and_nothing_twice(trained, interrupted):
    run, stopped, _ = interrupted
    assert metrics(run) == metrics(trained)
    starts = json.loads((run / "provenance.json").read_text())["starts"]
    assert [s["step"] for s in starts[:2]] == [0, stopped] and len(starts) == 3
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(run)).Reload()
    for tag in ("loss", "validation/loss"):
        logged = [(e.step, e.value) for e in events.Scalars(tag)]
        wanted = [(m["step"], m[tag]) for m in metrics(trained) if tag in m]
        assert [step for step, _ in logged] == [step for step, _ in wanted]
        assert [v for _, v in logged] == pytest.approx([v for _, v in wanted], rel=1e-6)


@pytest.mark.slow
def test_ctrl_c_saves_once_whatever_its_workers_do(recogniser, tmp_path):
    """A terminal tells all processes; a worker may not end before a batch that is waited for."""
    shutil.copytree(recogniser.parent / "data", tmp_path / "data")
    config = (f"--config={commands.ROOT}/configs/recognition.py:tiny=true", "--config.workers=1")
    process = commands.start(
        tmp_path, "main", *config, "--config.data.dir=data", "--workdir=run", "--config.log_every=1"
    )
    wait_for(
        lambda: (tmp_path / "run" / "metrics.jsonl").exists() and metrics(tmp_path / "run"), process
    )
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err, err
    assert "stopped by SIGINT" in out
    (stopped,) = steps(tmp_path / "run")
    assert 1 <= stopped < 20


def test_ctrl_c_ends_what_comes_before_the_training_at_once(tmp_path):
    """While the data are prepared."""
    process = commands.start(tmp_path, "main", commands.TINY, "--config.data.dir=data")
    wait_for(lambda: (tmp_path / "data").exists(), process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130 and "Traceback" not in err, err


def test_ctrl_c_in_any_command(tmp_path):
    """What is printed is not lost, and nothing is made of the interrupt on its way."""
    program = """
        import os, signal
        from vision_lang import flags
        def main():
            print("a line")
            try:
                os.kill(os.getpid(), signal.SIGINT)
            except BaseException:
                print("caught")
        flags.run(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=commands.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "a line\n", "")


def test_a_finished_run_is_evaluated_again_and_stays_as_it_is(copy):
    before = {
        name: json.loads((copy / name).read_text()) for name in ("final.json", "results.json")
    }
    lines = (copy / "metrics.jsonl").read_text()
    process = commands.start(copy.parent, "main", "--workdir=run")
    _, log = process.communicate()
    assert process.returncode == 0, log
    after = {name: json.loads((copy / name).read_text()) for name in before}
    assert after == before and (copy / "metrics.jsonl").read_text() == lines


def test_evaluate_measures_what_the_training_did(copy, command):
    """On one device what was measured on two: the pictures are the same."""
    before = json.loads((copy / "results.json").read_text())
    outcome = command(evaluate.main, "--run=run")
    assert outcome.code == 0 and "test_unseen/all_right_3" in outcome.out
    after = json.loads((copy / "results.json").read_text())
    assert after == pytest.approx(before, rel=1e-5) and len(after) > 30


def test_evaluate_keeps_the_figures_of_other_weights_apart(copy, command):
    before = (copy / "results.json").read_text()
    outcome = command(
        evaluate.main, "--run=run@10", "--weights=raw", "--split=validation", "--out=raw.json"
    )
    assert outcome.code == 0 and (copy / "results.json").read_text() == before
    found = json.loads((copy.parent / "raw.json").read_text())
    assert "@10 (raw)" in found["source"] and found["validation/loss"] > 0
    assert command(evaluate.main, "--run=run@10", "--split=validation").code == 0
    assert (copy / "results.json").read_text() == before


def test_evaluate_refuses_other_data(copy, command):
    facts = json.loads((copy / "data.json").read_text())
    (copy / "data.json").write_text(json.dumps(facts | {"fingerprint": "0"}))
    assert "has changed since" in command(evaluate.main, "--run=run").sentence


def test_damaged_checkpoints_are_never_begun_over(copy, command):
    """All of them: the run is refused, and what it logged stays."""
    for step in (10, 20):
        victim = max((copy / "checkpoints" / str(step)).rglob("*"), key=lambda p: p.stat().st_size)
        victim.write_bytes(victim.read_bytes()[:-5])
    lines = (copy / "metrics.jsonl").read_text()
    outcome = command(main.main, "--workdir=run")
    assert outcome.code != 0 and "no good checkpoint" in outcome.err + str(outcome)
    assert (copy / "metrics.jsonl").read_text() == lines


@pytest.mark.slow
def test_the_best_checkpoint_stays(copy):
    """Saved where it is measured, whatever the other periods, at the last step as well."""
    rules = ("--config.keep=1", "--config.eval_every=5", "--config.save_every=9")
    best = ("--config.keep_best=validation/loss:max", "--config.steps=12")
    process = commands.start(copy.parent, "main", "--workdir=run", "--fork=new", *rules, *best)
    assert process.communicate() and process.returncode == 0
    run = copy.parent / "new"
    losses = {m["step"]: m["validation/loss"] for m in metrics(run) if "validation/loss" in m}
    assert list(losses) == [5, 10, 12]
    assert steps(run) == sorted({max(losses, key=lambda step: losses[step]), 12})


def test_a_checkpoint_knows_its_config(copy, command):
    """All steps of a run have one hash, also those after an extension; another's are refused."""
    config = folder_lib.open(str(copy)).read_config()
    found = {manifest.read(epath.Path(copy) / "checkpoints" / s)["config"] for s in ("10", "20")}
    assert found == {config_lib.lasting_hash(config)}
    stored = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(stored | {"seed": 1}))
    sentence = command(main.main, "--workdir=run", "--config.steps=30").sentence
    assert "checkpoints/20' was saved by a run with another config" in sentence
    assert steps(copy) == [10, 20]


def test_fewer_steps_than_are_done_are_refused(copy, command):
    sentence = command(main.main, "--workdir", "run", "--config.steps=15").sentence
    assert "20 steps behind it" in sentence and "config.steps=15" in sentence
    assert steps(copy) == [10, 20]


@pytest.fixture
def train(monkeypatch):
    """What the loop was called with; it does nothing but leave a tokenizer."""
    calls = []

    def pretend(*arguments):
        calls.append(arguments)
        arguments[1].tokenizer.write_text(tokenizer.train(["a red circle"], 300).json)
        return {}

    monkeypatch.setattr(loop, "train", pretend)
    return calls


def test_a_run_that_another_process_trains_is_refused(copy, command, train):
    before = (copy / "config.json").read_text()
    holding = "import sys, time; from etils import epath; from vision_lang.runs import folder\n"
    holding += "with folder.held(folder.RunFolder(epath.Path('run'))): print('holds', flush=True)"
    holding += "; time.sleep(600)"
    other = subprocess.Popen(
        [sys.executable, "-c", holding], stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(commands.ROOT)},
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "holds\n"
    told = command(main.main, "--workdir=run", "--config.steps=25").sentence
    assert "Another process is training" in told and not train
    assert (copy / "config.json").read_text() == before
    other.kill()  # the system lets go
    other.wait()
    assert command(main.main, "--workdir=run", "--config.steps=25").code == 0 and train


def test_what_may_change_on_resume_is_taken_and_stored(copy, command, train):
    outcome = command(main.main, f"--workdir={copy}", "--config.steps=30", "--config.keep=5")
    assert outcome.code == 0, outcome
    assert train[0][0].steps == 30
    stored = json.loads((copy / "config.json").read_text())
    assert (stored["steps"], stored["keep"]) == (30, 5)


@pytest.mark.parametrize("config", [(), (commands.TINY, "--config.data.dir=data")])
def test_what_may_not_change_on_resume_is_shown(copy, command, train, config):
    before = (copy / "config.json").read_text()
    sentence = command(
        main.main, *config, "--workdir=run", "--config.seed=3", "--config.optimizer.b1=0.5",
        "--config.log_every=4",
    ).sentence  # fmt: skip
    assert "seed: 0 -> 3" in sentence and "optimizer.b1: 0.9 -> 0.5" in sentence
    assert "--fork" in sentence and "log_every" not in sentence
    assert not train and (copy / "config.json").read_text() == before


def test_a_fork_starts_anew_from_the_stored_config(trained, tmp_path, command, train):
    new = tmp_path / "new"
    outcome = command(main.main, f"--workdir={trained}", f"--fork={new}", "--config.seed=3")
    assert outcome.code == 0, outcome
    config, run, _, defaults = train[0]
    assert (config.seed, config.log_every, defaults.seed) == (3, 4, 0)
    assert str(run.root) == str(new) and steps(new) == [] and len(steps(trained)) == 2
    sentence = command(main.main, f"--workdir={trained}", f"--fork={new}").sentence
    assert "already holds a run" in sentence


def test_a_stored_config_starts_a_new_run(trained, tmp_path, command, train):
    arguments = (f"--config={trained}/config.json", f"--workdir={tmp_path / 'new'}")
    assert command(main.main, *arguments, "--config.seed=1").code == 0
    before = json.loads((trained / "config.json").read_text())
    after = json.loads((tmp_path / "new" / "config.json").read_text())
    assert after == before | {"seed": 1}
    config, run, _, defaults = train[0]
    assert config.diffusion.time_course == ((0.0, 0.9, 0.4), (0.3, 1.3, 0.8), (1.0, 1.6, 1.4))
    assert (defaults.seed, run.root.name, steps(tmp_path / "new")) == (0, "new", [])
    sentence = command(main.main, *arguments, "--config.sed=1").sentence
    assert "Did you mean 'seed'" in sentence


@pytest.mark.parametrize(("workdir", "left"), [("", "runs"), ("--workdir=a/run", "a")])
def test_a_refused_start_leaves_no_folder(tmp_path, command, monkeypatch, workdir, left):
    def refuse(_config, run, *_):
        run.tokenizer.write_text("{}")
        raise main.InputError("no")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "train", refuse)
    assert command(main.main, commands.TINY, *workdir.split()).sentence == "error: no\n"
    assert [path.name for path in tmp_path.rglob("*")] == [left]


def test_what_was_trained_stays_whatever_ends_it(tmp_path, command, monkeypatch):
    def stop(_config, run, *_):
        run.metrics.write_text("{}")
        raise main.InputError("no")

    monkeypatch.setattr(loop, "train", stop)
    assert command(main.main, commands.TINY, f"--workdir={tmp_path / 'run'}").code == 2
    assert (tmp_path / "run" / "config.json").exists()


def test_a_run_that_never_began_takes_a_mended_config(tmp_path, command, train, monkeypatch):
    pretend = loop.train
    monkeypatch.setattr(loop, "train", lambda *_: (_ for _ in ()).throw(main.InputError("no")))
    arguments = (commands.TINY, f"--workdir={tmp_path / 'run'}")
    (tmp_path / "run").mkdir()  # made by somebody else, so that it stays
    assert command(main.main, *arguments, "--config.optimizer.schedule=cosin").code == 2
    monkeypatch.setattr(loop, "train", pretend)
    assert command(main.main, *arguments).code == 0
    assert train[0][0].optimizer.schedule == "linear"


LONG = "a dog that runs and runs and runs and runs through the high grass"


@pytest.mark.parametrize("texts", [(LONG, "a dog"), ("a dog", LONG), (LONG, "ü" * 30)])
def test_what_is_recommended_fits_the_text_length(tmp_path, command, train, texts):
    """The first caption that `generate` takes, else the beginning of one."""
    lines = [{"file_name": f"{n}.png", "text": texts[n], "split": "val"} for n in range(2)]
    path = write_folder(tmp_path / "x", {f"{n}.png": encode(plain(n)) for n in range(2)}, lines)
    outcome = command(
        main.main, commands.TINY + ",data=folder", f"--config.data.path={path}",
        f"--config.data.dir={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}",
        "--config.data.text_length=9",
    )  # fmt: skip
    (word,) = [w for w in shlex.split(outcome.out.splitlines()[-1]) if w.startswith("--prompt=")]
    prompt = word.removeprefix("--prompt=")
    if "a dog" in texts:
        assert prompt == "a dog"
    assert prompt and any(text.startswith(prompt) for text in texts)
    tokenizer.load(tmp_path / "run" / "tokenizer.json").encode(prompt, 9, strict=True)


# Bad input: one sentence, exit code 2. ------------------------------------------------------------

BAD = {
    "unknown key": ((commands.TINY, "--config.optimizer.learning_rat=1"), "learning_rate"),
    "misplaced key": ((commands.TINY, "--config.text_length=9"), "data.text_length"),
    "wrong type": ((commands.TINY, "--config.steps=many"), "whole number"),
    "wrong type in a tuple": (
        (commands.TINY, "--config.sampling.interval=('a', 'b')"), "sampling.interval",
    ),
    "unknown argument": ((commands.TINY + ",tinny=true",), "'tiny'"),
    "unknown size": ((commands.TINY.replace("tiny=true", "size=smal"),), "'small'"),
    "unknown data set": ((commands.TINY + ",data=shaped",), "shapes"),
    "unknown schedule": ((commands.TINY, "--config.diffusion.schedule=flou"), "'flow'"),
    "unknown sampler": ((commands.TINY, "--config.sampling.sampler=dpmpp"), "'dpmpp_2m'"),
    "refused pair": ((commands.TINY, "--config.diffusion.prediction=epsilon"), "Use prediction"),
    "labels that are not there": (
        (commands.TINY + ",condition=label", "--config.data.label_key=x"), "label",
    ),
    "no such file": ((f"--config={commands.ROOT}/configs/absent.py",), "does not exist"),
    "unknown flag": ((commands.TINY, "--workdri=x"), "workdri"),
    "no flag": ((commands.TINY, "steps=3"), "begins with --"),
    "nothing": ((), "--config=configs/diffusion.py"),
    "no such run": (("--workdir=absent",), "does not exist"),
    "no run": (("--workdir=.",), "not a run folder"),
    "keep_best without direction": ((commands.TINY, "--config.keep_best=loss"), "metric:min"),
    "a batch that cannot be split": ((commands.TINY, "--config.accumulate=3"), "can't be split"),
    "no batch": ((commands.TINY, "--config.batch_size=0"), "config.batch_size = 0: 1 or more"),
    "less than no steps": ((commands.TINY, "--config.steps=-5"), "config.steps = -5: 1 or more"),
    "a frozen name that is none": (
        (commands.TINY, "--config.optimizer.frozen=('txt/.*',)"), "'txt/.*' matches no parameter",
    ),
    "two configs": (
        (commands.TINY, f"--config={commands.ROOT}/configs/recognition.py"), "given twice",
    ),
    "an accelerator": ((commands.TINY, "--config.require_accelerator"), "only the CPU"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence(trained, tmp_path, monkeypatch, command, case):
    arguments, part = BAD[case]
    monkeypatch.chdir(tmp_path)
    if arguments and arguments[0].startswith("--config"):
        arguments += (f"--config.data.dir={trained.parent / 'data'}",)
    sentence = command(main.main, *arguments).sentence
    assert part in sentence and len(sentence.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [(), ("--run=",)])
def test_a_command_asks_for_its_run(command, arguments):
    assert command(evaluate.main, *arguments).sentence == "error: Say which run: --run=DIR.\n"


def test_the_path_of_a_run_may_hold_an_at_sign(trained, tmp_path):
    run = tmp_path / "me@home" / "run@2x"
    shutil.copytree(trained, run)
    for name, step in ((f"{run}", 20), (f"{run}@10", 10)):
        assert setup.load(name).source == f"{run}@{step} (ema)"
        assert stored.weights_of(f"{name}:raw")[0] == f"{run}@{step} (raw)"
    with pytest.raises(main.InputError, match=r"run@2x@x' does not exist"):
        setup.load(f"{run}@x")


def test_bad_input_reaches_the_shell(tmp_path):
    process = commands.start(tmp_path, "main", commands.TINY, "--config.stps=1")
    out, err = process.communicate()
    assert process.returncode == 2 and out == ""
    assert err == "error: --config.stps: the config has no such field. Did you mean 'steps'?\n"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lines", [None, [{"file_name": "absent.png", "text": "nothing"}]])
def test_a_folder_without_its_pictures(tmp_path, command, monkeypatch, lines):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for line in lines or ():
        (tmp_path / "pictures" / "metadata.jsonl").write_text(json.dumps(line) + "\n")
    sentence = command(
        main.main, commands.TINY + ",data=folder", "--config.data.path=pictures"
    ).sentence
    assert ("absent.png" if lines else "pictures") in sentence


def test_a_full_disk_at_a_save_keeps_what_was_saved(copy):
    shutil.rmtree(copy / "checkpoints" / "20")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    try:
        process = commands.start(copy.parent, "main", "--workdir=run", "--config.save_every=1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    sentence = process.communicate()[1]
    assert process.returncode == 2 and "Traceback" not in sentence
    assert "Step 11 could not be saved" in sentence
    assert "last good checkpoint is step 10" in sentence
    assert steps(copy) == [10]
    assert restore_part(copy / "checkpoints", ["params"])[0] == 10


@pytest.mark.parametrize("changes", [{}, {"widths": (8, 16), "groups": 4}])
def test_the_last_line_of_an_autoencoder_is_a_run_on_its_latents(command, monkeypatch, changes):
    """Of its sizes, with the scaling that it measured, frozen, each picture encoded once."""
    config = config_lib.load(
        f"{commands.ROOT}/configs/autoencoder.py"
    ).copy_and_resolve_references()
    with config.unlocked():
        config.model.autoencoder.update(changes)
    run = folder_lib.RunFolder(epath.Path("runs/ae"))
    line = main._on_latents(config, run, {"train/latent_std": 2.0})
    found = []
    monkeypatch.setattr(main, "_run", lambda: found.append(main.FLAGS.config))
    assert command(main.main, *shlex.split(line)).code == 0
    (made,) = found
    assert made.init.autoencoder == "runs/ae" and made.data.cache_latents
    latents = setup.make_task(made, tokenizer.train(["a"], 300), 0).latents
    assert (latents.kept, latents.scaling) == (True, 0.5)
    assert dataclasses.asdict(latents.net.spec) == dict(config.model.autoencoder)
