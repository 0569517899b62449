"""Makes the folders of encoders/ (torch 2.11.0, CPU, float32, one thread): tiny vision encoders with random weights.

resolution/: CLIPVisionModel and SiglipVisionModel of transformers 5.24.0 for 32 pixels, with their features of images of 24 and 48
pixels (interpolate_pos_encoding=True). open_clip/: towers of open_clip_torch 3.3.0 (timm 1.0.31), as it saves them.
All weights and pixels are exact in float16.
"""

import json
import math
import pathlib
import shutil

import open_clip
import timm
import torch
import transformers
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent / "encoders"
TOWER = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)


def shake(model, seed):
    """Random numbers large enough for every tensor to affect the result."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        scale = 0.3 if p.dim() < 2 or "position" in name or "pos_embed" in name else math.prod(p.shape[1:]) ** -0.5
        base = 1.0 if p.dim() == 1 and ("norm" in name or "ln_" in name) and name.endswith("weight") else 0.0
        p.data = (base + scale * torch.randn(p.shape, generator=generator)).half().float()


def pixels(side, seed):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed)).half().float()


def folder(name):
    path = HERE / name
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path


def finish(path, tensors):
    save_file({k: t.contiguous() for k, t in tensors.items()}, path / "expected.safetensors")
    largest = max(t.abs().max().item() for k, t in tensors.items() if k.startswith("features"))
    print(f"{path.name}: features up to {largest:.2f}, {sum(f.stat().st_size for f in path.iterdir())} bytes")


def resolution(name, cls, config, seed):
    path = folder(f"resolution/{name}")
    model = cls(config).eval()
    shake(model, seed)
    config.save_pretrained(path)
    weights = {k if k.startswith("vision_model.") else f"vision_model.{k}": w.half() for k, w in model.state_dict().items()
               if "head." not in k}
    save_file(weights, path / "model.safetensors", {"format": "pt"})
    found = {}
    for side in (24, 48):
        x = pixels(side, seed + side)
        found[f"pixels_{side}"] = x.half()
        found[f"features_{side}"] = model(pixel_values=x, interpolate_pos_encoding=True).last_hidden_state[:, int(name == "clip"):]
    finish(path, found)


def tower_of_open_clip(name, quick_gelu, preprocess, seed, safetensors):
    path = folder(f"open_clip/{name}")
    config = dict(
        embed_dim=16, quick_gelu=quick_gelu,
        vision_cfg=dict(image_size=32, layers=2, width=24, head_width=8, patch_size=8, mlp_ratio=1.5),
        text_cfg=dict(context_length=4, vocab_size=8, width=8, heads=1, layers=1),
    )
    model = open_clip.CLIP(**config).eval()
    shake(model, seed)
    found = {}
    model.visual.transformer.register_forward_hook(lambda module, inputs, output: found.update(all=output))
    x = pixels(32, seed + 1)
    model.encode_image(x)
    save(path, dict(model_cfg=config, preprocess_cfg=preprocess), model.state_dict(), safetensors)
    # Without the class token.
    finish(path, {"pixels": x.half(), "features": found["all"][:, 1:]})


def tower_of_timm(name, act_layer, seed):
    path = folder(f"open_clip/{name}")
    trunk = timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, mlp_ratio=1.5, num_classes=0, class_token=False,
        global_pool="map", act_layer=act_layer).eval()
    shake(trunk, seed)
    # A real name, whose sizes the tiny tower does not have.
    vision = dict(image_size=32, timm_model_name="vit_base_patch16_siglip_224", timm_model_pretrained=False, timm_pool="map", timm_proj="none")
    config = dict(embed_dim=24, init_logit_bias=-10, custom_text=True, vision_cfg=vision, text_cfg=dict(context_length=4))
    preprocess = dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bicubic", resize_mode="squash")
    weights = {f"visual.trunk.{k}": w for k, w in trunk.state_dict().items()}
    save(path, dict(model_cfg=config, preprocess_cfg=preprocess), weights, True)
    x = pixels(32, seed + 1)
    finish(path, {"pixels": x.half(), "features": trunk.forward_features(x)})


def save(path, config, weights, safetensors):
    (path / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    weights = {k: w.half().contiguous() if w.is_floating_point() else w for k, w in weights.items()}
    if safetensors:
        save_file(weights, path / "open_clip_model.safetensors", {"format": "pt"})
    else:
        torch.save(weights, path / "open_clip_pytorch_model.bin")


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    resolution("clip", transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**TOWER), 1)
    resolution("siglip", transformers.SiglipVisionModel, transformers.SiglipVisionConfig(**TOWER, vision_use_head=False), 2)
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    tower_of_open_clip("clip", False, dict(mean=mean, std=std, interpolation="bicubic", resize_mode="shortest"), 3, True)
    tower_of_open_clip("quick_gelu", True, dict(mean=[0.5] * 3, std=[0.5] * 3, interpolation="bilinear", resize_mode="squash"), 4, False)
    tower_of_timm("timm", "gelu", 5)
