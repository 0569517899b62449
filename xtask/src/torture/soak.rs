//! Trains for many steps, and checks that the process does not grow.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use vlm_display::{Align, Table};

use super::trial::{Running, Trial, last_step};

/// Number of epochs of the run.
const EPOCHS: u64 = 50;
/// Step from which on nothing may grow.
const SETTLED: u64 = 500;
/// Largest growth of the resident memory after that, as a fraction.
const MAX_GROWTH: f64 = 0.01;
/// Number of rows of the table.
const NUM_LINES: u64 = 10;
/// Pause between two looks at the process.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// What a process uses, or what it used within some steps.
#[derive(Clone, Copy)]
struct Usage {
    /// The most within the steps.
    resident_bytes: u64,
    /// The fewest within the steps: a save opens a file for a moment, and one that stays open is
    /// always there.
    open_files: u64,
    /// The most within the steps.
    threads: u64,
}

/// Trains for `steps` steps, prints what the process uses, and returns whether it is steady.
pub fn run(trial: &Trial, steps: u64) -> Result<bool> {
    if steps < 2 * SETTLED {
        bail!("--soak {steps}: memory settles in {SETTLED} steps; give at least {}", 2 * SETTLED);
    }
    let started = Instant::now();
    let out = trial.path("soak");
    let rows_per_epoch = steps.div_ceil(EPOCHS);
    trial.write_rows(rows_per_epoch as usize, "A circle")?;
    let (epochs, max_steps) = (EPOCHS.to_string(), steps.to_string());
    let flags = [
        "--epochs", &epochs, "--max-steps", &max_steps, "--batch-size", "1", "--save-interval",
        "100",
    ];
    let mut running = trial.start(trial.pretrain(&out, 1, &flags))?;
    let mut table = Table::new(&[Align::Right]);
    table = table.with_head(&["step", "resident KiB", "open files", "threads", "seconds"]);
    let (mut next, mut window) = (SETTLED, None::<Usage>);
    let mut windows: Vec<Usage> = Vec::new();
    while running.is_alive()? {
        let step = last_step(&out);
        // What was in use while the first steps settled is not counted.
        if let Some(usage) = usage(&running).filter(|_| step >= SETTLED) {
            window = Some(window.map_or(usage, |window| window.with(usage)));
        }
        if step >= next + (steps - SETTLED) / NUM_LINES
            && let Some(used) = window.take()
        {
            next += (steps - SETTLED) / NUM_LINES;
            let seconds = format!("{:.0}", started.elapsed().as_secs_f64());
            let resident = used.resident_bytes >> 10;
            table.push(&[&step, &resident, &used.open_files, &used.threads, &seconds]);
            windows.push(used);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
    let ended = running.wait()?;
    print!("{table}");
    let Some(first) = windows.first() else {
        bail!("the run ended before step {SETTLED}: {}", ended.describe());
    };
    let most = |of: fn(&Usage) -> u64| windows.iter().map(of).max().unwrap_or(0);
    let growth = most(|used| used.resident_bytes) as f64 / first.resident_bytes as f64 - 1.0;
    let is_steady = growth <= MAX_GROWTH
        && most(|used| used.open_files) <= first.open_files
        && most(|used| used.threads) <= first.threads
        && ended.code() == Some(0);
    println!(
        "{steps} steps, {EPOCHS} epochs: {}; resident memory grew by {:.2} % after the first \
         line: {}",
        ended.describe(),
        growth * 100.0,
        if is_steady { "steady" } else { "NOT steady" }
    );
    Ok(is_steady)
}

impl Usage {
    fn with(self, other: Self) -> Self {
        Self {
            resident_bytes: self.resident_bytes.max(other.resident_bytes),
            open_files: self.open_files.min(other.open_files),
            threads: self.threads.max(other.threads),
        }
    }
}

/// What the run's process uses now; `None` if it has ended.
fn usage(running: &Running) -> Option<Usage> {
    let folder = format!("/proc/{}", running.ranks.first()?.id());
    let status = fs::read_to_string(format!("{folder}/status")).ok()?;
    let number = |entry: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(entry))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Some(Usage {
        resident_bytes: number("VmRSS:")? << 10,
        open_files: fs::read_dir(format!("{folder}/fd")).ok()?.count() as u64,
        threads: number("Threads:")?,
    })
}
