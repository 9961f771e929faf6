"""Plug-ins named in a config: weights in, numbers and pictures out, at a period and at the end."""

from __future__ import annotations

from vision_lang.errors import choose
from vision_lang.evaluators import samples, shapes_oracle, validation_loss
from vision_lang.evaluators.context import Context, Evaluator

# config.evaluators.<name>.kind -> (its config, context) -> evaluator
EVALUATORS = {
    "validation_loss": validation_loss.make,
    "samples": samples.make,
    "shapes_oracle": shapes_oracle.make,
}


def make_evaluators(context: Context) -> dict[str, Evaluator]:
    """Builds the evaluators of config.evaluators, by name."""
    made = {}
    for name, config in context.config.evaluators.items():
        make = choose(EVALUATORS, config.kind, f"evaluator (config.evaluators.{name}.kind)")
        made[name] = make(config, context)
    return made
