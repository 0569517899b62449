//! Writes `.pth` files for Python.

use std::collections::{HashMap, HashSet};
use std::ffi::{c_char, c_int, c_void};
use std::io::{BufWriter, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tch::{Device, Kind, Tensor};

use crate::files::Flushing;
use crate::{Error, Heartbeat, Result, ffi, write_atomically_with};

const OPERATION: &str = "save_pth";

/// Writes named tensors so that Python's `torch.load(path, weights_only=True)` reads them as a
/// plain dict, in this order. Tensors that share storage still do when they are read; for a view,
/// its whole storage is written. All are written as CPU tensors without autograd history. The file
/// is written atomically (temporary name, fsync, rename).
///
/// # Errors
/// A name occurs twice, a file operation fails, or libtorch fails.
pub fn save_pth(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    save_pth_with(path, tensors, None)
}

/// As [`save_pth`]; for `heartbeat` see [`write_atomically_with`].
///
/// # Errors
/// As [`save_pth`].
pub fn save_pth_with(
    path: &Path,
    tensors: &[(String, Tensor)],
    heartbeat: Option<Heartbeat>,
) -> Result<()> {
    let mut seen = HashSet::new();
    if let Some((name, _)) = tensors.iter().find(|(name, _)| !seen.insert(name)) {
        return Err(Error::argument(OPERATION, format!("the name {name:?} occurs twice")));
    }
    let on_cpu = detached_on_cpu(tensors)?;
    write_atomically_with(path, heartbeat, |file| write(file, tensors, &on_cpu))
}

/// Address, shape, strides and dtype. Two tensors on a device with the same view are tied.
type View = (usize, Vec<i64>, Vec<i64>, Kind);

/// The tensors, detached and on the CPU. Equal views of a storage become one CPU tensor, so that
/// tied weights stay tied.
fn detached_on_cpu(tensors: &[(String, Tensor)]) -> Result<Vec<Tensor>> {
    let mut moved: HashMap<View, Tensor> = HashMap::new();
    let mut result = Vec::with_capacity(tensors.len());
    for (name, tensor) in tensors {
        let describe = |error| Error::argument(OPERATION, format!("tensor {name:?}: {error}"));
        let detached = tensor.f_detach().map_err(describe)?;
        if detached.device() == Device::Cpu {
            result.push(detached);
            continue;
        }
        let kind = detached.f_kind().map_err(describe)?;
        let view = (detached.data_ptr() as usize, detached.size(), detached.stride(), kind);
        let copy = match moved.get(&view) {
            Some(copy) => copy.shallow_clone(),
            None => detached.f_to_device(Device::Cpu).map_err(describe)?,
        };
        moved.insert(view, copy.shallow_clone());
        result.push(copy);
    }
    Ok(result)
}

fn write(
    file: &mut BufWriter<Flushing>,
    named: &[(String, Tensor)],
    tensors: &[Tensor],
) -> Result<()> {
    let names: Vec<_> = named.iter().map(|(name, _)| name.as_ptr()).collect();
    let name_sizes: Vec<_> = named.iter().map(|(name, _)| name.len()).collect();
    let handles = ffi::handles(tensors);
    // SAFETY: three arrays of equal length that outlive the call, as do the names and tensors that
    // they refer to; `write_bytes` receives the `file`, which is borrowed mutably for the call.
    let status = unsafe {
        ffi::vlm_write_pth(
            names.as_ptr(),
            name_sizes.as_ptr(),
            handles.as_ptr(),
            handles.len(),
            write_bytes,
            std::ptr::from_mut(file).cast(),
        )
    };
    ffi::check(OPERATION, status)
}

/// Writes bytes of the archive to the file.
///
/// # Safety
/// `context` is the `BufWriter<Flushing>` of [`write`], with no other reference to it; `bytes` are
/// `count` readable bytes.
unsafe extern "C" fn write_bytes(
    context: *mut c_void,
    bytes: *const c_char,
    count: usize,
) -> c_int {
    let result = catch_unwind(AssertUnwindSafe(|| {
        if count == 0 {
            return Ok(());
        }
        // SAFETY: by the contract above.
        let (file, bytes) = unsafe {
            (
                &mut *context.cast::<BufWriter<Flushing>>(),
                std::slice::from_raw_parts(bytes.cast::<u8>(), count),
            )
        };
        file.write_all(bytes)
    }));
    match result {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => {
            ffi::set_error(&format!("write: {error}"));
            -1
        }
        Err(payload) => {
            ffi::set_error(&ffi::panic_message(&*payload));
            -1
        }
    }
}
