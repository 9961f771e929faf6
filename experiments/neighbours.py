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


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    import dataclasses

    from PIL import Image

    from vision_lang.data import pipeline, sources
    from vision_lang.evaluators import drawing, memorised
    from vision_lang.tasks.diffusion import Sampling
    from vision_lang.training import parallel, setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    config = loaded.config
    data = sources.prepare(config.data)
    held_out = data.open(FLAGS.split)
    chosen = np.linspace(0, len(held_out) - 1, min(FLAGS.count, len(held_out))).astype(int)
    held_out, train = held_out.only(chosen), data.open("train")
    captions = [texts[0] for texts in held_out.captions()]
    (batch,) = pipeline.eval_batches(held_out, None, data=config.data, batch_size=len(chosen))
    real = batch["image"]

    given = {"guidance": FLAGS.guidance, "eta": FLAGS.eta}
    given = {name: value for name, value in given.items() if value >= 0}
    sampling = dataclasses.replace(Sampling(**config.sampling), **given)
    titles = [caption for caption in captions for _ in range(FLAGS.samples)]
    tokens, mask = loaded.tokenizer.encode_batch(titles, config.data.text_length)
    draw = drawing.drawer(loaded.task, parallel.make(config.parallel), sampling, 0, 8)
    labels = np.full(len(titles), -1, np.int32)
    number = np.arange(len(titles)) % FLAGS.samples
    drawn = np.concatenate(list(draw(loaded.variables, tokens, mask, labels, number)))
    batches = lambda: pipeline.eval_batches(train, None, data=config.data, batch_size=256)  # noqa: E731
    near = memorised.nearest(drawn, batches())
    near_real = memorised.nearest(real, batches())

    rows = (len(captions), FLAGS.samples, *real.shape[1:])
    page = memorised.page(captions, real, drawn.reshape(rows), near.pictures.reshape(rows))
    Image.fromarray(page).save(FLAGS.out, optimize=True)
    print(f"nearest training picture of {len(drawn)} samples: {near.distance.mean():.4f}")
    print(f"nearest training picture of {len(real)} real ones: {near_real.distance.mean():.4f}")
    print(FLAGS.out)


if __name__ == "__main__":
    main()
