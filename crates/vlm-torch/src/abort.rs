//! What the program is doing, for the message when it is aborted (see `cpp/abort.cpp`).

use std::ffi::CStr;

use crate::ffi;

/// Sets what the program is doing, such as "training". It completes the sentence "the program was
/// aborted while …", which is printed when Rust, libtorch or the C library aborts the program,
/// usually because memory cannot be allocated. The exit code is then 1.
pub fn set_operation(name: &'static CStr) {
    // SAFETY: the text ends with NUL and is never freed.
    unsafe { ffi::vlm_set_operation(name.as_ptr()) };
}
