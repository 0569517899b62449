"""Makes the numbers of siglip/, llama/, qwen3/, minimind3/ and pixel_shuffle.safetensors: python families.py (torch 2.11.0, transformers 4.57.1, CPU,
float32, one thread). All weights are random; norms and biases are far from 1 and 0, so that omitting one changes the result.

SigLIP, Llama and Qwen3 are computed by transformers. MiniMind's current form is computed by the short model below, which follows
its public code (Hugging Face's names; rotate-half; queries and keys normalised per head before the rotation; experts
chosen by softmax with top-k weights normalised to sum to 1; auxiliary loss over all tokens). Without experts it must agree with
Qwen3's class.
"""

import json
import math
import pathlib

import numpy
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent
torch.set_num_threads(1)


def shake(model, seed):
    """Random weights large enough for every part to affect the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        scale = 0.3 if p.dim() == 1 else p[0].numel() ** -0.5
        base = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        p.data = base + scale * noise
    return model.eval()


def write(folder, config, weights, numbers):
    folder = HERE / folder
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: v.contiguous().clone() for k, v in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    save_file({k: v.contiguous() for k, v in numbers.items()}, folder / "expected.safetensors")


def siglip():
    """The config of a complete SigLIP whose patches do not divide the image size, and the output of its processor."""
    vision = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=30, patch_size=7)
    model = shake(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**vision)), 1)
    pixels = torch.randn(2, 3, 30, 30, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        last = model(pixel_values=pixels).last_hidden_state
    config = {"model_type": "siglip", "vision_config": dict(vision, model_type="siglip_vision_model")}
    write("siglip", config, model.state_dict(), {"pixel_values": pixels, "last_hidden_state": last})
    processor = transformers.SiglipImageProcessor()
    processor.save_pretrained(HERE / "siglip")
    numbers = {}
    for name in ["small.png", "very_wide.png", "width3.png", "palette.png", "rgba.png", "noise.png"]:
        image = Image.open(HERE / "preprocess" / "images" / name).convert("RGB")
        pixel_values = processor(images=image, return_tensors="np")["pixel_values"][0]
        levels = numpy.rint((pixel_values * 0.5 + 0.5) * 255).astype(numpy.uint8)
        rebuilt = ((levels.astype(numpy.float64) * (1 / 255)).astype(numpy.float32) - numpy.float32(0.5)) / numpy.float32(0.5)
        assert (rebuilt == pixel_values).all()
        Image.fromarray(levels.transpose(1, 2, 0)).save(HERE / "siglip" / name.replace(".png", ".squeezed.png"), optimize=True)
        numbers[name] = [float(v) for v in pixel_values[:, ::37, ::41].reshape(-1)[:32]]
    (HERE / "siglip" / "processor.json").write_text(json.dumps(numbers) + "\n")


def language(folder, model, seed):
    shake(model, seed)
    if model.config.tie_word_embeddings:
        model.tie_weights()
    ids = torch.randint(0, model.config.vocab_size, (2, 40), generator=torch.Generator().manual_seed(seed + 1))
    with torch.no_grad():
        logits = model(input_ids=ids).logits
    weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight" or not model.config.tie_word_embeddings}
    model.config.architectures = [type(model).__name__]
    write(folder, json.loads(model.config.to_json_string()), weights, {"input_ids": ids, "logits": logits})


SHAPE = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=160)


def llama():
    """SmolLM2's form (tied), and a model with separate output embeddings and a head width other than hidden_size / heads."""
    tied = transformers.LlamaConfig(**SHAPE, intermediate_size=80, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
                                    max_position_embeddings=256)
    language("llama", transformers.LlamaForCausalLM(tied), 3)
    untied = transformers.Qwen3Config(**SHAPE, intermediate_size=80, rope_theta=1e6, head_dim=16, tie_word_embeddings=False,
                                      max_position_embeddings=256)
    language("qwen3", transformers.Qwen3ForCausalLM(untied), 5)


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return self.weight * (x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, d = c, c["hidden_size"] // c["num_attention_heads"]
        self.d = d
        self.q_proj = nn.Linear(c["hidden_size"], c["num_attention_heads"] * d, bias=False)
        self.k_proj = nn.Linear(c["hidden_size"], c["num_key_value_heads"] * d, bias=False)
        self.v_proj = nn.Linear(c["hidden_size"], c["num_key_value_heads"] * d, bias=False)
        self.o_proj = nn.Linear(c["num_attention_heads"] * d, c["hidden_size"], bias=False)
        self.q_norm, self.k_norm = RMSNorm(d, c["rms_norm_eps"]), RMSNorm(d, c["rms_norm_eps"])

    def rotate(self, x):
        """Rotary embedding with explicit sines and cosines of the two halves."""
        length, half = x.shape[1], self.d // 2
        angle = torch.arange(length)[:, None] * self.c["rope_theta"] ** (-2 * torch.arange(half) / self.d)
        cos, sin = angle.cos()[None, :, None], angle.sin()[None, :, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):
        b, t, _ = x.shape
        q = self.rotate(self.q_norm(self.q_proj(x).view(b, t, -1, self.d)))
        k = self.rotate(self.k_norm(self.k_proj(x).view(b, t, -1, self.d)))
        v = self.v_proj(x).view(b, t, -1, self.d)
        groups = q.shape[2] // k.shape[2]
        k, v = k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(self.d)
        scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
        return self.o_proj(torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v).reshape(b, t, -1))


class FeedForward(nn.Module):
    def __init__(self, dim, width):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(dim, width, bias=False), nn.Linear(dim, width, bias=False)
        self.down_proj = nn.Linear(width, dim, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.gate = nn.Linear(c["hidden_size"], c["num_experts"], bias=False)
        self.experts = nn.ModuleList(FeedForward(c["hidden_size"], c["moe_intermediate_size"]) for _ in range(c["num_experts"]))

    def forward(self, x):
        flat, k, n = x.flatten(0, 1), self.c["num_experts_per_tok"], self.c["num_experts"]
        scores = self.gate(flat).softmax(-1)
        weight, chosen = scores.topk(k)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-20)
        # Computes every expert for every token and then selects: slow, but simple.
        all_outputs = torch.stack([expert(flat) for expert in self.experts], 1)
        picked = all_outputs.gather(1, chosen[..., None].expand(-1, -1, flat.shape[-1]))
        load = sum(F.one_hot(chosen[:, j], n).float().mean(0) for j in range(k))
        self.aux_loss = (load * scores.mean(0)).sum() * n * self.c["router_aux_loss_coef"]
        return (picked * weight[..., None]).sum(1).view_as(x)


class Block(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.self_attn = Attention(c)
        self.input_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.post_attention_layernorm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.mlp = Experts(c) if c["use_moe"] else FeedForward(c["hidden_size"], c["intermediate_size"])

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList(Block(c) for _ in range(c["num_hidden_layers"]))
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])


class Projector(nn.Module):
    """minimind-3v's projector: LayerNorm, linear, GELU, linear; or without a norm on four concatenated patches."""

    def __init__(self, vision, hidden, merge):
        super().__init__()
        tail = [nn.Linear(vision * merge, hidden), nn.GELU(), nn.Linear(hidden, hidden)]
        self.merge, self.mlp = merge, nn.Sequential(*([nn.LayerNorm(vision)] if merge == 1 else []), *tail)

    def forward(self, x):
        return self.mlp(x.reshape(x.shape[0], x.shape[1] // self.merge, -1))


class MiniMind3V(nn.Module):
    def __init__(self, c, merge):
        super().__init__()
        self.c, self.model = c, Body(c)
        self.lm_head = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)
        self.lm_head.weight = self.model.embed_tokens.weight
        self.vision_proj = Projector(c["image_hidden_size"], c["hidden_size"], merge)

    def forward(self, ids, features=None):
        x = self.model.embed_tokens(ids)
        if features is not None:
            # One image per row, whose tokens replace the run of image_ids.
            x = torch.where((ids == self.c["image_ids"][0])[..., None].expand_as(x), 0.0, x)
            projected = self.vision_proj(features)
            for row in range(ids.shape[0]):
                start = int((ids[row] == self.c["image_ids"][0]).nonzero()[0])
                x[row, start:start + projected.shape[1]] = projected[row]
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))


def minimind3():
    """minimind-3v with 64 image tokens, with experts, and with its earlier projector, each in its own folder."""
    base = dict(SHAPE, model_type="minimind-v", intermediate_size=128, moe_intermediate_size=128, rms_norm_eps=1e-6, rope_theta=1e6,
                max_position_embeddings=256, tie_word_embeddings=True, hidden_act="silu", image_special_token="<|image_pad|>",
                image_ids=[12], image_hidden_size=24, image_token_len=64, use_moe=False, num_experts=4, num_experts_per_tok=1,
                norm_topk_prob=True, router_aux_loss_coef=5e-4)
    single = dict(base, num_hidden_layers=1)
    variants = {
        "minimind3": (base, 1),
        "minimind3/merged": (single, 4),
        "minimind3/experts": (dict(single, use_moe=True), 1),
        "minimind3/experts_top2": (dict(single, use_moe=True, num_experts_per_tok=2), 1),
    }
    for seed, (folder, (config, merge)) in enumerate(variants.items()):
        generator = torch.Generator().manual_seed(100 + seed)
        model = shake(MiniMind3V(config, merge), 200 + seed)
        ids = torch.randint(13, config["vocab_size"], (2, 80), generator=generator)
        for row, start in enumerate([3, 9]):
            ids[row, start:start + 64] = 12
        features = torch.randn(2, 64 * merge, 24, generator=generator)
        with torch.no_grad():
            text_logits, logits = model(ids[:, :40]), model(ids, features)
        numbers = {"input_ids": ids, "features": features, "logits": logits, "text_logits": text_logits}
        if config["use_moe"]:
            # The auxiliary loss of the pass with features.
            numbers["aux_loss"] = sum(layer.mlp.aux_loss for layer in model.model.layers).view(1)
        else:
            same = transformers.Qwen3Config(**dict(SHAPE, num_hidden_layers=config["num_hidden_layers"]), intermediate_size=128,
                                            rope_theta=1e6, rms_norm_eps=1e-6, head_dim=12, tie_word_embeddings=True,
                                            max_position_embeddings=256)
            qwen = transformers.Qwen3ForCausalLM(same).eval()
            qwen.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("vision_proj")})
            with torch.no_grad():
                difference = (qwen(input_ids=ids[:, :40]).logits - text_logits).abs().max().item()
            print(f"{folder}: differs from Qwen3's class by {difference:.1e}")
            assert difference < 2e-5
        weights = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
        write(folder, config, weights, numbers)


def pixel_shuffle():
    """nanoVLM's projector on 6 x 6 patches, computed with PyTorch's pixel_unshuffle: channels last, square by square."""
    generator = torch.Generator().manual_seed(300)
    features, weight = torch.randn(2, 36, 5, generator=generator), torch.randn(7, 20, generator=generator) / 4
    squares = F.pixel_unshuffle(features.transpose(1, 2).reshape(2, 5, 6, 6), 2).view(2, 5, 4, 9)
    projected = squares.permute(0, 3, 2, 1).reshape(2, 9, 20) @ weight.T
    numbers = {"features": features, "vision_proj.proj.weight": weight, "projected": projected}
    save_file({k: v.contiguous() for k, v in numbers.items()}, HERE / "pixel_shuffle.safetensors")


if __name__ == "__main__":
    siglip()
    llama()
    minimind3()
    pixel_shuffle()
