"""Trains a config, or resumes a run.

    python -m vision_lang.main --config=configs/diffusion.py[:key=value,...] [--config.field=value]
    python -m vision_lang.main --workdir=RUN          goes on where RUN stopped
    python -m vision_lang.main --config=RUN/config.json --config.seed=1    a new run like RUN
    python -m vision_lang.main --workdir=RUN --fork=NEW --config.field=value

Several processes train one run together where each is started with --workdir=RUN and with
--coordinator=HOST:PORT --num_processes=N --process_id=0, 1, ..., or with --coordinator=auto on a
cluster that JAX knows.

Exit codes: 0 done, 2 wrong input, 130 / 143 stopped by SIGINT / SIGTERM: in training after a save
(of several processes always 143); where nothing is left to save, or at a second signal, at once.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import secrets
import shlex
import shutil
import sys

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS
# Of the results, at the end of a run.
SHOWN = (
    "loss", "top1", "accuracy", "scene_right", "bleu4", "cider", "t2i_recall1", "i2t_recall1",
    "recognised", "map", "micro_f1", "linear", "knn", "psnr", "latent_std",
)  # fmt: skip
# What to try next.
USE = {
    "recognition": "recognize --run={} IMAGE",
    "captioning": "describe --run={} IMAGE",
    "contrastive": "extract --run={} --images=IMAGE",
    "clip": "extract --run={} --images=IMAGE",
}
EXAMPLES = 256  # texts that are tried as an example


def main() -> None:
    """Defines the flags and runs the command."""
    commands.run(_run, define=_define)


def _define() -> None:
    flags.DEFINE_string("workdir", "", "Run folder; '' = a new one under runs/.")
    flags.DEFINE_string("fork", "", "Start a new run in this folder from the config of --workdir.")
    commands.define_processes()
    file, workdir = _given("config"), _given("workdir")
    if workdir and not file:
        # The stored config takes the file's place: `--workdir=RUN --config.steps=9` works too.
        config_flags.DEFINE_config_dict("config", _stored(workdir))
    else:
        config_flags.DEFINE_config_file(
            "config", None, "Config file[:argument], or the config.json of a run."
        )
        FLAGS["config"].parser = _ConfigParser()


class _ConfigParser(flags.ArgumentParser):
    """Reads what --config names; ml_collections' own knows Python files alone."""

    def parse(self, argument: str) -> ConfigDict:
        from vision_lang.runs import config as config_lib

        return config_lib.load(argument)

    def flag_type(self) -> str:
        return "config object"


def _given(name: str) -> str:
    """The value of --name on the command line, before the flags are parsed; '' = not there.

    Raises:
      InputError: it is there with two values.
    """
    values = []
    for argument, following in itertools.pairwise([*sys.argv[1:], ""]):
        flag, equals, text = argument.partition("=")
        if flag in (f"-{name}", f"--{name}"):
            values.append(text if equals else following)
    if len(set(values)) > 1:
        raise InputError(f"--{name} is given twice, as {' and as '.join(values)}; give one.")
    return values[0] if values else ""


def _stored(workdir: str) -> ConfigDict:
    from vision_lang.runs import folder

    return folder.open(workdir).read_config()


def _run() -> None:
    from vision_lang.runs import config as config_lib

    config = FLAGS.config
    if config is None:
        raise InputError(
            "Say what to train, as in --config=configs/diffusion.py, or resume a run with "
            "--workdir=RUN."
        )
    file = _given("config").partition(":")[0]
    if "optimizer" not in config:  # vision_lang.convert made it
        raise InputError(
            f"'{file or FLAGS.workdir}' is of a published network alone, which is not trained as "
            "it stands; other runs may begin with it, by --config.init.NAME=RUN."
        )
    defaults = config_lib.load(file) if file else _stored(FLAGS.workdir)
    config_lib.check_types(config, defaults)
    config_lib.check_ranges(config)
    from vision_lang.training import devices

    devices.set_up(_cpu_devices(config), config.deterministic)
    with commands.together(), contextlib.ExitStack() as held:
        run, is_new = _open_together(config, held)
        try:
            _train(config, defaults, run)
        except InputError:
            if is_new and not run.began:
                logging.info("No step of it is kept: the new folder %s is removed again.", run.root)
                run.root.rmtree()
            raise


def _train(config: ConfigDict, defaults: ConfigDict, run) -> None:
    from vision_lang import processes
    from vision_lang.training import loop
    from vision_lang.training.signals import Stopped

    logging.info("Run folder: %s", run.root)
    python = _python()
    try:
        results = loop.train(config, run, sys.argv, defaults)
    except Stopped as stopped:
        if processes.first():
            print(f"{stopped}. Go on with: {python} -m vision_lang.main --workdir={_quoted(run)}")
        sys.exit(stopped.exit_code)
    if processes.first():
        _report(run, config, results)


def _open_together(config: ConfigDict, held: contextlib.ExitStack):
    """What `_open` returns; of several processes the first opens the folder.

    Raises:
      InputError: another process does not see the folder, or has another config.
    """
    from vision_lang import processes
    from vision_lang.runs import config as config_lib
    from vision_lang.runs import files, folder

    if not processes.several():
        return _open(config, held)
    if not FLAGS.workdir:
        raise InputError("Several processes need --workdir=RUN, a folder that all of them see.")
    run, is_new = folder.RunFolder(files.absolute(FLAGS.fork or FLAGS.workdir)), False
    number = processes.agreed(secrets.randbelow(2**31))
    if processes.first():
        run, is_new = _open(config, held)
        run.mark.write_text(str(number))
    processes.wait("folder made")
    if not run.mark.exists() or run.mark.read_text() != str(number):
        raise InputError(
            f"'{run.root}' is not the folder that process 0 sees: name one on a disk, or in a "
            "bucket, that all processes share."
        )
    if run.config.read_text() != config_lib.to_json(config):
        raise InputError("This process has another config than process 0: start all with the same.")
    processes.wait("folder seen")
    if processes.first():
        run.mark.unlink()
    return run, is_new


def _open(config: ConfigDict, held: contextlib.ExitStack):
    """Returns the folder of the run to train or to resume, with the config in it, and whether it
    was made here; as long as `held` is open, no other process trains it."""
    from vision_lang.runs import config as config_lib
    from vision_lang.runs import files, folder

    text = config_lib.to_json(config)
    run = folder.RunFolder(files.absolute(FLAGS.workdir))
    is_new, resumes = False, FLAGS.workdir and not FLAGS.fork and run.config.exists()
    if not resumes:
        wanted = FLAGS.fork or FLAGS.workdir
        is_new = not wanted or not files.absolute(wanted).exists()
        run = folder.create(wanted, config.task)
    held.enter_context(folder.held(run))
    if resumes and run.began:
        changed = config_lib.check_resume(run.read_config(), config)
        for name, (old, new) in changed.items():
            logging.info("config.%s: %s -> %s", name, old, new)
    elif resumes:  # it ended before its first step, for which the config may have been the reason
        for path in (run.data, run.tokenizer):
            path.unlink(missing_ok=True)
    files.write_text(run.config, text)
    return run, is_new


def _cpu_devices(config: ConfigDict) -> int:
    """As many as are wanted and can share this process's part of a batch evenly."""
    rows = config.batch_size // config.accumulate // (FLAGS.num_processes or 1)
    return math.gcd(config.cpu_devices, rows)


def _report(run, config: ConfigDict, results: dict[str, float]) -> None:
    """The last lines: what came out, where it lies, what to try next."""
    for name, value in sorted(results.items()):
        if name.partition("/")[2] in SHOWN or "all_right" in name:
            print(f"{name:32s} {value:.4g}")
    print(f"samples      {run.samples}")
    print(f"checkpoints  {run.checkpoints}")
    python = _python()
    logdir = shlex.quote(str(run.root.parent))
    print(f"TensorBoard  {python} -m tensorboard.main --logdir={logdir}   (or: make tensorboard)")
    if config.task == "diffusion":
        what = "--label=0"
        if config.condition == "text":
            what = f"--prompt={shlex.quote(_example(config, run))}"
        command = f"{python} -m vision_lang.generate --run={_quoted(run)}"
        print(f"try next     {command} {what} --out=out.png")
    elif config.task == "autoencoder":
        print(f"try next     {python} -m vision_lang.main {_on_latents(config, run, results)}")
    else:
        print(f"try next     {python} -m vision_lang.{USE[config.task].format(_quoted(run))}")


def _on_latents(config: ConfigDict, run, results: dict[str, float]) -> str:
    """The flags that train a diffusion model of an autoencoder's latents on the same data."""
    import dataclasses

    from vision_lang.data import augment, presets
    from vision_lang.models.autoencoder import AUTOENCODERS

    sizes = dict(config.model.autoencoder)
    known = {name: dataclasses.asdict(spec) for name, spec in AUTOENCODERS.items()}
    size = next((name for name, spec in known.items() if spec == sizes), "small")
    other = {name: value for name, value in sizes.items() if value != known[size][name]}
    fields: dict[str, object] = {f"model.autoencoder.{name}": x for name, x in other.items()}
    fields |= {"data.path": config.data.path} if config.data.path else {}
    scaling = 1 / results.get("train/latent_std", 1.0)  # of the evaluator `reconstruction`
    fields["model.autoencoder.scaling"] = f"{scaling:.4g}"
    fields["init.autoencoder"] = run.root
    if not augment.CROPS[config.data.crop].random:  # each epoch has the same pictures
        fields["data.cache_latents"] = "true"
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    data = "" if presets.is_shapes(config.data.name) else f",data={config.data.name}"
    return shlex.join([f"--config=configs/diffusion.py:autoencoder={size}{data}", *flags])


def _example(config: ConfigDict, run) -> str:
    """A text that the run can draw: the first of some that fits its text length, or a part of one.

    `generate` refuses what is longer.
    """
    from vision_lang.data import presets, sources, tokenizer

    words, length = tokenizer.load(run.tokenizer), config.data.text_length
    fits = lambda text: not words.count_truncated([text], length)  # noqa: E731
    texts = ["a red circle above a blue square"]
    if not presets.is_shapes(config.data.name):
        data = sources.prepare(config.data)
        source = data.open("validation" if "validation" in data.splits else "train")
        texts = [text for several in source.captions(EXAMPLES) for text in several]
    for text in texts:
        if fits(text):
            return text
    text = words.decode(words.encode(texts[0], length)[0])
    while not fits(text):  # text that is encoded anew may have more tokens than it came from
        text = text[:-1]
    return text


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
