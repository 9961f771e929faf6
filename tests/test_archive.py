"""A run as a supplement: what is in it, what is not, and that nothing there is lost for it."""

from __future__ import annotations

import dataclasses
import html
import json
import shutil
import zipfile

import markdown
import numpy as np
import pytest
from etils import epath

from vision_lang import archive
from vision_lang.pretrained import tensors
from vision_lang.runs import card
from vision_lang.runs import record as record_lib
from vision_lang.training import stored

SECRET = "/secret/place"
NAMES = {
    "README.md", "config.json", "data.json", "examples.json", "final.json", "metrics.jsonl",
    "provenance.json", "record.json", "results.json", "tokenizer.json", "uncommitted.patch",
    "weights/raw.safetensors",
}  # fmt: skip


@pytest.fixture
def run(recogniser, tmp_path, monkeypatch):
    """A copy of the tiny run, whose config and starts name places of one machine."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(recogniser, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["data"] |= {"path": f"{SECRET}/pictures.zip", "dir": SECRET}
    (run / "config.json").write_text(json.dumps(config))
    (start,) = json.loads((run / "provenance.json").read_text())["starts"]
    start["command"] = [f"{SECRET}/main.py", f"--config={SECRET}/configs/recognition.py:tiny=true"]
    start["environment"] = {"XLA_FLAGS": f"--xla_dump_to={SECRET}/dump --xla_foo=1"}
    diff = "diff --git a/vision_lang/a.py b/vision_lang/a.py\n+1\n"
    start["git"] = {"commit": "c0ffee", "branch": "main", "dirty": True, "diff": diff}
    (run / "provenance.json").write_text(json.dumps({"starts": [start]}))
    return run


def test_a_zip_holds_the_run_and_no_place_of_the_machine(run, command):
    assert command(archive.main, "--run=run", "--out=new/a.zip").out == "new/a.zip\n"
    with zipfile.ZipFile("new/a.zip") as packed:
        found = {name: packed.read(name) for name in packed.namelist()}
        assert packed.testzip() is None
    pictures = {f"samples/{path.name}" for path in (run / "samples").iterdir()}
    assert set(found) == NAMES | pictures and len(pictures) > 3
    assert [name for name, content in found.items() if SECRET.encode() in content] == []
    for name in ("results.json", "metrics.jsonl", "tokenizer.json", *pictures):
        assert found[name] == (run / name).read_bytes()
    text = found["README.md"].decode()
    for part in (
        "python -m vision_lang.main --config=recognition.py:tiny=true", "git checkout c0ffee",
        "| vision&#95;lang/a.py | changed |", "| test, examples | 48 |", "| jax | ",
        "| optimizer.learning&#95;rate | 0.002 |", "](samples/confusion-test-00000020.png)",
    ):  # fmt: skip
        assert part in text, part
    for name, value in json.loads(found["results.json"]).items():
        assert f"| {name.replace('_', '&#95;')} | {value:.6g} |" in text
    command(archive.main, "--run=run", "--out=b.zip")
    assert epath.Path("b.zip").read_bytes() == epath.Path("new/a.zip").read_bytes()


def test_what_is_read_back_is_the_run(run, command):
    assert command(archive.main, "--run=run", "--out=a.json").code == 0
    assert command(archive.main, "--run=run", "--out=run-archive").code == 0
    wanted = record_lib.portable(record_lib.read("run"))
    assert wanted.config.data.path == "pictures.zip" and len(wanted.metrics) == 4
    for name in ("a.json", "run-archive/record.json"):
        assert record_lib.read(name) == wanted
    folder = record_lib.read("run-archive")
    assert dataclasses.replace(folder, name="run") == wanted


def test_the_weights_are_those_of_the_newest_checkpoint(trained, tmp_path, command):
    out = tmp_path / "a"
    assert command(archive.main, f"--run={trained}", f"--out={out}").code == 0
    assert {path.name for path in (out / "weights").iterdir()} == {
        "ema.safetensors", "raw.safetensors"
    }  # fmt: skip
    for weights in ("ema", "raw"):
        source, wanted = stored.weights_of(f"{trained}:{weights}")
        found = tensors.open(out / "weights" / f"{weights}.safetensors")
        assert set(found) == set(wanted) and "@20" in source
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
            assert found[name].dtype == array.dtype
    count = sum(array.size for name, array in wanted.items() if name.startswith("params/"))
    assert f"{count:,} parameters in all" in (out / "README.md").read_text()


def test_what_others_wrote_shows_as_it_is(run):
    evil = "<script>a</script> | *b* _c_ [d](http://e) ![f](g) `h` ~~i~~ $j$ &lt;\n# k"
    record = record_lib.read("run")
    config = record.config.copy_and_resolve_references().unlock()
    config.optimizer.groups.matrices.pattern = evil
    start = record.starts[0] | {
        "git": {"commit": evil, "branch": evil, "dirty": True, "untracked": [evil]},
        "command": [evil, evil], "environment": {"XLA_FLAGS": evil}, "started": evil,
    }  # fmt: skip
    record = dataclasses.replace(
        record, name=evil, config=config, starts=[start, start], results={evil: 1.0},
        data={"name": evil, "splits": {evil: 3}},
    )  # fmt: skip
    text = card.write(record, {evil: 3}, 20, [f"samples/{evil.replace('/', '')}-00000020.png"])
    page = markdown.markdown(text, extensions=["tables"])
    for mark in ("<script", "<em>", "<a ", "<del>"):
        assert mark not in page
    assert page.count("<img") == page.count("<h1") == 1 and page.count("<h2") == 7
    assert html.unescape(page).count("[d](http://e)") >= 12


def test_nothing_is_replaced_unasked(run, command, monkeypatch):
    for name in ("a.json", "a.zip", "folder"):
        assert command(archive.main, "--run=run", f"--out={name}").code == 0
        assert "--overwrite" in command(archive.main, "--run=run", f"--out={name}").sentence
        assert command(archive.main, "--run=run", f"--out={name}", "--overwrite").code == 0
    before = sorted(path.name for path in run.iterdir())
    epath.Path("mine").mkdir()
    epath.Path("mine.zip").mkdir()
    epath.Path("mine.json").mkdir()
    for name in ("run", ".", "mine", "mine.zip", "mine.json"):
        sentence = command(archive.main, "--run=run", f"--out={name}", "--overwrite").sentence
        assert "there already" in sentence
    assert sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("name", ["a.zip", "a"])
def test_what_fails_half_way_leaves_what_was_there(run, command, monkeypatch, name):
    assert command(archive.main, "--run=run", f"--out={name}").code == 0
    places = sorted(path.name for path in epath.Path(".").iterdir())
    kept = epath.Path("a.zip" if name == "a.zip" else "a/README.md").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(card, "write", full)
    for out in (name, f"new-{name}"):
        sentence = command(archive.main, "--run=run", f"--out={out}", "--overwrite").sentence
        assert f"'{out}' cannot be written: No space left" in sentence
    assert sorted(path.name for path in epath.Path(".").iterdir()) == places
    assert epath.Path("a.zip" if name == "a.zip" else "a/README.md").read_bytes() == kept


def test_an_unfinished_run_has_a_record_alone(run, command):
    shutil.rmtree(run / "checkpoints")
    for name in ("final.json", "results.json"):
        (run / name).unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "lo')  # a kill
    assert "no finished checkpoint" in command(archive.main, "--run=run", "--out=a.zip").sentence
    assert not epath.Path("a.zip").exists()
    assert command(archive.main, "--run=run", "--out=a.json").code == 0
    record = record_lib.read("a.json")
    assert not record.final and record.metrics[-1]["step"] == 20


def test_a_record_that_is_none_is_refused(run):
    record_lib.write(record_lib.read("run"), epath.Path("a.json"))
    good = json.loads(epath.Path("a.json").read_text())
    for changes, part in (
        ({"format": "x"}, "no record"),
        ({"metrics": [{"loss": 1}]}, "damaged: metrics"),
        ({"starts": [3]}, "damaged: starts"),
        ({"data": []}, "damaged: data"),
        ({"more": 1}, "besides, more"),
    ):
        epath.Path("b.json").write_text(json.dumps(good | changes))
        with pytest.raises(record_lib.InputError, match=part):
            record_lib.read("b.json")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--out=a.zip",), "--run=DIR"),
        (("--run=run",), "--out=FILE.json"),
        (("--run=absent", "--out=a.zip"), "does not exist"),
        (("--run=.", "--out=a.json"), "not a run folder"),
        (("--run=run", "--out=gs://bucket/a.zip"), "this machine's disks"),
        (("--run=run", "--out=run/config.json/a.zip"), "cannot be written"),
    ],
)
def test_wrong_input_is_one_sentence(run, command, arguments, part):
    sentence = command(archive.main, *arguments).sentence
    assert part in sentence and len(sentence.strip().splitlines()) == 1
