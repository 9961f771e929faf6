"""How far a run's network is from the exact denoiser, which the built-in world lets one write out.

    python -m experiments.exact --run=DIR --count=64

A caption fits some hundred pictures of known probability, so the conditional mean E[x0 | x_t, text]
is a sum over them, what no network can do better. Printed for captions of the test split with one
and with two objects: at several t the mean squared error of x0 (on [-1, 1], in 1e-4) of the exact
mean, of the network, and between the two; and, of pictures drawn by the run's own sampler, how many
the oracle finds right when the exact mean takes the network's place below a level, above it, or
everywhere: which levels the mistakes come from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from absl import flags

from vision_lang import flags as commands

FLAGS = flags.FLAGS
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
CHUNK = 32  # captions at a time


def main() -> None:
    """Defines the flags and runs the command."""
    commands.define_run()
    flags.DEFINE_integer("count", 64, "Captions of each number of objects.", lower_bound=1)
    commands.run(_run)


def posterior_mean(x: Any, alpha: Any, sigma: Any, pictures: Any, log_prior: Any) -> Any:
    """E[x0 | x] where x0 is one of `pictures` and x = alpha x0 + sigma eps.

    Shapes: x [B, H, W, C]; alpha, sigma scalars; pictures [B, K, H, W, C]; log_prior [B, K], minus
    infinity for what only fills the row. Returns [B, H, W, C].
    """
    import jax
    import jax.numpy as jnp

    distance = jnp.square(x[:, None] - alpha * pictures).sum((2, 3, 4))
    share = jax.nn.softmax(log_prior - distance / (2 * jnp.square(sigma)), axis=-1)
    return jnp.einsum("bk,bkhwc->bhwc", share, pictures)


def possible_pictures(texts: list[str], side: int) -> tuple[np.ndarray, np.ndarray]:
    """The pictures that each text fits, float32 [N, K, side, side, 3] on [-1, 1], and the logarithm
    of their probabilities [N, K]."""
    from vision_lang.shapes import draw, grammar, splits

    found = [splits.possible(grammar.parse(text)) for text in texts]
    most = max(len(scenes) for scenes, _ in found)
    pictures = np.zeros((len(texts), most, side, side, 3), np.float32)
    log_prior = np.full((len(texts), most), -np.inf, np.float32)
    for row, (scenes, shares) in enumerate(found):
        pictures[row, : len(scenes)] = [draw.draw(s, side) / 127.5 - 1 for s in scenes]
        log_prior[row, : len(scenes)] = np.log(shares)
    return pictures, log_prior


def _run() -> None:
    from vision_lang.training import devices

    devices.set_up()
    import jax
    import jax.numpy as jnp

    from vision_lang import keys as random_keys
    from vision_lang.data import sources
    from vision_lang.diffusion import samplers
    from vision_lang.evaluators import shapes_oracle
    from vision_lang.shapes import grammar
    from vision_lang.tasks.diffusion import Sampling, make_sampler, to_uint8
    from vision_lang.training import setup

    loaded = setup.load(FLAGS.run, FLAGS.weights)
    task, side = loaded.task, loaded.task.resolution
    sampling = Sampling(**loaded.config.sampling)
    levels = task.levels(sampling)

    captions = sources.prepare(loaded.config.data).open("test").captions()
    chosen: dict[int, list[tuple[int, str]]] = {1: [], 2: []}
    for place, (text, *_) in enumerate(captions):
        rows = chosen.get(len(grammar.parse(text).objects), [])
        if len(rows) < FLAGS.count:
            rows.append((place, text))
    print(f"{loaded.source}: {FLAGS.count} captions of one object, {FLAGS.count} of two")

    @jax.jit
    def errors(tokens, mask, pictures, log_prior, keys, t):
        """Squared errors [3, B]: exact, network, between; of pictures drawn by the captions."""
        which = jax.vmap(jax.random.categorical)(random_keys.named(keys, "which"), log_prior)
        x0 = jnp.take_along_axis(pictures, which[:, None, None, None, None], axis=1)[:, 0]
        noise = jax.vmap(lambda k: jax.random.normal(k, x0.shape[1:]))(keys)
        level = task.schedule.level(t)
        x = level.alpha * x0 + level.sigma * noise
        exact = posterior_mean(x, level.alpha, level.sigma, pictures, log_prior)
        condition = task.make_condition(tokens, mask, jnp.zeros(len(tokens), jnp.int32))
        guess = task.denoiser(loaded.variables, condition, Sampling(guidance=1.0))(x, level)
        square = lambda a, b: jnp.square(a - b).mean((1, 2, 3))  # noqa: E731
        return jnp.stack([square(exact, x0), square(guess, x0), square(guess, exact)])

    @jax.jit
    def draw(tokens, mask, pictures, log_prior, keys, low, high):
        """Pictures uint8 [B, H, W, 3]; the network acts for low < t <= high."""
        condition = task.make_condition(tokens, mask, jnp.zeros(len(tokens), jnp.int32))
        network = task.denoiser(loaded.variables, condition, sampling)

        def denoise(x, level):
            return jax.lax.cond(
                (level.t > low) & (level.t <= high),
                lambda: network(x, level),
                lambda: posterior_mean(x, level.alpha, level.sigma, pictures, log_prior),
            )

        noise_keys = random_keys.named(keys, "noise")
        x = samplers.initial_noise(noise_keys, (side, side, 3), levels)
        drawn = samplers.sample(make_sampler(sampling), denoise, levels, x, noise_keys)
        return to_uint8(drawn)

    def chunks(rows):
        """(texts, what `errors` and `draw` take) of CHUNK captions at a time."""
        places, texts = zip(*rows, strict=True)
        keys = random_keys.per_example(random_keys.make(0, "exact"), jnp.asarray(places))
        tokens, mask = loaded.tokenizer.encode_batch(list(texts), loaded.config.data.text_length)
        columns = (tokens, mask, *possible_pictures(list(texts), side), keys)
        for start in range(0, len(rows), CHUNK):
            here = slice(start, start + CHUNK)
            yield texts[here], [column[here] for column in columns]

    prepared = {count: list(chunks(rows)) for count, rows in chosen.items()}
    for count, parts in prepared.items():
        print(f"\nObjects: {count}; errors in 1e-4\n{'t':>8} exact network between")
        for t in LEVELS:
            found = [np.asarray(errors(*inputs, jnp.float32(t))) for _, inputs in parts]
            exact, network, between = 1e4 * np.concatenate(found, axis=1).mean(1)
            print(f"{t:8.2f} {exact:5.0f} {network:7.0f} {between:7.0f}")

    print("\nThe network acts for   right: one object   two objects")
    for low, high in ((2, 2), (0.7, 2), (-1, 0.7), (-1, 0.8), (-1, 0.9), (-1, 2)):
        shares = []
        for parts in prepared.values():
            right = [
                shapes_oracle.judge(np.asarray(picture), text)["grade"]["all_right"]
                for texts, inputs in parts
                for picture, text in zip(draw(*inputs, low, high), texts, strict=True)
            ]
            shares.append(np.mean(right))
        where = "no t" if low == high else f"{max(low, 0)} < t <= {min(high, 1)}"
        print(f"{where:>20} {shares[0]:19.3f} {shares[1]:13.3f}")


if __name__ == "__main__":
    main()
