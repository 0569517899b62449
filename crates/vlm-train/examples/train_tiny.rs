//! Trains a tiny model with random weights on generated rows: images of one colour, each with a
//! sentence that names the colour.
//!
//! `cargo run -p vlm-train --example train_tiny -- TOKENIZER`, where TOKENIZER is a folder with
//! `tokenizer.json` and `tokenizer_config.json`, such as `data/demo-start`.

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use serde_json::json;
use vlm_model::VisionConfig;
use vlm_model::params::ParamStore;
use vlm_model::vision::VisionEncoder;
use vlm_model::weights::{Format, save};
use vlm_train::{Event, Run, TrainConfig};

fn main() -> Result<()> {
    let tokenizer = std::env::args().nth(1).context("usage: train_tiny TOKENIZER")?;
    let folder = tempfile::tempdir()?;
    let losses = train_tiny(folder.path(), Path::new(&tokenizer))?;
    let (first, last) = (losses.first().context("no step")?, losses.last().context("no step")?);
    println!("{} steps: first loss {first:.3}, last loss {last:.3}", losses.len());
    Ok(())
}

/// Trains in `folder` and returns the loss of every step, in nats per supervised token.
pub fn train_tiny(folder: &Path, tokenizer: &Path) -> Result<Vec<f64>> {
    write_rows(folder)?;
    write_vision_encoder(&folder.join("vision"))?;
    let mut config = TrainConfig::default();
    config.data.data_path = folder.join("rows.jsonl").as_path().into();
    config.data.num_workers = 1;
    config.model.vision = folder.join("vision");
    config.model.tokenizer = tokenizer.to_owned();
    config.model.shape.dim = Some(64);
    config.model.shape.n_layers = Some(2);
    config.model.freeze.train_lm = true;
    config.optim.epochs = 10;
    config.optim.batch_size = 4;
    config.optim.learning_rate = 3e-3;
    config.run.out_dir = folder.join("out");

    let mut run = Run::prepare(config)?;
    let (sender, losses) = channel();
    run.add_sink(move |event: &Event| {
        if let Event::Step(step) = event {
            // The receiver lives until the end of the training.
            let _ = sender.send(step.loss);
        }
        Ok(())
    });
    run.train(&AtomicBool::new(false))?;
    Ok(losses.iter().flatten().collect())
}

/// Writes `rows.jsonl` and its images, four of each colour.
fn write_rows(folder: &Path) -> Result<()> {
    let mut rows = String::new();
    for k in 0..12 {
        let (colour, rgb) =
            [("red", [220, 20, 20]), ("green", [20, 200, 20]), ("blue", [20, 20, 220])][k % 3];
        let image = format!("{k}.png");
        RgbImage::from_pixel(32, 32, Rgb(rgb)).save(folder.join(&image))?;
        let question = json!({"role": "user", "content": "<image>\nWhich colour is this?"});
        let answer = json!({"role": "assistant", "content": format!("It is {colour}.")});
        rows += &format!("{}\n", json!({"image": image, "conversations": [question, answer]}));
    }
    Ok(std::fs::write(folder.join("rows.jsonl"), rows)?)
}

/// Writes a vision encoder with random weights in Hugging Face format, for images of 32 × 32 pixels
/// and 4 × 4 patches.
fn write_vision_encoder(folder: &Path) -> Result<()> {
    let mut config = VisionConfig::default();
    (config.image_size, config.patch_size) = (32, 8);
    (config.hidden_size, config.intermediate_size) = (32, 64);
    (config.num_hidden_layers, config.num_attention_heads) = (1, 2);
    let params = ParamStore::new(tch::Device::Cpu);
    let _ = VisionEncoder::new(&params.root(), &config);
    std::fs::create_dir(folder)?;
    save(&folder.join("model.safetensors"), &params.named(), Format::Safetensors)?;
    Ok(std::fs::write(folder.join("config.json"), config.to_json().to_string())?)
}
