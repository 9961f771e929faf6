"""Plug-ins named in a config: weights in, numbers and pictures out, at a period and at the end."""

from __future__ import annotations

from ml_collections import ConfigDict

from vision_lang.errors import InputError, choose
from vision_lang.evaluators import (
    captions,
    classification,
    descriptions,
    generation,
    probe,
    reconstruction,
    retrieval,
    samples,
    shapes_oracle,
    validation_loss,
    verification,
)
from vision_lang.evaluators.context import Context, Evaluator

# config.evaluators.<name>.kind -> (its config, context) -> evaluator
EVALUATORS = {
    "validation_loss": validation_loss.make,
    "captions": captions.make,
    "classification": classification.make,
    "descriptions": descriptions.make,
    "probe": probe.make,
    "reconstruction": reconstruction.make,
    "retrieval": retrieval.make,
    "verification": verification.make,
    "samples": samples.make,
    "shapes_oracle": shapes_oracle.make,
    "generation": generation.make,
}


def make_evaluators(context: Context) -> dict[str, Evaluator]:
    """Builds the evaluators of config.evaluators, by name.

    Raises:
      InputError: one of them would fail later on: an unknown kind, a split that the data set lacks,
        a prompt that is too long, ...; here it costs no training.
    """
    made = {}
    for name, config in context.config.evaluators.items():
        make = choose(EVALUATORS, config.kind, f"evaluator (config.evaluators.{name}.kind)")
        try:
            made[name] = make(config, context)
        except InputError as error:
            raise InputError(f"config.evaluators.{name}: {error}") from error
        except AttributeError as error:
            if not isinstance(error.obj, ConfigDict):
                raise
            # The run was made by another version of the code.
            raise InputError(f"config.evaluators.{name} lacks a field: {error}.") from error
    return made
