"""The scheduler of a folder of diffusers: the noise that was trained with, and how it draws.

What was trained is taken over or refused. How it is drawn is a choice: a scheduler that is not
built here to the last option gives way to the nearest that is, and the log says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from absl import logging

from vision_lang.errors import choose
from vision_lang.pretrained.options import Options

BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
FALLBACK = ("dpmpp_2m", "trailing")


class Theirs(NamedTuple):
    """A scheduler's class: our sampler, where it has steps if nothing is said, and its options.

    spacings: (timestep_spacing, steps_offset) that are the same steps here, and their names.
    options: name -> the value that is built, which is the library's default but for `DEFAULTS`.
    """

    sampler: str
    spacing: str
    spacings: dict[tuple[str, int], str]
    options: dict[str, Any]


DEFAULTS = {"clip_sample": True}
TRAILING = {("trailing", offset): "trailing" for offset in (0, 1)}  # which the offset does not move
STEPS = {("leading", 0): "leading", ("leading", 1): "leading_1"} | TRAILING
CLIP = {"clip_sample": False, "thresholding": False}
SIGMAS = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "final_sigmas_type": "zero",
}
SCHEDULERS = {
    "DDIMScheduler": Theirs("ddim", "leading", STEPS, CLIP),
    "DDPMScheduler": Theirs("ddpm", "leading", STEPS, CLIP | {"variance_type": "fixed_small"}),
    "EulerDiscreteScheduler": Theirs(
        "euler",
        "linspace",
        STEPS,
        SIGMAS
        | {
            "interpolation_type": "linear",
            "timestep_type": "discrete",
            "sigma_min": None,
            "sigma_max": None,
        },
    ),
    # Its "leading" divides by one step more than the others' does.
    "DPMSolverMultistepScheduler": Theirs(
        "dpmpp_2m",
        "linspace",
        TRAILING,
        SIGMAS
        | {
            "thresholding": False,
            "algorithm_type": "dpmsolver++",
            "solver_order": 2,
            "solver_type": "midpoint",
            "lower_order_final": True,
            "euler_at_final": False,
            "use_lu_lambdas": False,
            "use_flow_sigmas": False,
            "variance_type": None,
        },
    ),
}


def read(config: Options) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the fields of config.diffusion and of config.sampling that a scheduler decides.

    Raises:
      InputError: it was trained with other noise, or to predict something else, than is built.
    """
    schedule = config.get("beta_schedule", "linear")
    start, end = choose(BETAS, schedule, f"beta_schedule in {config.source}")
    config.demand(
        num_train_timesteps=(1000,),
        beta_start=(start,),
        beta_end=(end,),
        trained_betas=(None,),
        rescale_betas_zero_snr=(False,),
    )
    predicted = config.get("prediction_type", "epsilon")
    prediction = choose(PREDICTIONS, predicted, f"prediction_type in {config.source}")
    return {"schedule": schedule, "prediction": prediction}, _sampling(config)


def _sampling(config: Options) -> dict[str, str]:
    name = config.get("_class_name", "")
    theirs = SCHEDULERS.get(name)
    if theirs is None:
        return _nearest(name or "a scheduler without a name", *FALLBACK)
    found = {k: config.fields.get(k, DEFAULTS.get(k, v)) for k, v in theirs.options.items()}
    other = [f"{k}={v}" for k, v in found.items() if v != theirs.options[k]]
    steps = config.get("timestep_spacing", theirs.spacing), config.get("steps_offset", 0)
    if steps not in theirs.spacings:
        other.append("timestep_spacing={}, steps_offset={}".format(*steps))
    spacing = theirs.spacings.get(steps, FALLBACK[1])
    if other:
        return _nearest(f"{name} with {', '.join(other)}", theirs.sampler, spacing)
    sampling = {"sampler": theirs.sampler, "spacing": spacing}
    if name == "DDIMScheduler" and not config.get("set_alpha_to_one", True):
        sampling["final_sigma"] = "sigma_min"
    return sampling


def _nearest(what: str, sampler: str, spacing: str) -> dict[str, str]:
    logging.warning("%s is not built here: this run draws with %s, %s.", what, sampler, spacing)
    return {"sampler": sampler, "spacing": spacing}
