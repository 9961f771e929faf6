"""Autoencoder: pictures become small maps of latents, which a diffusion model then draws.

    python -m vision_lang.main --config=configs/autoencoder.py
    python -m vision_lang.main --config=configs/autoencoder.py:data=folder --config.data.path=DIR
    python -m vision_lang.main --config=configs/autoencoder.py:perceptual=true \
        --config.init.perceptual=RUN

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), size (a
row of models.autoencoder.AUTOENCODERS), perceptual (pictures are also compared in the features of a
VGG; RUN is one of configs/recognition.py, whose sizes and preprocessing config.model.perceptual
must repeat).

The default comes to 30.1 dB on the built-in world's test pictures in 8 minutes on two CPU cores
(one run, seed 0); what is lost are corners: a small cross comes back as a diamond.
"""

import dataclasses

from ml_collections import ConfigDict

from configs import common
from vision_lang.errors import choose
from vision_lang.models.autoencoder import AUTOENCODERS
from vision_lang.models.vgg import VGGS


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(arg, tiny=False, data="shapes", size="small", perceptual=False)
    config = common.base(given.data)
    config.task = "autoencoder"

    config.steps = 2_000
    config.batch_size = 16
    config.eval_every = 1_000
    config.save_every = 1_000

    # The loss: vision_lang/tasks/autoencoder.py.
    config.error = "absolute"  # of a pixel: "absolute" | "squared"
    config.kl_weight = 1e-6
    config.perceptual_weight = 1.0 if given.perceptual else 0.0  # 0: there is no such network

    model = config.model = ConfigDict()
    spec = choose(AUTOENCODERS, "tiny" if given.tiny else given.size, "size")
    model.autoencoder = ConfigDict(dataclasses.asdict(spec))
    vgg = VGGS["tiny" if given.tiny else "11"]
    # What the fields mean: vision_lang/models/vgg.py. The network of configs/recognition.py.
    model.perceptual = ConfigDict(
        {
            "stages": vgg.stages,
            "width": 0.25,
            "padding": vgg.padding,
            "batch_norm": True,
            "epsilon": vgg.epsilon,
            "preprocessing": "symmetric",  # a row of tasks.preprocessing.PREPROCESSINGS
            # the last convolution of each stage, as in LPIPS (Zhang et al. 2018)
            "layers": tuple(f"conv{i}_{len(s)}" for i, s in enumerate(vgg.stages, start=1)),
        }
    )
    model.dtype = "float32"  # of the computation: "float32" | "bfloat16"; parameters stay float32
    model.remat = False  # recompute activations in the backward pass: less memory, more time

    optimizer = config.optimizer = common.optimizer(learning_rate=2e-3)
    optimizer.groups = ConfigDict(
        {  # each parameter's path must match exactly one pattern; rule: of training.optimizer.RULES
            "matrices": common.adamw(".*/kernel", weight_decay=0.01),
            "others": common.adamw(".*/(bias|scale)"),
        }
    )
    if given.perceptual:
        optimizer.frozen = ("perceptual/.*",)
    config.ema = ConfigDict({"ema": {"decay": 0.995}})
    # "RUN[@step][:ema|raw]" each; the perceptual network is the "encoder" of its run, without head
    config.init = ConfigDict({"autoencoder": "", "perceptual": ""})
    config.init_except = r"perceptual/(logits|fc\d+)/.*"

    config.evaluators = ConfigDict(
        {
            "validation": {"kind": "validation_loss", "split": "validation", "batch_size": 64},
            "reconstruction": {
                "kind": "reconstruction",
                "splits": ("validation",),
                "final_splits": ("validation", "test"),  # the test split is looked at once
                "count": 1_000,  # training pictures whose latents are measured; 0: all
                "batch_size": 64,
                "shown": 16,  # pictures in a picture, beside what comes back
            },
        }
    )
    if given.tiny:
        common.shrink(config)
        for evaluator in config.evaluators.values():
            evaluator.batch_size = 16
        config.evaluators.reconstruction.update(count=32, shown=4)
    return config
