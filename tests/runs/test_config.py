"""Configs as text, resumed runs' configs, and the errors of the command line as sentences."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from configs import common, diffusion
from vision_lang.errors import InputError
from vision_lang.runs import config as config_lib

ROOT = Path(__file__).resolve().parents[2]


def test_a_config_survives_json_with_its_types():
    config = ConfigDict(
        {
            "whole": 1, "real": 1.0, "tiny": 1e-30, "third": 1 / 3, "yes": True, "word": "Größe",
            "none": "", "sizes": (32, 64.0, "x", (1, 2)), "nested": {"deep": {"n": 3}}, "empty": {},
        }
    )  # fmt: skip
    again = config_lib.from_json(config_lib.to_json(config))
    assert again.to_dict() == config.to_dict()
    types = {p: type(v) for p, v in config_lib.flatten(config).items()}
    assert {p: type(v) for p, v in config_lib.flatten(again).items()} == types
    assert again.is_locked
    assert config_lib.fingerprint(again) == config_lib.fingerprint(config)


@pytest.mark.parametrize("value", [None, [1, 2], (1, None), float("nan"), float("inf"), object()])
def test_a_value_that_cannot_be_set_or_stored_is_refused(value):
    config = ConfigDict({"part": {"field": value}})
    with pytest.raises(InputError, match=r"config\.part\.field"):
        config_lib.to_json(config)


def test_the_common_fields_can_all_be_stored_and_are_those_of_the_contract():
    config = common.base()
    assert config_lib.from_json(config_lib.to_json(config)).to_dict() == config.to_dict()
    fields = set(config) | {f"data.{name}" for name in config.data}
    assert fields >= {
        "seed", "steps", "batch_size", "accumulate", "log_every", "eval_every", "save_every",
        "keep", "keep_best", "workers", "deterministic", "require_accelerator", "parallel", "init",
        "data.name", "data.path", "data.dir",
    }  # fmt: skip


def test_differences_see_types_and_absent_fields():
    a = ConfigDict({"x": 1, "flag": True, "t": (1, 2), "part": {"old": 3}})
    b = ConfigDict({"x": 1.0, "flag": 1, "t": [1, 2], "part": {"new": 4}})
    assert config_lib.differences(a, b) == {
        "x": (1, 1.0),
        "flag": (True, 1),
        "part.old": (3, config_lib.MISSING),
        "part.new": (config_lib.MISSING, 4),
    }
    assert config_lib.differences(a, a) == {}


def test_resume_allows_the_declared_fields_and_shows_all_others():
    stored, given = common.base(), common.base()
    given.steps, given.keep, given.workers, given.keep_best = 7, 5, 3, "val/loss:min"
    changed = config_lib.check_resume(stored, given)
    assert changed["steps"] == (stored.steps, 7) and set(changed) == {
        "steps", "keep", "workers", "keep_best",
    }  # fmt: skip
    given.seed = 4
    given.data.name = "folder"
    given.extra = "new"
    with pytest.raises(InputError) as caught:
        config_lib.check_resume(stored, given)
    text = str(caught.value)
    assert "seed: 0 -> 4" in text and "data.name: 'shapes' -> 'folder'" in text
    assert "extra: (missing) -> 'new'" in text and "--fork=NEW" in text
    assert "workers" not in text


def test_the_hash_of_a_run_is_of_what_it_keeps():
    config = diffusion.get_config("tiny")
    before = config_lib.lasting_hash(config)
    assert config_lib.lasting_hash(config_lib.from_json(config_lib.to_json(config))) == before
    for path, value in config_lib.flatten(config).items():
        other = config.copy_and_resolve_references()
        changed = value + ("x",) if isinstance(value, tuple) else not value
        with other.unlocked(), other.ignore_type():
            other.update_from_flattened_dict({path: changed})
        same = config_lib.lasting_hash(other) == before
        assert same == (path in config_lib.CHANGEABLE), path


def test_a_run_that_lacks_a_field_that_came_later_goes_on_with_it(tmp_path):
    config = common.base()
    for field in config_lib.ADDED:
        del config[field]
    config.steps = 7
    (tmp_path / "config.json").write_text(config_lib.to_json(config))
    later = config_lib.load(str(tmp_path / "config.json"))
    came = {field: (config_lib.MISSING, value) for field, value in config_lib.ADDED.items()}
    assert config_lib.differences(config, later) == came
    assert later.is_locked and common.base().stuck_after == later.stuck_after
    config.stuck_after = 5.0
    assert config_lib.of_run(config_lib.to_json(config)).stuck_after == 5.0


def test_entries_of_tuples_keep_their_type():
    defaults = ConfigDict({"widths": (32, 64), "betas": (0.9, 0.999)})
    config_lib.check_types(ConfigDict({"widths": (8,), "betas": (0, 0.5)}), defaults)
    with pytest.raises(InputError, match=r"widths = \(8, 1.5\).* int"):
        config_lib.check_types(ConfigDict({"widths": (8, 1.5), "betas": (0.9,)}), defaults)


@pytest.mark.parametrize(
    ("path", "value", "wanted"),
    [
        ("batch_size", 0, "1 or more"),
        ("steps", -5, "1 or more"),
        ("log_every", 0, "1 or more"),
        ("accumulate", 0, "1 or more"),
        ("workers", -1, "0 or more"),
        ("seed", 2**32, "a whole number from 0"),  # JAX would take it for 0
        ("caption_drop", 2.0, "from 0 to 1"),
        ("ema.ema.decay", 1.0, "less than 1"),
        ("ema.ema.decay", -0.1, "0 or more"),
        ("data.text_length", 2, "3 or more"),
        ("data.background", (0, 256, 0), "from 0 to 255"),
        ("model.patch", 0, "1 or more"),
        ("model.unet.widths", (64, 0), "1 or more"),
        ("model.text.dropout", 1.0, "less than 1"),
        ("model.text.distance_slopes", ((0.5, -1.0), (9.0, 0.5)), "0 or more"),
        ("model.text.distance_slopes", (("a", 1.0), (9.0, 0.5)), "0 or more"),
        ("optimizer.eps", 0.0, "above 0"),
        ("optimizer.frozen", ("unet/.*", "["), "a valid regular expression"),
        ("optimizer.groups.blocks.pattern", "*", "a valid regular expression"),
        ("init_except", "(", "a valid regular expression"),
    ],
)
def test_a_value_out_of_its_range_is_refused(path, value, wanted):
    config = diffusion.get_config("tiny")
    config.update_from_flattened_dict({path: value})
    with pytest.raises(InputError) as refused:
        config_lib.check_ranges(config)
    sentence = str(refused.value)
    assert sentence.startswith(f"config.{path} = {value!r}: ") and wanted in sentence


def test_arguments_are_typed_by_their_defaults():
    def parse(arg):
        return common.parse_arg(
            arg, tiny=False, n=3, rate=0.1, data="shapes", widths=(1, 2)
        ).to_dict()

    default = {"tiny": False, "n": 3, "rate": 0.1, "data": "shapes", "widths": (1, 2)}
    assert parse("") == default and parse(None) == default
    assert parse("tiny") == parse("tiny=true") == {**default, "tiny": True}
    assert parse("data=folder,n=1_000") == {**default, "data": "folder", "n": 1000}
    assert parse("widths=(8,16,32), rate=1") == {**default, "widths": (8, 16, 32), "rate": 1.0}
    assert type(parse("rate=1")["rate"]) is float


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("tny=true", "Did you mean 'tiny'"),
        ("tiny=1", "true or false"),
        ("n=1e3", "whole number"),
        ("n=1.0", "whole number"),
        ("n=true", "whole number"),
        ("rate=fast", "a number"),
        ("widths=3", "tuple"),
        ("n", "has no value"),
        ("n=1,n=2", "twice"),
        ("tiny,", "empty entry"),
        ("=3", "Unknown config argument"),
    ],
)
def test_wrong_arguments_are_refused(arg, words):
    with pytest.raises(InputError, match=words):
        common.parse_arg(arg, tiny=False, n=3, rate=0.1, widths=(1,))


def test_flag_errors_become_sentences(tmp_path):
    """What absl and ml_collections really raise, in a program that is like our commands."""
    (tmp_path / "conf.py").write_text(
        textwrap.dedent("""
        from configs import common

        def get_config(arg=""):
            arg = common.parse_arg(arg, tiny=False)
            return common.base()
        """)
    )
    program = textwrap.dedent("""
        import sys
        from absl import flags
        from ml_collections import config_flags
        from vision_lang.runs import config as config_lib

        holder = config_flags.DEFINE_config_file("config")
        for line in sys.stdin.read().splitlines():
            values = flags.FlagValues()
            holder = config_flags.DEFINE_config_file("config", flag_values=values)
            argv = ["main", *line.split(" ")]
            old, sys.argv = sys.argv, argv
            try:
                values(argv)
                values.config.seed
                print("no error")
            except Exception as e:
                print(config_lib.parse_flags_error(e, argv))
            sys.argv = old
        """)
    file = tmp_path / "conf.py"
    cases = {
        f"--config={file} --config.stesp=1": "--config.stesp: the config has no such field. "
        "Did you mean 'steps'?",
        f"--config={file} --config.data.pth=a": "--config.data.pth: the config has no such field. "
        "Did you mean 'data.path'?",
        f"--config={file} --config.text_length=8": "--config.text_length: the config has no such "
        "field. Did you mean 'data.text_length'?",
        f"--config {file} --config.init.encoder=RUN": "--config.init.encoder: the config has no "
        "such field. Write --config.init=\"{'encoder': ...}\".",
        f"--config={file} --config.init={{'encoder':'RUN'}}": "no error",
        f"--config={file} --config.steps=1e3": "--config.steps=1e3: a whole number written in "
        "digits, such as 1000 is wanted.",
        f"--config={file} --config.deterministic=maybe": "--config.deterministic=maybe: true or "
        "false is wanted.",
        f"--config={file}:tny=true": "Unknown config argument 'tny' in ':tny=true'. Did you mean "
        "'tiny'?",
        "--config=nowhere.py": "Config file 'nowhere.py' does not exist.",
        f"--config={file} --confi.steps=1": "Unknown command line flag 'confi.steps'.",
        f"--config={file} --config.steps=5": "no error",
    }
    done = subprocess.run(
        [sys.executable, "-c", program],
        input="\n".join(cases), capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    answers = done.stdout.splitlines()
    assert len(answers) == len(cases)
    for answer, wanted in zip(answers, cases.values(), strict=True):
        assert answer.startswith(wanted)


def test_load_reads_config_files_and_stored_configs(tmp_path):
    file = tmp_path / "conf.py"
    file.write_text(
        "from configs import common\n"
        "def get_config(arg=''):\n"
        "    config = common.base()\n"
        "    config.steps = common.parse_arg(arg, n=3).n\n"
        "    return config\n"
    )
    config = config_lib.load(f"{file}:n=9")
    assert config.steps == 9 and config.is_locked
    stored = tmp_path / "config.json"
    stored.write_text(config_lib.to_json(config))
    assert config_lib.differences(config_lib.load(str(stored)), config) == {}
    with pytest.raises(InputError, match="takes no argument"):
        config_lib.load(f"{stored}:n=9")
    with pytest.raises(InputError, match="does not exist"):
        config_lib.load("nowhere.py")
