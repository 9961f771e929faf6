"""Matching: a VGG encoder and a text encoder that put pictures near their descriptions.

    python -m vision_lang.main --config=configs/contrastive.py
    python -m vision_lang.main --config=configs/contrastive.py:data=folder --config.data.path=DIR

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), size (a
row of models.vgg.VGGS), text (a row of models.text_encoder.TEXT_ENCODERS).
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from vision_lang.data import presets
from vision_lang.errors import choose
from vision_lang.models.text_encoder import TEXT_ENCODERS
from vision_lang.models.vgg import VGGS
from vision_lang.tasks.augmentation import Augmentation


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(arg, tiny=False, data="shapes", size="11", text="small")
    config = common.base(given.data)
    config.task = "contrastive"
    config.loss = "softmax"  # a row of tasks.contrastive.LOSSES: "softmax" (CLIP) | "sigmoid"

    config.steps = 1_000
    config.batch_size = 128
    config.eval_every = 500
    config.save_every = 500

    model = config.model = ConfigDict()
    # What the fields mean: vision_lang/models/vgg.py. A quarter of the paper's widths.
    spec = choose(VGGS, "tiny" if given.tiny else given.size, "size")
    model.encoder = ConfigDict(dataclasses.asdict(spec))
    model.encoder.update(width=0.25, batch_norm=True, head="none")
    model.stage = "pool2" if given.tiny else "pool3"  # becomes the picture's vector
    model.grid = 4  # in so many parts along each side
    text = choose(TEXT_ENCODERS, "tiny" if given.tiny else given.text, "text")
    model.text = ConfigDict(dataclasses.asdict(text))
    model.width = 128  # of the vectors that are compared
    model.preprocessing = "symmetric"  # a row of tasks.preprocessing.PREPROCESSINGS
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32

    # What the fields mean: vision_lang/tasks/augmentation.py.
    config.augmentation = ConfigDict(dataclasses.asdict(Augmentation()))

    optimizer = config.optimizer = common.optimizer(learning_rate=2e-3)
    words = "text_encoder/token_embedding/embedding"
    optimizer.groups = ConfigDict(
        {  # each parameter's path must match exactly one pattern; rule: of training.optimizer.RULES
            # With AdamW the same takes twice the steps (experiments/shapes_to_words).
            "matrices": common.muon(".*/kernel"),
            # A step touches few rows of the table, and its rows are large.
            "words": common.adamw(words, learning_rate_scale=24 * text.embedding_std),
            "others": common.adamw(f"(?!{words}).*/(bias|scale|embedding|logit_.*)"),
        }
    )
    config.ema = ConfigDict()  # name -> {"decay": ...}; batch statistics follow the raw weights
    # "RUN[@step][:ema|raw]" each
    config.init = ConfigDict({"encoder": "", "text_encoder": ""})
    config.init_except = r"encoder/(logits|fc\d+)/.*"  # this encoder has no head

    config.evaluators = evaluators(given.data)
    if given.tiny:
        common.shrink(config)
        config.evaluators.retrieval.update(batch_size=8, count=24)
    return config


def evaluators(data: str) -> ConfigDict:
    """Returns config.evaluators of runs that match pictures with texts."""
    shapes = presets.is_shapes(data)
    return ConfigDict(
        {
            "retrieval": {
                "kind": "retrieval",
                "splits": ("validation",),
                "final_splits": ("test", "test_unseen") if shapes else ("validation", "test"),
                "count": 1_001 if shapes else 0,  # pictures of a split, 0: all
                "batch_size": 64,
            },
        }
    )
