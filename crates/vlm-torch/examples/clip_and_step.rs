//! One optimizer step without a trainer: gradients, clipping, fused AdamW, and a `.pth` that Python
//! reads.
//!
//! `cargo run --release -p vlm-torch --example clip_and_step`

use tch::{Device, Kind, Tensor};
use vlm_torch::{AdamWStep, LossScale, clip_grad_norm, fused_adamw_step, save_pth};

fn main() -> vlm_torch::Result<()> {
    let weight = Tensor::ones([4], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    (&weight * 10.0).square().sum(Kind::Float).backward();
    let params = [weight.shallow_clone()];
    let norm = clip_grad_norm(&params, 1.0)?;
    println!("gradient norm before clipping: {norm}");
    let zeros = || [weight.zeros_like()];
    let steps = [Tensor::zeros([], (Kind::Float, Device::Cpu))];
    let numbers = AdamWStep { lr: 0.1, ..AdamWStep::default() };
    let (grads, scale) = ([weight.grad()], LossScale::default());
    fused_adamw_step(&params, &grads, &zeros(), &zeros(), &steps, &numbers, scale)?;
    println!("weights after one step: {weight}");
    let path = std::env::temp_dir().join("one_step.pth");
    save_pth(&path, &[("weight".to_owned(), weight)])?;
    println!("torch.load({:?}, weights_only=True) reads it", path);
    Ok(())
}
