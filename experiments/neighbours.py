"""Samples for held-out captions beside the real pictures and their nearest training pictures.

    python -m experiments.neighbours --run=DIR --split=test --count=12 --samples=2 \
        --out=experiments/emoji/neighbours.png

One row per caption: the real picture, the samples, and the training picture nearest to each
sample (mean squared difference of pixels). A sample that equals its neighbour was memorised. Also
prints the mean distance of samples and of real held-out pictures to their nearest neighbours.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from vision_lang import flags as commands

FLAGS = flags.FLAGS


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("split", "test", "Where the captions come from.")
    flags.DEFINE_integer("count", 12, "Captions, evenly spaced over the split.", lower_bound=1)
    flags.DEFINE_integer("samples", 2, "Pictures of each caption.", lower_bound=1)
    flags.DEFINE_float("guidance", -1.0, "Guidance scale; below 0 = the run's config.")
    flags.DEFINE_float("eta", -1.0, "New noise of sampler=ddim; below 0 = the run's config.")
    flags.DEFINE_string("out", "neighbours.png", "The picture to write.")
    commands.run(_run)


def pictures(source, data) -> np.ndarray:
    """All pictures of a split as the run saw them, uint8 [N, R, R, 3]."""
    from vision_lang.data import pipeline

    batches = pipeline.eval_batches(source, None, data=data, batch_size=64)
    found = np.concatenate([batch["image"] for batch in batches])
    return found[: len(source)]


def nearest(images: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index of, and mean squared difference on [0, 1] to, the nearest of `others` for each image.

    Shapes: images [N, R, R, 3], others [M, R, R, 3], both uint8; returns [N] and [N].
    """
    flat = others.reshape(len(others), -1).astype(np.float32) / 255
    rows = images.reshape(len(images), -1).astype(np.float32) / 255
    distances = np.stack([np.square(flat - row).mean(axis=1) for row in rows])
    return distances.argmin(axis=1), distances.min(axis=1)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    import dataclasses

    from PIL import Image

    from vision_lang.data import sources
    from vision_lang.evaluators import drawing
    from vision_lang.tasks.diffusion import Sampling
    from vision_lang.training import parallel, setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    config = loaded.config
    data = sources.prepare(config.data)
    held_out = data.open(FLAGS.split)
    chosen = np.linspace(0, len(held_out) - 1, min(FLAGS.count, len(held_out))).astype(int)
    captions = [held_out[int(i)]["texts"][0] for i in chosen]
    real = pictures(held_out, config.data)
    train = pictures(data.open("train"), config.data)

    given = {"guidance": FLAGS.guidance, "eta": FLAGS.eta}
    given = {name: value for name, value in given.items() if value >= 0}
    sampling = dataclasses.replace(Sampling(**config.sampling), **given)
    titles = [caption for caption in captions for _ in range(FLAGS.samples)]
    tokens, mask = loaded.tokenizer.encode_batch(titles, config.data.text_length)
    draw = drawing.drawer(loaded.task, parallel.make(config.parallel), sampling, 0, 8)
    labels = np.full(len(titles), -1, np.int32)
    number = np.arange(len(titles)) % FLAGS.samples
    drawn = np.concatenate(list(draw(loaded.variables, tokens, mask, labels, number)))
    places, distance = nearest(drawn, train)
    _, distance_of_real = nearest(real[chosen], train)

    columns, names = [], []
    for k, caption in enumerate(captions):
        rows = slice(k * FLAGS.samples, (k + 1) * FLAGS.samples)
        columns += [real[chosen[k]], *drawn[rows], *train[places[rows]]]
        names += [f"real: {caption}", *["sample"] * FLAGS.samples, *["nearest"] * FLAGS.samples]
    page = drawing.grid(np.stack(columns), names, 1 + 2 * FLAGS.samples)
    Image.fromarray(page).save(FLAGS.out, optimize=True)
    print(f"nearest training picture of {len(drawn)} samples: {distance.mean():.4f}")
    print(f"nearest training picture of {len(chosen)} real ones: {distance_of_real.mean():.4f}")
    print(FLAGS.out)


if __name__ == "__main__":
    main()
