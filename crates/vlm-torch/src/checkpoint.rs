//! Activation checkpointing: the intermediate results of a block are freed after the forward pass
//! and computed again in the backward pass. This saves memory and costs time.

use std::ffi::{c_int, c_void};
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use tch::Tensor;
use torch_sys::C_tensor;

use crate::{Error, Result, ffi};

type Function = dyn Fn(&[Tensor]) -> Vec<Tensor> + Send;

/// The checkpointed function, behind a mutex because a backward pass on another thread may call it
/// while this thread still does.
type Context = Mutex<Box<Function>>;

/// [`checkpoint_many`] for a function with one result.
///
/// # Errors
/// As [`checkpoint_many`].
pub fn checkpoint(
    inputs: &[&Tensor],
    params: &[&Tensor],
    f: impl Fn(&[Tensor]) -> Tensor + Send + 'static,
) -> Result<Tensor> {
    let mut outputs = checkpoint_many(inputs, params, 1, move |inputs| vec![f(inputs)])?;
    Ok(outputs.remove(0))
}

/// Returns `f(inputs)`, and keeps only `inputs` (at least one) for the backward pass, which calls
/// `f` again. `f` returns `num_outputs` tensors of a floating-point dtype.
///
/// `params` are the tensors that require a gradient and that `f` captured (shallow clones); a
/// tensor that is left out silently gets no gradient from this block. `f` must give the same result
/// twice. The second call has the random state of the first, on the CPU and on the device of the
/// first input, and its autocast state, with gradients on. If neither inputs nor parameters require
/// a gradient, nothing is kept and `f` is called once. Second derivatives are not supported. `f` is
/// `Send` because libtorch runs the backward pass of CUDA tensors on its own threads.
///
/// # Errors
/// libtorch fails, or `f` panics; the error has the panic's message. In the backward pass, a panic
/// in `f` is an error of that pass.
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
    // SAFETY: `tensors` are live handles borrowed for the call, and `outputs` has room for
    // `num_outputs` pointers. The shim owns `context` from here on and passes it to `run` (on any
    // thread: it is Send and behind a mutex) and once to `release`.
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

/// Calls the closure with `inputs`, which it owns, and writes its results to `outputs`. Returns 0,
/// or sets the error message and returns 1 if the closure panics or returns another number of
/// results.
///
/// # Safety
/// `context` is a `Context` that was not passed to `release`; `inputs` are `count` owned tensors;
/// `outputs` has room for `num_outputs` pointers.
unsafe extern "C" fn run(
    context: *mut c_void,
    inputs: *mut *mut C_tensor,
    count: usize,
    outputs: *mut *mut C_tensor,
    num_outputs: usize,
) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(|| {
        // SAFETY: by the contract above, each pointer is an owned tensor, which is used once.
        let inputs: Vec<_> =
            (0..count).map(|i| unsafe { Tensor::from_ptr(*inputs.add(i)) }).collect();
        // SAFETY: by the contract above; shared access only.
        let context = unsafe { &*context.cast::<Context>() };
        // A poisoned lock is ignored: the closure is `Fn`, so that a panic did not change it.
        let function = context.lock().unwrap_or_else(PoisonError::into_inner);
        let results = function(&inputs);
        assert_eq!(results.len(), num_outputs, "wrong number of results");
        results
    }));
    match result {
        Ok(results) => {
            for (i, result) in results.into_iter().enumerate() {
                // SAFETY: there is room for this number of pointers. The C++ side owns the tensor
                // from here on, so Rust must not free it.
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
    // A panic of a captured value's destructor must not unwind into C++. It cannot be reported.
    let _ = catch_unwind(AssertUnwindSafe(drop_it));
}
