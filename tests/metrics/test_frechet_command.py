"""The command: one JSON object from two files of features, its names, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from vision_lang.metrics import frechet, kernel, neighbours
from vision_lang.metrics.frechet import __main__ as frechet_command


@pytest.fixture
def run(command, tmp_path, monkeypatch):
    """Runs the command in a folder of feature files; returns its outcome."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: command(frechet_command.main, *arguments)


def save(name, features, network="vgg16", **more):
    if network:
        more["network"] = network
    np.savez(name, features=features, **more)
    return features


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_record_holds_what_the_functions_say(run):
    a, b = save("a.npz", normal(60, 4) + 1), save("b.npz", normal(50, 4, seed=1))
    outcome = run("--a=a.npz", "--b=b.npz", "--subset_size=20", "--subsets=7", "--seed=3",
                  "--out=new/record.json")  # fmt: skip
    assert outcome.code == 0, outcome
    record = json.loads(outcome.out)
    with open("new/record.json") as file:
        assert json.load(file) == record
    kd = kernel.kernel_distance(a, b, subsets=7, subset_size=20, seed=3)
    assert record == {
        "fd_vgg16": frechet.frechet_distance(a, b), "allow_few": False,
        "kd_vgg16_mean": kd.mean, "kd_vgg16_std": kd.std,
        "subsets": 7, "subset_size": 20, "seed": 3,
        **neighbours.support(b, a)._asdict(), "k_precision_recall": 3, "k_density_coverage": 5,
        "a": "a.npz", "count_a": 60, "b": "b.npz", "count_b": 50, "dimension": 4,
        "network": "vgg16", "network_hash": "unknown", "resize": "unknown",
    }  # fmt: skip
    assert run("--a=a.npz", "--b=b.npz", "--k=4", "--metrics=support").code == 0


def test_only_one_network_gives_what_is_called_fid(run):
    for network, name in (("inception_fid", "fid"), ("vgg16", "fd_vgg16"), ("", "fd_unknown")):
        save("a.npz", normal(9, 2), network)
        record = json.loads(run("--a=a.npz", "--b=a.npz", "--metrics=fd").out)
        assert 0.0 <= record[name] < 1e-6
        assert [key for key in record if "fid" in key.lower()] == (["fid"] if name == "fid" else [])


def test_small_sets_have_no_kernel_distance_unless_its_size_is_set(run):
    save("a.npz", normal(30, 2))
    outcome = run("--a=a.npz", "--b=a.npz")
    record = json.loads(outcome.out)
    assert "30 examples are fewer than 1000" in record["left_out"]
    assert record["left_out"] in outcome.err
    assert not any("kd" in key for key in record)
    assert "set the subset size" in run("--a=a.npz", "--b=a.npz", "--metrics=kd,fd").sentence
    assert "set the subset size" in run("--a=a.npz", "--b=a.npz", "--subset_size=31").sentence


def test_shards_are_one_set_in_the_order_of_their_names(run):
    x = save("whole.npz", normal(70, 3))
    for i in (2, 0, 1):
        names = np.array([f"{i}.png"])
        save(f"features-{i:05d}.npz", np.split(x, [10, 40])[i], names=names)
    flags = ["--b=whole.npz", "--subset_size=30", "--subsets=3"]
    whole = json.loads(run("--a=whole.npz", *flags).out)
    sharded = json.loads(run("--a=features-*.npz", *flags).out)
    assert sharded["count_a"] == 70
    assert sharded.pop("fd_vgg16") < 1e-6 and whole.pop("fd_vgg16") < 1e-6
    assert sharded | {"a": "whole.npz"} == whole  # the kernel distance sees the order


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        ([], "Flag --a must have a value"),
        (["--a=a.npz"], "Flag --b must have a value"),
        (["--a=none.npz", "--b=a.npz"], "no file 'none.npz'"),
        (["--a=none-*.npz", "--b=a.npz"], "no file 'none-*.npz'"),
        (["--a=a.npz", "--b=wide.npz"], "'a.npz' has 4 dimensions, 'wide.npz' 5"),
        (["--a=a.npz", "--b=other.npz"], "their network is 'vgg16' and 'vgg19'"),
        (["--a=a.npz", "--b=unnamed.npz"], "their network is 'vgg16' and 'unknown'"),
        (["--a=a.npz", "--b=resized.npz"], "their resize is 'unknown' and 'bicubic'"),
        (["--a=*e[dr].npz", "--b=a.npz"], "of 'other.npz' and 'resized.npz' cannot"),
        (["--a=few.npz", "--b=a.npz"], "4 examples are too few"),
        (["--a=a.npz", "--b=nan.npz"], "'nan.npz' hold NaN or infinity"),
        (["--a=a.npz", "--b=spatial.npz"], "pool spatial features"),
        (["--a=a.npz", "--b=empty.npz"], "has no array 'features', only: x"),
        (["--a=a.npz", "--b=text.npz"], "'text.npz' is no .npz archive"),
        (["--a=a.npz", "--b=array.npz"], "'array.npz' is no .npz archive"),
        (["--a=a.npz", "--b=cut.npz"], "'cut.npz' is no .npz archive"),
        (["--a=a.npz", "--b=objects.npz"], "'objects.npz' is no .npz archive"),
        (["--a=a.npz", "--b=a.npz", "--metrics=fid"], "some of fd, kd, support"),
        (["--a=a.npz", "--b=a.npz", "--subsets=0"], "subsets"),
        (["--a=a.npz", "--b=a.npz", "--seeds=0"], "seeds"),
        (["--a=a.npz", "--b=a.npz", "--k=99"], "no k-th neighbours"),
        (["--a=a.npz", "--b=a.npz", "--out=a.npz/x.json"], "cannot be written"),
        (["a.npz"], "Unknown argument 'a.npz'"),
    ],
)
def test_wrong_input_is_one_sentence(run, arguments, sentence):
    a = save("a.npz", normal(20, 4))
    save("wide.npz", normal(20, 5))
    save("other.npz", a, "vgg19")
    save("unnamed.npz", a, "")
    save("resized.npz", a, resize="bicubic")
    save("few.npz", a[:4])
    save("nan.npz", np.where(a == a.max(), np.nan, a))
    save("spatial.npz", a.reshape(20, 2, 2))
    np.savez("empty.npz", x=a)
    save("objects.npz", np.array([["a", None]], dtype=object))
    with open("text.npz", "w") as file:
        file.write("features")
    with open("array.npz", "wb") as file:
        np.save(file, a)
    with open("a.npz", "rb") as whole, open("cut.npz", "wb") as file:
        file.write(whole.read()[:200])
    outcome = run(*arguments)
    assert outcome.out == ""
    assert sentence in outcome.sentence
    if "seeds" not in sentence:
        assert outcome.sentence.count("\n") == 1


def test_few_are_accepted_on_request_and_the_record_says_so(run):
    save("a.npz", normal(4, 8))
    record = json.loads(run("--a=a.npz", "--b=a.npz", "--metrics=fd", "--allow_few").out)
    assert record["allow_few"] is True and 0.0 <= record["fd_vgg16"] < 1e-6
