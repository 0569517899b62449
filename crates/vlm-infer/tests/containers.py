"""Loads an exported container in Hugging Face's transformers and compares it with what this program
computed. Usage: containers.py FOLDER EXPECTED, where EXPECTED is a folder with `image.png` and
`expected.json`: the conversation, token ids (with the container's image token), logits of the last
positions, and the greedily generated text. Prints one JSON object."""

import json
import sys

import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

torch.set_num_threads(1)
torch.set_grad_enabled(False)

folder, expected_folder = sys.argv[1:]
expected = json.load(open(f"{expected_folder}/expected.json"))
logits = load_file(f"{expected_folder}/logits.safetensors")["logits"]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
image = Image.open(f"{expected_folder}/image.png").convert("RGB")
content = [{"type": "image"}, {"type": "text", "text": expected["question"]}]
prompt = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
)
inputs = processor(images=image, text=prompt, return_tensors="pt")
ids = inputs["input_ids"][0].tolist()
same_ids = ids == expected["input_ids"]
difference = None
if same_ids:
    found = model(**inputs).logits[0][:, : logits.shape[1]]
    difference = (found - logits).abs().max().item()
generated = model.generate(**inputs, max_new_tokens=expected["max_new_tokens"], do_sample=False)
text = processor.decode(generated[0][len(ids) :], skip_special_tokens=True)
report = {
    "model": type(model).__name__,
    "same_ids": same_ids,
    "difference": difference,
    "largest": logits.abs().max().item(),
    "text": text,
}
if not same_ids:
    report["prompt"] = prompt
    report["ids"] = ids
print(json.dumps(report))
