"""Trains a config, or resumes a run.

    python -m vision_lang.main --config=configs/diffusion.py[:key=value,...] [--config.field=value]
    python -m vision_lang.main --workdir=RUN          goes on where RUN stopped
    python -m vision_lang.main --workdir=RUN --fork=NEW --config.field=value

Exit codes: 0 done, 2 wrong input, 130 / 143 stopped by SIGINT / SIGTERM after a save.
"""

from __future__ import annotations

import os
import sys

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from vision_lang import flags as commands
from vision_lang.errors import InputError


def main() -> None:
    """Defines the flags and runs the command."""
    # A stored config serves as well as a config file, so `--workdir=RUN --config.steps=9` works.
    workdir = _given("workdir")
    stored = os.path.join(workdir, "config.json") if workdir and not _given("config") else ""
    config = config_flags.DEFINE_config_file(
        "config",
        stored if stored and os.path.exists(stored) else None,
        "Config file[:argument].",
        lock_config=True,
    )
    flags.DEFINE_string("workdir", "", "Run folder; '' = a new one under runs/.")
    flags.DEFINE_string("fork", "", "Start a new run in this folder from the config of --workdir.")
    commands.run(lambda: _run(config, workdir))


def _given(name: str) -> str:
    """The value of --name on the command line, before the flags are parsed."""
    values = [a.partition("=")[2] for a in sys.argv if a.lstrip("-").startswith(f"{name}=")]
    return values[-1] if values else ""


def _run(flag, workdir: str) -> None:
    from vision_lang.training import devices

    given: ConfigDict | None = flag.value
    if given is None:
        raise InputError(
            "Say what to train, as in --config=configs/diffusion.py, or resume a run with "
            "--workdir=RUN."
        )
    run, config = _open(given, workdir, flags.FLAGS.fork)
    if config.deterministic:
        _set_deterministic()
    devices.set_up()
    from vision_lang.training import loop

    logging.info("Run folder: %s", run.root)
    try:
        results = loop.train(config, run, sys.argv)
    except loop.Stopped as stopped:
        print(f"{stopped}. Go on with: python -m vision_lang.main --workdir={run.root}")
        sys.exit(stopped.exit_code)
    _report(run, config, results)


def _open(given: ConfigDict, workdir: str, fork: str):
    """Returns the run folder and the config to train."""
    from vision_lang.runs import config as config_lib
    from vision_lang.runs import files, folder

    resumed = workdir and os.path.exists(os.path.join(workdir, "config.json"))
    if workdir and not resumed and not _given("config"):
        folder.open(workdir)  # says what is wrong with it
    if resumed and not fork:
        run = folder.open(workdir)
        changed = config_lib.check_resume(run.read_config(), given)
        for name, (old, new) in changed.items():
            logging.info("config.%s: %s -> %s", name, old, new)
        config = given
    else:
        run = folder.create(fork or workdir, given.task)
        config = given
    files.write_text(run.config, config_lib.to_json(config))
    return run, config


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
    print(f"TensorBoard  tensorboard --logdir {run.root.parent}   (or: make tensorboard)")
    if config.task == "diffusion":
        what = '--prompt="a red circle above a blue square"'
        if config.condition == "label":
            what = "--label=0"
        print(f"try next     python -m vision_lang.generate --run={run.root} {what} --out=out.png")


if __name__ == "__main__":
    main()
