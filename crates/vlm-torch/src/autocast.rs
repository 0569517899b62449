//! Automatic mixed precision with a device and a dtype; tch has it for CUDA only and without one.

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::{Result, ffi};

/// Autocast of this thread for one type of device, until dropped; then what was before holds again.
#[must_use = "autocast ends when the guard is dropped"]
pub struct AutocastGuard {
    device_type: c_int,
    previous_enabled: c_int,
    previous_dtype: c_int,
    // The state belongs to the thread, so the guard may not leave it.
    not_send: PhantomData<*const ()>,
}

impl AutocastGuard {
    /// `Some(BFloat16 | Half)` switches autocast on for the device's type, `None` off.
    /// Guards are to be dropped in the reverse order of their making; [`autocast`] sees to that.
    /// # Errors
    /// Another kind, or a device that is neither the CPU nor CUDA.
    pub fn new(device: Device, kind: Option<Kind>) -> Result<Self> {
        const OPERATION: &str = "autocast";
        let device_type = ffi::device_type(OPERATION, device)?;
        let dtype = kind.map(|kind| ffi::low_precision(OPERATION, kind)).transpose()?;
        let (mut previous_enabled, mut previous_dtype) = (0, 0);
        // SAFETY: the call takes numbers that were checked above and writes two integers that
        // outlive it.
        let status = unsafe {
            ffi::vlm_autocast_enter(
                device_type,
                c_int::from(dtype.is_some()),
                dtype.unwrap_or_default(),
                &mut previous_enabled,
                &mut previous_dtype,
            )
        };
        ffi::check(OPERATION, status)?;
        Ok(Self { device_type, previous_enabled, previous_dtype, not_send: PhantomData })
    }
}

impl Drop for AutocastGuard {
    fn drop(&mut self) {
        // SAFETY: numbers only, as `vlm_autocast_enter` gave them on this same thread. It fails for
        // unknown device types alone, and this one was accepted.
        let _ = unsafe {
            ffi::vlm_autocast_leave(self.device_type, self.previous_enabled, self.previous_dtype)
        };
    }
}

/// Runs `body` with autocast on (`Some(BFloat16 | Half)`) or off (`None`) for the device's type, and
/// restores the state before, also when `body` panics.
/// # Errors
/// As [`AutocastGuard::new`]; `body` does not run then.
pub fn autocast<T>(device: Device, kind: Option<Kind>, body: impl FnOnce() -> T) -> Result<T> {
    let _guard = AutocastGuard::new(device, kind)?;
    Ok(body())
}

/// Whether autocast is on in this thread for the device's type.
/// # Errors
/// A device that is neither the CPU nor CUDA.
pub fn is_autocast(device: Device) -> Result<bool> {
    const OPERATION: &str = "is_autocast";
    let device_type = ffi::device_type(OPERATION, device)?;
    let (mut enabled, mut dtype) = (0, 0);
    // SAFETY: the call takes a number that was checked above and writes two integers that outlive
    // it.
    let status = unsafe { ffi::vlm_autocast_state(device_type, &mut enabled, &mut dtype) };
    ffi::check(OPERATION, status)?;
    Ok(enabled != 0)
}
