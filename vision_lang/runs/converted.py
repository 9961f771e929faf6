"""Published weights as runs: the config, the variables and the words of a run folder.

One function for each row of `KINDS`; vision_lang/convert.py writes what it returns.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from absl import logging
from etils import epath
from ml_collections import ConfigDict

from vision_lang import pretrained
from vision_lang.data import presets
from vision_lang.data.tokenizer import Tokenizer
from vision_lang.errors import InputError, choose
from vision_lang.models.inception import PUBLISHED_SHA256, SIDE
from vision_lang.models.vgg import SMALLEST
from vision_lang.pretrained import tensors, tokenizers
from vision_lang.pretrained.options import Options
from vision_lang.runs import config as config_lib
from vision_lang.tasks import clip
from vision_lang.tasks.preprocessing import CLIP_MEAN, CLIP_STD, NORMALISED

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


class Converted(NamedTuple):
    """What a run folder is made of.

    variables: {"params": {network: ...}, and "batch_stats": {network: ...}}.
    tokenizer: the content of its tokenizer.json; '' = the run reads no texts.
    class_names: of a classifier, numbers as long as nobody names them.
    """

    config: ConfigDict
    variables: Any
    tokenizer: str
    class_names: list[str]


def _config(name: str, argument: str) -> ConfigDict:
    """A config of ours, to be changed."""

    config = ConfigDict(config_lib.load(f"{CONFIGS / name}.py:{argument}").to_dict())
    config.ema = ConfigDict()  # nothing was averaged
    return config


def _vgg(path: epath.Path) -> Converted:

    model, variables = pretrained.load("vgg", path)
    spec = model.net.spec
    if spec.head == "none":
        raise InputError(f"'{path}' has no head: it recognises nothing.")  # and has no resolution
    config = _config("recognition", "data=folder")
    config.model.encoder = ConfigDict(dataclasses.asdict(spec))
    config.model.preprocessing = model.preprocessing
    config.data.resolution = max(SMALLEST, spec.grid * 2 ** len(spec.stages))  # 224
    config.data.crop = "random_resized_crop"  # the centre, where nothing is learnt
    config.augmentation.pad = 0
    names = [str(i) for i in range(model.net.classes)]
    renamed = {collection: {"encoder": tree} for collection, tree in variables.items()}
    return Converted(config, renamed, "", names)


def _diffusers(path: epath.Path) -> Converted:
    """A folder `unet/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json`."""

    tensors.read_json(path / "model_index.json", "which a folder of diffusers has")
    unet, unet_variables = pretrained.load("unet", path / "unet")
    vae, vae_variables = pretrained.load("autoencoder", path / "vae")
    text, text_variables = pretrained.load("clip_text", path / "text_encoder")
    if unet.in_channels != unet.net.out_channels or (
        unet.in_channels != vae.net.spec.latent_channels
    ):
        raise InputError(
            f"'{path}': the U-Net turns {unet.in_channels} channels into {unet.net.out_channels}, "
            f"and the latents have {vae.net.spec.latent_channels}: all must be the same."
        )
    if unet.context_width != text.net.text.width:
        raise InputError(
            f"'{path}': the U-Net reads vectors of {unet.context_width} numbers, the text encoder "
            f"writes {text.net.text.width}."
        )
    sizes = Options(tensors.config_beside(path / "unet"), f"{path}/unet: config.json")
    config = _config("diffusion", "data=folder,size=sd15")
    config.model.unet = ConfigDict(dataclasses.asdict(unet.net.spec))
    config.model.text = ConfigDict(dataclasses.asdict(text.net.text))
    config.model.autoencoder = ConfigDict(dataclasses.asdict(vae.net.spec))
    config.model.autoencoder.update(scaling=float(vae.scaling), shift=float(vae.shift))
    config.data.resolution = sizes["sample_size"] * vae.net.spec.factor
    config.data.text_length = text.net.max_length
    config.text_mask = "none"
    file = path / "scheduler" / "scheduler_config.json"
    scheduler = Options(tensors.read_json(file, "the noise levels"), file)
    _set_diffusion(config, scheduler)
    variables = {
        "unet": unet_variables["params"],
        "text_encoder": text_variables["params"]["text_model"],
        "autoencoder": vae_variables["params"],
    }
    return Converted(config, {"params": variables}, tokenizers.read(path / "tokenizer"), [])


BETAS = {"linear": (1e-4, 0.02), "scaled_linear": (0.00085, 0.012)}
PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x"}
SPACINGS = ("trailing", "leading", "leading_1")
SAMPLERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "HeunDiscreteScheduler": "heun",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}


def _set_diffusion(config: ConfigDict, scheduler: Any) -> None:
    """The noise levels and the sampler of a scheduler's config; training as it was done."""
    schedule = scheduler.get("beta_schedule", "linear")
    start, end = choose(BETAS, schedule, f"beta_schedule in {scheduler.source}")
    scheduler.demand(
        num_train_timesteps=(1000,),
        beta_start=(start,),
        beta_end=(end,),
        trained_betas=(None,),
        rescale_betas_zero_snr=(False,),
        clip_sample=(False,),
        thresholding=(False,),
        use_karras_sigmas=(False, None),
    )
    diffusion, sampling = config.diffusion, config.sampling
    diffusion.schedule = schedule
    diffusion.prediction = choose(
        PREDICTIONS, scheduler.get("prediction_type", "epsilon"), "prediction_type"
    )
    diffusion.weighting = "uniform"
    diffusion.time_sampling = "uniform"
    diffusion.gradient_weight, diffusion.mean_weight = 0.0, 1.0
    theirs = scheduler.get("_class_name", "")
    sampling.sampler = SAMPLERS.get(theirs, "dpmpp_2m")
    spacing = scheduler.get("timestep_spacing", "leading")
    if spacing == "leading" and (offset := scheduler.get("steps_offset", 0)):
        spacing = f"leading_{offset}"
    sampling.spacing = spacing if spacing in SPACINGS else "trailing"
    if theirs not in SAMPLERS or spacing not in SPACINGS:
        logging.info(
            "%s with %s spacing is not built here: this run draws with %s, %s.",
            theirs, spacing, sampling.sampler, sampling.spacing,
        )  # fmt: skip
    sampling.update(steps=50, guidance=7.5, shift=1.0, clip="none", eta=0.0)
    if theirs == "DDIMScheduler" and not scheduler.get("set_alpha_to_one", True):
        sampling.final_sigma = "sigma_min"


def _clip(path: epath.Path) -> Converted:
    """A folder with config.json, model.safetensors and a tokenizer."""

    model, variables = pretrained.load("clip", path)
    net, folder = model.net, path if path.is_dir() else path.parent
    words = Tokenizer(tokenizers.read(folder))
    end = net.vocab_size - 1 if net.end is None else net.end
    if (words.vocab_size, words.eos_id) != (net.vocab_size, end):
        raise InputError(
            f"'{folder}': the tokenizer has {words.vocab_size} tokens and ends a text with token "
            f"{words.eos_id}, the text tower has {net.vocab_size} and looks for {end}."
        )
    config = _config("clip", "data=folder")
    config.model.text = ConfigDict(dataclasses.asdict(net.text))
    config.model.vision = ConfigDict(dataclasses.asdict(net.vision))
    del config.model.vision.resolution
    config.model.projection = net.projection
    config.data.resolution = net.vision.resolution
    config.data.crop = "shortest_edge"
    config.data.text_length = net.max_length
    config.model.preprocessing = _preprocessing(folder, net.vision.resolution)
    config.optimizer.learning_rate = 1e-5  # they are trained already
    return Converted(config, clip.to_task(variables), words.json, [])


def _preprocessing(folder: epath.Path, resolution: int) -> str:
    """The row of PREPROCESSINGS that the folder's config describes; CLIP's where it has none.

    Raises:
      InputError: it describes another, or pictures of another size.
    """

    what = "what is done to pictures"
    if (file := folder / "preprocessor_config.json").exists():
        found = Options(tensors.read_json(file, what), file)
    elif (file := folder / "processor_config.json").exists():  # of transformers 5
        found = Options(tensors.read_json(file, what), file).part("image_processor")
    else:
        return NORMALISED[CLIP_MEAN, CLIP_STD]
    found.demand(
        size=({"shortest_edge": resolution}, resolution),
        crop_size=({"height": resolution, "width": resolution}, resolution),
        resample=(3,),  # bicubic
        rescale_factor=(1 / 255,),
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize"), (True,)),
    )
    mean, std = tuple(found.get("image_mean", CLIP_MEAN)), tuple(found.get("image_std", CLIP_STD))
    if (mean, std) not in NORMALISED:
        raise InputError(f"{file}: image_mean={mean}, image_std={std} are of no known network.")
    return NORMALISED[mean, std]


def _clip_vision(path: epath.Path) -> Converted:
    """A vision tower, also out of a whole CLIP; its projection where there is one."""

    model, variables = pretrained.load("clip_vision", path)
    net, folder = model.net, path if path.is_dir() else path.parent
    vision = dataclasses.asdict(net.vision)
    resolution = vision.pop("resolution")
    fields = {
        "network": "clip_vision",
        "vision": vision,
        "projection": net.projection,
        "preprocessing": _preprocessing(folder, resolution),
    }
    config = _features(fields, resolution, "shortest_edge")
    return Converted(config, clip.to_task(variables), "", [])


def _inception(path: epath.Path) -> Converted:

    model, variables = pretrained.load("inception_fid", path)
    fields = {"network": "inception", "source_sha256": model.source_sha256}
    if not model.is_fid:
        logging.warning(
            "'%s' does not say that it was converted from the weights of FID (sha256 %s..., found "
            "'%s'): distances by this run are not called FID.",
            path, PUBLISHED_SHA256, model.source_sha256,
        )  # fmt: skip
    renamed = {collection: {"inception": tree} for collection, tree in variables.items()}
    return Converted(_features(fields, SIDE, "tensorflow1"), renamed, "", [])


def _features(model: dict[str, Any], resolution: int, crop: str) -> ConfigDict:
    """The config of a network that only gives features; nothing in it is about training.

    crop: a row of data.augment.CROPS, or the name of the network's own way to resize.
    """

    data = presets.fields("folder") | {"resolution": resolution, "crop": crop}
    return ConfigDict(
        {"task": "features", "model": model, "data": data, "ema": {}, "parallel": "pmap"}
    )


def _alone(kind: str, part: str, network: str = "") -> Callable[[epath.Path], Converted]:
    """Weights of one network, for config.init.<part> of other runs."""

    def convert(path: epath.Path) -> Converted:
        from vision_lang import pretrained
        from vision_lang.pretrained import tokenizers

        _, variables = pretrained.load(kind, path)
        params = variables["params"][network] if network else variables["params"]
        folder = path if path.is_dir() else path.parent
        names = ("tokenizer.json", "vocab.json")
        words = tokenizers.read(folder) if any((folder / n).exists() for n in names) else ""
        config = ConfigDict({"task": "weights", "network": kind, "part": part, "ema": {}})
        return Converted(config, {"params": {part: params}}, words, [])

    return convert


KINDS: dict[str, Callable[[epath.Path], Converted]] = {
    "vgg": _vgg,
    "diffusers": _diffusers,
    "clip": _clip,
    "clip_vision": _clip_vision,
    "inception_fid": _inception,
    "gpt2": _alone("gpt2", "decoder"),
    "clip_text": _alone("clip_text", "text_encoder", "text_model"),
    "t5_encoder": _alone("t5_encoder", "text_encoder"),
    "unet": _alone("unet", "unet"),
    "autoencoder": _alone("autoencoder", "autoencoder"),
}
