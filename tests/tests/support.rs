//! Starting `vlm`, and small inputs for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A file or folder under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// The committed starting point of the embedded demo.
pub fn demo_start(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/demo-start").join(name)
}

/// MiniMind's tokenizer is others' work and not in this repository: it is looked for beside it, or
/// where `VLM_MINIMIND_TOKENIZER` says.
pub fn minimind_tokenizer() -> Option<PathBuf> {
    let named = std::env::var_os("VLM_MINIMIND_TOKENIZER").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/minimind_tokenizer");
    let folder = named.unwrap_or(beside);
    if folder.join("tokenizer.json").exists() {
        return Some(folder);
    }
    println!(
        "skipped: MiniMind's tokenizer is not at {}; set VLM_MINIMIND_TOKENIZER",
        folder.display()
    );
    None
}

/// The binary under test: `VLM_BIN` (set by `cargo xtask test`), else the one beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("VLM_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("vlm");
    assert!(path.exists(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// The launcher: `XTASK_BIN` (set by `cargo xtask test`), else the one beside this test.
pub fn xtask() -> PathBuf {
    if let Some(path) = std::env::var_os("XTASK_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("xtask");
    assert!(path.exists(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// How a run of `vlm` ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("vlm was killed by a signal"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Fails unless the run ended with `code` and an error that holds all of `parts`.
    pub fn assert_error(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "stderr: {}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "a panic reached the user: {}", self.stderr);
    }

    pub fn assert_success(&self) {
        assert_eq!(self.code, 0, "stderr: {}", self.stderr);
    }
}

/// The program with one arithmetic thread: several run at once, and OpenMP's threads wait for each
/// other by spinning, which on a crowded machine makes a small step take seconds.
pub fn program() -> Command {
    let mut command = Command::new(binary());
    command.env("OMP_NUM_THREADS", "1");
    command
}

/// Runs `vlm` to its end.
pub fn vlm(args: &[&str]) -> Ended {
    Ended::of(&program().args(args).output().unwrap())
}

/// A folder with rows and pictures, and the flags that train a very small model on them.
pub struct Trial {
    pub folder: TempDir,
}

/// One row: a picture and its caption.
pub fn row(image: &str, caption: &str) -> String {
    serde_json::json!({
        "conversations": [
            {"role": "user", "content": "<image>\nDescribe the image."},
            {"role": "assistant", "content": caption},
        ],
        "image": image,
    })
    .to_string()
}

impl Trial {
    /// Eight pictures of one colour each, with a caption each.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("images")).unwrap();
        let captions = ["red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink"];
        let rows: Vec<String> = captions
            .iter()
            .enumerate()
            .map(|(k, caption)| {
                let shade = 30 * k as u8;
                let name = format!("{k}.png");
                let picture =
                    image::RgbImage::from_pixel(64, 48, image::Rgb([shade, 255 - shade, 90]));
                picture.save(folder.path().join("images").join(&name)).unwrap();
                row(&name, &format!("A {caption} circle."))
            })
            .collect();
        let trial = Self { folder };
        trial.write_rows(&rows);
        trial
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn write_rows(&self, rows: &[String]) {
        fs::write(self.path("rows.jsonl"), rows.join("\n") + "\n").unwrap();
    }

    /// Runs `vlm pretrain` on the rows with a small model; later flags win over the usual ones.
    pub fn pretrain(&self, more: &[&str]) -> Ended {
        Ended::of(&self.command(more).output().unwrap())
    }

    /// The command of [`Self::pretrain`], not yet started.
    pub fn command(&self, more: &[&str]) -> Command {
        let mut command = program();
        command.arg("pretrain");
        let mut given = |flag: &str, value: &Path| {
            if !more.contains(&flag) {
                command.arg(flag).arg(value);
            }
        };
        given("--data-path", &self.path("rows.jsonl"));
        given("--images-path", &self.path("images"));
        given("--out-dir", &self.path("out"));
        given("--tokenizer", &demo_start(""));
        given("--vision", &golden("vision_tower"));
        for (flag, value) in [
            ("--lm", "none"),
            ("--dim", "32"),
            ("--n-layers", "2"),
            ("--n-heads", "4"),
            ("--max-seq-len", "288"),
            ("--batch-size", "4"),
            ("--epochs", "1"),
            ("--log-interval", "1"),
            ("--device", "cpu"),
        ] {
            given(flag, Path::new(value));
        }
        command.args(more);
        command
    }

    /// The lines of the run's `metrics.jsonl`.
    pub fn metrics(&self) -> Vec<serde_json::Value> {
        json_lines(&self.path("out/metrics.jsonl"))
    }

    /// The run's `summary.json`.
    pub fn summary(&self) -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(self.path("out/summary.json")).unwrap()).unwrap()
    }
}

/// A file of one JSON value a line.
pub fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until the run has logged `count` steps.
pub fn wait_for_lines(trial: &Trial, out: &str, count: usize) {
    let path = trial.path(&format!("{out}/metrics.jsonl"));
    let deadline = Instant::now() + Duration::from_secs(120);
    while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < count {
        assert!(Instant::now() < deadline, "no {count} steps in two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends a signal by its name: `INT`, `KILL`, …
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
    assert!(sent.success());
}
