//! NCCL for CUDA tensors, from a plugin. The program is linked without CUDA, and libtorch's NCCL
//! backend is in `libtorch_cuda.so`, so the code that calls it is a separate library, which
//! `cargo xtask setup` builds where CUDA is installed. Not measured on a GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use crate::cuda::last_loader_error;
use crate::ffi::GroupHandle;
use crate::network::interface_of;
use crate::process_group::milliseconds;
use crate::{Error, ProcessGroup, Result};

const LIBRARY: &str = "libvlm_nccl.so";

type Add = unsafe extern "C" fn(*mut GroupHandle, c_int, c_int, c_int, i64) -> c_int;
type Shutdown = unsafe extern "C" fn(*mut GroupHandle) -> c_int;
type Version = unsafe extern "C" fn() -> c_int;
type LastError = unsafe extern "C" fn() -> *const c_char;

/// The plugin's functions; it is never unloaded.
#[derive(Debug, Clone, Copy)]
struct Plugin {
    add: Add,
    shutdown: Shutdown,
    version: Version,
    last_error: LastError,
}

impl ProcessGroup {
    /// Uses NCCL for CUDA tensors of this group, on CUDA device `device` of this process; CPU
    /// tensors still use Gloo. [`crate::load_cuda`] must have been called. Returns NCCL's version.
    ///
    /// # Errors
    /// The plugin is not there or cannot be loaded, or NCCL finds no GPU.
    pub fn add_nccl(&self, device: usize) -> Result<String> {
        const OPERATION: &str = "add_nccl";
        let plugin = plugin()?;
        let number = |value: usize| {
            c_int::try_from(value)
                .map_err(|_| Error::argument(OPERATION, format!("{value} is too large")))
        };
        let (rank, world_size) = (number(self.rank())?, number(self.world_size())?);
        let timeout_ms = milliseconds(self.options().timeout);
        self.choose_interface();
        // SAFETY: the plugin was built from the same headers, so the group has the same layout
        // there; the group lives as long as `self`.
        let status =
            unsafe { (plugin.add)(self.handle(), rank, world_size, number(device)?, timeout_ms) };
        self.check_nccl(plugin, OPERATION, status)?;
        self.uses_nccl.store(true, Ordering::Relaxed);
        // SAFETY: takes no arguments and returns a number.
        let version = unsafe { (plugin.version)() };
        Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }

    /// Shuts down NCCL's communicators, if there are any. Every rank must call it, after its last
    /// operation.
    ///
    /// # Errors
    /// NCCL fails.
    pub fn shutdown_nccl(&self) -> Result<()> {
        if !self.uses_nccl.swap(false, Ordering::Relaxed) {
            return Ok(());
        }
        let plugin = plugin()?;
        // SAFETY: as in `add_nccl`, which has created the backend.
        let status = unsafe { (plugin.shutdown)(self.handle()) };
        self.check_nccl(plugin, "shutdown_nccl", status)
    }

    /// Makes NCCL connect over the network interface through which the store is reached, as Gloo
    /// does, because other machines may not reach the one that NCCL chooses. `NCCL_SOCKET_IFNAME`
    /// takes precedence.
    fn choose_interface(&self) {
        const VARIABLE: &str = "NCCL_SOCKET_IFNAME";
        if self.options().is_on_one_machine || std::env::var_os(VARIABLE).is_some() {
            return;
        }
        let address = self.options().address_towards_store();
        if let Some(name) = address.filter(|ip| !ip.is_loopback()).and_then(interface_of) {
            // SAFETY: the process group is created at the start of a run, before the threads that
            // load data; the thread that reports progress does not read the environment.
            unsafe { std::env::set_var(VARIABLE, format!("={name}")) };
        }
    }

    fn check_nccl(&self, plugin: Plugin, operation: &'static str, status: c_int) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: the plugin returns a NUL-terminated string of this thread, which is copied here.
        let message = unsafe { CStr::from_ptr((plugin.last_error)()) };
        let error = Error::torch(operation, &message.to_string_lossy());
        Err(error.on_rank(self.rank(), self.world_size()))
    }
}

fn plugin() -> Result<Plugin> {
    static PLUGIN: OnceLock<Plugin> = OnceLock::new();
    if let Some(plugin) = PLUGIN.get() {
        return Ok(*plugin);
    }
    let loaded = load(&find()?)?;
    Ok(*PLUGIN.get_or_init(|| loaded))
}

/// The path of the plugin: `VLM_NCCL_PLUGIN`, or beside the libtorch that this program was built
/// against, where `cargo xtask setup` installs it.
fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("VLM_NCCL_PLUGIN").filter(|value| !value.is_empty()) {
        return Ok(path.into());
    }
    let built_against = Path::new(env!("VLM_LIBTORCH_LIB"));
    let path = built_against.join("../../nccl").join(LIBRARY);
    if path.is_file() {
        return Ok(path);
    }
    Err(Error::Library {
        path,
        message: "there is no such file, which several processes on GPUs need; build it with \
                  `cargo xtask setup --cuda`, or set VLM_NCCL_PLUGIN to its path"
            .to_owned(),
    })
}

fn load(path: &Path) -> Result<Plugin> {
    let wrong = |message: String| Error::Library { path: path.to_owned(), message };
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| wrong(e.to_string()))?;
    // SAFETY: the path is NUL-terminated. All symbols that the library needs must be loaded already
    // (RTLD_NOW), or loading fails.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    if handle.is_null() {
        return Err(wrong(last_loader_error()));
    }
    let symbol = |name: &CStr| -> Result<*mut c_void> {
        // SAFETY: the handle is never closed, and the name is NUL-terminated.
        let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
        if found.is_null() { Err(wrong(last_loader_error())) } else { Ok(found) }
    };
    let (add, version) = (symbol(c"vlm_nccl_add")?, symbol(c"vlm_nccl_version")?);
    let last_error = symbol(c"vlm_nccl_last_error")?;
    let shutdown = symbol(c"vlm_nccl_shutdown")?;
    // SAFETY: the four functions have these types in nccl/plugin.cpp.
    Ok(unsafe {
        Plugin {
            add: std::mem::transmute::<*mut c_void, Add>(add),
            shutdown: std::mem::transmute::<*mut c_void, Shutdown>(shutdown),
            version: std::mem::transmute::<*mut c_void, Version>(version),
            last_error: std::mem::transmute::<*mut c_void, LastError>(last_error),
        }
    })
}
