//! Records where the time of a thread goes: the operators of libtorch as a Chrome trace, and the
//! duration of named spans.

use std::cell::RefCell;
use std::ffi::{CString, c_int};
use std::marker::PhantomData;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use tch::{Cuda, Device};

use crate::ffi::SpanHandle;
use crate::{Error, Result, ffi};

thread_local! {
    static RECORDING: RefCell<Option<Recording>> = const { RefCell::new(None) };
}

/// The spans of a thread while it is recorded.
struct Recording {
    device: Device,
    /// The spans that have not ended, the innermost last: their starts, and the time that spans
    /// within them took.
    open: Vec<(Instant, Duration)>,
    times: Vec<SpanTime>,
}

/// The time of all spans with a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanTime {
    /// Name of the spans.
    pub name: &'static str,
    /// Their total duration, without that of the spans within them.
    pub own: Duration,
}

/// A recording of this thread with libtorch's profiler, from [`Self::start`] to [`Self::finish`].
#[derive(Debug)]
#[must_use = "the recording ends when the profiler is dropped"]
pub struct Profiler {
    is_running: bool,
    // libtorch records the thread that started the recording.
    not_send: PhantomData<*const ()>,
}

impl Profiler {
    /// Starts to record this thread, which computes on `device`. On a GPU, the ends of spans then
    /// wait for the GPU, so that a span has the time of its own kernels.
    ///
    /// # Errors
    /// The thread is already recorded.
    pub fn start(device: Device) -> Result<Self> {
        const OPERATION: &str = "profile";
        if RECORDING.with_borrow(Option::is_some) {
            return Err(Error::argument(OPERATION, "this thread is already recorded"));
        }
        // SAFETY: takes one number.
        ffi::check(OPERATION, unsafe { ffi::vlm_profiler_start(c_int::from(device.is_cuda())) })?;
        RECORDING.set(Some(Recording { device, open: Vec::new(), times: Vec::new() }));
        Ok(Self { is_running: true, not_send: PhantomData })
    }

    /// Ends the recording, writes it to `trace` in Chrome's trace format, and returns the times of
    /// the spans in the order in which they first ended.
    ///
    /// # Errors
    /// A failure of the file system.
    pub fn finish(mut self, trace: &Path) -> Result<Vec<SpanTime>> {
        const OPERATION: &str = "profile";
        let path = CString::new(trace.as_os_str().as_bytes())
            .map_err(|_| Error::argument(OPERATION, "the path contains a NUL byte"))?;
        self.is_running = false;
        let recording = RECORDING.take();
        // SAFETY: the path is NUL-terminated, and this thread started the recording.
        ffi::check(OPERATION, unsafe { ffi::vlm_profiler_stop(path.as_ptr()) })?;
        Ok(recording.map(|recording| recording.times).unwrap_or_default())
    }
}

impl Drop for Profiler {
    fn drop(&mut self) {
        if self.is_running {
            RECORDING.set(None);
            // SAFETY: a null path writes nothing. An error changes nothing for the caller.
            let _ = unsafe { ffi::vlm_profiler_stop(ptr::null()) };
        }
    }
}

/// A span of a recorded thread, which ends when it is dropped. Spans must end in the reverse order
/// of their starts.
#[derive(Debug)]
#[must_use = "the span ends when it is dropped"]
pub struct Span {
    /// Name and handle, if the thread is recorded.
    recorded: Option<(&'static str, *mut SpanHandle)>,
}

/// Starts a span of this thread with `name`. Costs a look at a thread-local variable if the thread
/// is not recorded.
pub fn span(name: &'static str) -> Span {
    let is_recorded = RECORDING.with_borrow_mut(|recording| {
        recording
            .as_mut()
            .map(|recording| recording.open.push((Instant::now(), Duration::ZERO)))
            .is_some()
    });
    Span { recorded: is_recorded.then(|| (name, begin(name))) }
}

/// The handle of a new span in libtorch; null if that fails, which only leaves it out of the trace.
fn begin(name: &str) -> *mut SpanHandle {
    let mut handle = ptr::null_mut();
    if let Ok(name) = CString::new(name) {
        // SAFETY: the name is NUL-terminated, and the result has room.
        let _ = unsafe { ffi::vlm_span_begin(name.as_ptr(), &mut handle) };
    }
    handle
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((name, handle)) = self.recorded else { return };
        RECORDING.with_borrow_mut(|recording| {
            if let Some(recording) = recording {
                recording.end(name);
            }
        });
        // SAFETY: the handle is null or from `vlm_span_begin`, and is freed once.
        unsafe { ffi::vlm_span_end(handle) };
    }
}

impl Recording {
    /// Ends the innermost span.
    fn end(&mut self, name: &'static str) {
        if let Device::Cuda(index) = self.device {
            Cuda::synchronize(index as i64);
        }
        let Some((started, within)) = self.open.pop() else { return };
        let duration = started.elapsed();
        if let Some((_, within)) = self.open.last_mut() {
            *within += duration;
        }
        let own = duration.saturating_sub(within);
        match self.times.iter_mut().find(|time| time.name == name) {
            Some(time) => time.own += own,
            None => self.times.push(SpanTime { name, own }),
        }
    }
}
