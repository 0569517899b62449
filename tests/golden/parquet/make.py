"""Tiny Parquet files as pyarrow writes them, in MiniMind-V's form: python make.py, in this folder."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded_image(k, form):
    shade = Image.new("RGB", (12 + k % 3, 9), (k * 11 % 256, 255 - k * 7 % 256, k * 3 % 256))
    out = io.BytesIO()
    shade.save(out, form)
    return out.getvalue()


def conversation(k, images):
    turns = [("user", "<image>\n" * images + f"question {k}"), ("assistant", f"answer {k} " + "词" * (k % 5))]
    return json.dumps([{"role": r, "content": c} for r, c in turns], ensure_ascii=False)


ROWS = 40
one = [encoded_image(k, "PNG") for k in range(ROWS)]
several = [[encoded_image(k + j, "PNG") for j in range(k % 4)] for k in range(ROWS)]
flat = pa.table({
    "conversations": pa.array([conversation(k, 1) for k in range(ROWS)]),
    "image_bytes": pa.array(one, pa.binary()),
})
lists = pa.table({
    "conversations": pa.array([conversation(k, k % 4) for k in range(ROWS)]),
    "image_bytes": pa.array(several, pa.list_(pa.binary())),
})
names = pa.table({
    "conversations": pa.array([conversation(k, 1) for k in range(3)]),
    "image": pa.array([f"{k}.png" for k in range(3)]),
})
# Small pages and groups, so that rows start at any position in them.
pq.write_table(flat, "flat.parquet", row_group_size=17, data_page_size=500, write_batch_size=4)
pq.write_table(lists, "lists.parquet", row_group_size=23, data_page_size=300, write_batch_size=3, compression="zstd", use_dictionary=False)
pq.write_table(lists, "lists_v2.parquet", data_page_version="2.0", data_page_size=300, write_batch_size=3, compression="gzip")
pq.write_table(names, "names.parquet", compression="none")
pq.write_table(flat.slice(0, 2), "brotli.parquet", compression="brotli")
