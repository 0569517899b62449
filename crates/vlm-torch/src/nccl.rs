//! NCCL for CUDA tensors, from a plugin. The program is linked without CUDA, and libtorch's NCCL
//! backend is in `libtorch_cuda.so`, so the code that calls it is a separate library, which
//! `cargo xtask setup` builds where CUDA is installed. Not measured on a GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr::{self, NonNull};
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

use crate::cuda::last_loader_error;
use crate::ffi::{self, GroupHandle};
use crate::network::interface_of;
use crate::process_group::milliseconds;
use crate::{Error, ProcessGroup, Result};

const LIBRARY: &str = "libvlm_nccl.so";

type Add = unsafe extern "C" fn(*mut GroupHandle, c_int, c_int, c_int, i64) -> c_int;
type Shutdown = unsafe extern "C" fn(*mut GroupHandle) -> c_int;
type Abort = unsafe extern "C" fn(*mut GroupHandle) -> c_int;
type Version = unsafe extern "C" fn() -> c_int;
type LastError = unsafe extern "C" fn() -> *const c_char;

/// The plugin's functions; it is never unloaded.
#[derive(Debug, Clone, Copy)]
struct Plugin {
    add: Add,
    shutdown: Shutdown,
    abort: Abort,
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

    /// A handle with which another thread can abort the operations of NCCL; `None` if NCCL is not
    /// used.
    ///
    /// # Errors
    /// There is no memory left.
    pub fn nccl_abort(&self) -> Result<Option<NcclAbort>> {
        if !self.uses_nccl.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let mut handle = ptr::null_mut();
        // SAFETY: the group lives as long as `self`; the call writes an owned handle on success.
        let status = unsafe { ffi::vlm_group_share(self.handle(), &mut handle) };
        ffi::check("nccl_abort", status)?;
        let handle = NonNull::new(handle)
            .ok_or_else(|| Error::torch("nccl_abort", "no handle was created"))?;
        Ok(Some(NcclAbort { handle, plugin: plugin()? }))
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

/// Aborts the operations of NCCL, from any thread. It keeps the process group alive.
#[derive(Debug)]
pub struct NcclAbort {
    handle: NonNull<GroupHandle>,
    plugin: Plugin,
}

// SAFETY: the handle is owned, and its only use is `abort`, which libtorch permits on any thread.
unsafe impl Send for NcclAbort {}

impl NcclAbort {
    /// Ends all operations of NCCL, also those that wait for a rank that no longer takes part. Their
    /// results are undefined, and later operations fail.
    ///
    /// # Errors
    /// NCCL fails.
    pub fn abort(&self) -> Result<()> {
        // SAFETY: the handle lives as long as `self`, and the backend was created by `add_nccl`.
        let status = unsafe { (self.plugin.abort)(self.handle.as_ptr()) };
        if status == 0 {
            return Ok(());
        }
        // SAFETY: as in `check_nccl`.
        let message = unsafe { CStr::from_ptr((self.plugin.last_error)()) };
        Err(Error::torch("nccl_abort", &message.to_string_lossy()))
    }
}

impl Drop for NcclAbort {
    fn drop(&mut self) {
        // SAFETY: the handle came from `vlm_group_share` and is freed once.
        unsafe { ffi::vlm_group_free(self.handle.as_ptr()) }
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
        if found.is_null() {
            return Err(wrong(format!(
                "{}; the library is from another version of this program, build it again with \
                 `cargo xtask setup --cuda`",
                last_loader_error()
            )));
        }
        Ok(found)
    };
    let (add, version) = (symbol(c"vlm_nccl_add")?, symbol(c"vlm_nccl_version")?);
    let last_error = symbol(c"vlm_nccl_last_error")?;
    let (shutdown, abort) = (symbol(c"vlm_nccl_shutdown")?, symbol(c"vlm_nccl_abort")?);
    // SAFETY: the five functions have these types in nccl/plugin.cpp.
    Ok(unsafe {
        Plugin {
            add: std::mem::transmute::<*mut c_void, Add>(add),
            shutdown: std::mem::transmute::<*mut c_void, Shutdown>(shutdown),
            abort: std::mem::transmute::<*mut c_void, Abort>(abort),
            version: std::mem::transmute::<*mut c_void, Version>(version),
            last_error: std::mem::transmute::<*mut c_void, LastError>(last_error),
        }
    })
}
