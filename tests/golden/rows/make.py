"""Tiny Parquet and Arrow files as pyarrow and Hugging Face's `datasets` write them, nested in the ways that
public data sets are: python make.py, in this folder. Row k asks "question k", has k % 3 images, image j of row k
being PNG bytes of 1 x (1 + (k + j) % 4) pixels, and the answer "answer k"."""

import io

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
from PIL import Image

ROWS = 30


def image(k):
    out = io.BytesIO()
    Image.new("L", (1, 1 + k % 4), 60).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": f"{k}.png"}


def images(k):
    return [image(k + j) for j in range(k % 3)]


def tagged(k):
    return "<image>\n" * (k % 3) + f"question {k}"


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
conversations = pa.table({
    "id": pa.array([str(k) for k in range(ROWS)]),
    "image": pa.array([image(k) if k % 3 == 1 else None for k in range(ROWS)], IMAGE),
    "conversations": pa.array(
        [[{"from": "human", "value": tagged(k)}, {"from": "gpt", "value": f"answer {k}"}] for k in range(ROWS)],
        pa.list_(pa.struct([("from", pa.string()), ("value", pa.large_string())]))),
}).filter(pa.array([k % 3 != 2 for k in range(ROWS)]))
texts = pa.table({
    "images": pa.array([images(k) for k in range(ROWS)], pa.list_(IMAGE)),
    "texts": pa.array(
        [[{"user": f"question {k}", "assistant": f"answer {k}", "source": "made"},
          {"user": "and?", "assistant": "more", "source": None}][: 1 + k % 2] for k in range(ROWS)],
        pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string()), ("source", pa.string())]))),
    "source": pa.array(["made"] * ROWS),
    "relevance_ratings": pa.array([[k % 5, 3][: 1 + k % 2] for k in range(ROWS)], pa.list_(pa.int64())),
})
PART = pa.struct([("type", pa.string()), ("text", pa.string()), ("image", IMAGE)])


def parts(k):
    shown = [{"type": "image", "text": None, "image": one} for one in images(k)]
    return shown + [{"type": "text", "text": f"question {k}", "image": None}]


messages = pa.table({
    "messages": pa.array(
        [[{"role": "user", "content": parts(k)},
          {"role": "assistant", "content": [{"type": "text", "text": f"answer {k}", "image": None}]}]
         for k in range(ROWS)],
        pa.list_(pa.struct([("role", pa.string()), ("content", pa.list_(PART))]))),
})
captions = pa.table({
    "image": pa.array([image(k) for k in range(ROWS)], IMAGE),
    "caption": pa.array([[f"answer {k}", "another"] for k in range(ROWS)], pa.list_(pa.string())),
})
two_images = captions.append_column("mystery", captions["image"])
for name, table in [("conversations", conversations), ("texts", texts), ("messages", messages), ("captions", captions)]:
    # Small pages and groups, so that rows start at any position in them.
    pq.write_table(table, f"{name}.parquet", row_group_size=17, data_page_size=200, write_batch_size=3, compression="zstd")
pq.write_table(messages, "messages_v2.parquet", data_page_version="2.0", data_page_size=200, write_batch_size=3, use_dictionary=False)
pq.write_table(captions.slice(0, 2), "brotli.parquet", compression="brotli")
pq.write_table(two_images.slice(0, 2), "two_images.parquet")
pq.write_table(captions.slice(0, 2).rename_columns(["scan", "caption"]), "only_by_type.parquet")
with ipc.new_stream("texts.arrow", texts.schema) as writer:
    writer.write_table(texts, max_chunksize=7)
with ipc.new_file("messages.arrow", messages.schema) as writer:
    writer.write_table(messages, max_chunksize=7)
feather.write_feather(conversations, "conversations_lz4.feather", compression="lz4", chunksize=7)
feather.write_feather(conversations, "conversations_zstd.feather", compression="zstd", chunksize=7)
