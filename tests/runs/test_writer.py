"""What a run logs, read back by TensorBoard's own readers and from metrics.jsonl."""

import html
import json
import re
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard import context, plugin_util
from tensorboard.backend.event_processing import (
    data_provider,
    event_accumulator,
    plugin_event_accumulator,
    plugin_event_multiplexer,
)
from tensorboard.plugins import base_plugin
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.util.tensor_util import make_ndarray

from configs import common
from vision_lang.errors import InputError, printable
from vision_lang.runs import files, folder
from vision_lang.runs.writer import Writer, read_metrics

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path):
    return folder.create(str(tmp_path / "run"), "diffusion")


def tensorboard(run):
    """Returns {tag: [(step, value)]} as TensorBoard's EventAccumulator has them.

    There are two of them, which purge by different rules: that of the Python API, and that of
    the server (which has another still, in Rust, where the platform has it).
    """
    events = event_accumulator.EventAccumulator(str(run.root), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    seen = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
    served = plugin_event_accumulator.EventAccumulator(
        str(run.root), tensor_size_guidance={"scalars": 0}
    )
    served.Reload()
    for tag, pairs in seen.items():
        tensors = [(e.step, make_ndarray(e.tensor_proto).item()) for e in served.Tensors(tag)]
        np.testing.assert_array_equal(tensors, pairs)  # NaN equals NaN
    return seen


def lines(run):
    return [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_numbers_come_back_exactly(run):
    values: dict[str, Any] = {
        "third": 1 / 3, "single": np.float32(0.1), "small": 5e-324, "big": 1.7976931348623157e308,
        "count": 12_345_678_901_234_567, "array": np.asarray(2.5),
    }  # fmt: skip
    with Writer(run) as writer:
        writer.scalars(1, values)
        writer.scalars(2, {"nan": np.nan, "up": np.inf, "down": -np.inf})
    strict = [
        json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
        for line in run.metrics.read_text().splitlines()
    ]
    assert strict[0] == {"step": 1, **{n: float(v) for n, v in values.items()}} | {
        "count": values["count"]
    }
    assert strict[1] == {"step": 2, "nan": "NaN", "up": "Infinity", "down": "-Infinity"}
    back = read_metrics(run.metrics)[1]
    assert np.isnan(back["nan"]) and back["up"] == np.inf and back["down"] == -np.inf
    assert tensorboard(run)["single"] == [(1, np.float32(0.1))]


def test_a_step_has_one_line_whoever_logs(run):
    with Writer(run) as writer:
        for step in (10, 20):
            writer.scalars(step, {"loss": 1.0 * step})
            writer.flush()
            writer.scalars(step, {"val/loss": 2.0})
            writer.scalars(step, {"a name that makes the line longer": 3.0})
            assert lines(run)[-1]["step"] == step  # on the disk at once
    assert [line["step"] for line in lines(run)] == [10, 20]
    assert lines(run)[1] == {
        "step": 20, "loss": 20.0, "val/loss": 2.0, "a name that makes the line longer": 3.0,
    }  # fmt: skip
    assert tensorboard(run)["val/loss"] == [(10, 2.0), (20, 2.0)]


def test_logging_backwards_or_twice_is_an_error(run):
    with Writer(run) as writer:
        writer.scalars(10, {"loss": 1.0})
        with pytest.raises(ValueError, match="loss: logged twice at step 10"):
            writer.scalars(10, {"loss": 2.0})
        with pytest.raises(ValueError, match="Step 9 is logged after step 10"):
            writer.scalars(9, {"loss": 2.0})
    assert lines(run) == [{"step": 10, "loss": 1.0}]


def log(writer, steps, factor=1.0):
    for step in steps:
        writer.scalars(step, {"loss": factor * step})
        if step % 20 == 0:
            writer.scalars(step, {"val/loss": factor * step})
            writer.image(step, "samples", np.full((4, 6, 3), step, np.uint8))


def test_a_resumed_run_reads_as_one_that_never_stopped(tmp_path):
    """Stopped at 57 with a checkpoint at 40, again at 57 with that of 40, then at 77 with 60."""
    whole = folder.create(str(tmp_path / "whole"), "diffusion")
    with Writer(whole) as writer:
        writer.config(common.base())
        log(writer, range(1, 101))
    parts = folder.create(str(tmp_path / "parts"), "diffusion")
    for start, stop in ((0, 58), (40, 58), (40, 78), (60, 101)):
        with Writer(parts, start) as writer:
            writer.config(common.base())
            log(writer, range(start + 1, stop), factor=1.0 if stop > 60 else -1.0)
            if start == 40 and stop == 58:
                log_lines = lines(parts)
                assert log_lines[39] == {"step": 40, "loss": -40.0, "val/loss": -40.0}
    # The last two stretches begin at 41: what came before was logged with the factor -1.
    wanted = [{**line, **{n: -v for n, v in line.items() if n != "step" and line["step"] <= 40}}
              for line in lines(whole)]  # fmt: skip
    assert lines(parts) == wanted
    seen = tensorboard(parts)
    assert seen.keys() == tensorboard(whole).keys()
    for tag, pairs in seen.items():
        assert pairs == [(line["step"], line[tag]) for line in wanted if tag in line]


def test_pictures_and_texts_survive_and_are_not_doubled(run):
    with Writer(run) as writer:
        writer.config(common.base(), common.base())
        log(writer, range(1, 58))
    with Writer(run, 40) as writer:
        writer.config(common.base(), common.base())
        log(writer, range(41, 61))
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(run.root))
    multiplexer.Reload()
    (name,) = multiplexer.Runs()
    assert [e.step for e in multiplexer.Tensors(name, "samples")] == [20, 40, 60]
    assert [e.step for e in multiplexer.Tensors(name, "config")] == [0]
    assert "no difference" in str(multiplexer.Tensors(name, "config/difference")[0])
    names = sorted(p.name for p in run.samples.iterdir())
    assert names == [f"samples-{step:08d}.png" for step in (20, 40, 60)]
    assert (np.asarray(Image.open(run.samples / names[2])) == 60).all()


HOSTILE = [
    "<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "[click](javascript:alert(1))",
    "**bold** _slanted_ `code` ![picture](http://x/y.png)", "a | b", "a\n\n# a heading\n- a list",
    "&lt;b&gt; &#60;b&#62;", r"\<b\> \| \\", "<http://x.y>", "\x1b[31m\ud800", "~~~", "    code",
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE)
def test_a_config_shows_as_the_text_that_it_is(run, text):
    """As TensorBoard makes HTML of it: a table's cells hold no tags, and these characters."""
    defaults = common.base()
    defaults.data.path = ""
    config = defaults.copy_and_resolve_references()
    config.data.path = text
    with Writer(run) as writer:
        writer.config(config, defaults)
    served = plugin_event_accumulator.EventAccumulator(str(run.root)).Reload()
    (event,) = served.Tensors("config/difference")
    page = plugin_util.markdown_to_safe_html(event.tensor_proto.string_val[0])
    tags = set(re.findall(r"</?(\w+)", page))
    assert tags <= {"table", "thead", "tbody", "tr", "th", "td"}
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]
    assert cells == ["data.path", "", printable(text).strip()]


def test_what_was_logged_at_the_restored_step_is_not_logged_again(run):
    with Writer(run) as writer:
        writer.scalars(40, {"loss": 1.0})
    with Writer(run, 40) as writer:
        writer.scalars(40, {"loss": 9.0, "val/loss": 2.0})  # an evaluation that a kill cut off
    assert lines(run) == [{"step": 40, "loss": 1.0, "val/loss": 2.0}]
    assert tensorboard(run) == {"loss": [(40, 1.0)], "val/loss": [(40, 2.0)]}


def test_a_run_that_starts_again_from_nothing_has_one_of_each(run):
    for _ in range(2):  # stopped before its first checkpoint
        with Writer(run) as writer:
            writer.config(common.base())
            log(writer, range(50))
    assert [line["step"] for line in lines(run)] == list(range(50))
    assert [step for step, _ in tensorboard(run)["loss"]] == list(range(50))
    served = plugin_event_accumulator.EventAccumulator(str(run.root)).Reload()
    assert [e.step for e in served.Tensors("config")] == [0]


@pytest.mark.parametrize("torn", ['{"step": 30, "lo', "\n", '{"step": 30, "loss": 3}', "\0\0\0"])
def test_a_line_torn_by_a_kill_is_dropped(run, torn):
    with Writer(run) as writer:
        log(writer, (10, 20))
    with run.metrics.open("a") as f:
        f.write(torn)
    with Writer(run, 20) as writer:
        log(writer, (30,))
    assert [line["step"] for line in lines(run)] == [10, 20, 30]


def test_a_killed_writer_leaves_all_that_it_logged(run):
    program = """
        import os, signal, sys
        from etils import epath
        from vision_lang.runs import files, folder
        from vision_lang.runs.writer import Writer
        writer = Writer(folder.RunFolder(epath.Path(sys.argv[1])))
        for step in range(1, 50):
            writer.scalars(step, {"loss": float(step)})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(run.root)]
    assert subprocess.run(command, cwd=ROOT).returncode == -9
    assert [line["step"] for line in lines(run)] == list(range(1, 50))
    assert [step for step, _ in tensorboard(run)["loss"]] == list(range(1, 50))


@pytest.mark.parametrize("cut", [slice(0), slice(60), slice(-5)])
def test_a_start_that_was_killed_before_its_config_was_written(run, cut):
    """With nothing of it on the disk, with no whole record of it, with all but the last."""
    with Writer(run) as writer:
        writer.config(common.base(), common.base())
    (file,) = run.root.glob("events.*")
    file.write_bytes(file.read_bytes()[cut])
    for start in (0, 10, 20):
        with Writer(run, start) as writer:
            writer.config(common.base(), common.base())
            log(writer, range(start + 1, start + 11))
    ((name, (hparams, _, _)),) = session_groups(run.root.parent).items()
    assert name == "run" and hparams["batch_size"] == common.base().batch_size
    have = [b"session_start" in f.read_bytes() for f in sorted(run.root.glob("events.*"))]
    assert have[1:] == [True, False, False]
    assert [step for step, _ in tensorboard(run)["loss"]] == list(range(1, 31))


def test_a_store_that_cannot_append_gets_the_same_files(run, monkeypatch):
    """A bucket, as far as its rules go: whole files only, sent at a flush and now and then."""
    monkeypatch.setattr(files, "is_local", lambda path: False)
    for start, stop in ((0, 58), (40, 101)):
        with Writer(run, start) as writer:
            log(writer, range(start + 1, stop))
            writer.flush()
            assert lines(run)[-1]["step"] == stop - 1
    assert [line["step"] for line in lines(run)] == list(range(1, 101))
    assert lines(run)[-1] == {"step": 100, "loss": 100.0, "val/loss": 100.0}


def test_a_full_disk_is_a_sentence(run, file_limit):
    with file_limit(10_000), pytest.raises(InputError) as caught:
        writer = Writer(run)
        for step in range(1_000):
            writer.scalars(step, {"loss": float(step)})
    assert f"Cannot log in '{run.root}': File too large." in str(caught.value)
    assert f"--workdir={run.root}" in str(caught.value)
    last = int(read_metrics(run.metrics)[-1]["step"])
    with Writer(run, last - 5) as writer:  # goes on once there is room
        log(writer, range(last - 4, last + 10))
    assert [line["step"] for line in lines(run)] == list(range(last + 10))
    assert [step for step, _ in tensorboard(run)["loss"]] == list(range(last + 10))


def test_pictures_of_another_kind_are_refused(run):
    with Writer(run) as writer:
        for wrong in (
            np.zeros((4, 4, 3)),
            np.zeros((4, 4), np.uint8),
            np.zeros((4, 4, 4), np.uint8),
        ):
            with pytest.raises(ValueError, match="uint8"):
                writer.image(1, "x", wrong)


def session_groups(logdir):
    """Returns {run name: (hparams, metrics, status)} as the hparams plugin's backend tells."""
    multiplexer = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(logdir))
    multiplexer.Reload()
    provider = data_provider.MultiplexerDataProvider(multiplexer, str(logdir))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(
        start_index=0, slice_size=100,
        allowed_statuses=[api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_SUCCESS, api_pb2.STATUS_FAILURE],
    )  # fmt: skip
    found = list_session_groups.Handler(context.RequestContext(), backend, "", request).run()
    groups = {}
    for group in found.session_groups:
        (session,) = group.sessions
        hparams = {n: getattr(v, v.WhichOneof("kind")) for n, v in group.hparams.items()}
        metrics = {v.name.tag: v.value for v in session.metric_values}
        groups[session.name] = (hparams, metrics, session.status)
    return groups


def test_the_hparams_plugin_shows_each_run_once_with_its_config_and_metrics(tmp_path):
    for name, rate in (("a", 0.5), ("b", 0.25)):
        run = folder.create(str(tmp_path / name), "diffusion")
        config = common.base()
        config.rate = rate
        config[f"only_{name}"] = (1, 2)
        with Writer(run) as writer:
            writer.config(config, common.base())
            writer.scalars(1, {"test/all_right": 0.0})
        with Writer(run, 1) as writer:  # resumed, then finished
            writer.config(config, common.base())
            writer.scalars(2, {"test/all_right": rate, f"test/{name}": 1.0})
            if name == "a":
                writer.finished()
    groups = session_groups(tmp_path)
    assert set(groups) == {"a", "b"}
    for name, rate in (("a", 0.5), ("b", 0.25)):
        hparams, metrics, status = groups[name]
        assert hparams["rate"] == rate and hparams[f"only_{name}"] == "(1, 2)"
        assert hparams["data.name"] == "shapes" and hparams["deterministic"] is False
        assert metrics["test/all_right"] == rate and metrics[f"test/{name}"] == 1.0
        assert status == (api_pb2.STATUS_SUCCESS if name == "a" else api_pb2.STATUS_UNKNOWN)


def test_event_files_are_read_in_the_order_of_the_sessions(run, monkeypatch):
    """Also where two start within a second, or the clock of the second machine is behind."""
    for start, now in ((0, 2_000_000_000.0), (10, 2_000_000_000.0), (20, 1_000_000_000.0)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with Writer(run, start) as writer:
            for step in range(start + 1, start + 16):
                writer.scalars(step, {"loss": float(start)})
    assert tensorboard(run)["loss"] == [(s, float((s - 1) // 10 * 10)) for s in range(1, 31)] + [
        (s, 20.0) for s in range(31, 36)
    ]
