//! A second copy of a model, on its own thread, which computes the other half of each batch.
//!
//! The demo's models are so small that splitting single operations among threads is not worth it,
//! but splitting a batch is. Threads that synchronise once per update are also less sensitive to
//! other load on the machine than threads that synchronise in every operation.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use anyhow::{Context, Result};
use tch::Tensor;
use vlm_torch::set_grad_none;

/// A handle of the copy. `B` is half of a batch.
#[derive(Debug)]
pub(super) struct Replica<B> {
    params: Vec<Tensor>,
    work: Sender<B>,
    losses: Receiver<Result<f64>>,
}

impl<B: Send> Replica<B> {
    /// Starts the thread. `build` runs on it and makes the copy: its parameters, in the order of
    /// those of the original, and its loss function. The thread ends when the handle is dropped.
    ///
    /// # Errors
    /// `build` panicked.
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

    /// Copies the parameters of the original, and starts to compute the gradients of half of a
    /// batch.
    ///
    /// # Errors
    /// The thread has ended.
    pub fn start(&mut self, original: &[Tensor], batch: B) -> Result<()> {
        tch::no_grad(|| {
            for (copy, original) in self.params.iter_mut().zip(original) {
                copy.copy_(original);
            }
        });
        self.work.send(batch).ok().context("the second copy of the model stopped")
    }

    /// Waits for the copy, replaces the gradients of the original by the mean of both, and returns
    /// the loss of the copy.
    ///
    /// # Errors
    /// An error of the loss function of the copy; the thread has ended.
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
    fn two_half_batches_give_the_gradient_of_the_whole_batch() {
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
