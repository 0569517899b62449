use serde_json::{Value, json};

use super::*;
use crate::{LmConfig, LmFamily, ProjectorKind};

/// The `config.json` of llava-hf/llava-1.5-7b-hf, which leaves out what its classes have as
/// defaults.
fn llava() -> Value {
    json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "ignore_index": -100,
        "image_token_index": 32000,
        "model_type": "llava",
        "pad_token_id": 32001,
        "projector_hidden_act": "gelu",
        "text_config": {
            "_name_or_path": "lmsys/vicuna-7b-v1.5", "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-5,
            "torch_dtype": "float16", "vocab_size": 32064,
        },
        "tie_word_embeddings": false,
        "torch_dtype": "float16",
        "transformers_version": "4.36.2",
        "vision_config": {
            "hidden_size": 1024, "image_size": 336, "intermediate_size": 4096,
            "model_type": "clip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 24,
            "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
        },
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "vocab_size": 32064,
    })
}

/// The `config.json` of a SmolVLM2.
fn smolvlm() -> Value {
    json!({
        "architectures": ["SmolVLMForConditionalGeneration"],
        "image_token_id": 49190,
        "model_type": "smolvlm",
        "pad_token_id": 128002,
        "scale_factor": 4,
        "text_config": {
            "architectures": ["VLlama3ForCausalLM"], "head_dim": 64, "hidden_size": 960,
            "intermediate_size": 2560, "is_llama_config": true, "max_position_embeddings": 8192,
            "model_type": "llama", "neftune_noise_alpha": 0.0, "num_attention_heads": 15,
            "num_hidden_layers": 32, "num_key_value_heads": 5, "pad_token_id": 2,
            "perceiver_config": {"model_type": "vllama3", "resampler_depth": 6},
            "pixel_shuffle_factor": 4, "qk_layer_norms": false, "rms_norm_eps": 1e-5,
            "rope_interleaved": false, "rope_theta": 100000, "torch_dtype": "bfloat16",
            "use_resampler": false, "vocab_size": 49280,
        },
        "tie_word_embeddings": false,
        "torch_dtype": "float32",
        "use_cache": false,
        "use_reentrant_checkpointing": false,
        "vision_config": {
            "hidden_size": 768, "image_size": 512, "max_image_size": {"longest_edge": 512},
            "model_type": "smolvlm_vision", "num_attention_heads": 12, "patch_size": 16,
            "size": {"longest_edge": 2048}, "tie_word_embeddings": false, "use_base_siglip": false,
        },
        "vocab_size": 49280,
    })
}

/// A `minimind-3` with SigLIP as it is exported.
fn lfm2_vl() -> Value {
    json!({
        "model_type": "lfm2_vl", "image_token_id": 6400, "image_token_index": 6400,
        "downsample_factor": 1, "projector_hidden_size": 768, "projector_hidden_act": "gelu",
        "projector_bias": true, "projector_use_layernorm": true, "vision_feature_layer": -1,
        "do_image_splitting": false, "encoder_patch_size": 16, "tile_size": 224,
        "min_image_tokens": 196, "max_image_tokens": 196, "max_num_patches": 196, "min_tiles": 1,
        "max_tiles": 1, "use_thumbnail": true, "use_image_special_tokens": false,
        "tie_word_embeddings": true,
        "text_config": {
            "model_type": "qwen3", "hidden_size": 768, "num_hidden_layers": 8,
            "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 96,
            "intermediate_size": 2432, "vocab_size": 6401, "tie_word_embeddings": true,
        },
        "vision_config": {
            "model_type": "siglip2_vision_model", "hidden_size": 768, "intermediate_size": 3072,
            "num_hidden_layers": 12, "num_attention_heads": 12, "num_channels": 3,
            "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6,
            "num_patches": 196, "vision_use_head": false,
        },
    })
}

fn nanovlm() -> Value {
    json!({
        "vit_hidden_dim": 768, "vit_inter_dim": 3072, "vit_patch_size": 16, "vit_img_size": 512,
        "vit_n_heads": 12, "vit_dropout": 0.0, "vit_n_blocks": 12, "vit_ln_eps": 1e-6,
        "vit_cls_flag": false, "vit_model_type": "google/siglip2-base-patch16-512",
        "lm_hidden_dim": 960, "lm_inter_dim": 2560, "lm_rms_eps": 1e-5, "lm_re_base": 100000,
        "lm_max_position_embeddings": 8192, "lm_base_vocab_size": 49152, "extra_token_amount": 66,
        "lm_vocab_size": 49218, "lm_n_heads": 15, "lm_n_kv_heads": 5, "lm_dropout": 0.0,
        "lm_n_blocks": 32, "lm_attn_scaling": 1.0, "lm_max_length": 4096, "lm_use_tokens": false,
        "lm_tie_weights": true, "lm_model_type": "HuggingFaceTB/SmolLM2-360M-Instruct",
        "lm_tokenizer": "HuggingFaceTB/SmolLM2-360M-Instruct", "lm_chat_template": "{{ messages }}",
        "mp_pixel_shuffle_factor": 4, "mp_image_token_length": 64, "max_img_size": 1536,
        "resize_to_max_side_len": false,
        "vlm_extra_tokens": {"image_token": "<|image|>", "global_image_token": "<|global_image|>"},
        "vlm_load_backbone_weights": true, "vlm_checkpoint_path": "checkpoints",
        "hf_repo_name": "nanoVLM",
    })
}

/// A whole model with Qwen's experts.
fn experts(model_type: &str) -> Value {
    let mut json = llava();
    json["text_config"] = json!({
        "model_type": model_type, "hidden_size": 512, "num_hidden_layers": 8,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 6401,
        "intermediate_size": 1408, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 1408, "norm_topk_prob": true, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "router_aux_loss_coef": 0.1, "rope_theta": 1e6,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "use_sliding_window": false,
    });
    json
}

fn model(json: &Value) -> ForeignModel {
    ForeignModel::of(json).unwrap()
}

#[test]
fn published_configurations_are_read_with_the_defaults_of_their_classes() {
    let json = llava();
    let lm = LmConfig::from_json(&json).unwrap();
    assert_eq!((lm.dim, lm.n_layers, lm.n_heads, lm.hidden_dim), (4096, 32, 32, Some(11008)));
    let vision = VisionConfig::from_json(&json).unwrap();
    // The output of the last block but one.
    assert_eq!((vision.num_hidden_layers, vision.num_patches()), (23, 576));
    let projector = model(&json).projector().unwrap();
    assert_eq!((projector.kind, projector.tokens_per_image), (ProjectorKind::Mlp2xGelu, 576));
    assert_eq!(model(&json).image_token_id(), Some(32000));

    let json = smolvlm();
    let lm = LmConfig::from_json(&json).unwrap();
    assert_eq!((lm.dim, lm.n_kv_heads, lm.tie_word_embeddings), (960, 5, false));
    let vision = VisionConfig::from_json(&json).unwrap();
    assert_eq!((vision.num_hidden_layers, vision.intermediate_size), (12, 3072));
    assert_eq!(vision.layer_norm_eps, 1e-6);
    assert_eq!(model(&json).projector().unwrap().tokens_per_image, 64);

    let json = lfm2_vl();
    assert!(LmConfig::from_json(&json).unwrap().qk_norm);
    assert_eq!(VisionConfig::from_json(&json).unwrap().image_size, 224);
    assert_eq!(model(&json).projector().unwrap().kind, ProjectorKind::Mlp);
    let mut linear = json;
    linear["projector_hidden_act"] = json!("linear");
    linear["projector_use_layernorm"] = json!(false);
    assert_eq!(model(&linear).projector().unwrap().kind, ProjectorKind::Linear);

    let json = nanovlm();
    assert!(LmConfig::is_language_model(&json));
    let lm = LmConfig::from_json(&json).unwrap();
    assert_eq!((lm.vocab_size, lm.n_layers, lm.rope_theta), (49218, 32, 1e5));
    assert_eq!(model(&json).projector().unwrap().tokens_per_image, 64);
    assert_eq!(model(&json).image_token_id(), None);
    assert!(model(&json).difference().unwrap().contains("tiles"));
    let advice = model(&json).tokenizer_advice().unwrap();
    assert!(advice.contains("\"HuggingFaceTB/SmolLM2-360M-Instruct\""), "{advice}");
    for json in [llava(), smolvlm(), lfm2_vl(), nanovlm()] {
        assert_eq!(model(&json).unread_keys().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn qwens_experts_are_read_as_those_of_minimind() {
    let lm = LmConfig::from_json(&experts("qwen3_moe")).unwrap();
    assert_eq!((lm.family, lm.qk_norm, lm.use_moe), (LmFamily::MiniMind3, true, true));
    assert_eq!((lm.moe.n_routed_experts, lm.intermediate_size()), (4, 1408));
    assert_eq!(lm.num_shared_experts(), 0);
    let mut json = experts("qwen3_moe");
    let count = json["text_config"].as_object_mut().unwrap().remove("num_experts").unwrap();
    json["text_config"]["num_local_experts"] = count;
    assert_eq!(LmConfig::from_json(&json).unwrap(), lm);
    let mut json = experts("qwen2_moe");
    json["text_config"]["shared_expert_intermediate_size"] = json!(1408);
    let lm = LmConfig::from_json(&json).unwrap();
    assert_eq!((lm.family, lm.qk_norm, lm.qkv_bias), (LmFamily::MiniMind2, false, false));
    assert_eq!((lm.num_shared_experts(), lm.moe.aux_loss_alpha), (1, 0.1));
    assert_eq!(model(&json).gated_shared_experts().unwrap(), Some(1));
    json["text_config"]["shared_expert_intermediate_size"] = json!(2 * 1408);
    assert_eq!(LmConfig::from_json(&json).unwrap().num_shared_experts(), 2);
    let refusal = |model_type: &str, key: &str, value: Value| {
        let mut json = experts(model_type);
        json["text_config"][key] = value;
        LmConfig::from_json(&json).unwrap_err().to_string()
    };
    assert!(refusal("qwen3_moe", "decoder_sparse_step", json!(2)).contains("decoder_sparse_step"));
    assert!(refusal("qwen3_moe", "mlp_only_layers", json!([0])).contains("mlp_only_layers"));
    let wider = refusal("qwen2_moe", "shared_expert_intermediate_size", json!(64));
    assert!(wider.contains("shared_expert_intermediate_size is 64"), "{wider}");
    assert!(refusal("qwen2_moe", "num_experts_per_tok", json!(1)).contains("norm_topk_prob"));
}

#[test]
fn what_a_projector_or_encoder_cannot_express_is_refused_by_name() {
    let refusal = |mut json: Value, path: &str, value: Value| {
        let place = path.split('.').fold(&mut json, |node, key| &mut node[key]);
        *place = value;
        let error = model(&json).projector().err();
        error.map_or_else(|| panic!("{path} was not refused"), |error| error.to_string())
    };
    for (json, path, value, part) in [
        (llava(), "vision_feature_layer", json!([-2, -5]), "features of several blocks"),
        (llava(), "vision_feature_layer", json!(25), "has 24 blocks"),
        (llava(), "vision_feature_select_strategy", json!("full"), "expected \"default\""),
        (llava(), "projector_hidden_act", json!("silu"), "expected \"gelu\" or \"linear\""),
        (llava(), "multimodal_projector_bias", json!(false), "multimodal_projector_bias"),
        (llava(), "vision_config.model_type", json!("siglip_vision_model"), "is SigLIP"),
        (llava(), "vision_config.model_type", json!("pixtral"), "\"pixtral\"; expected"),
        (llava(), "vision_tiling", json!(4), "vision_tiling is 4"),
        (smolvlm(), "scale_factor", json!(3), "squares of 3 × 3"),
        (smolvlm(), "use_resampler", json!(true), "use_resampler"),
        (lfm2_vl(), "downsample_factor", json!(2), "downsample_factor is 2"),
        (lfm2_vl(), "projector_use_layernorm", json!(false), "projector_use_layernorm"),
        (lfm2_vl(), "projector_hidden_size", json!(2560), "hidden size of the language model"),
        (lfm2_vl(), "text_config.model_type", json!("lfm2"), "\"lfm2\", a language model"),
        (lfm2_vl(), "vision_config.num_patches", json!(200), "expected a square number"),
        (nanovlm(), "vit_cls_flag", json!(true), "vit_cls_flag"),
        (nanovlm(), "mp_image_token_length", json!(49), "makes 64 tokens"),
    ] {
        let error = refusal(json, path, value);
        assert!(error.contains(part), "{path}: {error}");
    }
    let mut mistral = llava();
    mistral["text_config"]["model_type"] = json!("mistral");
    let error = LmConfig::from_json(&mistral).unwrap_err().to_string();
    assert!(error.contains("\"mistral\", a language model that is not supported"), "{error}");
}

#[test]
fn a_siglip_encoder_in_llavas_form_may_be_used_without_its_projector() {
    let mut json = llava();
    json["vision_config"] = json!({"model_type": "siglip_vision_model"});
    assert_eq!(VisionConfig::from_json(&json).unwrap(), VisionConfig::siglip());
}

#[test]
fn unknown_texts_within_the_vision_encoder_are_worth_a_warning() {
    let mut json = llava();
    json["vision_config"]["comment"] = json!("mine");
    json["note"] = json!("ours");
    json["vision_config"]["vocab_size"] = json!(32000);
    assert_eq!(model(&json).unread_keys().unwrap(), ["note", "vision_config.comment"]);
}

#[test]
fn numbers_that_would_overflow_are_refused() {
    let mut json = smolvlm();
    json["scale_factor"] = json!(1_i64 << 32);
    assert!(model(&json).projector().unwrap_err().to_string().contains("squares of 4294967296"));
    let mut json = lfm2_vl();
    json["vision_config"]["num_patches"] = json!(i64::MAX);
    assert!(model(&json).projector().unwrap_err().to_string().contains("expected a square"));
    let mut json = llava();
    json["vision_config"]["num_hidden_layers"] = json!(1_i64 << 40);
    let message = model(&json).vision().unwrap_err().to_string();
    assert!(message.contains("num_hidden_layers is 1099511627776; the limit is"), "{message}");
}

#[test]
fn parts_of_another_type_than_expected_do_not_end_the_program() {
    let mut json = llava();
    json["text_config"].as_object_mut().unwrap().remove("model_type");
    assert_eq!(model(&json).language().unwrap()["model_type"], "llama");
    let mut json = lfm2_vl();
    json["vision_config"] = json!(7);
    // The encoder then has the defaults of its class.
    assert_eq!(model(&json).vision().unwrap().num_patches(), 256);
}
