//! Describes an image: `cargo run --release --example caption -- out image.png`

use vlm_infer::{InferError, VisionLanguageModel, user_turn};

/// The answer of the model in the folder `model` about an encoded image (JPEG, PNG, …).
pub fn caption(model: &str, image: &[u8]) -> Result<String, InferError> {
    let model = VisionLanguageModel::from_pretrained(model)?;
    let turns = [user_turn("Describe the image.", 1)];
    model.generator().generate(&turns, &[image])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, image] = args.as_slice() else {
        return Err("expected two arguments: the folder of a model, and an image".into());
    };
    println!("{}", caption(model, &std::fs::read(image)?)?);
    Ok(())
}
