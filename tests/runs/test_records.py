"""Digests and results: equal where and only where the values are."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vision_lang.runs import folder, provenance, records

ROOT = Path(__file__).resolve().parents[2]


def tree():
    return {"b": jnp.arange(6.0).reshape(2, 3), "a": {"c": jnp.ones(3, jnp.bfloat16)}, "n": 3}


def test_a_digest_is_of_values_not_of_containers():
    digest = records.digest(tree())
    assert digest == records.digest(jax.tree.map(np.asarray, tree()))
    assert digest == records.digest(dict(reversed(tree().items())))
    fortran = {**tree(), "b": np.asfortranarray(tree()["b"])}
    big_endian = {**tree(), "b": np.asarray(tree()["b"]).astype(">f4")}
    assert digest == records.digest(fortran) == records.digest(big_endian)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {**t, "b": t["b"].at[1, 2].add(np.float32(5e-7))},  # the last bit of 5.0
        lambda t: {**t, "b": t["b"].reshape(3, 2)},
        lambda t: {**t, "b": t["b"].astype(jnp.bfloat16)},
        lambda t: {**t, "d": t["b"], "b": None},
        lambda t: {**t, "b": t["b"].at[0, 0].set(-0.0)},
        lambda t: {"x": t},
    ],
)
def test_a_digest_sees_the_least_change(change):
    assert records.digest(change(tree())) != records.digest(tree())


def test_a_digest_names_optimizer_leaves_and_does_not_change_between_processes():
    program = (
        "import numpy as np, optax; from vision_lang.runs import records;"
        "print(records.digest(optax.adam(1e-3).init({'w': np.ones((2, 2), np.float32)})))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    here = records.digest(optax.adam(1e-3).init({"w": np.ones((2, 2), np.float32)}))
    assert done.stdout.strip() == here


def test_final_and_results(tmp_path):
    run = folder.create(str(tmp_path / "run"), "diffusion")
    final = records.write_final(run, 7, {"params": tree(), "ema/default": tree()}, seconds=1.5)
    assert json.loads(run.final.read_text()) == final
    assert final["digests"]["params"] == final["digests"]["ema/default"] == records.digest(tree())

    third = np.float32(1 / 3)
    records.write_results(run, {"test/a": third, "test/n": 256, "test_unseen/a": float("nan")})
    stored = json.loads(run.results.read_text())
    assert stored == {"test/a": float(third), "test/n": 256, "test_unseen/a": "NaN"}
    records.write_results(run, {"test/a": 0.5}, keep_other_splits=True)
    assert json.loads(run.results.read_text()) == {"test/a": 0.5, "test_unseen/a": "NaN"}
    records.write_results(run, {"test/a": 0.5})
    assert json.loads(run.results.read_text()) == {"test/a": 0.5}
    with pytest.raises(ValueError, match="accuracy"):
        records.write_results(run, {"accuracy": 1.0})


def git(directory, *arguments):
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    subprocess.run(["git", *who, *arguments], cwd=directory, check=True, capture_output=True)


def test_provenance_tells_what_is_committed_and_what_is_not(tmp_path):
    assert "not a git checkout" in provenance.git_state(tmp_path)["note"]
    git(tmp_path, "init", "-b", "main")
    assert "not a git checkout" in provenance.git_state(tmp_path)["note"]  # no commit yet
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    clean = provenance.git_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["branch"] == "main" and not clean["dirty"]
    assert "diff" not in clean
    (tmp_path / "code.py").write_text("x = 2\n" * provenance.DIFF_LIMIT)
    (tmp_path / "new.py").touch()
    dirty = provenance.git_state(tmp_path)
    assert dirty["dirty"] and "+x = 2" in dirty["diff"] and dirty["untracked"] == ["new.py"]
    assert len(dirty["diff"]) == provenance.DIFF_LIMIT and "of" in dirty["diff_cut"]
    (tmp_path / "copy").mkdir()  # code unpacked inside somebody's checkout is not that checkout
    assert "not a git checkout" in provenance.git_state(tmp_path / "copy")["note"]


def test_provenance_is_complete_and_holds_no_secret(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    monkeypatch.setenv("XLA_FLAGS", "--xla_x")
    found = provenance.collect(["main", "--config=c.py"], "abc", {"shapes": "def"})
    text = json.dumps(found)
    assert "hunter2" not in text and found["environment"]["XLA_FLAGS"] == "--xla_x"
    assert found["packages"]["jax"] == jax.__version__
    assert found["devices"] == jax.device_count() and found["backend"] == jax.default_backend()
    assert found["command"] == ["main", "--config=c.py"] and found["host_cpus"] >= 1


def test_the_processor_is_named_with_its_widest_vectors(tmp_path):
    file = tmp_path / "cpuinfo"
    one = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: Some CPU\n"
    file.write_text(f"{one}flags\t\t: fpu avx avx2 avx512f\n\n{one}flags\t\t: fpu avx\n\n")
    assert provenance.cpu_kind(file) == "Some CPU, cpu family 25, model 17, avx512f"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd\n\n")
    assert provenance.cpu_kind(file) == f"{platform.machine()}, asimd"
    assert provenance.cpu_kind(tmp_path / "none")


def test_a_run_that_measures_nothing_has_results_all_the_same(tmp_path):
    """They say that it is over."""
    run = folder.create(str(tmp_path / "run"), "diffusion")
    assert records.write_results(run, {}) == json.loads(run.results.read_text()) == {}
    assert not run.examples.exists()


def test_another_evaluation_replaces_a_splits_examples_with_its_results(tmp_path):
    run = folder.create(str(tmp_path / "run"), "diffusion")
    records.write_results(run, {"test/a": 0.5, "validation/a": 1.0}, {"test/a": {0: 0, 1: 1}})
    records.write_results(run, {"test/a": 1.0}, {"test/a": {1: 1.0}}, keep_other_splits=True)
    assert json.loads(run.results.read_text()) == {"test/a": 1.0, "validation/a": 1.0}
    assert json.loads(run.examples.read_text()) == {"test/a": {"1": 1.0}}
    records.write_results(run, {"test/b": 2.0}, keep_other_splits=True)
    assert json.loads(run.results.read_text()) == {"test/b": 2.0, "validation/a": 1.0}
    assert json.loads(run.examples.read_text()) == {}
