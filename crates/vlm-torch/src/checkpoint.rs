//! Activation checkpointing: memory for time. A block's intermediate results are dropped after the
//! forward pass and computed again in the backward pass.

use std::ffi::c_void;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result, ffi};

type Function = dyn Fn(&[Tensor]) -> Tensor + Send;

/// Runs once at a time: a backward pass on another thread may ask for it while this one still has it.
type Context = Mutex<Box<Function>>;

/// `f(inputs)`, which keeps only `inputs` for the backward pass and runs `f` again there.
///
/// `params` are the tensors with gradients that `f` captured (shallow clones); one that is left out
/// silently gets no gradient from this block. `f` has to give the same result twice: it must not
/// draw random numbers, whose generator state is not restored (dropout is 0 in this project). The
/// second run sees the autocast state of the first, with gradients on. Second derivatives are not
/// supported. `f` is `Send` because the backward pass of a CUDA graph runs on libtorch's threads.
/// # Errors
/// Anything libtorch or `f` complains of; a panic in `f` is an error with its message, here or from
/// the backward pass.
pub fn checkpoint(
    inputs: &[&Tensor],
    params: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Tensor + Send + 'static,
) -> Result<Tensor> {
    const OPERATION: &str = "checkpoint";
    let tensors: Vec<_> = inputs.iter().chain(params).map(|tensor| tensor.as_ptr()).collect();
    let context: Box<Context> = Box::new(Mutex::new(Box::new(f)));
    let mut output = ptr::null_mut();
    // SAFETY: `tensors` are live handles borrowed for the call. The shim owns `context` from here on
    // and gives it to `run` (any thread; it is Send and behind a mutex) and once to `release`.
    let status = unsafe {
        ffi::vlm_checkpoint(
            tensors.as_ptr(),
            tensors.len(),
            inputs.len(),
            run,
            release,
            Box::into_raw(context).cast(),
            &mut output,
        )
    };
    ffi::check(OPERATION, status)?;
    if output.is_null() {
        return Err(Error::torch(OPERATION, "libtorch returned no tensor"));
    }
    // SAFETY: on success the shim wrote a tensor allocated for the caller to own.
    Ok(unsafe { Tensor::from_ptr(output) })
}

/// Calls the closure on tensors it takes over; null after leaving a message when that panics.
///
/// # Safety
/// `context` is a `Context` that `release` has not had; `inputs` are `count` owned tensors.
unsafe extern "C" fn run(
    context: *mut c_void,
    inputs: *mut *mut C_tensor,
    count: usize,
) -> *mut C_tensor {
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the contract above each pointer is an owned tensor, taken over once.
        let inputs: Vec<_> =
            (0..count).map(|i| unsafe { Tensor::from_ptr(*inputs.add(i)) }).collect();
        // SAFETY: by the contract above; shared access only.
        let context = unsafe { &*context.cast::<Context>() };
        // A closure that panicked before changed nothing: it is `Fn`.
        let function = context.lock().unwrap_or_else(PoisonError::into_inner);
        function(&inputs)
    }));
    match result {
        // The C++ side takes the tensor over, so Rust must not free it.
        Ok(output) => ManuallyDrop::new(output).as_mut_ptr(),
        Err(payload) => {
            ffi::set_error(&format!(
                "the checkpointed function panicked: {}",
                ffi::panic_message(&*payload)
            ));
            ptr::null_mut()
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
