//! Declarations of the C functions in `cpp/`, and helpers for calling them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

use crate::{Error, Result};

/// A borrowed handle of a tensor. The shim copies the handle and never frees it.
pub(crate) type Handle = *const C_tensor;

/// Calls a Rust function with tensors that it owns; see `vlm_function` in `checkpoint.cpp`.
pub(crate) type Function = unsafe extern "C" fn(
    context: *mut c_void,
    inputs: *mut *mut C_tensor,
    count: usize,
    outputs: *mut *mut C_tensor,
    num_outputs: usize,
) -> c_int;

/// Frees a `context`.
pub(crate) type Release = unsafe extern "C" fn(context: *mut c_void);

/// Writes bytes; see `vlm_write` in `pth.cpp`.
pub(crate) type Write =
    unsafe extern "C" fn(context: *mut c_void, bytes: *const c_char, count: usize) -> c_int;

/// `vlm::Group` of `process_group.h`.
#[repr(C)]
pub(crate) struct GroupHandle {
    opaque: [u8; 0],
}

/// `StoreClient` of `store.cpp`.
#[repr(C)]
pub(crate) struct StoreHandle {
    opaque: [u8; 0],
}

/// `Ddp` of `reducer.cpp`.
#[repr(C)]
pub(crate) struct ReducerHandle {
    opaque: [u8; 0],
}

/// `at::RecordFunction`.
#[repr(C)]
pub(crate) struct SpanHandle {
    opaque: [u8; 0],
}

unsafe extern "C" {
    fn vlm_last_error() -> *const c_char;
    fn vlm_set_error(message: *const c_char);

    pub(crate) fn vlm_grad_norm(
        params: *const Handle,
        count: usize,
        norm: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn vlm_clip_gradients(
        params: *const Handle,
        count: usize,
        norm: Handle,
        max_norm: f64,
    ) -> c_int;
    pub(crate) fn vlm_unscale_gradients(
        params: *const Handle,
        count: usize,
        inv_scale: Handle,
        found_inf: *mut C_tensor,
    ) -> c_int;
    pub(crate) fn vlm_set_grad_none(params: *const Handle, count: usize) -> c_int;
    pub(crate) fn vlm_fused_adamw_step(
        params: *const Handle,
        grads: *const Handle,
        exp_avgs: *const Handle,
        exp_avg_sqs: *const Handle,
        steps: *const Handle,
        count: usize,
        lr: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        grad_scale: Handle,
        found_inf: Handle,
    ) -> c_int;

    pub(crate) fn vlm_set_operation(name: *const c_char);

    pub(crate) fn vlm_autocast_enter(
        device_type: c_int,
        enabled: c_int,
        dtype: c_int,
        previous_enabled: *mut c_int,
        previous_dtype: *mut c_int,
    ) -> c_int;
    pub(crate) fn vlm_autocast_state(
        device_type: c_int,
        enabled: *mut c_int,
        dtype: *mut c_int,
    ) -> c_int;
    pub(crate) fn vlm_autocast_leave(
        device_type: c_int,
        previous_enabled: c_int,
        previous_dtype: c_int,
    ) -> c_int;

    pub(crate) fn vlm_checkpoint(
        tensors: *const Handle,
        count: usize,
        num_inputs: usize,
        function: Function,
        release: Release,
        context: *mut c_void,
        out: *mut *mut C_tensor,
        num_outputs: usize,
    ) -> c_int;

    pub(crate) fn vlm_linear(
        x: Handle,
        weight: Handle,
        bias: Handle,
        out: *mut *mut C_tensor,
    ) -> c_int;

    pub(crate) fn vlm_rms_norm(
        x: Handle,
        weight: Handle,
        eps: f64,
        out_type: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;
    pub(crate) fn vlm_swiglu(gate: Handle, up: Handle, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn vlm_mixed_sum(x: Handle, y: Handle, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn vlm_quick_gelu(x: Handle, out: *mut *mut C_tensor) -> c_int;
    pub(crate) fn vlm_gelu_tanh(x: Handle, out: *mut *mut C_tensor) -> c_int;

    pub(crate) fn vlm_has_row_attention(head_dim: i64) -> c_int;
    pub(crate) fn vlm_row_attention(
        q: Handle,
        k: Handle,
        v: Handle,
        prefix_k: Handle,
        prefix_v: Handle,
        rotations: Handle,
        prefix_rotations: Handle,
        tokens: Handle,
        starts: *const i64,
        num_starts: usize,
        is_interleaved: c_int,
        is_causal: c_int,
        out: *mut *mut C_tensor,
    ) -> c_int;

    pub(crate) fn vlm_profiler_start(with_cuda: c_int) -> c_int;
    pub(crate) fn vlm_profiler_stop(path: *const c_char) -> c_int;
    pub(crate) fn vlm_span_begin(name: *const c_char, out: *mut *mut SpanHandle) -> c_int;
    pub(crate) fn vlm_span_end(span: *mut SpanHandle);

    pub(crate) fn vlm_write_pth(
        names: *const *const u8,
        name_sizes: *const usize,
        tensors: *const Handle,
        count: usize,
        write: Write,
        context: *mut c_void,
    ) -> c_int;

    pub(crate) fn vlm_group_connect(
        host: *const c_char,
        port: u16,
        rank: c_int,
        world_size: c_int,
        is_server: c_int,
        timeout_ms: i64,
        prefix: *const c_char,
        address: *const c_char,
        out: *mut *mut GroupHandle,
    ) -> c_int;
    pub(crate) fn vlm_group_share(group: *const GroupHandle, out: *mut *mut GroupHandle) -> c_int;
    pub(crate) fn vlm_group_free(group: *mut GroupHandle);
    pub(crate) fn vlm_group_all_reduce_sum(group: *mut GroupHandle, tensor: *mut C_tensor)
    -> c_int;
    pub(crate) fn vlm_group_all_gather(
        group: *mut GroupHandle,
        input: *mut C_tensor,
        outputs: *const Handle,
        count: usize,
    ) -> c_int;
    pub(crate) fn vlm_group_reduce_scatter_sum(
        group: *mut GroupHandle,
        input: *mut C_tensor,
        output: *mut C_tensor,
    ) -> c_int;
    pub(crate) fn vlm_group_all_gather_into(
        group: *mut GroupHandle,
        input: *mut C_tensor,
        output: *mut C_tensor,
    ) -> c_int;
    pub(crate) fn vlm_group_broadcast(
        group: *mut GroupHandle,
        tensors: *const Handle,
        count: usize,
        root: c_int,
    ) -> c_int;
    pub(crate) fn vlm_group_barrier(group: *mut GroupHandle) -> c_int;

    pub(crate) fn vlm_store_connect(
        host: *const c_char,
        port: u16,
        timeout_ms: i64,
        prefix: *const c_char,
        out: *mut *mut StoreHandle,
    ) -> c_int;
    pub(crate) fn vlm_store_free(store: *mut StoreHandle);
    pub(crate) fn vlm_store_set(
        store: *mut StoreHandle,
        key: *const c_char,
        value: *const u8,
        size: usize,
    ) -> c_int;
    pub(crate) fn vlm_store_get(
        store: *mut StoreHandle,
        key: *const c_char,
        value: *mut *const u8,
        size: *mut usize,
    ) -> c_int;

    pub(crate) fn vlm_reducer_new(
        group: *mut GroupHandle,
        names: *const *const u8,
        name_sizes: *const usize,
        params: *const Handle,
        count: usize,
        bucket_bytes: i64,
        first_bucket_bytes: i64,
        find_unused: c_int,
        out: *mut *mut ReducerHandle,
    ) -> c_int;
    pub(crate) fn vlm_reducer_free(reducer: *mut ReducerHandle);
    pub(crate) fn vlm_reducer_prepare_forward(reducer: *mut ReducerHandle) -> c_int;
    pub(crate) fn vlm_reducer_prepare_backward(reducer: *mut ReducerHandle, loss: Handle) -> c_int;

    pub(crate) fn vlm_reducer_times(reducer: *mut ReducerHandle, times: *mut i64) -> c_int;
    pub(crate) fn vlm_reducer_bucket_bytes(
        reducer: *mut ReducerHandle,
        bytes: *mut i64,
        num_buckets: *mut i64,
    ) -> c_int;

    pub(crate) fn vlm_set_deterministic(on: c_int) -> c_int;
    pub(crate) fn vlm_keep_freed_memory();
    pub(crate) fn vlm_cuda_prepare() -> c_int;
    pub(crate) fn vlm_cuda_set_device(device: c_int) -> c_int;
    pub(crate) fn vlm_pinned_bytes(data: *const u8, count: usize, out: *mut *mut C_tensor)
    -> c_int;
    pub(crate) fn vlm_cuda_peak_bytes(device: c_int, bytes: *mut i64) -> c_int;
    pub(crate) fn vlm_cuda_memory(device: c_int, free: *mut u64, total: *mut u64) -> c_int;
    pub(crate) fn vlm_cuda_empty_cache() -> c_int;
    pub(crate) fn vlm_cuda_reset_peak(device: c_int) -> c_int;
}

/// Turns a status of the shim into a result with libtorch's message.
pub(crate) fn check(operation: &'static str, status: c_int) -> Result<()> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim returns a NUL-terminated string of this thread, which is valid until the
    // next call and is copied here.
    let message = unsafe { CStr::from_ptr(vlm_last_error()) };
    Err(Error::torch(operation, &message.to_string_lossy()))
}

/// Sets the error message of a callback for the C++ code that called it.
pub(crate) fn set_error(message: &str) {
    let text = CString::new(message.replace('\0', " ")).unwrap_or_default();
    // SAFETY: the pointer is a NUL-terminated string that outlives the call, which copies it.
    unsafe { vlm_set_error(text.as_ptr()) }
}

/// The text of a caught panic.
pub(crate) fn panic_message(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied())
        .unwrap_or("a panic without a message")
        .to_owned()
}

/// Handles of tensors, in order. They are valid as long as the tensors live.
pub(crate) fn handles<'a>(tensors: impl IntoIterator<Item = &'a Tensor>) -> Vec<Handle> {
    tensors.into_iter().map(Tensor::as_ptr).collect()
}

/// The `c10::DeviceType` of a device.
///
/// # Errors
/// The device is neither the CPU nor CUDA.
pub(crate) fn device_type(operation: &'static str, device: Device) -> Result<c_int> {
    match device {
        Device::Cpu => Ok(0),
        Device::Cuda(_) => Ok(1),
        other => {
            Err(Error::argument(operation, format!("device {other:?}; expected the CPU or CUDA")))
        }
    }
}

/// The number of a floating-point type in libtorch, its `c10::ScalarType`.
///
/// # Errors
/// Another type.
pub(crate) fn scalar_type(operation: &'static str, kind: Kind) -> Result<c_int> {
    match kind {
        Kind::Float => Ok(6),
        Kind::Double => Ok(7),
        Kind::Half | Kind::BFloat16 => low_precision(operation, kind),
        other => {
            let problem = format!("kind {other:?}; expected Float, Double, BFloat16 or Half");
            Err(Error::argument(operation, problem))
        }
    }
}

/// The number of a type that autocast supports in libtorch, its `c10::ScalarType`.
///
/// # Errors
/// The kind is neither bfloat16 nor float16.
pub(crate) fn low_precision(operation: &'static str, kind: Kind) -> Result<c_int> {
    match kind {
        Kind::Half => Ok(5),
        Kind::BFloat16 => Ok(15),
        other => {
            Err(Error::argument(operation, format!("kind {other:?}; expected BFloat16 or Half")))
        }
    }
}
