//! The learning rate over a run, as a line of blocks.
//!
//! `cargo run --release -p vlm-train --example schedule`

use vlm_train::schedule::learning_rate;

fn main() {
    const STEPS: u64 = 64;
    const BLOCKS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let rates: Vec<f64> = (0..STEPS).map(|step| learning_rate(step, STEPS, 4e-4, 6)).collect();
    let highest = rates.iter().copied().fold(0.0, f64::max);
    let block = |rate: &f64| BLOCKS[(rate / highest * 7.0).round() as usize];
    println!("{}", rates.iter().map(block).collect::<String>());
    println!("first {:.2e}, highest {highest:.2e}, last {:.2e}", rates[0], rates[63]);
}
