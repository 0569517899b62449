//! A small real training run: its data, its command, how it ended, and what it computed.

use std::fmt::Write;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::sys::{self, Signal};
use crate::workspace::Workspace;

/// A run that takes longer than this hangs.
pub const LIMIT: Duration = Duration::from_secs(300);
/// Seconds that the ranks of a run wait for each other.
const TIMEOUT_SECS: &str = "20";
/// Pause between two looks at a run.
pub const POLL_INTERVAL: Duration = Duration::from_millis(2);
/// Number of bytes that hold more than one line of `metrics.jsonl`.
const LAST_BYTES: u64 = 4096;
/// Number of rows of the data set.
pub const NUM_ROWS: usize = 12;
/// Number of rows in a batch of all ranks.
const BATCH_SIZE: usize = 4;
/// Number of epochs, of three steps each.
const EPOCHS: &str = "10";
/// Fields of `metrics.jsonl` that do not depend on the speed of the machine.
const FIELDS: [&str; 12] = [
    "step", "update", "epoch", "loss", "aux_loss", "lr", "grad_norm", "samples", "tokens",
    "supervised_tokens", "skipped_updates", "rejected_rows",
];

/// The data and the program of the runs.
pub struct Trial {
    program: PathBuf,
    tokenizer: PathBuf,
    pub vision: PathBuf,
    pub folder: PathBuf,
}

/// How a run ended.
pub struct Ended {
    pub status: Option<ExitStatus>,
    /// Standard error.
    pub log: String,
}

impl Ended {
    /// The exit code; `None` after a signal, or if the run hung.
    pub fn code(&self) -> Option<i32> {
        self.status.and_then(|status| status.code())
    }

    /// Whether the run ended by itself, without a panic, and its message names one of `parts`.
    pub fn names(&self, parts: &[&str]) -> bool {
        let is_orderly = self.code().is_some() && !self.log.contains("internal error");
        is_orderly && parts.iter().any(|part| self.log.contains(part))
    }

    /// The exit code or the signal, and the error message.
    pub fn describe(&self) -> String {
        let Some(status) = self.status else { return "hung".into() };
        let how = match (status.code(), status.signal()) {
            (Some(code), _) => format!("exit {code}"),
            (_, signal) => format!("signal {}", signal.unwrap_or_default()),
        };
        let error = self.log.lines().rfind(|line| !line.trim().is_empty()).unwrap_or_default();
        if status.success() { how } else { format!("{how}: {error}") }
    }
}

/// The processes of a run.
pub struct Running {
    pub ranks: Vec<Child>,
    /// Reads the standard error of rank 0.
    log: Option<JoinHandle<Vec<u8>>>,
}

impl Running {
    /// Processes that were started elsewhere, which end when this is dropped.
    pub fn of(ranks: Vec<Child>) -> Self {
        Self { ranks, log: None }
    }

    /// Sends a signal to all ranks.
    pub fn signal(&self, signal: Signal) {
        for rank in &self.ranks {
            sys::signal_group(rank.id(), signal);
        }
    }

    /// Whether a rank is still running.
    pub fn is_alive(&mut self) -> Result<bool> {
        for rank in &mut self.ranks {
            if rank.try_wait()?.is_none() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Waits until all ranks have ended, and returns how rank 0 ended, or the first rank that
    /// failed. Ranks that hang are killed.
    pub fn wait(mut self) -> Result<Ended> {
        let until = Instant::now() + LIMIT;
        while self.is_alive()? && Instant::now() < until {
            thread::sleep(POLL_INTERVAL);
        }
        let hangs = self.is_alive()?;
        self.signal(Signal::Kill);
        let mut first = None;
        for rank in &mut self.ranks {
            let status = rank.wait()?;
            first = first.filter(|found: &ExitStatus| !found.success()).or(Some(status));
        }
        let log = self.log.take().and_then(|log| log.join().ok()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        Ok(Ended { status: first.filter(|_| !hangs), log })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.signal(Signal::Kill);
        for rank in &mut self.ranks {
            // It was just killed.
            let _ = rank.wait();
        }
    }
}

impl Trial {
    /// Writes the data set to `folder`.
    pub fn create(workspace: &Workspace, program: PathBuf, folder: &Path) -> Result<Self> {
        let trial = Self {
            program,
            tokenizer: workspace.data_dir().join("demo-start"),
            vision: workspace.root().join("tests/golden/vision_tower"),
            folder: folder.to_owned(),
        };
        fs::create_dir(trial.path("images"))?;
        for k in 0..NUM_ROWS {
            let shade = 20 * k as u8;
            let image = image::RgbImage::from_pixel(64, 48, image::Rgb([shade, 255 - shade, 90]));
            image.save(trial.path(&format!("images/{k}.png")))?;
        }
        trial.write_rows(NUM_ROWS, "A circle")?;
        Ok(trial)
    }

    /// Writes `count` rows, whose captions begin with `caption`.
    pub fn write_rows(&self, count: usize, caption: &str) -> Result<()> {
        let mut rows = String::new();
        for k in 0..count {
            let answer = format!("{caption} beside {k} squares.{}", " And a line.".repeat(k % 3));
            let row = json!({
                "conversations": [
                    {"role": "user", "content": "<image>\nDescribe the image."},
                    {"role": "assistant", "content": answer},
                ],
                "image": format!("{}.png", k % NUM_ROWS),
            });
            writeln!(rows, "{row}")?;
        }
        fs::write(self.path("rows.jsonl"), rows).context("writing the rows")
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A command of `vlm` with one thread for arithmetic.
    pub fn vlm(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.env("OMP_NUM_THREADS", "1").env_remove("WORLD_SIZE").stdin(Stdio::null());
        command
    }

    /// The command of a run that saves after every step. The flags `more` replace its flags.
    pub fn pretrain(&self, out: &Path, ranks: usize, more: &[&str]) -> Command {
        let mut command = self.vlm();
        command.arg("pretrain").arg("--out-dir").arg(out);
        let batch_size = (BATCH_SIZE / ranks).max(1).to_string();
        let text = |path: &Path| path.display().to_string();
        for (flag, value) in [
            ("--data-path", text(&self.path("rows.jsonl"))),
            ("--images-path", text(&self.path("images"))),
            ("--tokenizer", text(&self.tokenizer)),
            ("--vision", text(&self.vision)),
            ("--lm", "none".into()),
            ("--dim", "32".into()),
            ("--n-layers", "2".into()),
            ("--n-heads", "4".into()),
            ("--max-seq-len", "288".into()),
            ("--batch-size", batch_size),
            ("--epochs", EPOCHS.into()),
            ("--log-interval", "1".into()),
            ("--save-interval", "1".into()),
            ("--loss-average", "token".into()),
            ("--num-workers", "1".into()),
            ("--device", "cpu".into()),
            ("--timeout-secs", TIMEOUT_SECS.into()),
        ] {
            if !more.contains(&flag) {
                command.args([flag, &value]);
            }
        }
        command.args(more);
        command
    }

    /// Starts a command.
    pub fn start(&self, command: Command) -> Result<Running> {
        self.start_all(vec![command])
    }

    /// Starts `ranks` processes of a run.
    pub fn start_ranks(&self, out: &Path, ranks: usize, more: &[&str]) -> Result<Running> {
        self.start_all((0..ranks).map(|_| self.pretrain(out, ranks, more)).collect())
    }

    fn start_all(&self, commands: Vec<Command>) -> Result<Running> {
        let world_size = commands.len();
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
        let mut running = Running { ranks: Vec::new(), log: None };
        for (rank, mut command) in commands.into_iter().enumerate() {
            if world_size > 1 {
                let (rank, size) = (rank.to_string(), world_size.to_string());
                command.envs([("RANK", &rank), ("LOCAL_RANK", &rank), ("MASTER_PORT", &port)]);
                command.envs([("WORLD_SIZE", &size), ("LOCAL_WORLD_SIZE", &size)]);
                command.env("MASTER_ADDR", "127.0.0.1").env("TORCHELASTIC_RUN_ID", &port);
            }
            command.stdout(Stdio::null()).process_group(0);
            command.stderr(if rank == 0 { Stdio::piped() } else { Stdio::null() });
            sys::bind_child(&mut command, &[]);
            let child = command.spawn();
            let mut child =
                child.with_context(|| format!("starting {}", self.program.display()))?;
            if let Some(mut stderr) = child.stderr.take() {
                running.log = Some(thread::spawn(move || {
                    let mut bytes = Vec::new();
                    // What was read before an error is kept.
                    let _ = stderr.read_to_end(&mut bytes);
                    bytes
                }));
            }
            running.ranks.push(child);
        }
        Ok(running)
    }

    /// Runs a command to its end.
    pub fn run(&self, command: Command) -> Result<Ended> {
        self.start(command)?.wait()
    }

    /// Runs the training in `out` to its end.
    pub fn train(&self, out: &Path, more: &[&str]) -> Result<Ended> {
        self.run(self.pretrain(out, 1, more))
    }

    /// Runs the training in `out` to its end without a disturbance, and returns what it computed.
    pub fn reference(&self, name: &str, ranks: usize, more: &[&str]) -> Result<Results> {
        let out = self.path(name);
        let ended = self.start_ranks(&out, ranks, more)?.wait()?;
        if ended.code() != Some(0) {
            bail!("an undisturbed run fails ({}):\n{}", ended.describe(), ended.log);
        }
        Results::of(&out)
    }
}

/// What a finished run computed: by name, the lines of `metrics.jsonl` without times, and the bytes
/// of the other files.
#[derive(PartialEq)]
pub struct Results(Vec<(String, Vec<u8>)>);

impl Results {
    /// Reads the results of the run in `out`.
    pub fn of(out: &Path) -> Result<Self> {
        let mut lines = String::new();
        let metrics = out.join("metrics.jsonl");
        let text = fs::read_to_string(&metrics).with_context(|| metrics.display().to_string())?;
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).context("a line of metrics.jsonl")?;
            for field in FIELDS {
                write!(lines, "{} ", line[field])?;
            }
            lines.push('\n');
        }
        let mut results = vec![("metrics.jsonl".to_owned(), lines.into_bytes())];
        let mut add = |path: PathBuf| -> Result<()> {
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            results.push((path.file_name().unwrap_or_default().display().to_string(), bytes));
            Ok(())
        };
        let newest = newest_checkpoint(out).context("the run has no checkpoint")?;
        for name in ["model.safetensors", "optimizer.safetensors"] {
            add(newest.join(name))?;
        }
        for name in ["pretrain_vlm_32.safetensors", "pretrain_vlm_32.pth"] {
            add(out.join(name))?;
        }
        let state = fs::read_to_string(newest.join("state.json"))?;
        let state: Value = serde_json::from_str(&state).context("state.json")?;
        results.push(("state.json".into(), state["position"].to_string().into_bytes()));
        Ok(Self(results))
    }

    /// The names of the files that differ from those of another run; `None` if all are the same.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let pairs = self.0.iter().zip(&other.0);
        let names: Vec<&str> =
            pairs.filter(|(one, other)| one != other).map(|(one, _)| one.0.as_str()).collect();
        (!names.is_empty()).then(|| format!("{} differ", names.join(", ")))
    }
}

/// The names of all checkpoints of a run, incomplete and renamed ones included, sorted.
pub fn checkpoints(out: &Path) -> Vec<String> {
    let entries = fs::read_dir(out.join("checkpoints")).into_iter().flatten().flatten();
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The newest complete checkpoint of a run.
pub fn newest_checkpoint(out: &Path) -> Option<PathBuf> {
    let names = checkpoints(out);
    let is_complete = |name: &&String| name.starts_with("step-") && !name.contains('.');
    let name = names.iter().rfind(is_complete)?;
    Some(out.join("checkpoints").join(name))
}

/// Number of lines of the run's `metrics.jsonl`.
pub fn lines(out: &Path) -> usize {
    let text = fs::read(out.join("metrics.jsonl")).unwrap_or_default();
    text.iter().filter(|&&byte| byte == b'\n').count()
}

/// The last step in the run's `metrics.jsonl`, from its last lines; 0 before the first.
pub fn last_step(out: &Path) -> u64 {
    let read = || -> Option<u64> {
        let mut file = File::open(out.join("metrics.jsonl")).ok()?;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LAST_BYTES))).ok()?;
        let mut text = String::new();
        file.read_to_string(&mut text).ok()?;
        let lines = text.lines().rev();
        let mut steps =
            lines.filter_map(|line| serde_json::from_str::<Value>(line).ok()?["step"].as_u64());
        steps.next()
    };
    read().unwrap_or(0)
}

/// Waits until the run has logged `count` steps, or has ended.
pub fn wait_for_lines(running: &mut Running, out: &Path, count: usize) -> Result<()> {
    let until = Instant::now() + LIMIT;
    while lines(out) < count && running.is_alive()? && Instant::now() < until {
        thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}
