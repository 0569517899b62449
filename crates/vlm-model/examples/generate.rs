//! Generates text about a grey image with a small vision-language model that has random weights.
//!
//! `cargo run --release -p vlm-model --example generate`

use tch::{Device, Kind, Tensor};
use vlm_model::generate::{GenerateOptions, Prompt, generate};
use vlm_model::sampling::Sampling;
use vlm_model::{ImageInput, LmConfig, ModelError, VisionConfig, Vlm};

fn main() -> Result<(), ModelError> {
    tch::manual_seed(1);
    let lm = LmConfig { dim: 64, n_layers: 2, vocab_size: 100, ..LmConfig::default() };
    let vision = VisionConfig {
        hidden_size: 48,
        num_attention_heads: 4,
        num_hidden_layers: 2,
        intermediate_size: 96,
        patch_size: 32,
        ..VisionConfig::default()
    };
    let model = Vlm::new(&lm, &vision, Device::Cpu)?;
    println!("one image takes the place of {} tokens", model.tokens_per_image());
    let prompt = Prompt { input_ids: vec![1; 60], image_starts: vec![5] };
    let image = ImageInput::Pixels(Tensor::zeros([1, 3, 224, 224], (Kind::Float, Device::Cpu)));
    let sampling = Sampling { temperature: 0.7, top_p: 0.9, ..Sampling::default() };
    let options = GenerateOptions { max_new_tokens: 8, stop_token_ids: Vec::new(), sampling };
    let generated = generate(&model, &[prompt], image, &options, &mut |_, _| ())?;
    println!("generated token ids: {:?}", generated[0]);
    Ok(())
}
