"""Trains a config, or resumes a run.

    python -m vision_lang.main --config=configs/diffusion.py[:key=value,...] [--config.field=value]
    python -m vision_lang.main --workdir=RUN          goes on where RUN stopped
    python -m vision_lang.main --workdir=RUN --fork=NEW --config.field=value

Exit codes: 0 done, 2 wrong input, 130 / 143 stopped by SIGINT / SIGTERM after a save.
"""

from __future__ import annotations

import itertools
import math
import os
import shlex
import shutil
import sys

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.run(_run, define=_define)


def _define() -> None:
    flags.DEFINE_string("workdir", "", "Run folder; '' = a new one under runs/.")
    flags.DEFINE_string("fork", "", "Start a new run in this folder from the config of --workdir.")
    if _given("workdir") and not _given("config"):
        # The stored config takes the file's place: `--workdir=RUN --config.steps=9` works too.
        config_flags.DEFINE_config_dict("config", _stored(_given("workdir")))
    else:
        config_flags.DEFINE_config_file("config", None, "Config file[:argument].")


def _given(name: str) -> str:
    """The value of --name on the command line, before the flags are parsed; '' = not there."""
    value = ""
    for argument, following in itertools.pairwise([*sys.argv[1:], ""]):
        flag, equals, text = argument.partition("=")
        if flag in (f"-{name}", f"--{name}"):
            value = text if equals else following
    return value


def _stored(workdir: str) -> ConfigDict:
    from vision_lang.runs import folder

    return folder.open(workdir).read_config()


def _run() -> None:
    from vision_lang.runs import config as config_lib
    from vision_lang.training import devices

    config = FLAGS.config
    if config is None:
        raise InputError(
            "Say what to train, as in --config=configs/diffusion.py, or resume a run with "
            "--workdir=RUN."
        )
    file = _given("config").partition(":")[0]
    defaults = config_lib.load(file) if file else _stored(FLAGS.workdir)
    config_lib.check_types(config, defaults)
    run = _open(config)
    if config.deterministic:
        _set_deterministic()
    devices.set_up(_cpu_devices(config))
    from vision_lang.training import loop

    logging.info("Run folder: %s", run.root)
    try:
        results = loop.train(config, run, sys.argv, defaults)
    except loop.Stopped as stopped:
        print(f"{stopped}. Go on with: {_python()} -m vision_lang.main --workdir={_quoted(run)}")
        sys.exit(stopped.exit_code)
    _report(run, config, results)


def _open(config: ConfigDict):
    """Returns the folder of the run to train or to resume, with the config in it."""
    from vision_lang.runs import config as config_lib
    from vision_lang.runs import files, folder

    text = config_lib.to_json(config)
    run = folder.RunFolder(files.absolute(FLAGS.workdir))
    if FLAGS.fork or not FLAGS.workdir or not run.config.exists():
        run = folder.create(FLAGS.fork or FLAGS.workdir, config.task)
    elif run.checkpoints.exists() or (run.metrics.exists() and run.metrics.stat().length):
        run = folder.open(FLAGS.workdir)
        changed = config_lib.check_resume(run.read_config(), config)
        for name, (old, new) in changed.items():
            logging.info("config.%s: %s -> %s", name, old, new)
    else:  # it ended before its first step, for which the config may have been the reason
        for path in (run.data, run.tokenizer):
            path.unlink(missing_ok=True)
    files.write_text(run.config, text)
    return run


def _cpu_devices(config: ConfigDict) -> int:
    """As many as are wanted and can share a batch evenly."""
    return math.gcd(max(1, config.cpu_devices), config.batch_size // max(1, config.accumulate))


def _set_deterministic() -> None:
    """XLA reads its flags when JAX starts, so they must be in the environment before."""
    wanted = "--xla_gpu_deterministic_ops=true"
    if wanted not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {wanted}".strip()


def _report(run, config: ConfigDict, results: dict[str, float]) -> None:
    """The last lines: what came out, where it lies, what to try next."""
    for name, value in sorted(results.items()):
        if "all_right" in name or name.endswith("/loss"):
            print(f"{name:32s} {value:.4g}")
    print(f"samples      {run.samples}")
    print(f"checkpoints  {run.checkpoints}")
    python = _python()
    logdir = shlex.quote(str(run.root.parent))
    print(f"TensorBoard  {python} -m tensorboard.main --logdir={logdir}   (or: make tensorboard)")
    if config.task == "diffusion":
        what = f"--prompt={shlex.quote(_example(config))}"
        if config.condition == "label":
            what = "--label=0"
        command = f"{python} -m vision_lang.generate --run={_quoted(run)}"
        print(f"try next     {command} {what} --out=out.png")


def _example(config: ConfigDict) -> str:
    """A text that the run can draw."""
    if config.data.name.partition("/")[0] == "shapes":
        return "a red circle above a blue square"
    from vision_lang.data import sources

    data = sources.prepare(config.data)
    source = data.open("validation" if "validation" in data.splits else "train")
    return next(iter(source.captions(1)))[0]


def _python() -> str:
    """How the user starts this Python."""
    if shutil.which("python") == sys.executable:
        return "python"
    below = os.path.relpath(sys.executable)
    return shlex.quote(sys.executable if below.startswith("..") else below)


def _quoted(run) -> str:
    return shlex.quote(str(run.root))


if __name__ == "__main__":
    main()
