//! Loads CUDA at run time: the program is linked without it.

use std::ffi::{CStr, CString, c_char, c_int};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::{Error, Result, ffi};

const LIBRARY: &str = "libtorch_cuda.so";
/// The version of libtorch that this crate requires.
pub const LIBTORCH_VERSION: &str = "2.11.0";

/// Loads `libtorch_cuda.so` into the process. Returns `false` if there is none. Call it first in
/// `main`: if libtorch was asked for CUDA before, it keeps the answer that there is none.
///
/// The library is searched in `VLM_LIBTORCH_CUDA` (the folder of a libtorch, or its `lib`), then
/// beside the loaded `libtorch_cpu.so`, then in `LIBTORCH`. Linking it instead does not work: no
/// code refers to its symbols, so that the linker drops it (`--as-needed`).
///
/// # Errors
/// The library is from another version of libtorch than [`LIBTORCH_VERSION`] or cannot be loaded,
/// or `VLM_LIBTORCH_CUDA` is set and the library is not there.
pub fn load_cuda() -> Result<bool> {
    let Some(library) = find_library()? else {
        return Ok(false);
    };
    check_version(&library)?;
    let path = CString::new(library.as_os_str().as_bytes()).map_err(|_| Error::Library {
        path: library.clone(),
        message: "the path contains a NUL byte".to_owned(),
    })?;
    // SAFETY: the path is NUL-terminated. The library's initialisers register kernels with the
    // libtorch that is already loaded and has the same version. It is never unloaded.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
    if handle.is_null() {
        return Err(Error::Library { path: library, message: last_loader_error() });
    }
    // SAFETY: takes no arguments and changes a setting of libtorch.
    ffi::check("load_cuda", unsafe { ffi::vlm_cuda_prepare() })?;
    Ok(true)
}

/// Makes CUDA device `index` the default of this thread. A process that trains on another device
/// than the first calls this before it creates a tensor: otherwise libtorch also creates a context
/// on device 0, which takes memory there.
///
/// # Errors
/// CUDA is not loaded, or there is no device `index`.
pub fn set_cuda_device(index: usize) -> Result<()> {
    const OPERATION: &str = "set_cuda_device";
    let index = c_int::try_from(index)
        .map_err(|_| Error::argument(OPERATION, format!("there is no CUDA device {index}")))?;
    // SAFETY: takes one number.
    ffi::check(OPERATION, unsafe { ffi::vlm_cuda_set_device(index) })
}

/// Makes every operation of libtorch an error for which the CPU must wait for the GPU, until it is
/// called with `false`. This is PyTorch's `torch.cuda.set_sync_debug_mode("error")`. Returns `false`
/// if CUDA is not loaded.
pub fn forbid_host_waits(on: bool) -> bool {
    // The variable of the inline function c10::cuda::warning_state(), which all libraries of a
    // process share. It holds one enum: 0 allows waits, 1 warns of them, 2 makes them errors.
    let name = c"_ZZN3c104cuda13warning_stateEvE14warning_state_";
    // SAFETY: the name is NUL-terminated; the symbol is looked up in the loaded libraries.
    let mode = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) }.cast::<c_int>();
    if mode.is_null() {
        return false;
    }
    // SAFETY: not null, the address of an int that lives as long as the process. libtorch reads it
    // without synchronisation, too.
    unsafe { mode.write_volatile(if on { 2 } else { 0 }) };
    true
}

/// The PCI bus id of CUDA device `index`, for example `0000:3b:00.0`. Two processes on a machine
/// whose devices have the same id share a GPU, even if they number their devices differently.
/// `None` if CUDA is not loaded or does not report it.
pub fn cuda_bus_id(index: usize) -> Option<String> {
    type GetPciBusId = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let device = c_int::try_from(index).ok()?;
    // SAFETY: the name is NUL-terminated; the symbol is looked up in the loaded libraries.
    let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"cudaDeviceGetPCIBusId".as_ptr()) };
    if symbol.is_null() {
        return None;
    }
    // SAFETY: the CUDA runtime declares the function with this type.
    let get = unsafe { std::mem::transmute::<*mut libc::c_void, GetPciBusId>(symbol) };
    let mut text = [0; 32];
    // SAFETY: writes at most `text.len()` bytes, with a NUL at the end.
    let status = unsafe { get(text.as_mut_ptr(), text.len() as c_int, device) };
    if status != 0 {
        return None;
    }
    // SAFETY: the text is NUL-terminated; it is copied here.
    Some(unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// The model of CUDA device `index` as NVIDIA's driver names it, for example `NVIDIA H200`. `None`
/// if CUDA is not loaded or the driver does not report it.
pub fn cuda_device_name(index: usize) -> Option<String> {
    let gpu = Path::new("/proc/driver/nvidia/gpus").join(cuda_bus_id(index)?.to_lowercase());
    let text = fs::read_to_string(gpu.join("information")).ok()?;
    let model = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
    Some(model.trim().to_owned())
}

/// The message of the dynamic loader's last error.
pub(crate) fn last_loader_error() -> String {
    // SAFETY: after a failed dlopen or dlsym, dlerror returns this thread's message or null.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "the dynamic loader gives no reason".to_owned();
    }
    // SAFETY: not null, NUL-terminated, valid until the next dl call; copied here.
    unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
}

fn find_library() -> Result<Option<PathBuf>> {
    if let Some(folder) = std::env::var_os("VLM_LIBTORCH_CUDA").filter(|value| !value.is_empty()) {
        let folder = PathBuf::from(folder);
        return library_in(&folder).map(Some).ok_or_else(|| Error::Library {
            path: folder.join(LIBRARY),
            message: "there is no such file; VLM_LIBTORCH_CUDA is set to this folder".to_owned(),
        });
    }
    let beside_cpu = loaded_cpu_library()?.and_then(|cpu| cpu.parent().and_then(library_in));
    let in_libtorch =
        || std::env::var_os("LIBTORCH").and_then(|folder| library_in(Path::new(&folder)));
    Ok(beside_cpu.or_else(in_libtorch))
}

fn library_in(folder: &Path) -> Option<PathBuf> {
    [folder.join(LIBRARY), folder.join("lib").join(LIBRARY)].into_iter().find(|path| path.is_file())
}

/// The path of the `libtorch_cpu.so` that the process has loaded.
fn loaded_cpu_library() -> Result<Option<PathBuf>> {
    let path = Path::new("/proc/self/maps");
    let maps = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    Ok(maps
        .lines()
        .filter_map(|line| line.find('/').map(|start| PathBuf::from(&line[start..])))
        .find(|path| path.file_name().is_some_and(|name| name == "libtorch_cpu.so")))
}

/// Checks that a library belongs to the required version of libtorch. Two versions in one process
/// would crash.
fn check_version(library: &Path) -> Result<()> {
    let Some(text) = library
        .parent()
        .and_then(Path::parent)
        .and_then(|torch| fs::read_to_string(torch.join("version.py")).ok())
    else {
        return Ok(());
    };
    let found = text.lines().find_map(|line| line.trim().strip_prefix("__version__ = "));
    match found.map(|version| version.trim_matches(['\'', '"'])) {
        Some(version) if !version.starts_with(LIBTORCH_VERSION) => Err(Error::Library {
            path: library.to_owned(),
            message: format!("it is from torch {version}; expected {LIBTORCH_VERSION}"),
        }),
        _ => Ok(()),
    }
}
