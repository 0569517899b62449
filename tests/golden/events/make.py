"""Writes events.golden with TensorBoard's own writer (tensorboard 2.21.0, protobuf 7.36)."""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.summary.writer.record_writer import RecordWriter

values = [
    Summary.Value(tag="train/loss", simple_value=8.7654),
    Summary.Value(tag="train/lr", simple_value=4.4e-4),
]
# The header of a PNG file of 300 by 200 pixels.
png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (300).to_bytes(4, "big") + (200).to_bytes(4, "big")
samples = [
    Summary.Value(
        tag="samples/row 3",
        tensor=TensorProto(
            dtype=DT_STRING,
            tensor_shape=TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)]),
            string_val=[b"**A cat.**"],
        ),
        metadata=SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="text")),
    ),
    Summary.Value(
        tag="samples/image of row 3",
        image=Summary.Image(height=200, width=300, colorspace=3, encoded_image_string=png),
    ),
]
events = [
    Event(wall_time=1764000000.25, file_version="brain.Event:2"),
    Event(wall_time=1764000001.5, step=300, session_log=SessionLog(status=SessionLog.START)),
    Event(wall_time=1764000002.75, step=300, summary=Summary(value=values)),
    Event(wall_time=1764000003.0, step=300, summary=Summary(value=samples)),
]
with open(Path(__file__).with_name("events.golden"), "wb") as file:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    writer.flush()
