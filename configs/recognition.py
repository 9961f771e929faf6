"""Recognition: a VGG network that names what a picture shows.

    python -m vision_lang.main --config=configs/recognition.py
    python -m vision_lang.main --config=configs/recognition.py:data=folder --config.data.path=DIR
    python -m vision_lang.main --config=configs/recognition.py:data=fashion_mnist \
        --config.data.path=DIR_WITH_IDX_FILES

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), size (a
row of models.vgg.VGGS). The default learns the shape of the object in those scenes of the built-in
world that have one; with --config.multi_label=true --config.data.where= all shapes of all scenes.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from vision_lang.data import presets
from vision_lang.errors import choose
from vision_lang.models.margin import MarginSpec
from vision_lang.models.vgg import VGGS
from vision_lang.tasks.augmentation import Augmentation


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(arg, tiny=False, data="shapes", size="11")
    config = common.base(given.data)
    config.task = "recognition"

    config.steps = 1_500
    config.batch_size = 64
    config.eval_every = 500
    config.save_every = 500

    shapes = presets.is_shapes(given.data)
    if shapes:
        config.data.where = "scene/count=1"
        config.data.label_key = "scene/objects/shape"

    model = config.model = ConfigDict()
    spec = choose(VGGS, "tiny" if given.tiny else given.size, "size")
    # What the fields mean: vision_lang/models/vgg.py. A quarter of the paper's widths.
    model.encoder = ConfigDict(dataclasses.asdict(spec))
    model.encoder.update(width=0.25, batch_norm=True, head="pool")
    model.margin = ConfigDict(dataclasses.asdict(MarginSpec()))  # a head by angle, for verification
    model.preprocessing = "symmetric"  # a row of tasks.preprocessing.PREPROCESSINGS
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32

    # Whether a picture may have any number of labels: each class is then asked for by itself.
    config.multi_label = False
    config.label_smoothing = 0.1
    # What the fields mean: vision_lang/tasks/augmentation.py. Flips and crops: config.data.
    config.augmentation = ConfigDict(dataclasses.asdict(Augmentation(pad=2)))

    optimizer = config.optimizer = common.optimizer(learning_rate=2e-3)
    optimizer.groups = ConfigDict(
        {  # each parameter's path must match exactly one pattern; rule: of training.optimizer.RULES
            "matrices": common.adamw(".*/(kernel|classes)", weight_decay=0.05),
            "others": common.adamw(".*/(bias|scale)"),
        }
    )
    config.ema = ConfigDict()  # name -> {"decay": ...}; batch statistics follow the raw weights
    # "RUN[@step][:ema|raw]" each
    config.init = ConfigDict({"encoder": ""})

    config.evaluators = ConfigDict(
        {
            "validation": {"kind": "validation_loss", "split": "validation", "batch_size": 64},
            "classes": {
                "kind": "classification",
                "splits": ("validation",),
                "final_splits": ("validation", "test"),  # the test split is looked at once
                "batch_size": 64,
                "flip": False,  # also ask about the mirror image
                "shown": 16,  # examples in a picture, with the answers to them
            },
        }
    )
    if shapes:
        config.evaluators.classes.final_splits = ("validation", "test", "test_unseen")
    if given.tiny:
        common.shrink(config)
        for evaluator in config.evaluators.values():
            evaluator.batch_size = 16
    return config
