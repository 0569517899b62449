"""Writes autocast.json: how far PyTorch's autocast moves loss and gradients of the golden models.

    python3 tests/golden/autocast.py        # torch 2.11.0, safetensors

The models of dense/ and moe/ are implemented here in plain PyTorch, independently of the Rust code and
of the reference, and first compared with the reference's float32 numbers. Then the same step runs under
`torch.autocast("cpu", dtype)`. The file has the value of the loss, and for the gradient of each trained
tensor its relative distance from the float32 gradient. Float16 has a loss scale of 1024.
"""

import json
import pathlib

import torch
import torch.nn.functional as F
from safetensors.torch import load_file

HERE = pathlib.Path(__file__).parent
IMAGE_TOKEN, IMAGE_TOKENS = 34, 196
LOSS_SCALE = 1024.0


class Model:
    def __init__(self, folder):
        self.config = json.loads((HERE / folder / "config.json").read_text())
        self.vision_config = json.loads((HERE / "vision_tower/config.json").read_text())
        self.vision_config = self.vision_config.get("vision_config", self.vision_config)
        self.weights = load_file(HERE / folder / "lm_vlm.safetensors")
        self.tower = load_file(HERE / "vision_tower/model.safetensors")
        head = self.config["dim"] // self.config["n_heads"]
        theta = self.config.get("rope_theta", 1e6)
        rates = theta ** -(torch.arange(0, head, 2).float() / head)
        angles = torch.outer(torch.arange(1024).float(), rates)
        self.rotations = torch.polar(torch.ones_like(angles), angles)

    def train(self, names):
        for name in names:
            self.weights[name].requires_grad_(True).grad = None

    def linear(self, x, name):
        return F.linear(x, self.weights[name + ".weight"], self.weights.get(name + ".bias"))

    def norm(self, x, name):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config["norm_eps"])
        return (wide * self.weights[name + ".weight"]).type_as(x)

    def rotate(self, x):
        pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
        turned = pairs * self.rotations[: x.shape[1], None]
        return torch.view_as_real(turned).flatten(3).type_as(x)

    def attention(self, x, name):
        batch, length, _ = x.shape
        heads, groups = self.config["n_heads"], self.config["n_kv_heads"]
        query = self.rotate(self.linear(x, name + ".wq").view(batch, length, heads, -1))
        key = self.rotate(self.linear(x, name + ".wk").view(batch, length, groups, -1))
        value = self.linear(x, name + ".wv").view(batch, length, groups, -1)
        key, value = (t.repeat_interleave(heads // groups, 2) for t in (key, value))
        query, key, value = (t.transpose(1, 2) for t in (query, key, value))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.linear(mixed.transpose(1, 2).reshape(batch, length, -1), name + ".wo")

    def swiglu(self, x, name):
        gated = F.silu(self.linear(x, name + ".w1")) * self.linear(x, name + ".w3")
        return self.linear(gated, name + ".w2")

    def experts(self, x, name):
        batch, length, width = x.shape
        count, chosen = self.config["n_routed_experts"], self.config["num_experts_per_tok"]
        tokens = x.reshape(-1, width)
        with torch.autocast("cpu", enabled=False):
            scores = F.linear(tokens.float(), self.weights[name + ".gate.weight"]).softmax(-1)
        shares, index = scores.topk(chosen, -1)
        shares = shares / (shares.sum(-1, keepdim=True) + 1e-20)
        out = self.swiglu(tokens, name + ".shared_experts").float()
        for expert in range(count):
            at, slot = (index == expert).nonzero(as_tuple=True)
            found = self.swiglu(tokens[at], f"{name}.experts.{expert}")
            out = out.index_add(0, at, found.float() * shares[at, slot, None])
        load = F.one_hot(index.view(batch, -1), count).float().mean(1) * count
        balance = (load * scores.view(batch, length, count).mean(1)).sum(1).mean()
        return out.view(x.shape).type_as(x), balance * self.config["aux_loss_alpha"]

    def see(self, pixels):
        config, weights = self.vision_config, self.tower
        tower = "vision_model."

        def norm(x, name):
            weight, bias = weights[name + ".weight"], weights[name + ".bias"]
            return F.layer_norm(x, (x.shape[-1],), weight, bias, config["layer_norm_eps"])

        def linear(x, name):
            return F.linear(x, weights[name + ".weight"], weights[name + ".bias"])

        kernel = weights[tower + "embeddings.patch_embedding.weight"]
        patches = F.conv2d(pixels, kernel, stride=config["patch_size"]).flatten(2).transpose(1, 2)
        first = weights[tower + "embeddings.class_embedding"].expand(len(pixels), 1, -1)
        x = torch.cat([first.to(patches.dtype), patches], 1)
        x = norm(x + weights[tower + "embeddings.position_embedding.weight"], tower + "pre_layrnorm")
        for layer in range(config["num_hidden_layers"]):
            name = f"{tower}encoder.layers.{layer}."
            inner = norm(x, name + "layer_norm1")
            split = lambda t: t.view(*x.shape[:2], config["num_attention_heads"], -1).transpose(1, 2)
            parts = [split(linear(inner, f"{name}self_attn.{part}_proj")) for part in "qkv"]
            mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(x.shape)
            x = x + linear(mixed, name + "self_attn.out_proj")
            inner = linear(norm(x, name + "layer_norm2"), name + "mlp.fc1")
            x = x + linear(inner * torch.sigmoid(1.702 * inner), name + "mlp.fc2")
        return x[:, 1:]

    def loss(self, ids, targets, mask, pixels):
        x = F.embedding(ids, self.weights["tok_embeddings.weight"])
        with torch.no_grad():
            features = self.see(pixels)
        shown = self.linear(features, "vision_proj.vision_proj.0").flatten(0, 1)
        places = (ids.flatten() == IMAGE_TOKEN).nonzero().flatten()
        assert len(places) == IMAGE_TOKENS * len(pixels), "a batch with whole images alone"
        x = x.flatten(0, 1).index_copy(0, places, shown.to(x.dtype)).view(x.shape)
        auxiliary = torch.zeros(())
        for layer in range(self.config["n_layers"]):
            name = f"layers.{layer}"
            x = x + self.attention(self.norm(x, name + ".attention_norm"), name + ".attention")
            inner = self.norm(x, name + ".ffn_norm")
            if self.config["use_moe"]:
                fed, balance = self.experts(inner, name + ".feed_forward")
                auxiliary = auxiliary + balance
            else:
                fed = self.swiglu(inner, name + ".feed_forward")
            x = x + fed
        hidden = self.norm(x[mask.bool()], "norm")
        logits = F.linear(hidden, self.weights["tok_embeddings.weight"]).float()
        return F.cross_entropy(logits, targets[mask.bool()]) + auxiliary


def step(model, batch, names, dtype):
    """The loss, and the gradients of `names`."""
    scale = LOSS_SCALE if dtype == torch.float16 else 1.0
    model.train(names)
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss = model.loss(*batch)
    (loss * scale).backward()
    return loss.item(), {name: model.weights[name].grad / scale for name in names}


def measure(folder, suffix):
    model = Model(folder)
    inputs = load_file(HERE / folder / "inputs.safetensors")
    pool = load_file(HERE / "pixels.safetensors")["pixel_values"].float()
    pixels = pool[inputs["image_index"][0].flatten()]
    batch = (inputs["X"][0], inputs["Y"][0], inputs["loss_mask"][0], pixels)
    golden = load_file(HERE / folder / f"grads{suffix}.safetensors")
    forward = load_file(HERE / folder / f"forward{suffix}.safetensors")
    loss, exact = step(model, batch, list(golden), None)
    assert abs(loss - forward["loss"].item()) < 1e-5, (loss, forward["loss"])
    for name, expected in golden.items():
        difference = (exact[name] - expected).abs().max() / expected.abs().max()
        assert difference < 1e-4, (name, difference)
    found = {"loss": loss}
    for name, dtype in [("bfloat16", torch.bfloat16), ("float16", torch.float16)]:
        loss, gradients = step(model, batch, list(golden), dtype)
        distances = {
            tensor: ((gradients[tensor] - exact[tensor]).norm() / exact[tensor].norm()).item()
            for tensor in golden
        }
        found[name] = {"loss": loss, "gradients": distances}
        print(folder, name, loss - found["loss"], max(distances.values()))
    return found


result = {"dense": measure("dense", ""), "moe": measure("moe", "_f32")}
(HERE / "autocast.json").write_text(json.dumps(result, indent=1) + "\n")
