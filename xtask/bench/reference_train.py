"""Runs the pretraining of a MiniMind-V checkout for `cargo xtask bench train`: its own classes for
model, rows and batches and its own training loop, on given weights, images and captions. The only
argument is a JSON object, see `Request` in `xtask/src/bench/train/theirs.rs`. Prints one JSON object:
the loss of every step, the times at which the steps started, and the versions."""

import contextlib
import importlib
import json
import os
import sys
import time
import types

request = types.SimpleNamespace(**json.loads(sys.argv[1]))
sys.path.insert(0, request.reference)
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch
import transformers
from torch.utils.data import DataLoader

torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)


class Recorder:
    """In the place of the loss scaler, which does nothing in float32: keeps the losses."""

    def __init__(self):
        self.losses = []

    def scale(self, loss):
        self.losses.append(loss.item())
        return loss

    def unscale_(self, optimizer):
        pass

    def step(self, optimizer):
        optimizer.step()

    def update(self):
        pass


class Timed:
    """The batches of a loader until `steps` batches of all epochs were given, and the time at which
    each was asked for: the time of a step includes its wait for data."""

    def __init__(self, loader, steps):
        self.loader, self.steps, self.starts, self.given = loader, steps, [], 0

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        batches = iter(self.loader)
        while True:
            asked = time.perf_counter()
            if self.given == self.steps:
                break
            batch = next(batches, None)
            if batch is None:
                return
            self.starts.append(asked)
            self.given += 1
            yield batch
        self.starts.append(asked)


def settings(**more):
    """What the training script reads from its command line."""
    return types.SimpleNamespace(
        device="cpu", dtype="float32", epochs=request.epochs, learning_rate=request.learning_rate,
        accumulation_steps=1, grad_clip=1.0, log_interval=10**9, save_interval=10**9,
        save_dir=request.scratch, out_dir=request.scratch, **more)


def optimizer_of(model):
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(trained, lr=request.learning_rate)


def check_weights(model):
    """The checkouts ignore weights with other names; then the comparison would be worth nothing."""
    given = torch.load(request.lm, map_location="cpu")
    found = {k: v for k, v in model.state_dict().items() if not k.startswith("vision_encoder.")}
    for name in sorted(set(given) | (set(found) - {"pos_cis"})):
        if name not in given or name not in found or not torch.equal(given[name], found[name]):
            sys.exit(f"the reference did not take the weights of {name} from {request.lm}")


def april():
    script = importlib.import_module("train_pretrain_vlm")
    # This form reads its files from fixed places below the working folder.
    os.makedirs("out", exist_ok=True)
    os.makedirs("model", exist_ok=True)
    os.symlink(request.lm, f"out/lm_{request.dim}.pth")
    os.symlink(request.tokenizer, "model/minimind_tokenizer")
    encoder = torch.nn.Module()
    encoder.vision_model = transformers.CLIPVisionModel.from_pretrained(request.vision)
    encoder.requires_grad_(False).eval()
    processor = image_processor("CLIPImageProcessor")
    # It reads a whole CLIP with a text tower, of which it uses the vision tower only.
    script.MiniMindVLM.get_vision_model = staticmethod(lambda *path: (encoder, processor))
    script.args, script.ddp = settings(use_moe=False), False
    config = script.VLMConfig(
        dim=request.dim, n_layers=request.n_layers, max_seq_len=request.max_seq_len)
    script.model_config = config
    model, tokenizer, preprocess = script.init_model(config)
    rows = script.VLMDataset(
        request.rows, request.images, tokenizer, preprocess=preprocess,
        image_special_token=config.image_special_token, max_length=request.max_seq_len)
    loader = DataLoader(rows, batch_size=request.batch_size, num_workers=request.workers)
    script.iter_per_epoch, script.ctx = len(loader), contextlib.nullcontext()
    return script, model, loader, lambda epoch, batches: script.train_epoch(epoch, None)


def present():
    script = importlib.import_module("trainer.train_pretrain_vlm")
    lm_dataset = importlib.import_module("dataset.lm_dataset")
    utils = importlib.import_module("trainer.trainer_utils")
    # The random changes of the conversations are left out, so that both train on the same tokens.
    lm_dataset.pre_processing_chat = lambda conversations, *_: conversations
    lm_dataset.post_processing_chat = lambda text, *_: text
    script.is_main_process = utils.is_main_process = lambda: False
    script.args = settings(save_weight="bench")
    config = script.VLMConfig(
        hidden_size=request.dim, num_hidden_layers=request.n_layers,
        max_seq_len=request.max_seq_len)
    script.vlm_config = config
    folder, name = os.path.split(request.lm)
    model, tokenizer, preprocess = utils.init_vlm_model(
        config, from_weight=name.rsplit("_", 1)[0], save_dir=folder, device="cpu", freeze_llm=2,
        tokenizer_path=request.tokenizer, vision_model_path=request.vision)
    preprocess = image_processor("SiglipImageProcessor")
    rows = script.VLMDataset(
        parquet(), tokenizer, preprocess=preprocess, max_length=request.max_seq_len,
        image_special_token=config.image_special_token, image_token_len=config.image_token_len)
    sampler = script.SkipBatchSampler(range(len(rows)), request.batch_size)
    loader = DataLoader(
        rows, batch_sampler=sampler, num_workers=request.workers,
        collate_fn=script.vlm_collate_fn)
    script.autocast_ctx = contextlib.nullcontext()
    return script, model, loader, lambda epoch, batches: script.train_epoch(
        epoch, batches, len(loader))


def image_processor(name):
    """The processor that resizes with Pillow, whose pixels are the standard of both programs."""
    for form in (name + "Pil", name):
        if hasattr(transformers, form):
            return getattr(transformers, form).from_pretrained(request.vision)
    sys.exit(f"transformers {transformers.__version__} has no {name}")


def parquet():
    """The rows as a Parquet file with the images inside, which this form reads."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    columns = {"conversations": [], "image_bytes": []}
    for line in open(request.rows, encoding="utf-8"):
        row = json.loads(line)
        columns["conversations"].append(json.dumps(row["conversations"], ensure_ascii=False))
        columns["image_bytes"].append(
            open(os.path.join(request.images, row["image"]), "rb").read())
    pq.write_table(pa.table(columns), "rows.parquet")
    return os.path.abspath("rows.parquet")


os.chdir(request.scratch)
os.environ["HF_HOME"] = request.scratch
script, model, loader, train_epoch = {"april": april, "present": present}[request.form]()
check_weights(model)
script.model, script.optimizer, script.scaler = model, optimizer_of(model), Recorder()
script.train_loader = batches = Timed(loader, request.steps)
model.train()
for epoch in range(request.epochs):
    if batches.given < request.steps:
        train_epoch(epoch, batches)
# The last step ends here if the last epoch ended with it.
batches.starts += [time.perf_counter()] * (len(batches.starts) == request.steps)
print(json.dumps({
    "losses": script.scaler.losses,
    "starts": batches.starts,
    "torch": torch.__version__,
    "transformers": transformers.__version__,
}))
