//! What is printed at the end of a training run: its result, and the commands that use it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vlm_data::count_by_reason;
use vlm_display::count;
use vlm_train::{Run, Summary};

/// What the commands that are named at the end use.
pub struct NextInputs {
    /// The rows to evaluate.
    pub rows: PathBuf,
    /// The folder of their images, where one was given.
    pub images_path: Option<PathBuf>,
    /// An image to talk about, where one is known.
    pub image: Option<PathBuf>,
}

/// Prints how a run ended, where its results are, and which commands show and use them. Only rank 0
/// prints.
pub fn print_outcome(run: &Run, summary: &Summary, inputs: &NextInputs) {
    if !run.is_first_rank() {
        return;
    }
    let loss = summary.final_loss.map_or("none".into(), |loss| format!("{loss:.4}"));
    let out = run.out_dir();
    let rejected = match summary.rejected_rows {
        0 => count(0, "rejected row"),
        number => format!(
            "{} ({}): {}",
            count(number, "rejected row"),
            count_by_reason(&summary.rejected_by_reason),
            out.join("rejected.jsonl").display()
        ),
    };
    println!(
        "{}: {}, {} in {:.1} s ({:.1} rows/s), last loss {loss}, {rejected}",
        summary.status,
        count(summary.steps, "step"),
        count(summary.samples, "row"),
        summary.wall_secs,
        summary.samples_per_sec,
    );
    println!("weights: {}", out.join(format!("{}.pth", run.weights_name())).display());
    println!("report: {}", out.join("report.html").display());
    if summary.status == "interrupted" {
        println!("run the same command with --resume auto to continue");
        return;
    }
    println!("next:");
    let program = program(std::env::var(PROGRAM_VARIABLE).ok(), std::env::args_os().next());
    for command in next_commands(out.path(), inputs) {
        println!("  {program} {command}");
    }
}

/// The environment variable with the words that start this program in a shell.
const PROGRAM_VARIABLE: &str = "VLM_PROGRAM_NAME";

/// The words that start this program again: those that its launcher names, as in a checkout, or the
/// path by which it was started, or `vlm` if that was found in the `PATH`.
fn program(named: Option<String>, started: Option<OsString>) -> String {
    let path = started.map(PathBuf::from).filter(|path| path.components().count() > 1);
    named.or(path.map(|path| quoted(&path))).unwrap_or_else(|| "vlm".to_owned())
}

/// The commands that evaluate a trained model, answer questions with it and show a page to talk
/// about images.
fn next_commands(out_dir: &Path, inputs: &NextInputs) -> [String; 3] {
    let out = quoted(out_dir);
    let rows = quoted(relative(&inputs.rows));
    let with_path = |flag: &str, path: &Option<PathBuf>| {
        path.as_ref().map_or(String::new(), |path| format!(" {flag} {}", quoted(relative(path))))
    };
    let images = with_path("--images-path", &inputs.images_path);
    let image = with_path("--image", &inputs.image);
    let about = if image.is_empty() { "; /image FILE adds an image" } else { " about this image" };
    [
        format!("eval --model {out} --data-path {rows}{images}"),
        format!("generate --model {out}{image}   # a conversation{about}"),
        format!("serve {out}   # a page to talk about images"),
    ]
}

/// The path of a file in the working directory relative to it, any other path as it is.
fn relative(path: &Path) -> &Path {
    let working_dir = std::env::current_dir().unwrap_or_default();
    path.strip_prefix(working_dir).ok().filter(|path| *path != Path::new("")).unwrap_or(path)
}

/// A path as a word of a shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    match text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn the_next_commands_start_the_program_as_it_was_started() {
        let started = |path: &str| Some(OsString::from(path));
        assert_eq!(program(None, started("vlm")), "vlm");
        assert_eq!(program(None, started("my vlm/bin/vlm")), "'my vlm/bin/vlm'");
        let named = Some("cargo xtask vlm".to_owned());
        assert_eq!(program(named, started("target/release/vlm")), "cargo xtask vlm");
    }

    #[test]
    fn the_next_commands_exist_and_are_words_of_a_shell() {
        let mut inputs = NextInputs {
            rows: "rows.jsonl".into(),
            images_path: Some("it's here/images".into()),
            image: Some("dog.png".into()),
        };
        let commands = next_commands(Path::new("out/first"), &inputs);
        assert_eq!(
            commands[0],
            "eval --model out/first --data-path rows.jsonl --images-path 'it'\\''s here/images'"
        );
        assert_eq!(
            commands[1],
            "generate --model out/first --image dog.png   # a conversation about this image"
        );
        (inputs.images_path, inputs.image) = (None, None);
        assert_eq!(
            relative(&std::env::current_dir().unwrap().join("data/demo")),
            Path::new("data/demo")
        );
        let plain = next_commands(Path::new("out"), &inputs);
        for command in plain {
            let words = command.split('#').next().unwrap_or_default().split_whitespace();
            let words = ["vlm"].into_iter().chain(words);
            assert!(crate::args::Cli::try_parse_from(words).is_ok(), "{command}");
        }
    }
}
