"""How well an autoencoder gives back whole splits, and how large its latents are.

Numbers per split, the means over its pictures: `psnr` (dB), `mae` (the mean absolute error of a
pixel's channel, in levels of 255), `n`. Of the latents of some training pictures: `latent_mean` and
`latent_std`, over all of them, as they are drawn: a diffusion model of these latents wants
scaling = 1 / latent_std (Rombach et al. 2022, section D.1), and may want shift = latent_mean. A
picture shows some beside what comes back.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from vision_lang.evaluators import drawing
from vision_lang.evaluators.context import Context, Evaluator, Result, Weights
from vision_lang.tasks.autoencoder import psnr


def make(config: ConfigDict, context: Context) -> Evaluator:
    """config: splits, final_splits (at the end), count (training pictures whose latents are
    measured; 0 = all), batch_size (rows per device), shown (pictures in the picture)."""
    task, parallel, data = context.task, context.parallel, context.config.data
    wanted = {True: context.present(config.final_splits), False: context.present(config.splits)}

    def compare(variables, images):
        """[b, H, W, 3] -> what comes back, and its errors [b]."""
        back = task.reconstruct(variables, images)
        error = back.astype(jnp.float32) - images.astype(jnp.float32)
        squared = (error**2).mean((1, 2, 3))
        return {"back": back, "psnr": psnr(squared, 255.0), "mae": jnp.abs(error).mean((1, 2, 3))}

    def moments(variables, images):
        """[b, H, W, 3] -> the means of each picture's latents and of their squares, [b]."""
        found = task.encode(variables, images)
        squares = found["mean"] ** 2 + jnp.exp(found["logvar"])
        return {"mean": found["mean"].mean((1, 2, 3)), "square": squares.mean((1, 2, 3))}

    forward = {rows: parallel.forward(rows) for rows in (compare, moments)}

    def each(rows, variables, source):
        """What `rows` makes of the pictures that can be read, batch by batch, with their places."""
        for own, known in context.batches(source, config.batch_size):
            found = forward[rows](variables, parallel.place(own["image"]))
            kept = known["weight"] > 0
            yield {name: x[kept] for name, x in (found | {"index": known["index"]}).items()}

    def evaluate(weights: Weights, final: bool) -> Result:
        variables = context.best(weights)
        numbers: dict[str, float] = {}
        pictures = {}
        for split in wanted[final]:
            source = context.data.open(split)
            back: list[np.ndarray] = []
            errors: dict[str, list[np.ndarray]] = {"psnr": [], "mae": [], "index": []}
            for found in each(compare, variables, source):
                for name, values in errors.items():
                    values.append(found[name])
                back += list(found["back"][: config.shown - len(back)])
            of_all = {name: np.concatenate(values) for name, values in errors.items()}
            places = of_all.pop("index")
            numbers |= {f"{split}/{name}": float(x.mean()) for name, x in of_all.items()}
            numbers[f"{split}/n"] = len(places)
            if back:
                real = context.pictures(source.only(places[: len(back)]))
                decibels = of_all["psnr"][: len(back)]
                titles = [text for x in decibels for text in ("original", f"{x:.1f} dB")]
                both = np.stack([real, np.stack(back)], 1).reshape(-1, *real.shape[1:])
                page = drawing.grid(both, titles, 8, max(1, 96 // data.resolution))
                pictures[f"reconstructions/{split}"] = page
        source = context.data.open("train")
        count = min(config.count or len(source), len(source))
        some = source.only(np.arange(count) * len(source) // count)
        found = list(each(moments, variables, some))
        mean, square = (
            np.concatenate([f[name] for f in found]).mean(dtype=np.float64)
            for name in ("mean", "square")
        )
        numbers["train/latent_mean"] = float(mean)
        numbers["train/latent_std"] = float(np.sqrt(square - mean**2))
        return Result(numbers, pictures)

    return evaluate
