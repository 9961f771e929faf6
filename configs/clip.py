"""CLIP: a vision transformer and a text tower that put pictures near their descriptions.

    python -m vision_lang.main --config=configs/clip.py
    python -m vision_lang.main --config=RUN/config.json --config.data.path=DIR

The second fine-tunes RUN, which vision_lang.convert made of a published CLIP: its config is this
one with its own sizes, its own weights to begin with, and a learning rate of 1e-5.

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), vision and
text (rows of models.vision_transformer.VISION_TRANSFORMERS and models.text_encoder.TEXT_ENCODERS).
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common, contrastive
from vision_lang.errors import choose
from vision_lang.models.text_encoder import TEXT_ENCODERS
from vision_lang.models.vision_transformer import VISION_TRANSFORMERS
from vision_lang.tasks.augmentation import Augmentation


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(arg, tiny=False, data="shapes", vision="tiny", text="small")
    config = common.base(given.data)
    config.task = "clip"

    config.steps = 1_000
    config.batch_size = 128
    config.eval_every = 500
    config.save_every = 500

    model = config.model = ConfigDict()
    # What the fields mean: vision_lang/models/vision_transformer.py. The resolution is data's.
    vision = choose(VISION_TRANSFORMERS, given.vision, "vision")
    model.vision = ConfigDict(dataclasses.asdict(vision))
    del model.vision.resolution
    text = choose(TEXT_ENCODERS, "tiny" if given.tiny else given.text, "text")
    model.text = ConfigDict(dataclasses.asdict(text))
    model.text.update(causal=True, distance_slopes=())  # the end token reads the text
    model.projection = 512 if vision.width >= 768 else 128  # of the vectors that are compared
    model.preprocessing = "clip"  # a row of tasks.preprocessing.PREPROCESSINGS
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32

    # What the fields mean: vision_lang/tasks/augmentation.py.
    config.augmentation = ConfigDict(dataclasses.asdict(Augmentation()))

    # Radford et al. 2021, table 20: of vision transformers, trained from nothing.
    optimizer = config.optimizer = common.optimizer(learning_rate=5e-4)
    optimizer.schedule = "cosine"
    optimizer.b2, optimizer.eps = 0.98, 1e-6
    optimizer.groups = ConfigDict(
        {  # each parameter's path must match exactly one pattern
            "matrices": common.adamw(".*/(kernel|embedding)", weight_decay=0.2),
            "others": common.adamw(".*/(bias|scale|class_embedding|logit_scale)"),
        }
    )
    config.ema = ConfigDict()  # name -> {"decay": ...}
    # "RUN[@step][:ema|raw]" each
    config.init = ConfigDict({"vision_encoder": "", "text_encoder": "", "projections": ""})

    config.evaluators = contrastive.evaluators(given.data)
    if given.tiny:
        common.shrink(config)
        config.evaluators.retrieval.update(batch_size=8, count=24)
    return config
