//! System calls that the standard library lacks. This is the only file of the crate with unsafe
//! code; `check/sources.rs` allows it by name.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};

/// Free space for this user on the file system of `path`, which must exist, in bytes.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` ends in NUL and `stats` has room for the structure.
    if unsafe { libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned 0, so it filled the structure in.
    let stats = unsafe { stats.assume_init() };
    Ok(stats.f_bavail * stats.f_frsize)
}

/// Waits for `child` to end. Returns its exit status and its peak resident memory in bytes.
pub fn wait_with_peak_memory(child: Child) -> io::Result<(ExitStatus, u64)> {
    let (mut status, mut usage) = (0, std::mem::MaybeUninit::<libc::rusage>::uninit());
    loop {
        // SAFETY: the child was not waited for yet, and both results have room.
        let found =
            unsafe { libc::wait4(child.id() as libc::pid_t, &mut status, 0, usage.as_mut_ptr()) };
        if found >= 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: wait4 found the child, so it filled the structure in.
    let usage = unsafe { usage.assume_init() };
    Ok((ExitStatus::from_raw(status), usage.ru_maxrss as u64 * 1024))
}

/// Resident memory of this process in bytes.
pub fn resident_bytes() -> io::Result<u64> {
    memory("VmRSS:")
}

/// Peak resident memory of this process in bytes.
pub fn peak_resident_bytes() -> io::Result<u64> {
    memory("VmHWM:")
}

fn memory(entry: &str) -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(entry));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse().ok());
    kilobytes
        .map(|kilobytes: u64| kilobytes * 1024)
        .ok_or_else(|| io::Error::other(format!("no {entry} in /proc/self/status")))
}

/// A signal for a process group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM, which asks the processes to end.
    Terminate,
    /// SIGUSR1, which asks the processes to save.
    Save,
    /// SIGSTOP, which stops the processes.
    Stop,
    /// SIGCONT, which lets stopped processes continue.
    Continue,
    /// SIGKILL, which ends the processes at once.
    Kill,
}

/// Sends a signal to every process of the group whose leader is the child `leader`. It is no error
/// if the group has no process any more.
pub fn signal_group(leader: u32, signal: Signal) {
    let signal = match signal {
        Signal::Terminate => libc::SIGTERM,
        Signal::Save => libc::SIGUSR1,
        Signal::Stop => libc::SIGSTOP,
        Signal::Continue => libc::SIGCONT,
        Signal::Kill => libc::SIGKILL,
    };
    // For 0 and 1 the system call would signal our own group and every process.
    if let Ok(group) = libc::pid_t::try_from(leader)
        && group > 1
    {
        // SAFETY: kill takes two numbers; the group is that of a child of this process.
        unsafe { libc::kill(-group, signal) };
    }
}

/// Makes the child of `command` receive SIGTERM when this process ends for any reason, and run only
/// on `cores` (on all cores if empty). The command must be spawned by the main thread, because the
/// child gets the signal when the thread that spawned it ends.
pub fn bind_child(command: &mut Command, cores: &[usize]) {
    // SAFETY: all zeros is the empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for &core in cores {
        assert!(core < 8 * std::mem::size_of_val(&set), "core {core} exceeds the set of cores");
        // SAFETY: the assertion ensures that the core is within the set.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    let is_bound = !cores.is_empty();
    let parent = std::process::id();
    let prepare = move || {
        // SAFETY: the call takes two numbers.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // The parent may have died before the call above.
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::from_raw_os_error(libc::ESRCH));
        }
        // SAFETY: `set` lives in this closure, and its size is given.
        if is_bound && unsafe { libc::sched_setaffinity(0, size_of_val(&set), &set) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes three system calls, allocates nothing and
    // takes no lock: its errors are numbers.
    unsafe { command.pre_exec(prepare) };
}
