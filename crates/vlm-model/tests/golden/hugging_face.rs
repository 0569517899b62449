//! LLaMA, Qwen2 and Qwen3 with biases and RoPE scaling, in the formats of transformers 4 and 5, and
//! MiniMind2's shared experts. The files are made by `tests/golden/hugging_face.py`.

use tch::{Device, Tensor};
use vlm_model::detect::default_config_for;
use vlm_model::lm::CausalLm;
use vlm_model::params::ParamStore;
use vlm_model::weights::Weights;
use vlm_model::{LmConfig, LmFamily};

use crate::fixtures::{
    assert_cached_steps_equal_one_pass, assert_close, golden, json, logits, tensors,
};

/// Tolerance of logits in float32, for tiny models whose numbers are near 1.
const TOLERANCE: f64 = 1e-4;

/// The model of a configuration, with the weights of one file.
fn model(config: &LmConfig, weights: &str) -> CausalLm {
    let store = ParamStore::new(Device::Cpu);
    let lm = CausalLm::new(&store.root(), config);
    let weights = Weights::open(&golden(weights)).unwrap();
    weights.load_into(&store.named(), |_| false).unwrap();
    lm
}

/// The mean cross-entropy of each token given the tokens before it.
fn loss(logits: &Tensor, input_ids: &Tensor) -> f64 {
    let predicted = logits.narrow(1, 0, logits.size()[1] - 1).flatten(0, 1);
    let targets = input_ids.narrow(1, 1, input_ids.size()[1] - 1).flatten(0, -1);
    predicted.cross_entropy_for_logits(&targets).double_value(&[])
}

#[test]
fn logits_equal_transformers_for_configurations_of_both_versions() {
    let expected = tensors("hugging_face/expected.safetensors");
    let cases = json("hugging_face/cases.json");
    assert_eq!(cases.as_object().unwrap().len(), 13);
    for (case, files) in cases.as_object().unwrap() {
        for version in ["4", "5"] {
            let config = LmConfig::from_json(&files[version]).unwrap();
            config.validate().unwrap();
            let lm =
                model(&config, &format!("hugging_face/{}", files["weights"].as_str().unwrap()));
            let found = logits(&lm, &expected["input_ids"]);
            println!(
                "{case} as written by {version}: loss {:.6}",
                loss(&found, &expected["input_ids"])
            );
            assert_close(case, &found, &expected[case], TOLERANCE);
        }
    }
}

#[test]
fn configurations_are_read_back_from_their_own_file() {
    for (case, files) in json("hugging_face/cases.json").as_object().unwrap() {
        let config = LmConfig::from_json(&files["5"]).unwrap();
        let again = LmConfig::from_json(&config.to_json()).unwrap();
        let explicit = LmConfig {
            head_dim: Some(config.head_dim()),
            hidden_dim: Some(config.intermediate_size()),
            ..config
        };
        assert_eq!(again, explicit, "{case}");
        assert_eq!(again.to_json()["model_type"], files["5"]["model_type"], "{case}");
    }
}

#[test]
fn shared_experts_equal_the_reference() {
    let config = LmConfig::from_file(&golden("minimind2/config.json")).unwrap();
    assert_eq!((config.family, config.moe.n_shared_experts), (LmFamily::MiniMind2, Some(2)));
    let lm = model(&config, "minimind2/model.safetensors");
    let expected = tensors("minimind2/expected.safetensors");
    let found = logits(&lm, &expected["input_ids"]);
    assert_close("shared experts", &found, &expected["logits"], TOLERANCE);
    let output = lm.forward(&lm.embed(&expected["input_ids"]), None, true);
    let aux_loss = output.aux_loss.unwrap().view([1]);
    assert_close("their auxiliary loss", &aux_loss, &expected["aux_loss"], 1e-7);

    // Without config.json, the names give the same configuration, except for the head width.
    let weights = Weights::open(&golden("minimind2/model.safetensors")).unwrap();
    let by_names = default_config_for(&weights).unwrap();
    assert_eq!((by_names.family, by_names.rope_theta), (LmFamily::MiniMind2, 1e6));
    assert_eq!((by_names.use_moe, by_names.moe), (true, config.moe));
}

#[test]
fn biases_are_recognised_by_names_alone() {
    for (file, qkv, output, mlp) in [
        ("llama", false, false, false),
        ("llama_biases", true, true, true),
        ("qwen2", true, false, false),
        ("qwen3_biases", true, true, false),
    ] {
        let weights = Weights::open(&golden(&format!("hugging_face/{file}.safetensors"))).unwrap();
        let config = default_config_for(&weights).unwrap();
        let found = (config.qkv_bias, config.attention_output_bias, config.mlp_bias);
        assert_eq!(found, (qkv, output, mlp), "{file}");
    }
}

#[test]
fn cached_steps_equal_one_pass_with_rope_scaling() {
    let cases = json("hugging_face/cases.json");
    for case in ["llama3", "yarn_settings", "qwen2_untied"] {
        let config = LmConfig::from_json(&cases[case]["4"]).unwrap();
        let lm =
            model(&config, &format!("hugging_face/{}", cases[case]["weights"].as_str().unwrap()));
        assert_cached_steps_equal_one_pass(case, &lm, 1e-4);
    }
}
