"""What a contrastive run finds by the captions of a split: its own picture, then the nearest five.

    python -m experiments.retrieved --run=DIR --split=test --count=8 \
        --out=experiments/captioning_emoji/retrieved.png

One row per caption, evenly spaced over the split; every picture of the split is searched. Over a
found picture stands its own first caption.
"""

from __future__ import annotations

import numpy as np
from absl import flags

from vision_lang import flags as commands
from vision_lang.errors import InputError

FLAGS = flags.FLAGS
NEAREST = 5


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_string("split", "test", "Whose captions and pictures.")
    flags.DEFINE_integer("count", 8, "Captions, evenly spaced over the split.", lower_bound=1)
    flags.DEFINE_string("out", "retrieved.png", "The picture to write.")
    commands.run(_run)


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    import jax
    from PIL import Image

    from vision_lang.data import pipeline, sources
    from vision_lang.evaluators import drawing
    from vision_lang.training import setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    config, task = loaded.config, loaded.task
    if config.task != "contrastive":
        raise InputError(f"Run '{FLAGS.run}' is a {config.task} run, not a contrastive one.")
    source = sources.prepare(config.data).open(FLAGS.split)
    captions = [texts[0] for texts in source.captions()]
    chosen = np.linspace(0, len(source) - 1, min(FLAGS.count, len(source))).astype(int)
    words = loaded.tokenizer.encode_batch([captions[i] for i in chosen], config.data.text_length)
    wanted = np.asarray(jax.jit(task.embed_texts)(loaded.variables, *words))
    of_image, vectors, pictures = jax.jit(task.embed_images), [], []
    for batch in pipeline.eval_batches(source, None, data=config.data, batch_size=64):
        vectors.append(of_image(loaded.variables, batch["image"]))
        pictures.append(batch["image"])
    found = np.concatenate(vectors)[: len(source)]
    every = np.concatenate(pictures)[: len(source)]
    nearest = np.argsort(-wanted @ found.T, axis=1)[:, :NEAREST]
    order = np.concatenate([chosen[:, None], nearest], axis=1).ravel()
    titles = [captions[i] for i in order]
    page = drawing.grid(every[order], titles, columns=1 + NEAREST, zoom=3)
    Image.fromarray(page).save(FLAGS.out, optimize=True)
    print(FLAGS.out)


if __name__ == "__main__":
    main()
