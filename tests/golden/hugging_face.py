"""Makes the numbers of hugging_face/ in two runs (torch 2.11.0, CPU, float32, one thread): first with transformers 4.57.1, which
makes random weights, config.json and logits of every case, then with transformers 5.24.0, which must find the same logits and
adds its own config.json (rotary settings in rope_parameters, other keys left out). Both read folders that they wrote themselves.

weights: one file a class, with output embeddings; a case with tied embeddings leaves them out. All numbers are exact in float16.
"""

import json
import pathlib
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent / "hugging_face"
MAJOR = transformers.__version__.split(".")[0]
SHAPE = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=40, intermediate_size=32,
             max_position_embeddings=64)
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
BIASES = dict(attention_bias=True, mlp_bias=True)


def scaled(**scaling):
    return dict(rope_theta=500.0, rope_scaling=scaling, tie_word_embeddings=False)


# Case: weights file, class, settings. The lengths are small, so that scalings have an effect within 40 tokens.
CASES = {
    "llama_tied": ("llama", "llama", dict(tie_word_embeddings=True, rope_theta=1e5)),
    "llama_untied": ("llama", "llama", dict(tie_word_embeddings=False, rope_theta=300.0)),
    "llama_biases": ("llama_biases", "llama", dict(BIASES, tie_word_embeddings=True)),
    "llama_biases_untied": ("llama_biases", "llama", dict(BIASES, tie_word_embeddings=False, rope_theta=5e5)),
    "qwen2_tied": ("qwen2", "qwen2", dict(tie_word_embeddings=True, rope_theta=1e6)),
    "qwen2_untied": ("qwen2", "qwen2", dict(tie_word_embeddings=False)),
    "qwen3_tied": ("qwen3", "qwen3", dict(tie_word_embeddings=True, rope_theta=1e6, head_dim=8)),
    "qwen3_biases": ("qwen3_biases", "qwen3", dict(tie_word_embeddings=False, attention_bias=True, head_dim=8)),
    "linear": ("llama", "llama", scaled(rope_type="linear", factor=4.0)),
    "llama3": ("llama", "llama", scaled(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                        original_max_position_embeddings=32)),
    "yarn": ("llama", "llama", scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
    "yarn_settings": ("llama", "llama", scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, attention_factor=0.8,
                                               beta_fast=4.0, beta_slow=0.5, truncate=False)),
    "yarn_scales": ("llama", "llama", scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16, beta_fast=4.0,
                                             mscale=1.2, mscale_all_dim=0.7)),
}


def shaken(model, seed):
    """Random parameters large enough for every part to affect the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        scale = 0.3 if p.dim() == 1 else p[0].numel() ** -0.5
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data = (base + scale * torch.randn(p.shape, generator=generator)).half().float()
    return {name: p.data.clone() for name, p in model.named_parameters()}


def saved_and_read(model, case):
    """The model, loaded from a folder that this version of transformers wrote, and the folder's config.json."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), config


def hugging_face():
    cases = json.loads((HERE / "cases.json").read_text()) if MAJOR != "4" else {}
    expected = load_file(HERE / "expected.safetensors") if MAJOR != "4" else {}
    ids = torch.randint(0, 40, (2, 40), generator=torch.Generator().manual_seed(1))
    for seed, (case, (file, kind, settings)) in enumerate(CASES.items()):
        config_class, model_class = CLASSES[kind]
        model = model_class(config_class(**SHAPE, **settings))
        path = HERE / f"{file}.safetensors"
        if MAJOR == "4" and not path.exists():
            whole = model_class(config_class(**SHAPE, **dict(settings, tie_word_embeddings=False)))
            save_file({k: v.half() for k, v in shaken(whole, seed).items()}, path, {"format": "pt"})
        weights = {k: v.float() for k, v in load_file(path).items()}
        if settings["tie_word_embeddings"]:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        model.load_state_dict(weights)
        model, config = saved_and_read(model, case)
        with torch.no_grad():
            logits = model(input_ids=ids).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).item()
        if MAJOR == "4":
            expected[case] = logits.contiguous()
            cases[case] = {"weights": path.name, "4": config}
        else:
            difference = (logits - expected[case]).abs().max().item()
            assert difference < 2e-5, (case, difference)
            cases[case]["5"] = config
        print(f"transformers {transformers.__version__} {case}: loss {loss:.6f}")
    expected["input_ids"] = ids
    save_file(expected, HERE / "expected.safetensors")
    (HERE / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")


class SharedExperts(nn.Module):
    """MiniMind2's experts: softmax, the top k normalised to sum to 1, and shared experts for all tokens."""

    def __init__(self, c, feed_forward, gate):
        super().__init__()
        self.c, self.gate = c, gate
        self.experts = nn.ModuleList(feed_forward() for _ in range(c["n_routed_experts"]))
        self.shared_experts = nn.ModuleList(feed_forward() for _ in range(c["n_shared_experts"]))

    def forward(self, x):
        k, n = self.c["num_experts_per_tok"], self.c["n_routed_experts"]
        scores = self.gate(x).softmax(-1)
        weight, chosen = scores.topk(k)
        weight = weight / weight.sum(-1, keepdim=True)
        all_outputs = torch.stack([expert(x) for expert in self.experts], -2)
        picked = all_outputs.gather(-2, chosen[..., None].expand(*chosen.shape, x.shape[-1]))
        # Balanced per row: the fraction of the row's choices of an expert times its mean score in the row.
        load = F.one_hot(chosen, n).float().sum(2).mean(1) * n / k
        self.aux_loss = (load * scores.mean(1)).sum(1).mean() * self.c["aux_loss_alpha"]
        return (picked * weight[..., None]).sum(-2) + sum(expert(x) for expert in self.shared_experts)


def minimind2():
    """MiniMind2's experts in the blocks of LLaMA's class, which computes the same otherwise."""
    config = dict(SHAPE, model_type="minimind", rms_norm_eps=1e-5, rope_theta=1e6, hidden_act="silu", use_moe=True, dropout=0.0,
                  num_experts_per_tok=2, n_routed_experts=4, n_shared_experts=2, scoring_func="softmax", aux_loss_alpha=0.1,
                  seq_aux=True, norm_topk_prob=True, flash_attn=True, architectures=["MiniMindForCausalLM"])
    llama = transformers.LlamaConfig(**SHAPE, rms_norm_eps=1e-5, rope_theta=1e6, tie_word_embeddings=True)
    model = transformers.LlamaForCausalLM(llama).eval()
    for layer in model.model.layers:
        mlp = type(layer.mlp)
        layer.mlp = SharedExperts(config, lambda: mlp(llama), nn.Linear(24, 4, bias=False))
    weights = shaken(model, 50)
    ids = torch.randint(0, 40, (2, 40), generator=torch.Generator().manual_seed(51))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    aux_loss = sum(layer.mlp.aux_loss for layer in model.model.layers).view(1)
    folder = HERE.parent / "minimind2"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.half() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    save_file({"input_ids": ids, "logits": logits, "aux_loss": aux_loss.detach()}, folder / "expected.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    hugging_face()
    if MAJOR == "4":
        minimind2()
