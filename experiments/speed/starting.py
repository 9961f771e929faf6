"""From the command to the first step, in seconds: a process is started, and its first step over.

Cold: nothing was compiled before; warm: the same command has run. Ours is the command itself on the
default config, whose data were drawn by an earlier call: it trains a tokenizer, makes the state,
reads data, compiles, steps, logs. The peer is a bare script with a U-Net of the default's kind on
random tensors, so it does less; eager, which has nothing to compile, or compiled.

    python -m experiments.speed.starting --compiled       the peer's script
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from absl import app, flags

from experiments.speed.case import OURS, Case, Contest, Options

FLAGS = flags.FLAGS
CONFIG = "configs/diffusion.py"
LIMIT = 1800.0  # seconds
ROOT = Path(__file__).resolve().parents[2]


def _environment(options: Options, cold: bool) -> dict[str, str]:
    """With a folder for what is compiled, emptied where it shall be cold."""
    caches = Path(options.scratch, "caches")
    if cold:
        shutil.rmtree(caches, ignore_errors=True)
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": f"{caches}/jax",
        "TORCHINDUCTOR_CACHE_DIR": f"{caches}/torch",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def _contest(options: Options, command: list[str], began: Path, cold: bool) -> Contest:
    """Times `command` until the file `began` is there and not empty; it is ended then."""

    def unit() -> float:
        shutil.rmtree(began.parent, ignore_errors=True)
        environment, log = _environment(options, cold), Path(options.scratch, "log")
        with log.open("w") as output:
            start = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=output, stderr=output
            )
            while not (began.exists() and began.stat().st_size):
                if process.poll() not in (None, 0) or time.perf_counter() - start > LIMIT:
                    raise RuntimeError(f"no first step: {log.read_text()[-300:]}")
                time.sleep(0.01)
            seconds = time.perf_counter() - start
            process.kill()
            process.wait()
        return seconds

    return Contest(unit)


def _ours(options: Options, cold: bool) -> Contest:
    run, data = Path(options.scratch, "run"), Path(options.scratch, "data")
    config = CONFIG + (":tiny=true" if options.small else "")
    command = [sys.executable, "-m", "vision_lang.main", f"--config={config}"]
    command += [f"--workdir={run}", f"--config.data.dir={data}", "--config.log_every=1"]
    return _contest(options, command, run / "metrics.jsonl", cold)


def _peer(options: Options, cold: bool, compiled: bool) -> Contest:
    began = Path(options.scratch, "peer", "began")
    command = [sys.executable, "-m", "experiments.speed.starting", f"--began={began}"]
    command += [f"--device={options.device}", f"--threads={options.threads}"]
    command.append(f"--compiled={str(compiled).lower()}")
    return _contest(options, command, began, cold)


def main(_: list[str]) -> None:
    """The peer's script: one step, then a file that says so."""
    from experiments.speed import unet

    options = Options(FLAGS.device, FLAGS.threads, "", False)
    size = unet.SMALL._replace(
        side=8, unet=dict(widths=(64,), depth=(1,), heads=(2,), layers=1, groups=8), batch=(32, 32)
    )
    unet._peer(options, FLAGS.compiled, False, size).unit()
    began = Path(FLAGS.began)
    began.parent.mkdir(parents=True, exist_ok=True)
    began.write_text("done")


def _case(what: str, cold: bool) -> Case:
    return Case(
        what,
        {
            OURS: functools.partial(_ours, cold=cold),
            "torch": functools.partial(_peer, cold=cold, compiled=False),
            "torch_compile": functools.partial(_peer, cold=cold, compiled=True),
        },
    )


CASES = {
    "starting_cold": _case("from the command to the first step, nothing compiled before", True),
    "starting_warm": _case("from the command to the first step, compiled before", False),
}

if __name__ == "__main__":
    flags.DEFINE_string("began", None, "A file to write behind the first step.", required=True)
    flags.DEFINE_enum("device", "cpu", ("cpu", "cuda"), "Where it computes.")
    flags.DEFINE_integer("threads", 1, "Of torch.")
    flags.DEFINE_boolean("compiled", False, "torch.compile.")
    app.run(main)
