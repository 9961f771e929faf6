"""Draws images from prompts with a trained run.

    python -m vision_lang.generate --run=DIR --prompt="a red circle above a blue square" --num=4 \
        --steps=30 --guidance=3 --sampler=dpmpp_2m --seed=0 --out=out.png

Image k of a prompt depends on the run, the seed, the prompt and k, not on what else is asked for.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import sys

import numpy as np
from absl import flags, logging
from etils import epath

from vision_lang import flags as commands
from vision_lang.errors import InputError

DEVICE_BATCH = (
    8  # rows per device of the compiled program; fixed, so that pictures do not depend on it
)
MOST_STEPS = 10_000  # ten times as many as any schedule has; more is a slip that takes hours
FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_multi_string("prompt", [], "What to draw; may be given several times.")
    flags.DEFINE_multi_string("label", [], "For runs with condition=label: class numbers or names.")
    flags.DEFINE_integer("num", 4, "Images per prompt.", lower_bound=1)
    flags.DEFINE_integer("seed", 0, "Decides the noise.")
    flags.DEFINE_integer(
        "steps", 0, "Sampling steps; 0 = the run's config.", lower_bound=0, upper_bound=MOST_STEPS
    )
    flags.DEFINE_float("guidance", -1.0, "Guidance scale, 1 = none; below 0 = the run's config.")
    flags.DEFINE_float("eta", -1.0, "New noise of --sampler=ddim; below 0 = the run's config.")
    flags.DEFINE_string("sampler", "", "ddpm, ddim, euler, heun, dpmpp_2m; '' = the run's config.")
    flags.DEFINE_string("out", "out.png", "The labelled grid.")
    flags.DEFINE_string(
        "out_dir", "", "Also write single PNGs, with prompt, seed and run as metadata."
    )
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    from vision_lang.evaluators import drawing
    from vision_lang.tasks import diffusion
    from vision_lang.training import parallel, setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    if loaded.config.task != "diffusion":
        raise InputError(f"Run '{FLAGS.run}' is a {loaded.config.task} run: it draws nothing.")
    changes = {"steps": FLAGS.steps or None, "sampler": FLAGS.sampler or None}
    for name, value in (("guidance", FLAGS.guidance), ("eta", FLAGS.eta)):
        if not math.isfinite(value):
            raise InputError(f"--{name}={value}: a finite number is wanted, such as --{name}=1.")
        changes[name] = value if value >= 0 else None
    sampling = dataclasses.replace(
        diffusion.Sampling(**loaded.config.sampling),
        **{name: value for name, value in changes.items() if value is not None},
    )
    diffusion.check_sampling(loaded.task, sampling)
    titles, tokens, mask, labels = _conditions(loaded)

    logging.info("Drawing with %s, %s", loaded.source, sampling)
    number = np.arange(len(titles)) % FLAGS.num
    draw = drawing.drawer(
        loaded.task, parallel.make(loaded.config.parallel), sampling, FLAGS.seed, DEVICE_BATCH
    )
    pictures = np.concatenate(list(draw(loaded.variables, tokens, mask, labels, number)))
    zoom = max(1, 128 // pictures.shape[1])
    _write_png(FLAGS.out, drawing.grid(pictures, titles, FLAGS.num, zoom), {})
    if FLAGS.out_dir:
        facts = {"run": str(loaded.run.root), "weights": loaded.source, "seed": FLAGS.seed}
        facts |= {"sampling": json.dumps(dataclasses.asdict(sampling))}
        for k, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
            name = f"{k // FLAGS.num:03d}-{number[k]:03d}.png"
            row = facts | {"prompt": title, "number": int(number[k])}
            _write_png(epath.Path(FLAGS.out_dir) / name, picture, row)
    print(FLAGS.out)


def _conditions(loaded) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Titles, tokens, mask and labels of all images: --num of each prompt or label."""
    prompts, labels = list(FLAGS.prompt), list(FLAGS.label)
    if loaded.task.condition == "label":
        if prompts or not labels:
            raise InputError(
                "This run draws from labels: give --label= a number or a name of "
                f"{', '.join(loaded.class_names)}."
            )
        numbers = [_class_of(label, loaded.class_names) for label in labels]
        titles = [loaded.class_names[n] for n in numbers]
        prompts = [""] * len(numbers)
    else:
        if labels or not prompts:
            raise InputError('This run draws from text: give --prompt="...".')
        titles, numbers = prompts, [-1] * len(prompts)
    length = loaded.config.data.text_length
    tokens, mask = loaded.tokenizer.encode_batch(prompts, length, strict=True)
    repeat = lambda x: np.repeat(np.asarray(x), FLAGS.num, axis=0)  # noqa: E731
    every = itertools.chain.from_iterable([t] * FLAGS.num for t in titles)
    return list(every), repeat(tokens), repeat(mask), repeat(np.asarray(numbers, np.int32))


def _class_of(label: str, names: list[str]) -> int:
    if label.isdigit() and int(label) < len(names):
        return int(label)
    if label in names:
        return names.index(label)
    raise InputError(f"Unknown class '{label}'. Classes: {', '.join(names)}.")


def _write_png(path, picture: np.ndarray, facts: dict) -> None:
    """Writes uint8 [H, W, 3] with `facts` as text chunks."""
    import io

    from PIL import Image, PngImagePlugin

    chunks = PngImagePlugin.PngInfo()
    for name, value in facts.items():
        chunks.add_itxt(name, str(value))
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG", pnginfo=chunks)
    path = epath.Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.getvalue())
    except OSError as error:
        raise InputError(f"Cannot write '{path}': {error.strerror or error}.") from error


if __name__ == "__main__":
    main()
    sys.exit(0)
