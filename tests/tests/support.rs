//! Helpers of the tests: starting `vlm`, and small inputs for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A file or folder under `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden").join(name)
}

/// A file of the embedded demo's starting weights in `data/demo-start`.
pub fn demo_start(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/demo-start").join(name)
}

/// The weights of the language model that the embedded demo starts from.
pub fn demo_lm() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/demo-lm/lm.safetensors")
}

/// MiniMind's tokenizer, which is others' work and not part of this repository: the folder in
/// `VLM_MINIMIND_TOKENIZER`, else one beside the checkout.
pub fn minimind_tokenizer() -> PathBuf {
    let named = std::env::var_os("VLM_MINIMIND_TOKENIZER").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/minimind_tokenizer");
    let folder = named.unwrap_or(beside);
    let file = folder.join("tokenizer.json");
    assert!(file.is_file(), "{} is missing; set VLM_MINIMIND_TOKENIZER", file.display());
    folder
}

/// The path of `vlm`: `VLM_BIN` (set by `cargo xtask test`), else the one beside this test.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("VLM_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("vlm");
    assert!(path.exists(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// The path of `xtask`: `XTASK_BIN` (set by `cargo xtask test`), else the one beside this test.
pub fn xtask() -> PathBuf {
    if let Some(path) = std::env::var_os("XTASK_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().unwrap();
    let path = test.parent().and_then(Path::parent).unwrap().join("xtask");
    assert!(path.exists(), "{} is not built: run `cargo xtask test`", path.display());
    path
}

/// Exit code and output of a program that has ended.
pub struct Ended {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().expect("the program was killed by a signal"),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Checks that the exit code is `code` and that standard error has all of `parts`.
    pub fn assert_error(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "stderr: {}", self.stderr);
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in: {}", self.stderr);
        }
        assert!(!self.stderr.contains("panicked"), "a panic reached the user: {}", self.stderr);
    }

    /// Checks that the exit code is 0.
    pub fn assert_success(&self) {
        assert_eq!(self.code, 0, "stderr: {}", self.stderr);
    }
}

/// A command that starts `vlm` with one computing thread. Many tests run at once, and OpenMP's
/// threads spin while they wait for each other, which on a busy machine makes a small step take
/// seconds.
pub fn program() -> Command {
    let mut command = Command::new(binary());
    command.env("OMP_NUM_THREADS", "1");
    command
}

/// Runs `vlm` and waits for its end.
pub fn vlm(args: &[&str]) -> Ended {
    Ended::of(&program().args(args).output().unwrap())
}

/// A temporary folder with rows and images, on which a very small model is trained.
pub struct Trial {
    pub folder: TempDir,
}

/// A row with an image and its caption.
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
    /// A trial with eight images of one colour each and their captions.
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
                let image =
                    image::RgbImage::from_pixel(64, 48, image::Rgb([shade, 255 - shade, 90]));
                image.save(folder.path().join("images").join(&name)).unwrap();
                row(&name, &format!("A {caption} circle."))
            })
            .collect();
        let trial = Self { folder };
        trial.write_rows(&rows);
        trial
    }

    /// The path of a file in the folder of the trial.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes `rows.jsonl`, the data set of the trial.
    pub fn write_rows(&self, rows: &[String]) {
        fs::write(self.path("rows.jsonl"), rows.join("\n") + "\n").unwrap();
    }

    /// Runs `vlm pretrain` on the rows with a small model. The flags `more` replace the default
    /// ones.
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

/// The values of a file of JSON lines.
pub fn json_lines(path: &Path) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until the run has logged `count` steps.
pub fn wait_for_lines(trial: &Trial, out: &str, count: usize) {
    let path = trial.path(&format!("{out}/metrics.jsonl"));
    let deadline = Instant::now() + Duration::from_secs(120);
    while fs::read_to_string(&path).map_or(0, |text| text.lines().count()) < count {
        assert!(Instant::now() < deadline, "fewer than {count} steps within two minutes");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Sends the signal with this name, such as `INT` or `KILL`.
pub fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    let sent = Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
    assert!(sent.success());
}
