//! Measures the speed of the training: rows and tokens per second, and the time spent waiting for
//! data.

use std::time::{Duration, Instant};

use crate::train_state::Counters;

/// Measures the speed of the training between two log lines.
#[derive(Debug)]
pub(crate) struct Meter {
    since: Instant,
    at: Counters,
    flops: u64,
    data_wait: Duration,
    save_wait: Duration,
    /// The rates of the last measurement; zero before there is one.
    last: Rates,
}

/// Rates that are known after every step.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    /// Rows per second.
    pub(crate) samples_per_sec: f64,
    /// Needed operations per second; `None` if they are not counted.
    pub(crate) flops_per_sec: Option<f64>,
}

/// The speed that a [`Meter`] measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    /// Rows and needed operations per second.
    pub(crate) rates: Rates,
    /// Tokens per second.
    pub(crate) tokens_per_sec: f64,
    /// Mean wait for data, in milliseconds per step.
    pub(crate) data_wait_ms: f64,
    /// Mean duration of a step, in milliseconds, including the wait for data.
    pub(crate) step_ms: f64,
    /// Wait for checkpoints, in milliseconds.
    pub(crate) save_wait_ms: f64,
}

impl Meter {
    /// Starts a measurement; `counters` are the current counts.
    pub(crate) fn start(counters: Counters) -> Self {
        Self {
            since: Instant::now(),
            at: counters,
            flops: 0,
            data_wait: Duration::ZERO,
            save_wait: Duration::ZERO,
            last: Rates::default(),
        }
    }

    /// The rates since the last measurement, or those of that measurement while less than a second
    /// has passed since; `now` are the current counts.
    pub(crate) fn rates(&self, now: Counters) -> Rates {
        let secs = self.since.elapsed().as_secs_f64();
        match secs < 1.0 && self.last.samples_per_sec > 0.0 {
            true => self.last,
            false => self.rates_within(secs, now),
        }
    }

    fn rates_within(&self, secs: f64, now: Counters) -> Rates {
        let secs = secs.max(1e-9);
        Rates {
            samples_per_sec: (now.samples - self.at.samples) as f64 / secs,
            flops_per_sec: (self.flops > 0).then(|| self.flops as f64 / secs),
        }
    }

    /// Adds time spent waiting for a batch.
    pub(crate) fn waited(&mut self, time: Duration) {
        self.data_wait += time;
    }

    /// Adds operations that a step needs.
    pub(crate) fn needed(&mut self, flops: u64) {
        self.flops += flops;
    }

    /// Excludes time that was not spent on training, such as an evaluation.
    pub(crate) fn paused(&mut self, time: Duration) {
        self.since += time;
    }

    /// The speed since the last call, or since the start. Then starts a new measurement. `now` are
    /// the current counts, and `save_wait` is how long the training has waited for checkpoints so
    /// far.
    pub(crate) fn lap(&mut self, now: Counters, save_wait: Duration) -> Speed {
        let secs = self.since.elapsed().as_secs_f64().max(1e-9);
        let steps = (now.step - self.at.step).max(1) as f64;
        let speed = Speed {
            rates: self.rates_within(secs, now),
            tokens_per_sec: (now.tokens - self.at.tokens) as f64 / secs,
            data_wait_ms: self.data_wait.as_secs_f64() * 1e3 / steps,
            step_ms: secs * 1e3 / steps,
            save_wait_ms: save_wait.saturating_sub(self.save_wait).as_secs_f64() * 1e3,
        };
        *self = Self { last: speed.rates, save_wait, ..Self::start(now) };
        speed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rates_between_log_lines_are_those_since_the_last_one() {
        let count = |samples| Counters { samples, ..Counters::default() };
        let mut meter = Meter::start(count(0));
        meter.since -= Duration::from_secs(10);
        meter.needed(1000);
        let first = meter.lap(count(20), Duration::ZERO).rates;
        // Just after a line nothing else is known.
        let next = meter.rates(count(21));
        assert_eq!(next.samples_per_sec, first.samples_per_sec);
        assert_eq!(next.flops_per_sec, first.flops_per_sec);
        // A machine that is slow between these lines makes the rate lower, never higher.
        meter.since -= Duration::from_secs(10);
        meter.needed(5000);
        let Rates { samples_per_sec, flops_per_sec } = meter.rates(count(120));
        assert!((5.0..=10.0).contains(&samples_per_sec), "{samples_per_sec}");
        // Both are over the same time: 5000 operations for 100 rows.
        let flops_per_row = flops_per_sec.unwrap() / samples_per_sec;
        assert!((flops_per_row - 50.0).abs() < 1e-9, "{flops_per_row}");
    }
}
