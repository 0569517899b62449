//! Executes the inputs of one target. Panics are caught and reported; what ends the process is
//! reported by the parent, which knows the execution from the state file.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use vlm_fuzz::mutate;

use crate::allocator::ALLOCATOR;
use crate::args::ChildArgs;
use crate::inputs::{find, save, seeds_of};

/// An execution that computes longer is a finding.
const MAX_CPU: Duration = Duration::from_secs(2);
/// An execution during which this process runs longer is a finding although it computes little: it
/// waits for something.
const MAX_WAIT: Duration = Duration::from_secs(120);
/// Time between two looks at the current execution.
const TICK: Duration = Duration::from_millis(100);
/// An execution that has more bytes in use is a finding: sixteen times the memory that the largest
/// image of the target `image` needs.
const MAX_BYTES: usize = 256 << 20;

/// Exit code of a child that ends because of an execution that takes too long.
pub const TOO_SLOW: i32 = 77;

thread_local! {
    /// Message and location of the last panic.
    static LAST_PANIC: RefCell<String> = RefCell::default();
}

/// Executes inputs until the time or their number is reached.
///
/// # Errors
/// An unknown target; a file that cannot be written.
pub fn run(args: &ChildArgs) -> Result<()> {
    let name = args.run.target.first().context("a child needs a target")?;
    let target = find(name)?;
    let seeds = seeds_of(&target);
    let state = OpenOptions::new().write(true).create(true).truncate(false).open(&args.state)?;
    watch_panics();
    // What the target makes once is no part of an execution.
    seeds.iter().for_each(|seed| drop(catch_unwind(|| (target.run)(seed))));
    let current = Arc::new(AtomicU64::new(args.run.first));
    watch_time(Arc::clone(&current));
    let start = Instant::now();
    let mut seen = BTreeSet::new();
    let last = args.run.first.saturating_add(args.run.executions.unwrap_or(u64::MAX));
    for execution in args.run.first..last {
        if args.run.seconds.is_some_and(|seconds| start.elapsed().as_secs() >= seconds) {
            break;
        }
        current.store(execution, Ordering::Relaxed);
        // Compiled templates are kept for as long as the process runs, so the bytes in use grow.
        if ALLOCATOR.set_limit(ALLOCATOR.allocated() + MAX_BYTES).is_err() {
            bail!("the memory cannot be limited");
        }
        state.write_all_at(&execution.to_le_bytes(), 0)?;
        let input = mutate::input(&seeds, target.dictionary, args.run.seed, execution);
        if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
            let panic = LAST_PANIC.take();
            // The same place in the code once, with whatever numbers in its message.
            let place = panic.split(": ").next().unwrap_or_default().to_owned();
            if seen.insert(place) {
                let path = save(&args.artifacts, name, &input)?;
                println!("{name}: panic at {panic}\n  input: {}", path.display());
            }
        }
    }
    state.write_all_at(&(current.load(Ordering::Relaxed) + 1).to_le_bytes(), 0)?;
    state.write_all_at(&(seen.len() as u64).to_le_bytes(), 8)?;
    Ok(())
}

/// Reads one input without limits or guards.
///
/// # Errors
/// An unknown target; a file that cannot be read.
pub fn replay(name: &str, input: &Path) -> Result<ExitCode> {
    let target = find(name)?;
    let data = fs::read(input).with_context(|| format!("reading {}", input.display()))?;
    let start = Instant::now();
    (target.run)(&data);
    println!("{name}: returned after {:.3} s", start.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// Keeps panics for the report instead of printing them: a reader may catch one.
fn watch_panics() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let payload = info.payload();
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        let message = text.and_then(|text| text.lines().next()).unwrap_or("no message");
        LAST_PANIC.set(format!("{place}: {message:.200}"));
    }));
}

/// Ends the process when an execution takes too long. The time that the main thread computes is
/// counted, so that a busy machine makes no findings, and the waiting in ticks of this thread, so
/// that a process that was stopped meanwhile makes none.
fn watch_time(current: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        let mut last = (u64::MAX, Duration::ZERO, Duration::ZERO);
        loop {
            std::thread::sleep(TICK);
            let (execution, computed) = (current.load(Ordering::Relaxed), cpu_time());
            if execution != last.0 {
                last = (execution, computed, Duration::ZERO);
                continue;
            }
            last.2 += TICK;
            if computed.saturating_sub(last.1) > MAX_CPU || last.2 > MAX_WAIT {
                std::process::exit(TOO_SLOW);
            }
        }
    });
}

/// Time that the main thread has computed.
fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    let nanoseconds = text.split(' ').next().and_then(|number| number.parse().ok());
    Duration::from_nanos(nanoseconds.unwrap_or(0))
}
