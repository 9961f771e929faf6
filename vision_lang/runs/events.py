"""TensorBoard event files, written directly from TensorBoard's own protobufs.

TensorBoard's Python summaries want TensorFlow, and tensorboardX writes hparams as a run of their
own. Scalars are `simple_value`s and images `Summary.Image`s, the forms that every reader of event
files knows and that a restart record purges.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Mapping
from typing import Any

from etils import epath
from tensorboard.compat.proto import event_pb2, summary_pb2, tensor_pb2, types_pb2
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2

from vision_lang.errors import printable

_STEM = "events.out.tfevents"
_HPARAMS_START = "_hparams_/session_start_info"  # tags that the hparams plugin looks for
_HPARAMS_END = "_hparams_/session_end_info"


class EventFile:
    """One new event file in a run's folder, sorted after those that are there.

    Args:
      directory: the run folder.
      start_step: the step that training goes on from; what older files say of later steps is
        declared void (TensorBoard purges it).

    Attributes:
      has_hparams: an event file that was there before has the run's hparams whole.
    """

    def __init__(self, directory: epath.Path, start_step: int) -> None:
        times = _times(directory)
        self.has_hparams = any(map(_has_hparams, _paths(directory)))
        # Readers take event files in the order of their names, whose head is a time in seconds.
        now = max([int(time.time()), *(t + 1 for t in times)])
        self._file = (directory / f"{_STEM}.{now:010d}.vision_lang").open("wb")
        self._write(event_pb2.Event(wall_time=time.time(), file_version="brain.Event:2"))
        # A new run says so too: TensorBoard purges nothing at the first start that it sees.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._write(event_pb2.Event(wall_time=time.time(), step=start_step + 1, session_log=start))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        pairs = [summary_pb2.Summary.Value(tag=t, simple_value=v) for t, v in values.items()]
        self._summary(step, pairs)

    def image(self, step: int, tag: str, png: bytes, height: int, width: int) -> None:
        image = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=3, encoded_image_string=png
        )
        self._summary(step, [summary_pb2.Summary.Value(tag=tag, image=image)])

    def text(self, step: int, tag: str, markdown: str) -> None:
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, string_val=[markdown.encode("utf-8", "backslashreplace")]
        )
        tensor.tensor_shape.dim.add(size=1)
        self._summary(step, [_plugin_value(tag, "text", b"", tensor)])

    def hparams_start(self, hparams: Mapping[str, Any]) -> None:
        """The hparams plugin's record of a run's config; a tuple becomes text.

        No Experiment record is written: the plugin takes the first that it finds for all runs
        and hides what that one does not name; without it the columns are those of all runs.
        """
        info = plugin_data_pb2.SessionStartInfo(start_time_secs=time.time())
        for name, value in hparams.items():
            if isinstance(value, bool):
                info.hparams[name].bool_value = value
            elif isinstance(value, (int, float)):
                info.hparams[name].number_value = value
            else:
                info.hparams[name].string_value = printable(str(value))
        self._hparams(_HPARAMS_START, plugin_data_pb2.HParamsPluginData(session_start_info=info))

    def hparams_end(self) -> None:
        """The hparams plugin's record that the run is complete."""
        info = plugin_data_pb2.SessionEndInfo(
            status=api_pb2.STATUS_SUCCESS, end_time_secs=time.time()
        )
        self._hparams(_HPARAMS_END, plugin_data_pb2.HParamsPluginData(session_end_info=info))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _hparams(self, tag: str, data: plugin_data_pb2.HParamsPluginData) -> None:
        tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_FLOAT)
        tensor.tensor_shape.dim.add(size=0)
        self._summary(0, [_plugin_value(tag, "hparams", data.SerializeToString(), tensor)])

    def _summary(self, step: int, values: list[summary_pb2.Summary.Value]) -> None:
        summary = summary_pb2.Summary(value=values)
        self._write(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def _write(self, event: event_pb2.Event) -> None:
        """A TFRecord: length, its checksum, data, its checksum."""
        data = event.SerializeToString()
        header = struct.pack("<Q", len(data))
        checks = [struct.pack("<I", masked_crc32c(part)) for part in (header, data)]
        self._file.write(header + checks[0] + data + checks[1])


def _plugin_value(
    tag: str, plugin: str, content: bytes, tensor: tensor_pb2.TensorProto
) -> summary_pb2.Summary.Value:
    metadata = summary_pb2.SummaryMetadata(
        plugin_data=summary_pb2.SummaryMetadata.PluginData(plugin_name=plugin, content=content)
    )
    return summary_pb2.Summary.Value(tag=tag, metadata=metadata, tensor=tensor)


def _paths(directory: epath.Path) -> list[epath.Path]:
    """The event files, oldest first."""
    return sorted(p for p in directory.iterdir() if p.name.startswith(_STEM + "."))


def _times(directory: epath.Path) -> list[int]:
    names = [path.name.split(".") for path in _paths(directory)]
    return [int(parts[3]) for parts in names if parts[3].isdecimal()]


def _has_hparams(path: epath.Path) -> bool:
    """Reads no further than to that record, which stands near the head of the first file."""
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            size = struct.unpack("<Q", header[:8])[0]
            record = file.read(size + 4)
            if len(record) == size + 4 and _HPARAMS_START.encode() in record:
                return True
    return False
