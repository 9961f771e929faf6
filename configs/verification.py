"""Verification: do two pictures show the same person? Trained by a head by angle.

    python -m vision_lang.main --config=configs/verification.py --config.data.dir=DIR
    python -m vision_lang.main --config=configs/verification.py:data=folder --config.data.path=DIR

The first is Labeled Faces in the Wild, as `tfds build lfw --file_format=array_record` prepares it
under DIR. It is read as `lfw_people`: by a hash of the name 80 % of the people are trained on, and
pairs are made of the others, whom the network never saw: at a period of those in validation, at the
end also of those in test. TFDS has no official pairs; they are derived in 10 folds from labels and
seed (metrics/pairs.py), and the accuracy of a fold is at the threshold that is best on the other
nine, as in the LFW protocol. So the figures are this split's, and not comparable with published
ones.

Anything with several pictures of each identity can be verified: a folder whose `label` is the
identity, and whose `split` (or `group`, the same as the label) keeps each in one part. The emoji of
experiments/verification_emoji are such a folder: an identity is an emoji, its two pictures are two
styles of drawing.

Arguments behind the colon: tiny (seconds on a CPU), data (any name of config.data.name), size (a
row of models.vgg.VGGS), margin (a row of models.margin.MARGINS).
"""

from ml_collections import ConfigDict

from configs import common, recognition
from vision_lang.errors import choose
from vision_lang.models.margin import MARGINS

PEOPLE = {"lfw": "lfw_people"}  # what recognition splits by picture -> the same, split by person


def get_config(arg: str = "") -> ConfigDict:
    """Returns the config; see the module's docstring."""
    given = common.parse_arg(arg, tiny=False, data="lfw", size="11", margin="arcface")
    choose(MARGINS, given.margin, "margin")
    data = PEOPLE.get(given.data, given.data)
    config = recognition.get_config(f"tiny={given.tiny},data={data},size={given.size}")
    config.model.margin.kind = given.margin
    config.label_smoothing = 0.0  # the margin is what keeps the network from being too sure
    config.evaluators = ConfigDict(
        {  # a loss over people who were never trained on would say nothing
            "verification": {
                "kind": "verification",
                "layer": "embedding",
                "splits": ("validation",),
                "final_splits": ("validation", "test"),  # the test split is looked at once
                "folds": 2 if given.tiny else 10,
                "per_fold": 300,  # the most pairs of either kind in a fold
                "far": (0.01, 0.001),  # false-accept rates
                "batch_size": 16 if given.tiny else 64,
            },
        }
    )
    return config
