//! Kills runs at random moments until they finish nevertheless, and compares them with an
//! undisturbed one.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use vlm_display::count;

use super::outcome::Outcome;
use super::random::Random;
use super::trial::{LIMIT, POLL_INTERVAL, Results, Running, Trial, checkpoints, lines};
use crate::sys::{self, Signal};

/// One kill in this many hits a run at any time, its start included; the others hit it during the
/// training.
const KILLS_PER_EARLY_KILL: usize = 8;
/// Largest number of steps that a run does before it is killed.
const MAX_STEPS: usize = 6;
/// With several ranks, one kill in this many hits one rank only.
const KILLS_PER_SINGLE_KILL: usize = 4;
/// Duration of a step before any was measured.
const FIRST_STEP: Duration = Duration::from_millis(100);
/// Number of kills between two lines about the progress.
const KILLS_PER_LINE: usize = 50;

/// What the kills found.
#[derive(Default)]
struct Tally {
    kills: usize,
    /// Kills that left an incomplete checkpoint or file.
    in_saves: usize,
    single: usize,
    finished: usize,
    problems: Vec<String>,
}

impl Tally {
    fn report(&mut self, problem: String) {
        eprintln!("problem after kill {}: {problem}", self.kills);
        self.problems.push(problem);
    }
}

/// Kills runs `kills` times in all, and returns what was found.
pub fn run(trial: &Trial, kills: usize, ranks: usize, random: &mut Random) -> Result<Vec<Outcome>> {
    let started = Instant::now();
    let reference = trial.reference("undisturbed", ranks, &[])?;
    let mut tally = Tally::default();
    let mut step = FIRST_STEP;
    while tally.kills < kills {
        let out = trial.path("killed");
        loop {
            let may_kill = tally.kills < kills;
            let early = random.below(KILLS_PER_EARLY_KILL) == 0;
            let mut running = trial.start_ranks(&out, ranks, &["--resume", "auto"])?;
            let is_killed = may_kill
                && match early {
                    true => {
                        let delay = step.mul_f64(20.0 * random.fraction());
                        wait_or_end(&mut running, delay)?
                    }
                    false => wait_for_step(&mut running, &out, random, &mut step)?,
                };
            if !is_killed {
                let ended = running.wait()?;
                if ended.code() != Some(0) {
                    tally.report(ended.describe());
                } else if let Some(difference) = Results::of(&out)?.difference(&reference) {
                    tally.report(difference);
                }
                tally.finished += 1;
                break;
            }
            tally.kills += 1;
            kill(running, random, &mut tally)?;
            tally.in_saves += usize::from(has_leftovers(&out));
            if let Some(name) = checkpoints(&out).iter().find(|name| name.contains(".damaged")) {
                tally.report(format!("{name} after a kill"));
                break;
            }
            if tally.kills.is_multiple_of(KILLS_PER_LINE) {
                eprintln!(
                    "{} of {kills} kills, {}, {:.0} s",
                    tally.kills,
                    count(tally.problems.len(), "problem"),
                    started.elapsed().as_secs_f64()
                );
            }
        }
        _ = fs::remove_dir_all(&out);
    }
    Ok(vec![outcome(&tally, ranks)])
}

fn outcome(tally: &Tally, ranks: usize) -> Outcome {
    let single = match tally.single {
        0 => String::new(),
        single => format!(" ({single} of one rank only)"),
    };
    let seen = match tally.problems.first() {
        None => format!(
            "{} of {} the same; {} within a save{single}",
            tally.finished,
            count(tally.finished, "finished run"),
            count(tally.in_saves, "kill"),
        ),
        Some(first) => format!("{}: {first}", count(tally.problems.len(), "problem")),
    };
    Outcome {
        fault: format!("SIGKILL at random moments, {}", count(ranks, "rank")),
        times: tally.kills,
        expected: "continued run identical to an undisturbed one",
        seen,
        is_kept: tally.problems.is_empty(),
    }
}

/// Waits for `delay`. Returns `false` if the run ended before.
fn wait_or_end(running: &mut Running, delay: Duration) -> Result<bool> {
    let until = Instant::now() + delay;
    while Instant::now() < until {
        if !running.is_alive()? {
            return Ok(false);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    running.is_alive()
}

/// Waits for a random number of steps and a random part of one more. Returns `false` if the run
/// ended before. Measures the duration of a step.
fn wait_for_step(
    running: &mut Running,
    out: &Path,
    random: &mut Random,
    step: &mut Duration,
) -> Result<bool> {
    let num_steps = random.below(MAX_STEPS + 1);
    // A continued run first removes the lines of steps that it repeats.
    let (mut last, mut seen, mut began) = (lines(out), 0, None);
    let until = Instant::now() + LIMIT;
    while seen < num_steps && Instant::now() < until {
        if !running.is_alive()? {
            return Ok(false);
        }
        let now = lines(out);
        if now > last {
            let since: Instant = *began.get_or_insert_with(Instant::now);
            seen += now - last;
            if seen > 1 {
                *step = since.elapsed() / (seen as u32 - 1).max(1);
            }
        }
        last = now;
        std::thread::sleep(POLL_INTERVAL);
    }
    wait_or_end(running, step.mul_f64(1.5 * random.fraction()))
}

/// Kills all ranks, or one of them, whose loss the others must notice.
fn kill(running: Running, random: &mut Random, tally: &mut Tally) -> Result<()> {
    let ranks = running.ranks.len();
    if ranks > 1 && random.below(KILLS_PER_SINGLE_KILL) == 0 {
        tally.single += 1;
        sys::signal_group(running.ranks[random.below(ranks)].id(), Signal::Kill);
        let ended = running.wait()?;
        // A rank that is left behind must end by itself, and must not claim success.
        if ended.status.is_none() {
            tally.report("a rank hung after another one was killed".into());
        }
        return Ok(());
    }
    drop(running);
    Ok(())
}

/// Whether the killed run left an incomplete checkpoint or file.
fn has_leftovers(out: &Path) -> bool {
    let names = fs::read_dir(out).into_iter().flatten().flatten();
    let mut names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.any(|name| name.contains(".tmp-"))
        || checkpoints(out).iter().any(|name| name.starts_with('.'))
}
