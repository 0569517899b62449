"""Writes events.golden with TensorBoard's own writer (tensorboard 2.21.0, protobuf 7.36)."""

from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

values = [Summary.Value(tag="loss", simple_value=8.7654), Summary.Value(tag="lr", simple_value=4.4e-4)]
events = [
    Event(wall_time=1764000000.25, file_version="brain.Event:2"),
    Event(wall_time=1764000001.5, step=300, session_log=SessionLog(status=SessionLog.START)),
    Event(wall_time=1764000002.75, step=300, summary=Summary(value=values)),
]
with open(Path(__file__).with_name("events.golden"), "wb") as file:
    writer = RecordWriter(file)
    for event in events:
        writer.write(event.SerializeToString())
    writer.flush()
