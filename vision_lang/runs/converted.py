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
from vision_lang.pretrained import scheduler, tensors, tokenizers
from vision_lang.pretrained.options import Options
from vision_lang.runs import config as config_lib
from vision_lang.tasks import clip
from vision_lang.tasks.preprocessing import CLIP_MEAN, CLIP_STD, NORMALISED, PREPROCESSINGS

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
    choose(PREPROCESSINGS, model.preprocessing, f"preprocessing in the metadata of '{path}':")
    spec = model.net.spec
    renamed = {collection: {"encoder": tree} for collection, tree in variables.items()}
    if spec.head == "none":
        logging.info(
            "It has no head: an encoder to begin with, by config.init.encoder where "
            "config.model.preprocessing=%s.", model.preprocessing,
        )  # fmt: skip
        config = _weights("vgg", "encoder")
        config.model = {
            "encoder": dataclasses.asdict(spec), "preprocessing": model.preprocessing
        }  # fmt: skip
        return Converted(config, renamed, "", [])
    config = _config("recognition", "data=folder")
    config.model.encoder = ConfigDict(dataclasses.asdict(spec))
    config.model.preprocessing = model.preprocessing
    config.data.resolution = max(SMALLEST, spec.grid * 2 ** len(spec.stages))  # 224
    config.data.crop = "random_resized_crop"  # the centre, where nothing is learnt
    config.augmentation.pad = 0
    names = [str(i) for i in range(model.net.classes)]
    return Converted(config, renamed, "", names)


def _diffusers(path: epath.Path) -> Converted:
    """A folder `unet/ vae/ text_encoder/ tokenizer/ scheduler/ model_index.json`."""
    tensors.read_json(tensors.folder(path) / "model_index.json", "which a folder of diffusers has")
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
    trained, drawn = scheduler.read(Options(tensors.read_json(file, "the noise levels"), file))
    config.diffusion.update(
        trained, weighting="uniform", time_sampling="uniform", gradient_weight=0.0, mean_weight=1.0
    )
    config.sampling.update(drawn, steps=50, guidance=7.5, shift=1.0, clip="none", eta=0.0)
    variables = {
        "unet": unet_variables["params"],
        "text_encoder": text_variables["params"]["text_model"],
        "autoencoder": vae_variables["params"],
    }
    return Converted(config, {"params": variables}, tokenizers.read(path / "tokenizer"), [])


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


def _weights(kind: str, part: str) -> ConfigDict:
    """The config of a network that other runs begin with."""
    return ConfigDict({"task": "weights", "network": kind, "part": part, "ema": {}})


READ_TEXTS = ("decoder", "text_encoder")


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
        if part in READ_TEXTS and not words:
            logging.warning(
                "'%s' has no tokenizer.json, nor vocab.json: who begins with these weights needs "
                "theirs, as config.data.tokenizer. transformers writes it: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER).", folder,
            )  # fmt: skip
        return Converted(_weights(kind, part), {"params": {part: params}}, words, [])

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
