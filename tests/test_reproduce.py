"""A recorded run made again: the same to the bit, and what is said where it is not."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import pytest
from etils import epath

from experiments.faults.running import ending, good_steps, logged
from tests import commands
from vision_lang import reproduce
from vision_lang.runs import comparison
from vision_lang.runs import record as record_lib
from vision_lang.training import loop


@pytest.fixture
def recorded(recogniser, tmp_path, monkeypatch):
    """The record of the tiny run in a file; the working directory has its data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(recogniser.parent / "data")
    return write(record_lib.read(str(recogniser)))


def write(record, name="a.json", **changes):
    path = epath.Path(name)
    record_lib.write(dataclasses.replace(record, **changes), path)
    return path


def with_line(record, step, **changes):
    """The lines of a record, one of them changed."""
    return [line | changes if line["step"] == step else line for line in record.metrics]


def in_a_process(directory, *arguments):
    process = commands.start(directory, "reproduce", *map(str, arguments))
    out, err = process.communicate()
    assert process.returncode == 0, (out, err)
    return out


# The real thing. ----------------------------------------------------------------------------------


def test_the_run_again_is_the_same_to_the_bit(recogniser, recorded, tmp_path):
    out = in_a_process(tmp_path, recorded)
    assert "\nbitwise: " in out and "3 digests" in out
    assert ending(tmp_path / "runs" / f"{recogniser.name}-again") == ending(recogniser)


def test_its_first_steps_are_those_of_the_whole_run(recogniser, recorded, tmp_path):
    """With the learning rates of the whole run; where it ends, it is saved and not evaluated."""
    new = tmp_path / "new"
    out = in_a_process(tmp_path, recogniser, "--steps=12", f"--workdir={new}")
    assert "\nbitwise: " in out and "digests" not in out
    assert logged(new) == [line for line in logged(recogniser) if line["step"] <= 12]
    assert good_steps(new) == [10, 12] and not (new / "results.json").exists()
    told = json.loads((new / "reproduction.json").read_text())
    assert (told["until"], told["verdict"], told["first"]) == (12, "bitwise", None)


@pytest.mark.slow
def test_what_was_ended_early_goes_on_to_the_same_end(recogniser, recorded, tmp_path):
    in_a_process(tmp_path, recorded, "--steps=12", "--workdir=new")
    process = commands.start(tmp_path, "main", "--workdir=new")
    assert process.communicate() and process.returncode == 0
    assert ending(tmp_path / "new") == ending(recogniser)


# What is compared. --------------------------------------------------------------------------------


def test_one_other_loss_is_named(recogniser):
    here = record_lib.read(str(recogniser))
    loss = next(line["loss"] for line in here.metrics if line["step"] == 15)
    record = dataclasses.replace(here, metrics=with_line(here, 15, loss=loss * 1.5))
    found = comparison.compare(record, here, 20, 1e-3)
    assert found.verdict == comparison.DIFFERENT
    assert found.first is not None and found.first == found.beyond == found.largest
    assert (found.first.place, found.first.field, found.first.here) == ("step 15", "loss", loss)
    assert found.first.relative == pytest.approx(1 / 3)
    assert comparison.compare(record, here, 10, 1e-3).verdict == comparison.BITWISE
    assert comparison.compare(record, here, 20, 0.4).verdict == comparison.WITHIN


def test_the_last_bit_counts(recogniser):
    here = record_lib.read(str(recogniser))
    loss = here.metrics[0]["loss"]
    record = dataclasses.replace(here, metrics=with_line(here, 5, loss=math.nextafter(loss, 9)))
    found = comparison.compare(record, here, 20, 1e-3)
    assert found.first is not None
    assert (found.verdict, found.first.field) == (comparison.WITHIN, "loss")
    assert comparison.compare(record, here, 20, 0.0).verdict == comparison.DIFFERENT


def test_a_digest_counts_at_the_end_alone(recogniser):
    here = record_lib.read(str(recogniser))
    digests = here.final["digests"] | {"params": "0" * 64}
    record = dataclasses.replace(here, final=here.final | {"digests": digests})
    found = comparison.compare(record, here, 20, 1e-3)
    assert (found.verdict, found.unequal) == (comparison.WITHIN, ["params"])
    assert comparison.compare(record, here, 15, 1e-3).verdict == comparison.BITWISE


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        ({"loss": "NaN"}, {"loss": "NaN"}, comparison.BITWISE),
        ({"loss": "Infinity"}, {"loss": "Infinity"}, comparison.BITWISE),
        ({"loss": "NaN"}, {"loss": 1.0}, comparison.DIFFERENT),
        ({"loss": 1.0}, {"loss": "NaN"}, comparison.DIFFERENT),
        ({"loss": 1.0}, {}, comparison.DIFFERENT),
        ({}, {"loss": 1.0}, comparison.DIFFERENT),
        ({"loss": 0.0}, {"loss": 1e-9}, comparison.DIFFERENT),
        ({"n": 16}, {"n": 16.0}, comparison.BITWISE),
        ({"images/s": 3.0, "data_wait": 0.1}, {"images/s": 4.0}, comparison.BITWISE),
    ],
)
def test_numbers_that_are_none(recogniser, old, new, verdict):
    record = record_lib.read(str(recogniser))
    a, b = (dataclasses.replace(record, metrics=[{"step": 5} | line]) for line in (old, new))
    assert comparison.compare(a, b, 20, 1e-3).verdict == verdict


def test_an_evaluation_that_a_kill_cut_off_is_no_difference(recogniser):
    here = record_lib.read(str(recogniser))
    cut = [{n: v for n, v in line.items() if "/" not in n} for line in here.metrics[:2]]
    record = dataclasses.replace(here, metrics=cut, results={}, final={})
    assert comparison.compare(record, here, 10, 1e-3).verdict == comparison.BITWISE


def test_what_a_run_was_made_on_is_compared():
    start = {
        "git": {"commit": "a", "dirty": True, "diff": "+1", "untracked": ["x.py"]},
        "packages": {"jax": "0.10.2", "flax": "1"}, "device_kind": "cpu", "devices": 2,
        "environment": {"XLA_FLAGS": "--xla_dump_to=/tmp/x"}, "command": ["a"], "seconds": 3,
    }  # fmt: skip
    there = start | {"environment": {"XLA_FLAGS": "--xla_dump_to=/home/x"}, "seconds": 4}
    assert comparison.differences(start, there) == {}
    other = there | {
        "git": {"commit": "b", "dirty": True, "diff": "+2"}, "devices": 1,
        "packages": {"jax": "0.12"}, "environment": {"GLIBC_TUNABLES": "y"},
    }  # fmt: skip
    found = comparison.differences(start, other)
    assert found["commit"] == ("a", "b") and found["devices"] == ("2", "1")
    assert found["packages.jax"] == ("0.10.2", "0.12")
    assert found["environment.GLIBC_TUNABLES"] == (comparison.MISSING, "y")
    assert set(found) == {
        "commit", "uncommitted changes", "uncommitted files", "devices", "packages.jax",
        "packages.flax", "environment.XLA_FLAGS", "environment.GLIBC_TUNABLES",
    }  # fmt: skip


# The command. -------------------------------------------------------------------------------------


@pytest.fixture
def again(recogniser, monkeypatch):
    """Training that leaves what the tiny run has left; how it was called."""
    calls = []

    def pretend(config, run, command, until):
        calls.append((config, until))
        for name in ("metrics.jsonl", "final.json", "results.json", "provenance.json"):
            shutil.copy(recogniser / name, run.root / name)

    monkeypatch.setattr(loop, "train", pretend)
    return calls


def test_a_changed_record_ends_with_one(recogniser, recorded, command, again):
    record = record_lib.read(str(recorded))
    path = write(record, metrics=with_line(record, 10, loss=3.0))
    outcome = command(reproduce.main, path, "--workdir=new")
    assert outcome.code == 1 and again[0][1] == 20
    assert "\ndifferent: " in outcome.out and "step 10, loss: 3.0 recorded" in outcome.out
    told = json.loads(epath.Path("new/reproduction.json").read_text())
    assert told["beyond"]["place"] == "step 10" and told["beyond"]["recorded"] == 3.0
    assert command(reproduce.main, path, "--rtol=0.9").code == 0
    assert command(reproduce.main, "--steps", 5, path).code == 0
    assert {p.name for p in epath.Path("runs").iterdir()} == {"run-again", "run-again-2"}
    final = record.final | {"digests": record.final["digests"] | {"params": "0"}}
    outcome = command(reproduce.main, write(record, final=final))
    assert outcome.code == 0 and "bitwise" not in outcome.out and "differ  params" in outcome.out


def test_other_data_are_refused(recorded, command, again):
    record = record_lib.read(str(recorded))
    path = write(record, data=record.data | {"fingerprint": "0"})
    sentence = command(reproduce.main, path).sentence
    assert "data.fingerprint: 0 recorded" in sentence and "--allow_other_data" in sentence
    assert not again and not epath.Path("runs").exists()
    outcome = command(reproduce.main, path, "--allow_other_data")
    assert outcome.code == 0 and "data.fingerprint" in outcome.out


def test_several_starts_with_one_config_compare_as_one(recorded, command, again):
    record = record_lib.read(str(recorded))
    (start,) = record.starts
    path = write(record, starts=[start | {"python": "2.7"}, start | {"step": 10}])
    assert "python " not in command(reproduce.main, path).out
    path = write(record, starts=[start | {"config_sha256": "0"}, start | {"step": 10}])
    assert "changed between its starts" in command(reproduce.main, path).out


def test_a_record_that_ends_early_is_made_again_as_far_as_it_tells(recorded, command, again):
    record = record_lib.read(str(recorded))
    path = write(record, metrics=record.metrics[:2], final={}, results={})
    assert command(reproduce.main, path).code == 0 and again[0][1] == 10
    assert "ends at step 10" in command(reproduce.main, path, "--steps=11").sentence


def test_a_config_of_another_version_is_refused(recorded, command):
    config = record_lib.read(str(recorded)).config.to_dict()
    for name in ("label_smoothing", "data"):
        tree = json.loads(recorded.read_text()) | {"config": dict(config)}
        del tree["config"][name]
        epath.Path("b.json").write_text(json.dumps(tree))
        sentence = command(reproduce.main, "b.json").sentence
        assert name in sentence and "the commit that made it is" in sentence
        assert not list(epath.Path(".").glob("runs/*"))


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ((), "Name one run"),
        (("a.json", "a.json"), "Name one run"),
        (("absent",), "does not exist"),
        (("absent.json",), "cannot be read"),
        (("data",), "not a run folder"),
        (("no.json",), "no record of a run"),
        (("a.json", "--steps=21"), "ends at step 20"),
        (("a.json", "--steps=4"), "those of step 5"),
        (("a.json", "--steps=-1"), "steps"),
        (("a.json", "--rtol=nan"), "0 or more"),
        (("a.json", "--workdir=data"), "not an empty folder"),
        (("a.json", "--config.seed=1"), "another experiment"),
        (("a.json", "--config.sed=1"), "--config.sed: the config has no such field"),
        (("a.json", "--config.data.dir=no.json"), "no.json"),
        (("a.json", "--config.init.encoder=absent"), "'absent' does not exist"),
    ],
)
def test_wrong_input_is_one_sentence(recorded, command, monkeypatch, arguments, part):
    epath.Path("no.json").write_text('{"format": "another"}')
    sentence = command(reproduce.main, *arguments).sentence
    assert part in sentence and len(sentence.strip().splitlines()) == 1
    assert not list(epath.Path(".").glob("runs/*"))


def test_a_run_that_is_there_stays(recogniser, recorded, command):
    shutil.copytree(recogniser, "run", ignore=shutil.ignore_patterns("checkpoints"))
    before = sorted(path.name for path in epath.Path("run").iterdir())
    assert "already holds a run" in command(reproduce.main, "a.json", "--workdir=run").sentence
    assert sorted(path.name for path in epath.Path("run").iterdir()) == before
