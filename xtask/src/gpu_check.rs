//! `cargo xtask gpu-check`: trains small models on the GPU of this machine for a few minutes, compares
//! them with the CPU, and writes what it found and measured to a file.
//!
//! Every check is a run of `vlm` on rows that are made here. A check that fails does not end the
//! others.

use std::fs;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::plan::Device;
use crate::program::output_of;
use crate::workspace::Workspace;
use crate::{gpu, launch, plan, setup};

/// Flags of `cargo xtask gpu-check`.
#[derive(Args)]
pub struct GpuCheckArgs {
    /// File for the results
    #[arg(long, value_name = "FILE", default_value = "gpu-check.json")]
    output: PathBuf,
    /// Number of GPUs for the check with two processes [default: those that nvidia-smi lists]
    #[arg(long, value_name = "N")]
    gpus: Option<usize>,
    /// Program to check [default: built from this checkout]
    #[arg(long, value_name = "FILE", hide = true)]
    binary: Option<PathBuf>,
    /// Measure very small models only, for a test of this command
    #[arg(long, hide = true)]
    small: bool,
}

/// A training mode: its name, and its flags.
type Mode = (&'static str, &'static [&'static str]);

const MODES: [Mode; 7] = [
    ("dense", &[]),
    ("packed", &["--pack"]),
    ("all trained", &["--train-lm", "--train-vision"]),
    ("checkpointing", &["--activation-checkpointing"]),
    ("dropout", &["--dropout", "0.1"]),
    ("experts", &["--use-moe", "--train-lm"]),
    ("experts, packed", &["--use-moe", "--train-lm", "--activation-checkpointing", "--pack"]),
];
/// Modes of [`MODES`] in which a step does not wait for the GPU. With experts, the CPU reads how many
/// tokens each expert has.
const NUM_WITHOUT_WAITS: usize = 5;
/// Largest relative difference of a loss on the GPU and on the CPU in float32. cuDNN computes the
/// convolution of the vision encoder in TensorFloat-32, which has a precision of 1e-3.
const MAX_FLOAT32_DIFFERENCE: f64 = 2e-3;
/// Largest relative difference of a loss in 16 bits and in float32.
const MAX_HALF_DIFFERENCE: f64 = 2e-2;
/// The flags of a run on the GPU in float32.
const FLOAT32: [&str; 4] = ["--device", "cuda", "--dtype", "float32"];
/// Number of steps whose rows all have different lengths.
const NUM_SHAPES: usize = 60;
/// A step with a new length may take this many times as long as the median.
const MAX_SLOWDOWN: f64 = 3.0;

/// Runs all checks. The exit code is 1 if one of them fails or there is no GPU.
///
/// # Errors
/// The program cannot be built, or the file cannot be written.
pub fn run(workspace: &Workspace, args: &GpuCheckArgs) -> Result<ExitCode> {
    let named = std::env::var_os("VLM_LIBTORCH_CUDA").is_some_and(|value| !value.is_empty());
    if gpu::detect(Path::new("/")).is_none() && !named {
        bail!(
            "no GPU: this machine has no NVIDIA driver and no device file of one, so nothing was \
             checked. Run `cargo xtask gpu-check` on a machine with a GPU"
        );
    }
    let binary = match &args.binary {
        Some(binary) => binary.clone(),
        None => {
            setup::ensure(workspace)?;
            launch::build_vlm(workspace)?
        }
    };
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let mut checks = Checks {
        workspace,
        binary,
        folder,
        is_small: args.small,
        product: None,
        results: Vec::new(),
    };
    let machine = checks.machine();
    let listed = machine["gpus"].as_array().map_or(0, Vec::len);
    let num_gpus = args.gpus.unwrap_or(listed);
    checks.make_rows()?;
    checks.check("float32 losses equal those of the CPU", Checks::float32);
    checks.check("bfloat16 losses are close to float32", Checks::bfloat16);
    checks.check("float16 losses are close to float32", Checks::float16);
    checks.check("a step does not wait for the GPU", Checks::no_waits);
    checks.check("deterministic runs are bitwise equal", Checks::deterministic);
    checks.check("a new length does not slow a step", Checks::shapes);
    checks.check("speed", Checks::speed);
    if num_gpus >= 2 {
        checks.check("two processes equal one", Checks::two_processes);
    }
    let failed = checks.results.iter().filter(|result| result["passed"] != true).count();
    let all = json!({
        "program": env!("CARGO_PKG_VERSION"),
        "machine": machine,
        "checks": checks.results,
    });
    fs::write(&args.output, format!("{all:#}\n"))
        .with_context(|| format!("writing {}", args.output.display()))?;
    println!(
        "{} of {} checks failed; results: {}",
        failed,
        checks.results.len(),
        args.output.display()
    );
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

struct Checks<'a> {
    workspace: &'a Workspace,
    binary: PathBuf,
    folder: TempDir,
    is_small: bool,
    /// The marketing name of the first GPU.
    product: Option<String>,
    results: Vec<Value>,
}

impl Checks<'_> {
    /// Runs a check, prints its result and keeps it.
    fn check(&mut self, name: &str, body: impl FnOnce(&Self) -> Result<Value>) {
        let start = Instant::now();
        let found = body(self);
        let secs = start.elapsed().as_secs_f64();
        let passed = found.is_ok();
        println!("{} {name} ({secs:.0} s)", if passed { "ok    " } else { "FAILED" });
        if let Err(error) = &found {
            println!("       {error:#}");
        }
        let found = found.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        self.results.push(json!({"name": name, "passed": passed, "secs": secs, "found": found}));
    }

    /// Driver, GPUs and libtorch of this machine.
    fn machine(&mut self) -> Value {
        const FIELDS: [&str; 5] =
            ["name", "compute_cap", "memory.total", "driver_version", "clocks.max.sm"];
        let query = format!("--query-gpu={}", FIELDS.join(","));
        let listed = output_of(
            Command::new("nvidia-smi").args([&query, "--format=csv,noheader"]),
            "listing GPUs",
        );
        let gpu = |line: &str| -> Value {
            let values = line.split(',').map(|value| Value::from(value.trim()));
            FIELDS.iter().map(|field| (*field).to_owned()).zip(values).collect::<Map<_, _>>().into()
        };
        let gpus: Vec<Value> = listed.unwrap_or_default().lines().map(gpu).collect();
        self.product = gpus.first().and_then(|gpu| gpu["name"].as_str()).map(str::to_owned);
        let libtorch = setup::linked(self.workspace).map(|libtorch| libtorch.version);
        json!({
            "gpus": gpus,
            "driver": gpu::driver().map(|(_, version)| version),
            "libtorch": libtorch.unwrap_or_else(|error| format!("{error:#}")),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Makes an image, eight rows of similar lengths, and rows of increasing lengths.
    fn make_rows(&self) -> Result<()> {
        let image = image::RgbImage::from_fn(64, 48, |x, y| image::Rgb([x as u8, y as u8, 90]));
        image.save(self.path("a.png")).context("writing an image")?;
        let row = |num_words: usize| {
            let caption = vec!["circle"; num_words].join(" ");
            json!({"image": "a.png", "conversations": [
                {"role": "user", "content": "<image>\nDescribe the image."},
                {"role": "assistant", "content": caption},
            ]})
            .to_string()
        };
        let write = |name: &str, lengths: &mut dyn Iterator<Item = usize>| {
            let text: String = lengths.map(|num_words| row(num_words) + "\n").collect();
            fs::write(self.path(name), text).with_context(|| format!("writing {name}"))
        };
        write("rows.jsonl", &mut (0..8).map(|k| 4 + k % 3))?;
        write("lengths.jsonl", &mut (0..NUM_SHAPES).map(|k| 1 + k))?;
        write("many.jsonl", &mut (0..512).map(|k| 20 + k % 20))
    }

    /// A training run of a very small model into the folder `out`. The flags `more` replace the
    /// default ones.
    fn training(&self, out: &str, more: &[&str]) -> Command {
        let root = self.workspace.root();
        let mut command = Command::new(&self.binary);
        command.arg("pretrain").arg("--images-path").arg(self.folder.path());
        let mut given = |flag: &str, value: &Path| {
            if !more.contains(&flag) {
                command.arg(flag).arg(value);
            }
        };
        given("--out-dir", &self.path(out));
        given("--data-path", &self.path("rows.jsonl"));
        given("--tokenizer", &root.join("data/demo-start"));
        given("--vision", &root.join("tests/golden/vision_tower"));
        for (flag, value) in [
            ("--lm", "none"),
            ("--dim", "64"),
            ("--n-layers", "2"),
            ("--n-heads", "4"),
            ("--max-seq-len", "288"),
            ("--batch-size", "4"),
            ("--log-interval", "1"),
            ("--save-interval", "1000"),
            ("--max-steps", "3"),
            ("--epochs", "9"),
        ] {
            given(flag, Path::new(value));
        }
        command.args(more);
        command
    }

    /// Runs a training, and returns its log lines.
    fn train(&self, out: &str, more: &[&str]) -> Result<Vec<Value>> {
        output_of(&mut self.training(out, more), out)?;
        self.lines(out)
    }

    fn lines(&self, out: &str) -> Result<Vec<Value>> {
        let path = self.path(out).join("metrics.jsonl");
        let bytes = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        bytes.lines().map(|line| Ok(serde_json::from_str(&line?)?)).collect()
    }

    fn losses(&self, out: &str, more: &[&str]) -> Result<Vec<f64>> {
        let lines = self.train(out, more)?;
        Ok(lines.iter().filter_map(|line| line["loss"].as_f64()).collect())
    }

    /// The largest relative difference of the losses in each mode, which must be at most `limit`. The
    /// names of the folders start with `check`.
    fn differences(
        &self,
        check: &str,
        modes: &[Mode],
        [one, other]: [&[&str]; 2],
        limit: f64,
    ) -> Result<Value> {
        let mut found = Map::new();
        let mut wrong = Vec::new();
        for (index, (name, flags)) in modes.iter().enumerate() {
            let losses = |label: &str, more: &[&str]| {
                self.losses(&format!("{check}-{label}-{index}"), &[flags, more].concat())
            };
            let (a, b) = (losses("one", one)?, losses("other", other)?);
            ensure!(a.len() == 3 && b.len() == 3, "{name}: {a:?} and {b:?} are not three losses");
            let difference = a.iter().zip(&b).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            if difference.is_nan() || difference > limit {
                wrong.push(format!("{name}: {a:?} and {b:?}"));
            }
            found.insert((*name).to_owned(), difference.into());
        }
        ensure!(wrong.is_empty(), "losses differ by more than {limit}: {}", wrong.join("; "));
        Ok(found.into())
    }

    fn float32(&self) -> Result<Value> {
        // The dropout of a GPU is another one than that of the CPU.
        let modes: Vec<Mode> = MODES.into_iter().filter(|(name, _)| *name != "dropout").collect();
        let on_cpu = ["--device", "cpu", "--dtype", "float32"];
        self.differences("float32", &modes, [&FLOAT32, &on_cpu], MAX_FLOAT32_DIFFERENCE)
    }

    fn bfloat16(&self) -> Result<Value> {
        let half = ["--device", "cuda", "--dtype", "bfloat16"];
        self.differences("bfloat16", &MODES, [&half, &FLOAT32], MAX_HALF_DIFFERENCE)
    }

    fn float16(&self) -> Result<Value> {
        let half = ["--device", "cuda", "--dtype", "float16"];
        self.differences("float16", &MODES[..1], [&half, &FLOAT32], MAX_HALF_DIFFERENCE)
    }

    /// With PyTorch's synchronisation debug mode as an error, from the third step on.
    fn no_waits(&self) -> Result<Value> {
        for (index, (name, flags)) in MODES[..NUM_WITHOUT_WAITS].iter().enumerate() {
            let more = ["--device", "cuda", "--max-steps", "6", "--log-interval", "6"];
            let mut training =
                self.training(&format!("waits-{index}"), &[flags, &more[..]].concat());
            output_of(training.env("VLM_FORBID_HOST_WAITS", "1"), name)?;
        }
        Ok(json!({ "modes": NUM_WITHOUT_WAITS }))
    }

    fn deterministic(&self) -> Result<Value> {
        let more = ["--device", "cuda", "--deterministic", "--train-lm", "--dtype", "bfloat16"];
        let mut weights = Vec::new();
        for out in ["deterministic-one", "deterministic-two"] {
            self.train(out, &more)?;
            let path = self.path(out).join("pretrain_vlm_64.safetensors");
            weights.push(fs::read(&path).with_context(|| format!("reading {}", path.display()))?);
        }
        ensure!(weights[0] == weights[1], "the weights of two equal runs differ");
        Ok(json!({ "weights_bytes": weights[0].len() }))
    }

    /// Steps with rows of different lengths, one after another.
    fn shapes(&self) -> Result<Value> {
        let rows = self.path("lengths.jsonl");
        let steps = NUM_SHAPES.to_string();
        let more = [
            "--device",
            "cuda",
            "--data-path",
            rows.to_str().context("the path is not UTF-8")?,
            "--batch-size",
            "1",
            "--no-shuffle",
            "--epochs",
            "1",
            "--max-steps",
            &steps,
            "--max-seq-len",
            "600",
        ];
        let lines = self.train("shapes", &more)?;
        // The first steps load kernels.
        let times: Vec<f64> =
            lines.iter().skip(5).filter_map(|line| line["step_ms"].as_f64()).collect();
        let mut sorted = times.clone();
        sorted.sort_by(f64::total_cmp);
        let (Some(&median), Some(&longest)) = (sorted.get(sorted.len() / 2), sorted.last()) else {
            bail!("the run has no times of steps");
        };
        ensure!(
            longest <= MAX_SLOWDOWN * median,
            "a step took {longest:.1} ms, the median is {median:.1} ms; all: {times:.1?}"
        );
        Ok(json!({"median_ms": median, "longest_ms": longest}))
    }

    /// Time of a step, rows per second and the part of the GPU's rate for each model and batch.
    fn speed(&self) -> Result<Value> {
        let encoder = self.folder.path().join("encoder");
        let mut sizes: Vec<(&str, &str, &str)> =
            vec![("512", "8", "16"), ("512", "8", "64"), ("768", "16", "16"), ("768", "16", "64")];
        let vision = if self.is_small {
            sizes = vec![("32", "2", "4")];
            self.workspace.root().join("tests/golden/vision_tower")
        } else {
            let mut init = Command::new(&self.binary);
            init.args(["init", "--dim", "64", "--n-layers", "1", "--n-heads", "4", "--out-dir"]);
            output_of(init.arg(&encoder), "making an encoder")?;
            encoder.join("clip-vit-base-patch16")
        };
        let device = self.product.as_deref().and_then(Device::of_product);
        let (rows, vision) = (self.path("many.jsonl"), vision.display().to_string());
        let mut found = Vec::new();
        for (dim, layers, batch_size) in sizes {
            let out = format!("speed-{dim}-{layers}-{batch_size}");
            let more = [
                "--device",
                "cuda",
                "--data-path",
                rows.to_str().context("the path is not UTF-8")?,
                "--vision",
                &vision,
                "--dim",
                dim,
                "--n-layers",
                layers,
                "--n-heads",
                "8",
                "--batch-size",
                batch_size,
                "--max-steps",
                "60",
                "--epochs",
                "20",
                "--log-interval",
                "20",
                "--dtype",
                "bfloat16",
            ];
            let lines = self.train(&out, &more)?;
            let last = lines.last().context("the run has no log lines")?;
            let (step_ms, gflops) = plan::speed(&self.path(&out))?;
            let summary = fs::read(self.path(&out).join("summary.json"));
            let summary: Value = serde_json::from_slice(&summary.context("reading summary.json")?)?;
            let peak = device.as_ref().map(|device| device.bfloat16_flops / 1e9);
            println!(
                "       {dim} × {layers}, batch {batch_size}: {step_ms:.1} ms, {:.0} rows/s",
                last["samples_per_sec"].as_f64().unwrap_or(0.0)
            );
            found.push(json!({
                "dim": dim, "n_layers": layers, "batch_size": batch_size, "step_ms": step_ms,
                "attention": summary["attention"], "samples_per_sec": last["samples_per_sec"], "data_wait_ms": last["data_wait_ms"],
                "peak_memory_bytes": last["peak_memory_bytes"], "gflops": gflops,
                "mfu": peak.map(|peak| gflops / peak),
            }));
        }
        Ok(found.into())
    }

    fn two_processes(&self) -> Result<Value> {
        let launcher = std::env::current_exe().context("finding the path of this program")?;
        let mut found = Map::new();
        for (index, (name, flags)) in
            [MODES[0], ("sharded", &["--train-lm", "--shard-optimizer"][..])].iter().enumerate()
        {
            let (alone, together) = (format!("alone-{index}"), format!("together-{index}"));
            let more = [flags, &FLOAT32[..]].concat();
            let expected = self.losses(&alone, &more)?;
            let training = self.training(&together, &[&more[..], &["--batch-size", "2"]].concat());
            let mut launch = Command::new(&launcher);
            launch.args(["launch", "--nproc-per-node", "2"]).arg(training.get_program());
            output_of(launch.args(training.get_args()), name)?;
            let lines = self.lines(&together)?;
            let losses: Vec<f64> = lines.iter().filter_map(|line| line["loss"].as_f64()).collect();
            let difference =
                expected.iter().zip(&losses).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max);
            ensure!(
                losses.len() == expected.len() && difference <= MAX_FLOAT32_DIFFERENCE,
                "{name}: the losses are {losses:?}, and {expected:?} with one process"
            );
            found.insert((*name).to_owned(), difference.into());
        }
        Ok(found.into())
    }
}
