//! Automatic mixed precision for a device and a dtype; tch supports only CUDA, without a choice of
//! the dtype.

use std::ffi::c_int;
use std::marker::PhantomData;

use tch::{Device, Kind};

use crate::{Result, ffi};

/// Sets the autocast state of this thread for one type of device, and restores the previous state
/// when dropped.
#[must_use = "autocast ends when the guard is dropped"]
pub struct AutocastGuard {
    device_type: c_int,
    previous_enabled: c_int,
    previous_dtype: c_int,
    // The state belongs to the thread, so the guard must not be sent to another one.
    not_send: PhantomData<*const ()>,
}

impl AutocastGuard {
    /// `Some(BFloat16 | Half)` turns autocast on for the device's type, `None` turns it off. Guards
    /// must be dropped in the reverse order of their creation, as [`autocast`] does.
    ///
    /// # Errors
    /// The kind is another one, or the device is neither the CPU nor CUDA.
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
        // SAFETY: takes only numbers, which `vlm_autocast_enter` returned on the same thread. It
        // fails only for unknown device types, and this one was accepted.
        let _ = unsafe {
            ffi::vlm_autocast_leave(self.device_type, self.previous_enabled, self.previous_dtype)
        };
    }
}

/// Runs `body` with autocast on (`Some(BFloat16 | Half)`) or off (`None`) for the device's type.
/// The previous state is restored afterwards, also when `body` panics.
///
/// # Errors
/// As [`AutocastGuard::new`]; `body` does not run then.
pub fn autocast<T>(device: Device, kind: Option<Kind>, body: impl FnOnce() -> T) -> Result<T> {
    let _guard = AutocastGuard::new(device, kind)?;
    Ok(body())
}

/// The type of autocast in this thread for the device's type; `None` if it is off, or on with a type
/// that [`autocast`] does not take.
///
/// # Errors
/// The device is neither the CPU nor CUDA.
pub fn autocast_kind(device: Device) -> Result<Option<Kind>> {
    const OPERATION: &str = "autocast_kind";
    let device_type = ffi::device_type(OPERATION, device)?;
    let (mut enabled, mut dtype) = (0, 0);
    // SAFETY: the call takes a number that was checked above and writes two integers that outlive
    // it.
    let status = unsafe { ffi::vlm_autocast_state(device_type, &mut enabled, &mut dtype) };
    ffi::check(OPERATION, status)?;
    let is_type = |kind: &Kind| ffi::low_precision(OPERATION, *kind).is_ok_and(|id| id == dtype);
    Ok([Kind::BFloat16, Kind::Half].into_iter().find(is_type).filter(|_| enabled != 0))
}
