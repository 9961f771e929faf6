"""Every sampler against targets that are known exactly: error by number of network calls.

    python -m experiments.samplers.analytic

The target is the mixture of three Gaussians of tests/diffusion/exact.py, whose posterior mean is
known in closed form, in float64. Between two levels that both have signal and noise, the error is
the root mean square distance from the probability-flow ODE's solution, taken from Heun's method
with 16,384 steps; its slope is the order of the method. From pure noise to the clean image, in
uniform steps, it is the Frechet distance of 20,000 drawn points from the target's exact mean and
covariance, which no sampler brings below what 20,000 points of the target itself have. Writes
analytic.json and analytic.png beside this file, and prints the tables of README.md.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app

from tests.diffusion.exact import SHAPE, denoise, mixture_covariance, mixture_mean
from vision_lang.diffusion import samplers
from vision_lang.diffusion.samplers import Sampler
from vision_lang.diffusion.schedules import Level, make_schedule
from vision_lang.diffusion.spacing import levels, uniform
from vision_lang.metrics.frechet import Statistics, frechet_distance, statistics

HERE = Path(__file__).resolve().parent
BETWEEN = {"cosine": (0.85, 0.25), "flow": (0.85, 0.25)}  # times of the first and last level
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": samplers.ddim,
    "heun": samplers.heun,
    "dpmpp_2m": samplers.dpmpp_2m,
}
STOCHASTIC = {"ddim, eta 0.5": lambda: samplers.ddim(0.5), "ddpm": samplers.ddpm}
STEPS = (4, 8, 16, 32, 64, 128, 256)
REFERENCE = 16_384
POINTS, DRAWN = 64, 20_000


def calls(name: str, steps: int, clean: bool) -> int:
    """Of the network; Heun's last step to the clean image is Euler's."""
    return 2 * steps - clean if name == "heun" else steps


def main(_: list[str]) -> None:
    """Measures, writes, prints."""
    jax.config.update("jax_enable_x64", True)
    record: dict[str, Any] = {"jax": jax.__version__, "between": {}, "whole": {}}
    for schedule_name, ends in BETWEEN.items():
        record["between"][schedule_name] = between(schedule_name, *ends)
        record["whole"][schedule_name] = whole(schedule_name)
    (HERE / "analytic.json").write_text(json.dumps(record, indent=1) + "\n")
    draw(record).savefig(HERE / "analytic.png", dpi=110, metadata={"Software": None})
    print(tables(record))


def between(schedule_name: str, start: float, stop: float) -> dict[str, dict[str, float]]:
    """{sampler: {calls: error}} between two levels."""
    schedule = make_schedule(schedule_name)
    noise = jax.random.normal(jax.random.key(0), (POINTS, *SHAPE), jnp.float64)
    x = schedule.sigma(start) * noise

    def advance(sampler: Sampler, steps: int) -> np.ndarray:
        lv = levels(schedule, np.linspace(start, stop, steps + 1), np.float64)
        lv = Level(*(jnp.pad(a, (0, REFERENCE - steps), "edge") for a in lv))  # one program for all
        return np.asarray(compiled(sampler)(lv, x, steps))

    def compiled(sampler: Sampler) -> Callable:
        def run(lv: Level, x: jax.Array, steps: int) -> jax.Array:
            return samplers.run(sampler, denoise, lv, sampler.init(x, None), 0, steps).x

        return jax.jit(run)

    exact = advance(samplers.heun(), REFERENCE)
    return {
        name: {
            str(calls(name, steps, clean=False)): float(
                np.sqrt(np.mean((advance(make(), steps) - exact) ** 2))
            )
            for steps in STEPS
        }
        for name, make in SAMPLERS.items()
    }


def whole(schedule_name: str) -> dict[str, dict[str, float]]:
    """{sampler: {calls: Frechet distance}} from noise to points, in uniform steps."""
    schedule = make_schedule(schedule_name)
    keys = jax.random.split(jax.random.key(1), DRAWN)
    found: dict[str, dict[str, float]] = {}
    for name, make in (SAMPLERS | STOCHASTIC).items():
        found[name] = {}
        for steps in STEPS:
            lv = levels(schedule, uniform(schedule, steps), np.float64)
            x = samplers.initial_noise(keys, SHAPE, lv)
            draw: Any = jax.jit(functools.partial(samplers.sample, make(), denoise))
            flat = np.asarray(draw(lv, x, keys)).reshape(DRAWN, 2)
            found[name][str(calls(name, steps, clean=True))] = _distance(flat)
    return found


def _distance(points: np.ndarray) -> float:
    """The Frechet distance of points [N, 2] from the mixture, of which mean and covariance are
    known."""
    exact = Statistics(DRAWN, mixture_mean(), mixture_covariance() * (DRAWN - 1))
    return frechet_distance(statistics(points), exact)


def slope(errors: dict[str, float]) -> float:
    """The order: minus the slope of log error by log calls, over the last three doublings."""
    x, y = (np.log2([float(v) for v in values])[-4:] for values in (errors, errors.values()))
    return float(-np.polyfit(x, y, 1)[0])


def tables(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    head = ["schedule, sampler", "order", *(f"{n} calls" for n in (16, 32, 64, 128))]
    lines = [row(head), row(["---"] * len(head))]
    for schedule, found in record["between"].items():
        for name, errors in found.items():
            some = [f"{errors[str(n)]:.1e}" for n in (16, 32, 64, 128)]
            lines.append(row([f"{schedule}, {name}", f"{slope(errors):.2f}", *some]))
    head = ["schedule, sampler", *(f"{n} steps" for n in STEPS)]
    more = [row(head), row(["---"] * len(head))]
    for schedule, found in record["whole"].items():
        for name, errors in found.items():
            more.append(row([f"{schedule}, {name}", *(f"{e:.4f}" for e in errors.values())]))
    return "\n".join([*lines, "", *more])


def row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def draw(record: dict[str, Any]) -> Any:
    """Both as curves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    panels = figure.subplots(2, len(BETWEEN), squeeze=False)
    rows = (("between", "distance from the ODE's solution"), ("whole", "Frechet distance"))
    for (key, what), line in zip(rows, panels, strict=True):
        for (schedule, found), panel in zip(record[key].items(), line, strict=True):
            for name, errors in found.items():
                counts = [float(n) for n in errors]
                panel.loglog(counts, list(errors.values()), "o-", ms=3, label=name)
            panel.set(title=schedule, xlabel="calls of the network", ylabel=what)
            panel.grid(alpha=0.3)
            panel.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    app.run(main)
