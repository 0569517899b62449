//! A separate connection to the key-value store of a process group, for small messages between
//! processes that do not wait for each other.

use std::ffi::CString;
use std::ptr::{self, NonNull};
use std::time::Duration;

use crate::ffi::{self, StoreHandle};
use crate::process_group::{milliseconds, text};
use crate::{Error, GroupOptions, Result};

/// A client of the store. It can be used while the group's own connection waits in an operation.
#[derive(Debug)]
pub struct Store {
    handle: NonNull<StoreHandle>,
}

// SAFETY: TCPStore's client locks a mutex for each operation.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Connects to the store of the process group with these `options`, which must be running.
    ///
    /// # Errors
    /// No connection within `timeout`.
    pub fn connect(options: &GroupOptions, timeout: Duration) -> Result<Self> {
        const OPERATION: &str = "connect to the store";
        let host = text("master_addr", &options.master_addr)?;
        let prefix = text("prefix", &options.prefix)?;
        let mut handle = ptr::null_mut();
        // SAFETY: NUL-terminated strings and numbers that outlive the call, which writes an owned
        // client to `handle` on success.
        let status = unsafe {
            ffi::vlm_store_connect(
                host.as_ptr(),
                options.master_port,
                milliseconds(timeout),
                prefix.as_ptr(),
                &mut handle,
            )
        };
        ffi::check(OPERATION, status)?;
        let handle =
            NonNull::new(handle).ok_or_else(|| Error::torch(OPERATION, "no client was created"))?;
        Ok(Self { handle })
    }

    /// Sets the value of `key`, and replaces an earlier one. This client's next read returns it;
    /// other clients may read it a moment later.
    ///
    /// # Errors
    /// The connection to the store is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<()> {
        let key = Self::key(key)?;
        // SAFETY: the client lives as long as `self`; key and value are borrowed for the call.
        let status = unsafe {
            ffi::vlm_store_set(self.handle.as_ptr(), key.as_ptr(), value.as_ptr(), value.len())
        };
        ffi::check("write to the store", status)
    }

    /// The value of `key`; `None` if it is not set. Does not wait for it to be set.
    ///
    /// # Errors
    /// The connection to the store is lost.
    pub fn get(&self, key: &str) -> Result<Option<Vec<u8>>> {
        let key = Self::key(key)?;
        let (mut value, mut size) = (ptr::null(), 0);
        // SAFETY: the client lives as long as `self`; the key is borrowed for the call, which
        // writes both outputs.
        let status = unsafe {
            ffi::vlm_store_get(self.handle.as_ptr(), key.as_ptr(), &mut value, &mut size)
        };
        ffi::check("read from the store", status)?;
        if value.is_null() {
            return Ok(None);
        }
        // SAFETY: not null, so it points to `size` bytes of this thread, which are valid until the
        // next call and are copied here.
        Ok(Some(unsafe { std::slice::from_raw_parts(value, size) }.to_vec()))
    }

    fn key(key: &str) -> Result<CString> {
        text("key", key)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // SAFETY: the handle came from `vlm_store_connect` and is freed once.
        unsafe { ffi::vlm_store_free(self.handle.as_ptr()) }
    }
}
