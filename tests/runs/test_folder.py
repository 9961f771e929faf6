"""The run folder: made once, found again, and refused with what was found."""

import os
import threading

import numpy as np
import pytest

from vision_lang.errors import InputError
from vision_lang.runs import checkpoint, files, folder


def test_a_new_run_gets_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    roots = {str(folder.create("", "diffusion").root) for _ in range(5)}  # within one second
    assert len(roots) == 5
    assert all(r.startswith("runs/diffusion-") and os.path.isdir(r) for r in roots)


def test_a_named_folder_must_be_free(tmp_path):
    run = folder.create(str(tmp_path / "a" / "b"), "diffusion")
    (run.root / "notes.txt").touch()
    with pytest.raises(InputError, match="not an empty folder"):
        folder.create(str(run.root), "diffusion")
    run.config.write_text("{}")
    with pytest.raises(InputError, match="already holds a run"):
        folder.create(str(run.root), "diffusion")


def test_a_start_that_was_killed_leaves_no_obstacle(tmp_path):
    """Before the config is written there is nothing to resume; the same command begins anew."""
    run = folder.create(str(tmp_path / "run"), "diffusion")
    (run.root / ".config.json.tmp-12").write_text("{")
    assert folder.create(str(tmp_path / "run"), "diffusion") == run
    (run.samples / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match="not an empty folder"):
        folder.create(str(tmp_path / "run"), "diffusion")


def test_training_has_begun_where_it_left_something(tmp_path):
    run = folder.create(str(tmp_path / "run"), "diffusion")
    run.config.write_text("{}")
    run.checkpoints.mkdir()
    run.metrics.touch()
    assert not run.began
    (run.checkpoints / "10").mkdir()
    assert run.began
    (run.checkpoints / "10").rmdir()
    run.metrics.write_text("{}")
    assert run.began


def test_a_folder_that_cannot_be_made_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"Cannot make a run folder at '.*file/x': Not a dir"):
        folder.create(str(tmp_path / "file" / "x"), "diffusion")
    if os.path.isdir("/proc"):
        with pytest.raises(InputError, match="Cannot make a run folder at '/proc/x'"):
            folder.create("/proc/x", "diffusion")
    (tmp_path / "runs").touch()
    with pytest.raises(InputError, match="Cannot make a run folder at 'runs'"):
        folder.create("", "diffusion")


def test_open_says_what_is_wrong(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        folder.open(str(tmp_path / "absent"))
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").touch()
    with pytest.raises(InputError, match=r"not a run folder.*cat\.png"):
        folder.open(str(tmp_path / "photos"))
    run = folder.create(str(tmp_path / "run"), "diffusion")
    run.config.write_text('{"steps": 3}')
    assert folder.open(str(run.root)).read_config().steps == 3
    with pytest.raises(InputError, match="no finished checkpoint.*empty or absent"):
        folder.open(str(run.root), checkpoint=True)
    (run.checkpoints / "20").mkdir(parents=True)
    with pytest.raises(InputError, match="no finished checkpoint.*20: empty"):
        folder.open(str(run.root), checkpoint=True)
    with checkpoint.Checkpoints(run.checkpoints) as checkpoints:
        checkpoints.save(10, {"w": np.ones(3)})
    assert folder.open(str(run.root), checkpoint=True) == run
    with pytest.raises(InputError, match=r"Runs beside it: run\."):
        folder.open(str(tmp_path / "rum"))


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "state.json"
    texts = [f"{digit}" * 300_000 for digit in range(10)]
    files.write_text(path, texts[0])
    seen, done = [], threading.Event()

    def read():
        while not done.is_set():
            seen.append(path.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for text in texts * 3:
        files.write_text(path, text)
    done.set()
    reader.join()
    assert seen and all(text in texts for text in seen)
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot write .*file/inside.json"):
        files.write_json(tmp_path / "file" / "inside.json", {})
