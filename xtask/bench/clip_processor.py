"""Measures how many images per second Pillow and CLIPImageProcessor decode and preprocess in one
thread, for comparison in `cargo xtask bench data`. Reads every .jpg file of the folder into memory,
then processes them in turn for the given number of seconds. Prints one JSON object."""

import io
import json
import os
import sys
import time

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import PIL
import transformers
from PIL import Image
from transformers import CLIPImageProcessor

folder, seconds = sys.argv[1], float(sys.argv[2])
names = sorted(name for name in os.listdir(folder) if name.endswith(".jpg"))
images = [open(os.path.join(folder, name), "rb").read() for name in names]
# The settings in preprocessor_config.json of openai/clip-vit-base-patch16.
processor = CLIPImageProcessor(
    do_resize=True, size={"shortest_edge": 224}, resample=3,
    do_center_crop=True, crop_size={"height": 224, "width": 224},
    do_rescale=True, do_normalize=True,
    image_mean=[0.48145466, 0.4578275, 0.40821073],
    image_std=[0.26862954, 0.26130258, 0.27577711],
)


def run(limit):
    count, started = 0, time.process_time()
    while time.process_time() - started < limit:
        image = Image.open(io.BytesIO(images[count % len(images)])).convert("RGB")
        pixels = processor(images=image, return_tensors="np")["pixel_values"]
        assert pixels.shape == (1, 3, 224, 224)
        count += 1
    return count / (time.process_time() - started)


run(min(1.0, seconds))
print(json.dumps({
    "images_per_sec": run(seconds),
    "pillow": PIL.__version__,
    "transformers": transformers.__version__,
}))
