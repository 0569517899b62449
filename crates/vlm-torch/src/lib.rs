//! Safe wrappers, over a C++ shim, for functions of libtorch that tch lacks.
//!
//! All `unsafe` code of the project is here. The crate handles tensors and devices; it does not
//! know models, data, configuration or the layout of checkpoints.

// This crate is the boundary to libtorch.
#![allow(unsafe_code)]

mod abort;
mod autocast;
mod bytes;
mod checkpoint;
mod cuda;
mod error;
mod ffi;
mod files;
mod gradients;
mod linear;
mod matrix_rate;
mod memory;
mod nccl;
mod network;
mod optimizer;
mod pointwise;
mod process_group;
mod profile;
mod pth;
mod reducer;
mod row_attention;
mod store;
mod upload;

pub use abort::set_operation;
pub use autocast::{AutocastGuard, autocast, autocast_kind};
pub use bytes::{tensor_from_bytes, tensor_to_bytes};
pub use checkpoint::{checkpoint, checkpoint_many};
pub use cuda::{
    LIBTORCH_VERSION, cuda_bus_id, cuda_device_name, forbid_host_waits, load_cuda, set_cuda_device,
};
pub use error::{Error, Result, plain_message};
pub use files::{
    Flushing, Heartbeat, write_atomically, write_atomically_with, write_folder_atomically,
};
pub use gradients::{clip_grad_norm, clip_gradients, grad_norm, set_grad_none, unscale_gradients};
pub use linear::linear;
pub use matrix_rate::matrix_rate;
pub use memory::{cuda_memory, empty_cache, keep_freed_memory, peak_memory_bytes, reset_peak};
pub use nccl::NcclAbort;
pub use optimizer::{AdamWStep, LossScale, deterministic_algorithms, fused_adamw_step};
pub use pointwise::{gelu_tanh, mixed_sum, quick_gelu, rms_norm, swiglu};
pub use process_group::{GroupOptions, ProcessGroup};
pub use profile::{Profiler, Span, SpanTime, span};
pub use pth::{save_pth, save_pth_with};
pub use reducer::{Reducer, ReducerOptions, ReducerTimes};
pub use row_attention::{RowAttention, RowPrefix, RowRotary, has_row_attention, row_attention};
pub use store::Store;
pub use upload::{bytes_to_device, slice_to_device};
