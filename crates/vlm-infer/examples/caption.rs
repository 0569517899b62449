//! Captions an image: `cargo run --release --example caption -- out image.png`

use vlm_infer::{VisionLanguageModel, user_turn};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let model = args.next().ok_or("expected the folder of a model")?;
    let image = std::fs::read(args.next().ok_or("expected an image")?)?;

    let model = VisionLanguageModel::from_pretrained(model)?;
    let turns = [user_turn("Describe the image.", 1)];
    println!("{}", model.generator().generate(&turns, &[image])?);
    Ok(())
}
