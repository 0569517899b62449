//! A second copy of a model on a thread of its own, for the other half of each batch.
//!
//! The demo's models are so small that one operation is too short to be worth splitting; half a
//! batch is not. Two threads that meet once an update also bear a busy machine better than threads
//! that meet at every operation.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use anyhow::{Context, Result};
use tch::Tensor;
use vlm_torch::set_grad_none;

/// The handle of the copy; `B` is half a batch.
#[derive(Debug)]
pub(super) struct Replica<B> {
    params: Vec<Tensor>,
    work: Sender<B>,
    losses: Receiver<Result<f64>>,
}

impl<B: Send> Replica<B> {
    /// `build` makes the copy on its thread: its parameters, in the order of the original's, and
    /// its loss. The thread ends when the handle is dropped.
    /// # Errors
    /// The thread could not build its copy.
    pub fn spawn<'scope, L>(
        scope: &'scope Scope<'scope, '_>,
        build: impl FnOnce() -> (Vec<Tensor>, L) + Send + 'scope,
    ) -> Result<Self>
    where
        B: 'scope,
        L: Fn(&B) -> Result<Tensor>,
    {
        let (params_sender, params) = channel();
        let (work, work_receiver) = channel::<B>();
        let (loss_sender, losses) = channel();
        scope.spawn(move || {
            let (params, loss) = build();
            let own: Vec<Tensor> = params.iter().map(Tensor::shallow_clone).collect();
            if params_sender.send(params).is_err() {
                return;
            }
            while let Ok(batch) = work_receiver.recv() {
                let value = loss(&batch).and_then(|loss| {
                    set_grad_none(&own)?;
                    loss.backward();
                    Ok(loss.double_value(&[]))
                });
                if loss_sender.send(value).is_err() {
                    return;
                }
            }
        });
        let params = params.recv().context("the second copy of the model could not be built")?;
        Ok(Self { params, work, losses })
    }

    /// Begins half a batch with the original's current values.
    /// # Errors
    /// The thread is gone.
    pub fn start(&mut self, original: &[Tensor], batch: B) -> Result<()> {
        tch::no_grad(|| {
            for (copy, original) in self.params.iter_mut().zip(original) {
                copy.copy_(original);
            }
        });
        self.work.send(batch).ok().context("the second copy of the model stopped")
    }

    /// Waits for the half batch and turns the original's gradients into the mean of both.
    /// Returns the copy's loss.
    /// # Errors
    /// Those of the copy's loss; the thread is gone.
    pub fn finish(&self, original: &[Tensor]) -> Result<f64> {
        let loss = self.losses.recv().context("the second copy of the model stopped")??;
        tch::no_grad(|| {
            for (copy, original) in self.params.iter().zip(original) {
                let mut mean = original.grad();
                let _ = mean.g_add_(&copy.grad()).g_mul_scalar_(0.5);
            }
        });
        Ok(loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn two_halves_give_the_gradient_of_the_whole() {
        let weight = || Tensor::ones([2], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let loss = |weight: &Tensor, x: &Tensor| (weight * x).sum(Kind::Double).square();
        let halves = [[1.0, 2.0], [3.0, -1.0]].map(|half| Tensor::from_slice(&half));
        let original = weight();
        std::thread::scope(|scope| {
            let build = move || {
                let copy = weight();
                (vec![copy.shallow_clone()], move |x: &Tensor| Ok(loss(&copy, x)))
            };
            let mut replica = Replica::spawn(scope, build).unwrap();
            let params = [original.shallow_clone()];
            replica.start(&params, halves[1].copy()).unwrap();
            loss(&original, &halves[0]).backward();
            replica.finish(&params).unwrap();
        });
        let whole = weight();
        ((loss(&whole, &halves[0]) + loss(&whole, &halves[1])) * 0.5).backward();
        assert_eq!(original.grad(), whole.grad());
    }
}
