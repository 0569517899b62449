//! A generated text that is printed while it is generated.

use std::time::Instant;

use anyhow::Result;
use vlm_display::count;
use vlm_infer::Generator;
use vlm_model::ImageInput;
use vlm_model::generate::Prompt;

/// A generated text that was printed on standard output, with the time it took.
pub struct Printed {
    /// The text.
    pub text: String,
    num_tokens: usize,
    secs: f64,
}

impl Printed {
    /// The speed of the generation, for the log.
    pub fn speed(&self) -> String {
        let rate = self.num_tokens as f64 / self.secs.max(1e-9);
        let tokens = count(self.num_tokens, "token");
        format!("{tokens} in {:.2} s ({rate:.0} tokens/s)", self.secs)
    }
}

/// Generates text for one prompt and prints each piece on standard output as soon as it is
/// generated.
pub fn print_streaming(
    generator: &Generator,
    prompt: &Prompt,
    images: ImageInput,
) -> Result<Printed> {
    let started = Instant::now();
    let mut num_tokens = 0;
    let text = generator.stream_text(prompt, images, &mut |piece| {
        num_tokens += 1;
        print!("{piece}");
    })?;
    println!();
    // `stream_text` calls the closure once for each token, and once at the end.
    num_tokens -= 1;
    Ok(Printed { text, num_tokens, secs: started.elapsed().as_secs_f64() })
}
