"""Makes minimind3v/: python minimind3v.py CHECKOUT, with a checkout of MiniMind-V of June 2026 (commit 9595617; torch 2.11.0,
transformers 5.24.0, datasets 5.2.0, CPU, float32, one thread).

Rows, images, tokenizer and weights are our own. Its loader makes the ids and labels of every row, with and without a system prompt and with
and without the empty think blocks. Its two training scripts then train 20 steps each, unmodified but for these:
- the configuration has a small vocabulary and a small encoder, which no argument of the scripts sets;
- rows are taken in order (torch.randperm), and system prompts are drawn from SYSTEM_PROMPTS;
- the numbers between 0 and 1 of its two random draws are those of `uniform`, which is the function of seed, epoch and row in
  crates/vlm-data/src/chat_draws.rs; the scripts compare them with their own ratios.
"""

import io
import json
import os
import pathlib
import runpy
import shutil
import sys
import tempfile
import types

import pyarrow
import pyarrow.parquet
import tokenizers
import torch
import transformers
from PIL import Image, ImageDraw
from safetensors.torch import save_file

CHECKOUT = pathlib.Path(sys.argv[1]).resolve()
OUT = pathlib.Path(__file__).resolve().parent / "minimind3v"
DIM, LAYERS, VISION_DIM = 64, 3, 16
SEED = 1337
SYSTEM_PROMPTS = ["Answer in one short sentence.", "请用一句话回答。", "You describe shapes and colours."]
torch.set_num_threads(1)

# ---- our own tokenizer: the ids of its special tokens and the form of its template are those of minimind-3 ----
NAMED = {0: "<|endoftext|>", 1: "<|im_start|>", 2: "<|im_end|>", 12: "<|image_pad|>", 21: "<tool_call>", 22: "</tool_call>",
         23: "<tool_response>", 24: "</tool_response>", 25: "<think>", 26: "</think>"}
TEMPLATE = r"""
{%- set first = messages[0] %}
{%- set system = first.content if first.role == 'system' else none %}
{%- if tools %}
    {{- '<|im_start|>system\n' + (system + '\n\n' if system is not none else '') + 'Functions:\n<tools>' }}
    {%- for tool in tools %}{{ '\n' + (tool | tojson) }}{% endfor %}
    {{- '\n</tools><|im_end|>\n' }}
{%- elif system is not none %}
    {{- '<|im_start|>system\n' + system + '<|im_end|>\n' }}
{%- endif %}
{%- for m in messages %}
    {%- if m.role == 'assistant' %}
        {%- set reason, text = '', m.content %}
        {%- if '</think>' in text %}
            {%- set reason = text.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n<think>\n' + reason.strip('\n') + '\n</think>\n\n' + text.lstrip('\n') + '<|im_end|>\n' }}
    {%- elif m.role == 'tool' %}
        {{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}
    {%- elif m.role == 'user' or not loop.first %}
        {{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' + ('<think>\n' if open_thinking else '<think>\n\n</think>\n\n') }}
{%- endif %}"""


def write_tokenizer(texts):
    added = [NAMED.get(k, f"<|unused{k}|>") for k in range(36)]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=added, show_progress=False,
                                             initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator(texts, trainer)
    written = json.loads(tokenizer.to_str())
    for token in written["added_tokens"]:
        token["special"] = token["id"] <= 20
    (OUT / "tokenizer.json").write_text(json.dumps(written, ensure_ascii=False) + "\n")
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>",
              "add_bos_token": False, "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE.strip()}
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False, indent=1) + "\n")
    return tokenizer.get_vocab_size()


# ---- our own rows ----
def picture(colour, shape, size=(256, 256), mode="RGB"):
    image = Image.new(mode, size, "white")
    box = (size[0] // 5, size[1] // 4, size[0] * 4 // 5, size[1] * 3 // 4)
    getattr(ImageDraw.Draw(image), shape)(box, fill=colour)
    return image


def row(image, *turns, **first):
    """A row of turns that alternate between user and assistant, or are (role, text) pairs. `first` is added to the first turn."""
    turns = [turn if isinstance(turn, tuple) else (("user", "assistant")[k % 2], turn) for k, turn in enumerate(turns)]
    turns = [dict(role=role, content=content) for role, content in turns]
    turns[0].update(first)
    file = io.BytesIO()
    image.save(file, "PNG")
    return {"conversations": json.dumps(turns, ensure_ascii=False), "image_bytes": file.getvalue()}


NO_IMAGE = Image.new("RGB", (8, 8))
FUNCTIONS = [{"name": "count", "description": "Counts the shapes of a colour, at most 9.", "parameters": {"colour": {"type": "string"}}},
             {"name": "大小", "description": "Size & place <x, y>.", "parameters": {}}]
ROWS = [
    row(picture("red", "ellipse"), "<image>\nWhat is this?", "A red circle."),
    row(picture("blue", "rectangle"), "请描述这张图片。\n<image>", "图片中有一个蓝色的矩形。"),
    row(NO_IMAGE, "What is two and three?", "Two and three are five."),
    row(picture("green", "ellipse"), "<image>\nWhich colour?", "Green.", "And which shape?", "A circle."),
    row(picture("black", "rectangle"), ("system", "Be brief."), ("user", "<image> What is it?"), ("assistant", "A black square.")),
    row(picture("orange", "ellipse"), ("system", "Use the functions."), ("user", "<image>\nHow many are orange?"),
        ("assistant", '<tool_call>\n{"name": "count", "arguments": {"colour": "orange"}}\n</tool_call>'), ("tool", '{"count": 1}'),
        ("assistant", "There is one."), functions=FUNCTIONS),
    row(picture("purple", "rectangle"), "<image>\nIs it round?",
        "<think>\nIt has four corners.\n\nSo it is not round.\n</think>\n\nNo, it is a rectangle."),
    row(picture("pink", "ellipse"), "<image>\nIs it pink?", "<think>\nThe colour is pink.\n</think>\n\nYes.", "Is it blue?", "\nNo, it is not."),
    row(picture("gray", "rectangle"), "<image>\nWrite a long text.", "The gray shape is wide. " * 60),
    row(picture("cyan", "ellipse", mode="RGBA"), "Which shape is on <image>?", "A circle, of course: 1, 2, 3 … 圆形。"),
    row(picture("brown", "rectangle", size=(128, 96)), "<image>\n这是什么颜色？", "棕色。"),
    row(picture("yellow", "ellipse", size=(320, 200)), "<image>", "A yellow ellipse on white."),
    row(NO_IMAGE, "Say hello.", "Hello!", "Say it again.", "Hello again!"),
    row(NO_IMAGE, "谁写了这句话？", "我不知道。"),
]


# ---- our own weights ----
def shaken(shape, name, generator):
    """Random values, exact in float16, with which every part affects the result."""
    noise = torch.randn(shape, generator=generator)
    values = 1 + 0.3 * noise if "norm" in name and name.endswith("weight") else noise * (0.3 if len(shape) == 1 else shape[1:].numel() ** -0.5)
    return values.half()


def write_encoder():
    config = transformers.SiglipVisionConfig(hidden_size=VISION_DIM, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                                             image_size=256, patch_size=32)
    model = transformers.SiglipVisionModel(config)
    generator = torch.Generator().manual_seed(1)
    model.load_state_dict({name: shaken(p.shape, name, generator).float() for name, p in model.state_dict().items()})
    folder = OUT / "encoder"
    model.save_pretrained(folder)
    size = {"height": 256, "width": 256}
    processor = {"image_processor_type": "SiglipImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 2,
                 "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": size}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n")


def write_weights(model):
    generator = torch.Generator().manual_seed(2)
    weights = {name: shaken(p.shape, name, generator) for name, p in model.state_dict().items() if "vision_encoder" not in name}
    weights["vision_proj.mlp.0.weight"] += 1
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    torch.save(weights, OUT / f"llm_{DIM}.pth")


# ---- the draws of our loader ----
def mixed(x):
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def uniform(epoch, index, draw):
    """A number from 0 to 1 for each seed, epoch, row and draw."""
    state = 0
    for value in (SEED, epoch, index, draw):
        state = mixed(((state ^ value) + 0x9E3779B97F4A7C15) % 2**64)
    return (state >> 11) * 2.0**-53


class Draws:
    """Takes the place of the module `random` in its loader."""

    def __init__(self):
        self.epoch, self.index, self.fixed = 0, 0, None
        self.made = {}

    def random(self):
        caller = sys._getframe(1).f_code.co_name
        draw = {"pre_processing_chat": 0, "post_processing_chat": 2}[caller]
        value = uniform(self.epoch, self.index, draw) if self.fixed is None else self.fixed[draw]
        self.made.setdefault((self.epoch, self.index), {})[caller] = value
        return value

    def choice(self, _):
        return SYSTEM_PROMPTS[int(uniform(self.epoch, self.index, 1) * len(SYSTEM_PROMPTS)) if self.fixed is None else self.fixed[1]]


# ---- running its loader and its scripts ----
def checkout(folder):
    """A copy of the checkout with our tokenizer, encoder and weights where its scripts look for theirs."""
    for part in ["dataset", "model", "trainer"]:
        shutil.copytree(CHECKOUT / part, folder / part, ignore=shutil.ignore_patterns("*.jpg"))
    for name in ["tokenizer.json", "tokenizer_config.json"]:
        shutil.copy(OUT / name, folder / "model" / name)
    shutil.copytree(OUT / "encoder", folder / "model" / "siglip2-base-p32-256-ve")
    (folder / "out").mkdir()
    os.chdir(folder / "trainer")
    sys.path.insert(0, str(folder))


def small_config(vocab_size):
    from model.model_vlm import VLMConfig

    of_checkout = VLMConfig.__init__

    def init(self, **settings):
        of_checkout(self, vocab_size=vocab_size, image_hidden_size=VISION_DIM, **settings)

    VLMConfig.__init__ = init
    return VLMConfig(hidden_size=DIM, num_hidden_layers=LAYERS)


def cases(dataset, draws):
    """Ids and labels of every row in the four combinations of the two draws; a combination that changes nothing is left out."""
    found = []
    for index in range(len(dataset)):
        draws.index, of_row = index, []
        for system, think in [(None, "kept"), (0, "kept"), (None, "dropped"), (1, "dropped")]:
            draws.fixed = (1.0 if system is None else 0.0, system, 0.0 if think == "kept" else 1.0)
            ids, labels, _ = dataset[index]
            padding = int((ids.flip(0) != 0).int().argmax())
            end = len(ids) - padding
            assert (labels[end:] == -100).all()
            ids, labels = ids[:end].tolist(), labels[:end].tolist()
            starts = [k for k in range(end) if labels[k] != -100 and labels[k - 1] == -100]
            spans = [[start, next((k for k in range(start, end) if labels[k] == -100), end)] for start in starts]
            assert all(labels[k] == ids[k] for start, stop in spans for k in range(start, stop))
            case = {"row": index, "system_prompt": system, "empty_think": think, "input_ids": ids, "label_spans": spans}
            if all(ids != other["input_ids"] for other in of_row):
                of_row.append(case)
        found += of_row
    return found


def train(script, draws, arguments):
    """The losses, learning rates and draws of a training by its script."""
    import trainer.trainer_utils as utils
    from model.model_vlm import MiniMindVLM

    steps, draws.fixed, draws.made = [], None, {}
    forward, get_lr, setup_seed, randperm = MiniMindVLM.forward, utils.get_lr, utils.setup_seed, torch.randperm

    def recorded_forward(self, *inputs, **named):
        result = forward(self, *inputs, **named)
        steps[-1]["loss"] = float(result.loss)
        return result

    def recorded_lr(*inputs):
        steps.append({"lr": get_lr(*inputs)})
        return steps[-1]["lr"]

    def seeded(seed):
        draws.epoch = seed - 42
        setup_seed(seed)

    MiniMindVLM.forward, utils.get_lr, utils.setup_seed, torch.randperm = recorded_forward, recorded_lr, seeded, torch.arange
    sys.argv = [script] + [f"--{name}={value}" for name, value in arguments.items()]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        MiniMindVLM.forward, utils.get_lr, utils.setup_seed, torch.randperm = forward, get_lr, setup_seed, randperm
    made = sorted(draws.made.items())
    added = [key for key, of_row in made if of_row.get("pre_processing_chat", 1.0) < 0.2]
    kept = [key for key, of_row in made if of_row.get("post_processing_chat", 1.0) <= 0.2]
    return {"arguments": arguments, "steps": steps, "system_prompt_added": added, "empty_think_kept": kept}


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    texts = [turn["content"] for row in ROWS for turn in json.loads(row["conversations"])]
    vocab_size = write_tokenizer(texts + SYSTEM_PROMPTS + ["user\n", "assistant\n", "system\n"])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), OUT / "rows.parquet")
    write_encoder()
    with tempfile.TemporaryDirectory() as folder:
        checkout(pathlib.Path(folder))
        config = small_config(vocab_size)
        import dataset.lm_dataset as loader
        from model.model_vlm import MiniMindVLM

        draws = loader.random = Draws()
        fetch = loader.VLMDataset.__getitem__

        def fetched(self, index):
            draws.index = index
            return fetch(self, index)

        loader.VLMDataset.__getitem__ = fetched
        model = MiniMindVLM(config, vision_model_path="../model/siglip2-base-p32-256-ve")
        write_weights(model)
        shutil.copy(OUT / f"llm_{DIM}.pth", f"../out/llm_{DIM}.pth")
        tokenizer = transformers.AutoTokenizer.from_pretrained("../model")
        rows = loader.VLMDataset(str(OUT / "rows.parquet"), tokenizer, model.processor, max_length=450)
        written = {"system_prompts": SYSTEM_PROMPTS, "max_seq_len": 450, "cases": cases(rows, draws)}
        shared = dict(hidden_size=DIM, num_hidden_layers=LAYERS, batch_size=4, epochs=5, num_workers=0, log_interval=1, device="cpu",
                      data_path=OUT / "rows.parquet", from_weight="llm")
        runs = {
            "pretrain": train("train_pretrain_vlm.py", draws, shared),
            # Its own rate of 5e-6 hardly changes the weights in 20 steps.
            "sft": train("train_sft_vlm.py", draws, dict(shared, learning_rate=4e-4)),
        }
        for stage, run in runs.items():
            trained = torch.load(f"../out/{stage}_vlm_{DIM}.pth")
            names = [name for name in trained if "vision_proj" in name or "layers.0.self_attn.q_proj" in name]
            run["trained"] = {name: [float(v) for v in trained[name].flatten()[:8]] for name in names}
            run["arguments"] = {name: value for name, value in run["arguments"].items() if name != "data_path"}
        written["runs"] = runs
        (OUT / "expected.json").write_text(json.dumps(written, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
