"""Makes the folders of foreign_models/ (torch 2.11.0, transformers 5.24.0, CPU, float32, one thread): tiny whole vision-language
models with random weights, as their own program saves them, with the logits and the loss of one row with one image.

LLaVA, SmolVLM, Idefics3 and LFM2-VL are transformers' own classes. nanoVLM and minimind-3v are written here in plain PyTorch from
the names and shapes of their files; their language model agrees with transformers' LLaMA and Qwen3 (asserted below).
All weights and pixels are exact in float16.
"""

import json
import math
import pathlib
import shutil

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

HERE = pathlib.Path(__file__).parent / "foreign_models"
VOCAB, IMAGE = 264, 259
TEXT = dict(hidden_size=32, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            vocab_size=VOCAB, max_position_embeddings=128, bos_token_id=256, eos_token_id=258, pad_token_id=256)
TOWER = dict(hidden_size=24, intermediate_size=36, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)
EXPERTS = dict(TEXT, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True, decoder_sparse_step=1,
               mlp_only_layers=[], router_aux_loss_coef=0.1, tie_word_embeddings=True)


def shaken(shape, name, generator):
    """Random numbers large enough for every tensor to affect the result."""
    scale = 0.3 if len(shape) == 1 else math.prod(shape[1:]) ** -0.5
    base = 1.0 if "norm" in name and name.endswith("weight") and len(shape) == 1 else 0.0
    return (base + scale * torch.randn(shape, generator=generator)).half().float()


def shake(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        p.data = shaken(p.shape, name, generator)


def row(tokens, seed):
    """Token ids with an image from position 5 on, and its pixels."""
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(0, 256, (14,), generator=generator)
    ids = torch.cat([text[:5], torch.full((tokens,), IMAGE), text[5:]])[None]
    return ids, (torch.randn(1, 3, 32, 32, generator=generator)).half().float()


def loss_of(logits, ids):
    """Mean loss of the tokens after the image."""
    targets = ids[0, -9:]
    return F.cross_entropy(logits[0, -10:-1], targets).view(1)


def finish(name, ids, pixels, logits, preprocessor=None):
    folder = HERE / name
    save_file({"input_ids": ids, "pixel_values": pixels.half(), "logits": logits.contiguous(), "loss": loss_of(logits, ids)},
              folder / "expected.safetensors")
    if preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor, indent=1) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    print(f"{name}: loss {loss_of(logits, ids).item():.6f}, largest logit {logits.abs().max():.2f}, {size} bytes")


def saved(name, model):
    """Saves a model of transformers, in float16, and returns it as read back from the folder."""
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    again = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    weights = load_file(folder / "model.safetensors")
    assert all((w == w.half().float()).all() for w in weights.values())
    save_file({k: w.half() for k, w in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    (folder / "generation_config.json").unlink(missing_ok=True)
    return again


CLIP_PIXELS = dict(image_processor_type="CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
TILES = dict(do_image_splitting=True, do_resize=True, size={"longest_edge": 128}, max_image_size={"longest_edge": 32}, resample=1,
             image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pad=True)


def llava(name, seed, text, layer, act, blocks):
    vision = transformers.CLIPVisionConfig(**dict(TOWER, num_hidden_layers=blocks))
    config = transformers.LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE, projector_hidden_act=act,
                                      vision_feature_layer=layer, image_seq_length=16,
                                      tie_word_embeddings=text.tie_word_embeddings)
    model = transformers.LlavaForConditionalGeneration(config).eval()
    shake(model, seed)
    if act == "linear":
        projector = model.model.multi_modal_projector
        projector.linear_2.weight.data = torch.eye(32)
        projector.linear_2.bias.data.zero_()
    for block in model.model.language_model.layers:
        if hasattr(block.mlp, "shared_expert_gate"):
            block.mlp.shared_expert_gate.weight.data.zero_()
            for layer in (block.self_attn.q_proj, block.self_attn.k_proj, block.self_attn.v_proj):
                layer.bias.data.zero_()
    model = saved(name, model)
    ids, pixels = row(16, seed)
    with torch.no_grad():
        finish(name, ids, pixels, model(input_ids=ids, pixel_values=pixels).logits, CLIP_PIXELS)


def idefics3(name, seed, config_class, model_class, scale_factor, side, tied):
    tower = {"smolvlm": transformers.SmolVLMVisionConfig, "idefics3": transformers.Idefics3VisionConfig}[name]
    text = transformers.LlamaConfig(**TEXT, tie_word_embeddings=tied, rope_theta=1e5)
    patch = 32 // side
    vision = tower(**dict(TOWER, patch_size=patch, image_size=side * patch))
    config = config_class(text_config=text, vision_config=vision, scale_factor=scale_factor, image_token_id=IMAGE,
                          tie_word_embeddings=tied, pad_token_id=256)
    model = model_class(config).eval()
    shake(model, seed)
    model = saved(name, model)
    ids, pixels = row((side // scale_factor) ** 2, seed)
    pixels = pixels[..., : side * patch, : side * patch].contiguous()
    kind = {"smolvlm": "SmolVLM", "idefics3": "Idefics3"}[name]
    tiles = dict(TILES, image_processor_type=f"{kind}ImageProcessor", max_image_size={"longest_edge": side * patch})
    with torch.no_grad():
        finish(name, ids, pixels, model(input_ids=ids, pixel_values=pixels[None]).logits, tiles)


def lfm2_vl(name, seed):
    text = transformers.Qwen3Config(**TEXT, tie_word_embeddings=True, rope_theta=1e6)
    tower = {k: v for k, v in TOWER.items() if k != "image_size"}
    vision = transformers.Siglip2VisionConfig(**tower, num_patches=16, vision_use_head=False)
    config = transformers.Lfm2VlConfig(text_config=text, vision_config=vision, image_token_id=IMAGE, downsample_factor=1,
                                       projector_hidden_size=32, tie_word_embeddings=True)
    model = transformers.Lfm2VlForConditionalGeneration(config).eval()
    shake(model, seed)
    model = saved(name, model)
    ids, pixels = row(16, seed)
    patches = pixels.reshape(1, 3, 4, 8, 4, 8).permute(0, 2, 4, 3, 5, 1).reshape(1, 16, 192)
    square = dict(image_processor_type="Lfm2VlImageProcessorFast", size={"height": 32, "width": 32}, tile_size=32, resample=2,
                  do_image_splitting=False, encoder_patch_size=8, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    with torch.no_grad():
        logits = model(input_ids=ids, pixel_values=patches, spatial_shapes=torch.tensor([[4, 4]]),
                       pixel_attention_mask=torch.ones(1, 16, dtype=torch.long)).logits
    finish(name, ids, pixels, logits, square)


def siglip(w, pixels, heads, names):
    """SigLIP's encoder. `names` maps the names of Hugging Face's layers to (weight, bias)."""
    get = lambda layer: names(w, layer)  # noqa: E731
    norm = lambda x, layer: F.layer_norm(x, x.shape[-1:], *get(layer), 1e-6)  # noqa: E731
    kernel, bias = get("patch")
    x = F.conv2d(pixels, kernel, bias, stride=kernel.shape[-1]).flatten(2).transpose(1, 2) + get("positions")[0]
    for block in range(2):
        h = norm(x, f"{block}.norm1")
        q, k, v = [F.linear(h, *get(f"{block}.{part}")).unflatten(-1, (heads, -1)).transpose(1, 2) for part in "qkv"]
        x = x + F.linear(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2), *get(f"{block}.out"))
        h = F.gelu(F.linear(norm(x, f"{block}.norm2"), *get(f"{block}.fc1")), approximate="tanh")
        x = x + F.linear(h, *get(f"{block}.fc2"))
    return norm(x, "norm")


def decoder(x, get, theta, eps, heads=4, kv_heads=2):
    """LLaMA's blocks, with normalised queries and keys if there are weights for them; `get(layer)` is a weight."""
    norm = lambda x, g: g * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)  # noqa: E731
    width = 8
    angles = torch.outer(torch.arange(x.shape[1]).float(), theta ** -(torch.arange(0, width, 2) / width)).repeat(1, 2)
    rotate = lambda q: q * angles.cos() + torch.cat([-q[..., width // 2:], q[..., : width // 2]], -1) * angles.sin()  # noqa: E731
    for block in range(2):
        h = norm(x, get(f"{block}.norm1"))
        q, k, v = [F.linear(h, get(f"{block}.{part}")).unflatten(-1, (-1, width)) for part in "qkv"]
        if get(f"{block}.q_norm") is not None:
            q, k = norm(q, get(f"{block}.q_norm")), norm(k, get(f"{block}.k_norm"))
        q, k, v = rotate(q.transpose(1, 2)), rotate(k.transpose(1, 2)), v.transpose(1, 2)
        k, v = [t.repeat_interleave(heads // kv_heads, 1) for t in (k, v)]
        x = x + F.linear(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2), get(f"{block}.o"))
        h = norm(x, get(f"{block}.norm2"))
        x = x + F.linear(F.silu(F.linear(h, get(f"{block}.gate"))) * F.linear(h, get(f"{block}.up")), get(f"{block}.down"))
    return norm(x, get("norm"))


def random_weights(shapes, seed):
    generator = torch.Generator().manual_seed(seed)
    return {name: shaken(shape, name, generator) for name, shape in shapes.items()}


def assert_equals(model, ids, logits):
    with torch.no_grad():
        difference = (model.eval()(input_ids=ids).logits - logits).abs().max().item()
    assert difference < 1e-5, difference


def nanovlm(seed):
    shapes = {"vision_encoder.patch_embedding.conv.weight": (24, 3, 8, 8), "vision_encoder.patch_embedding.conv.bias": (24,),
              "vision_encoder.patch_embedding.position_embedding": (1, 16, 24), "MP.proj.weight": (32, 96),
              "vision_encoder.layer_norm.weight": (24,), "vision_encoder.layer_norm.bias": (24,),
              "decoder.head.weight": (VOCAB, 32), "decoder.norm.weight": (32,)}
    for block in range(2):
        v, d = f"vision_encoder.blocks.{block}.", f"decoder.blocks.{block}."
        for layer, shape in {"ln1": (24,), "ln2": (24,), "attn.qkv_proj": (72, 24), "attn.out_proj": (24, 24),
                             "mlp.fc1": (36, 24), "mlp.fc2": (24, 36)}.items():
            shapes[f"{v}{layer}.weight"], shapes[f"{v}{layer}.bias"] = shape, shape[:1]
        for layer, shape in {"norm1": (32,), "norm2": (32,), "attn.q_proj": (32, 32), "attn.k_proj": (16, 32),
                             "attn.v_proj": (16, 32), "attn.out_proj": (32, 32), "mlp.gate_proj": (40, 32),
                             "mlp.up_proj": (40, 32), "mlp.down_proj": (32, 40)}.items():
            shapes[f"{d}{layer}.weight"] = shape
    w = random_weights(shapes, seed)

    def vision(w, layer):
        p = "vision_encoder."
        if layer == "positions":
            return (w[p + "patch_embedding.position_embedding"],)
        block, _, part = layer.rpartition(".")
        stacked = {"q": 0, "k": 1, "v": 2}.get(part)
        name = {"patch": "patch_embedding.conv", "norm": "layer_norm"}.get(layer)
        name = name or f"blocks.{block}." + {"norm1": "ln1", "norm2": "ln2", "out": "attn.out_proj", "fc1": "mlp.fc1",
                                             "fc2": "mlp.fc2"}.get(part, "attn.qkv_proj")
        pair = w[f"{p}{name}.weight"], w[f"{p}{name}.bias"]
        return pair if stacked is None else tuple(t.chunk(3)[stacked] for t in pair)

    names = {"norm1": "norm1", "norm2": "norm2", "q": "attn.q_proj", "k": "attn.k_proj", "v": "attn.v_proj", "o": "attn.out_proj",
             "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}

    def language(layer):
        block, _, part = layer.rpartition(".")
        return w["decoder.norm.weight"] if layer == "norm" else w.get(f"decoder.blocks.{block}.{names.get(part)}.weight")

    ids, pixels = row(4, seed)
    features = siglip(w, pixels, 3, vision)
    shuffled = features.reshape(1, 2, 2, 2, 2, 24).permute(0, 1, 3, 2, 4, 5).reshape(1, 4, 96)
    table = w["decoder.head.weight"]
    x = F.embedding(ids, table)
    plain = F.linear(decoder(x, language, 1e5, 1e-5), table)
    x = torch.cat([x[:, :5], F.linear(shuffled, w["MP.proj.weight"]), x[:, 9:]], 1)
    logits = F.linear(decoder(x, language, 1e5, 1e-5), table)

    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT, rope_theta=1e5, rms_norm_eps=1e-5,
                                                                   tie_word_embeddings=True))
    hugging_face = {"model.embed_tokens.weight": table, "lm_head.weight": table, "model.norm.weight": language("norm")}
    for block in range(2):
        for part, name in {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "q": "self_attn.q_proj",
                           "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj", "gate": "mlp.gate_proj",
                           "up": "mlp.up_proj", "down": "mlp.down_proj"}.items():
            hugging_face[f"model.layers.{block}.{name}.weight"] = language(f"{block}.{part}")
    llama.load_state_dict(hugging_face)
    assert_equals(llama, ids, plain)

    folder = HERE / "nanovlm"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = dict(vit_hidden_dim=24, vit_inter_dim=36, vit_patch_size=8, vit_img_size=32, vit_n_heads=3, vit_dropout=0.0,
                  vit_n_blocks=2, vit_ln_eps=1e-6, vit_cls_flag=False, vit_model_type="google/siglip2-base-patch16-512",
                  lm_hidden_dim=32, lm_inter_dim=40, lm_rms_eps=1e-5, lm_re_base=100000, lm_max_position_embeddings=128,
                  lm_base_vocab_size=VOCAB - 4, extra_token_amount=4, lm_vocab_size=VOCAB, lm_n_heads=4, lm_n_kv_heads=2,
                  lm_dropout=0.0, lm_n_blocks=2, lm_attn_scaling=1.0, lm_max_length=128, lm_use_tokens=False, lm_tie_weights=True,
                  lm_model_type="HuggingFaceTB/SmolLM2-360M-Instruct", lm_tokenizer="HuggingFaceTB/SmolLM2-360M-Instruct",
                  lm_chat_template=CHAT, mp_pixel_shuffle_factor=2, mp_image_token_length=4, max_img_size=64,
                  resize_to_max_side_len=False, vlm_load_backbone_weights=True, vlm_checkpoint_path="checkpoints",
                  vlm_extra_tokens={"image_token": "<image>", "global_image_token": "<|global_image|>"}, hf_repo_name="nanoVLM")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: t.half() for k, t in w.items()}, folder / "model.safetensors")
    finish("nanovlm", ids, pixels, logits)


def minimind3v(seed):
    shapes = {"model.embed_tokens.weight": (VOCAB, 32), "model.norm.weight": (32,), "vision_proj.mlp.0.weight": (24,),
              "vision_proj.mlp.0.bias": (24,), "vision_proj.mlp.1.weight": (32, 24), "vision_proj.mlp.1.bias": (32,),
              "vision_proj.mlp.3.weight": (32, 32), "vision_proj.mlp.3.bias": (32,)}
    names = {"norm1": "input_layernorm", "norm2": "post_attention_layernorm", "q": "self_attn.q_proj", "k": "self_attn.k_proj",
             "v": "self_attn.v_proj", "o": "self_attn.o_proj", "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm",
             "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"}
    sizes = {"norm1": (32,), "norm2": (32,), "q": (32, 32), "k": (16, 32), "v": (16, 32), "o": (32, 32), "q_norm": (8,),
             "k_norm": (8,), "gate": (40, 32), "up": (40, 32), "down": (32, 40)}
    for block in range(2):
        shapes |= {f"model.layers.{block}.{names[part]}.weight": shape for part, shape in sizes.items()}
    w = random_weights(shapes, seed)
    w["lm_head.weight"] = w["model.embed_tokens.weight"].clone()

    def language(layer):
        block, _, part = layer.rpartition(".")
        return w["model.norm.weight" if layer == "norm" else f"model.layers.{block}.{names[part]}.weight"]

    tower = transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER, vision_use_head=False)).eval()
    shake(tower, seed + 1)
    ids, pixels = row(16, seed)
    x = F.embedding(ids, w["model.embed_tokens.weight"])
    plain = F.linear(decoder(x, language, 1e6, 1e-6), w["lm_head.weight"])
    qwen3 = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**TEXT, rope_theta=1e6, rms_norm_eps=1e-6,
                                                                   tie_word_embeddings=True))
    qwen3.load_state_dict({k: t for k, t in w.items() if not k.startswith("vision_proj")})
    assert_equals(qwen3, ids, plain)
    with torch.no_grad():
        features = tower(pixels).last_hidden_state
    p = lambda n: (w[f"vision_proj.mlp.{n}.weight"], w[f"vision_proj.mlp.{n}.bias"])  # noqa: E731
    features = F.layer_norm(features, (24,), *p(0), 1e-5)
    image = F.linear(F.gelu(F.linear(features, *p(1))), *p(3))
    x = torch.cat([x[:, :5], image, x[:, 21:]], 1)
    logits = F.linear(decoder(x, language, 1e6, 1e-6), w["lm_head.weight"])

    folder = HERE / "minimind3v"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    config = dict(TEXT, model_type="minimind-v", architectures=["MiniMindVLM"], rms_norm_eps=1e-6, rope_theta=1e6, dropout=0.0,
                  use_moe=False, tie_word_embeddings=True, hidden_act="silu", image_special_token="<image>", image_ids=[IMAGE],
                  image_hidden_size=24, image_token_len=16, flash_attn=True)
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    save_file({k: t.half() for k, t in w.items()}, folder / "model.safetensors", {"format": "pt"})
    finish("minimind3v", ids, pixels, logits)
    encoder = HERE / "minimind3v-encoder"
    shutil.rmtree(encoder, ignore_errors=True)
    tower.half().save_pretrained(encoder)
    squares = dict(image_processor_type="SiglipImageProcessor", size={"height": 32, "width": 32})
    (encoder / "preprocessor_config.json").write_text(json.dumps(squares, indent=1) + "\n")


CHAT = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")


def tokenizer():
    """A tokenizer of single bytes and the special tokens of these models."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocab = {byte: k for k, byte in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    made = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<fake_token_around_image>", "<global-img>"]
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    assert made.token_to_id("<image>") == IMAGE
    folder = HERE / "tokenizer"
    folder.mkdir(exist_ok=True)
    made.save(str(folder / "tokenizer.json"), pretty=False)
    config = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=CHAT)
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    tokenizer()
    llama = transformers.LlamaConfig(**TEXT, tie_word_embeddings=True, rope_theta=1e6)
    llava("llava_linear", 1, llama, -1, "linear", 2)
    llava("llava_1_5", 2, transformers.LlamaConfig(**TEXT, tie_word_embeddings=False), -2, "gelu", 3)
    llava("llava_qwen2", 3, transformers.Qwen2Config(**TEXT, tie_word_embeddings=True), -2, "gelu", 3)
    llava("llava_qwen3_moe", 4, transformers.Qwen3MoeConfig(**EXPERTS), -1, "linear", 2)
    llava("llava_qwen2_moe", 5, transformers.Qwen2MoeConfig(**EXPERTS, shared_expert_intermediate_size=24), -1, "linear", 2)
    idefics3("smolvlm", 6, transformers.SmolVLMConfig, transformers.SmolVLMForConditionalGeneration, 2, 4, True)
    idefics3("idefics3", 7, transformers.Idefics3Config, transformers.Idefics3ForConditionalGeneration, 3, 6, False)
    lfm2_vl("lfm2_vl", 8)
    nanovlm(9)
    minimind3v(10)
