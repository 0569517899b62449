//! Activation checkpointing: memory for time. A block's intermediate results are dropped after the
//! forward pass and computed again in the backward pass.

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result, ffi};

type Function = dyn Fn(&[Tensor]) -> Vec<Tensor> + Send;

/// Runs once at a time: a backward pass on another thread may ask for it while this one still has it.
type Context = Mutex<Box<Function>>;

/// [`checkpoint_many`] of a function with one result.
/// # Errors
/// As there.
pub fn checkpoint(
    inputs: &[&Tensor],
    params: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Tensor + Send + 'static,
) -> Result<Tensor> {
    let mut outputs = checkpoint_many(inputs, params, 1, move |inputs| vec![f(inputs)])?;
    Ok(outputs.remove(0))
}

/// `f(inputs)`, which keeps only `inputs` (at least one) for the backward pass and runs `f` again
/// there. `f` returns `num_outputs` tensors, of a floating-point type.
///
/// `params` are the tensors with gradients that `f` captured (shallow clones); one that is left out
/// silently gets no gradient from this block. `f` has to give the same result twice: random numbers
/// it draws from libtorch are the same again, on the CPU and on the device of the first input. The
/// second run sees the autocast state of the first, with gradients on. Where neither inputs nor
/// parameters have gradients, nothing is kept and nothing is run again. Second derivatives are not
/// supported. `f` is `Send` because the backward pass of a CUDA graph runs on libtorch's threads.
/// # Errors
/// Anything libtorch or `f` complains of; a panic in `f` is an error with its message, here or from
/// the backward pass.
pub fn checkpoint_many(
    inputs: &[&Tensor],
    params: &[&Tensor],
    num_outputs: usize,
    f: impl Fn(&[Tensor]) -> Vec<Tensor> + Send + 'static,
) -> Result<Vec<Tensor>> {
    const OPERATION: &str = "checkpoint";
    let tensors: Vec<_> = inputs.iter().chain(params).map(|tensor| tensor.as_ptr()).collect();
    let context: Box<Context> = Box::new(Mutex::new(Box::new(f)));
    let mut outputs = vec![ptr::null_mut(); num_outputs];
    // SAFETY: `tensors` are live handles borrowed for the call, `outputs` has room for what is
    // asked for. The shim owns `context` from here on and gives it to `run` (any thread; it is Send
    // and behind a mutex) and once to `release`.
    let status = unsafe {
        ffi::vlm_checkpoint(
            tensors.as_ptr(),
            tensors.len(),
            inputs.len(),
            run,
            release,
            Box::into_raw(context).cast(),
            outputs.as_mut_ptr(),
            num_outputs,
        )
    };
    ffi::check(OPERATION, status)?;
    if outputs.iter().any(|output| output.is_null()) {
        return Err(Error::torch(OPERATION, "libtorch returned no tensor"));
    }
    // SAFETY: on success the shim wrote tensors allocated for the caller to own, each once.
    Ok(outputs.into_iter().map(|output| unsafe { Tensor::from_ptr(output) }).collect())
}

/// Calls the closure on tensors it takes over and writes its results; nonzero after leaving a
/// message when that panics or gives another number of them.
///
/// # Safety
/// `context` is a `Context` that `release` has not had; `inputs` are `count` owned tensors;
/// `outputs` has room for `num_outputs` pointers.
unsafe extern "C" fn run(
    context: *mut c_void,
    inputs: *mut *mut C_tensor,
    count: usize,
    outputs: *mut *mut C_tensor,
    num_outputs: usize,
) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the contract above each pointer is an owned tensor, taken over once.
        let inputs: Vec<_> =
            (0..count).map(|i| unsafe { Tensor::from_ptr(*inputs.add(i)) }).collect();
        // SAFETY: by the contract above; shared access only.
        let context = unsafe { &*context.cast::<Context>() };
        // A closure that panicked before changed nothing: it is `Fn`.
        let function = context.lock().unwrap_or_else(PoisonError::into_inner);
        let results = function(&inputs);
        assert_eq!(results.len(), num_outputs, "number of its results");
        results
    }));
    match result {
        Ok(results) => {
            for (i, result) in results.into_iter().enumerate() {
                // SAFETY: there is room for this many. The C++ side takes the tensor over, so Rust
                // must not free it.
                unsafe { *outputs.add(i) = ManuallyDrop::new(result).as_mut_ptr() };
            }
            0
        }
        Err(payload) => {
            ffi::set_error(&format!(
                "the checkpointed function panicked: {}",
                ffi::panic_message(&*payload)
            ));
            1
        }
    }
}

/// Frees the closure.
///
/// # Safety
/// `context` came from `Box::into_raw` in [`checkpoint`] and is not used afterwards.
unsafe extern "C" fn release(context: *mut c_void) {
    let drop_it = || {
        // SAFETY: by the contract above.
        drop(unsafe { Box::from_raw(context.cast::<Context>()) });
    };
    // A panic from a captured value's destructor must not unwind into C++; there is nobody to tell.
    let _ = catch_unwind(AssertUnwindSafe(drop_it));
}
