"""Flags that commands share, and how a command runs: errors become a sentence and an exit code."""

from __future__ import annotations

import contextlib
import json
import logging as standard_logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

from absl import app, flags, logging
from etils import epath

from vision_lang.errors import InputError, printable

FLAGS = flags.FLAGS
BAD_INPUT, INTERRUPTED = 2, 128 + signal.SIGINT  # exit codes


def define_run() -> None:
    """--run, for the commands that use a trained run."""
    flags.DEFINE_string("run", "", "Run folder, or RUN@step.")
    flags.DEFINE_string(
        "weights", "", "ema, raw or std=S (training/averages.py); '' = the average if there is one."
    )


def define_processes() -> None:
    """The flags of several processes that do one thing together; see `together`."""
    flags.DEFINE_string(
        "coordinator", "", "host:port of process 0, or auto: JAX asks SLURM, Kubernetes, a TPU pod."
    )
    flags.DEFINE_integer("num_processes", None, "With --coordinator=host:port.", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "0, 1, ...; likewise.", lower_bound=0)
    flags.DEFINE_integer(
        "process_timeout", 180, "Seconds without a process after which the others end.",
        lower_bound=1,
    )  # fmt: skip


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Inside, this process is one of those that `define_processes` is about, if there are several.

    An error inside ends it at once: Python's own end would wait for the others, who wait for it.
    """
    from vision_lang import processes

    where = FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id
    processes.connect(*where, FLAGS.process_timeout)
    if not processes.first():
        logging.set_verbosity(logging.WARNING)
    try:
        yield
        processes.wait("end")
    except SystemExit:  # they all do
        raise
    except BaseException as error:
        if not processes.several():
            raise
        known, sentence = isinstance(error, InputError), str(error)
        if not known:
            traceback.print_exc()
            sentence = "This process ends. If another was not there, its output says why."
        print(f"error: {sentence}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(BAD_INPUT if known else 1)


def run(
    main: Callable[..., None],
    argv: Sequence[str] | None = None,
    define: Callable[[], None] = lambda: None,
    *,
    names: bool = False,
) -> None:
    """Parses the flags (defined before, or by `define`) and runs `main`.

    names: arguments without -- are not refused but handed to `main` as a list.

    Wrong input prints one sentence on stderr and exits with 2, Ctrl-C exits with 130; any other
    error has its traceback.
    """
    argv = list(sys.argv if argv is None else argv)
    before = signal.signal(signal.SIGINT, _interrupted)
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    logging.get_absl_handler().setFormatter(None)
    # JAX tells of every kind of device that it looked for and did not find.
    standard_logging.getLogger("jax._src.xla_bridge").setLevel(standard_logging.WARNING)
    try:
        left = _parse(argv, define)
        if len(left) > 1 and not names:
            raise InputError(f"Unknown argument '{left[1]}'; every flag begins with --.")
        if "run" in FLAGS and not FLAGS.run:
            raise InputError("Say which run: --run=DIR.")
        if names:
            main(left[1:])
        else:
            main()
    except InputError as error:
        # Some sentences have several lines; what else moves a terminal's cursor is not ours.
        print("error:", "\n".join(map(printable, str(error).split("\n"))), file=sys.stderr)
        sys.exit(BAD_INPUT)
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupted(number: int, frame: object) -> None:
    """Ends the program at once, as SIGTERM does: what is written to a disk is whole at any time.

    Not by KeyboardInterrupt, of which a compiled module that is just being imported makes an error
    of its own. In training `Signals` takes this one's place.
    """
    del number, frame
    with contextlib.suppress(RuntimeError, OSError):  # it is being printed to, or closed
        sys.stdout.flush()
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\x1b[?25h\n")  # a progress bar has hidden the cursor
    os._exit(INTERRUPTED)


def write_record(path: str, record: Mapping[str, object]) -> None:
    """Writes a record as JSON, and makes the folder for it.

    Raises:
      InputError: the file cannot be written.
    """
    out = epath.Path(path)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
    except OSError as error:
        raise InputError(f"'{out}' cannot be written: {error.strerror or error}.") from error


def report_bad(bad: Mapping[str, str], total: int, what: str) -> None:
    """Names what could not be read, {name: why}, of `total` pictures or texts (`what` it is), and
    ends with exit code 1; if there is nothing, nothing happens."""
    for name, reason in bad.items():
        print(f"error: {printable(f'{name}: {reason}')}", file=sys.stderr)
    if bad:
        print(f"{len(bad)} of {total} {what} could not be read.", file=sys.stderr)
        sys.exit(1)


def _parse(argv: list[str], define: Callable[[], None]) -> list[str]:
    try:
        define()  # a config's flags are looked at as soon as they are defined
        app.define_help_flags()
        return app.parse_flags_with_usage(argv) if _asks_for_help(argv) else FLAGS(argv)
    except (SystemExit, InputError):
        raise
    except Exception as error:
        from vision_lang.runs import config as config_lib

        logging.debug("%s", traceback.format_exc())
        raise config_lib.parse_flags_error(error, argv) from error


def _asks_for_help(argv: list[str]) -> bool:
    return any(a.lstrip("-") in ("help", "helpshort", "helpfull", "h") for a in argv[1:])
