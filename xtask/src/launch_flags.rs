//! The flags of `cargo xtask pretrain` that are about processes, taken out of those that go to
//! `vlm` word for word. Spelled as torchrun spells them, with hyphens or underscores.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use crate::workspace::usage_error;

/// What `cargo xtask pretrain --help` adds to the help of `vlm`.
pub const HELP: &str = "
Launch flags of `cargo xtask pretrain` (one process for now):
      --nproc-per-node <N|gpu>  processes on this machine [default: 1]
      --nnodes <N>              machines [default: 1]
      --node-rank <N>           this machine's number [default: 0]
      --master-addr <HOST>      where the processes meet
      --master-port <PORT>
      --max-restarts <N>        [default: 0]";

/// How many processes to start, and where they meet.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LaunchFlags {
    nproc_per_node: Option<String>,
    nnodes: Option<String>,
    node_rank: Option<String>,
    master_addr: Option<String>,
    master_port: Option<String>,
    max_restarts: Option<String>,
}

/// Separates launch flags from the rest, whose order and spelling are kept.
/// # Errors
/// A launch flag without its value.
pub fn split(args: Vec<OsString>) -> Result<(LaunchFlags, Vec<OsString>)> {
    let mut flags = LaunchFlags::default();
    let mut rest = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let Some((name, inline_value)) = flag_name(&arg) else {
            rest.push(arg);
            continue;
        };
        let Some(slot) = flags.slot(&name) else {
            rest.push(arg);
            continue;
        };
        let value = match inline_value {
            Some(value) => value,
            None => match args.next().map(OsString::into_string) {
                Some(Ok(value)) if !value.starts_with("--") => value,
                _ => return Err(usage_error(format!("--{name} needs a value"))),
            },
        };
        *slot = Some(value);
    }
    Ok((flags, rest))
}

/// Whether one of `names` (with hyphens) is among the flags, in either spelling.
pub fn contains(args: &[OsString], names: &[&str]) -> bool {
    args.iter().filter_map(flag_name).any(|(name, _)| names.contains(&name.as_str()))
}

/// `--data_path=x` → `data-path`, `x`.
fn flag_name(arg: &OsString) -> Option<(String, Option<String>)> {
    let flag = arg.to_str()?.strip_prefix("--")?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (flag, None),
    };
    Some((name.replace('_', "-"), value))
}

impl LaunchFlags {
    fn slot(&mut self, name: &str) -> Option<&mut Option<String>> {
        Some(match name {
            "nproc-per-node" => &mut self.nproc_per_node,
            "nnodes" => &mut self.nnodes,
            "node-rank" => &mut self.node_rank,
            "master-addr" => &mut self.master_addr,
            "master-port" => &mut self.master_port,
            "max-restarts" => &mut self.max_restarts,
            _ => return None,
        })
    }

    /// An error unless one process on one machine is asked for: that is all there is for now.
    pub fn require_one_process(&self) -> Result<()> {
        let nproc = match self.nproc_per_node.as_deref() {
            Some("gpu") => num_gpus(),
            other => count("nproc-per-node", other, 1)?,
        };
        if nproc == 0 {
            return Err(usage_error(
                "--nproc-per-node is 0: expected at least 1, or `gpu` where there is a GPU",
            ));
        }
        let nnodes = count("nnodes", self.nnodes.as_deref(), 1)?;
        let restarts = count("max-restarts", self.max_restarts.as_deref(), 0)?;
        if nproc != 1 || nnodes != 1 {
            return Err(usage_error(format!(
                "launching {nproc} processes on {nnodes} machines: multi-process launch is not \
                 there yet, only --nproc-per-node 1 --nnodes 1"
            )));
        }
        if restarts != 0 {
            return Err(usage_error(
                "--max-restarts: restarting is not there yet, only 0; `--resume auto` goes on \
                 from the last checkpoint",
            ));
        }
        let rank = count("node-rank", self.node_rank.as_deref(), 0)?;
        if rank != 0 {
            return Err(usage_error(format!("--node-rank {rank}: one machine has rank 0")));
        }
        // One process meets nobody, but a port that is none is a mistake all the same.
        count("master-port", self.master_port.as_deref(), 0).map(|_| ())
    }
}

fn count(name: &str, value: Option<&str>, default: usize) -> Result<usize> {
    let Some(value) = value else { return Ok(default) };
    value.parse().map_err(|_| usage_error(format!("--{name} {value}: expected a whole number")))
}

/// The GPUs that the NVIDIA driver lists.
pub fn num_gpus() -> usize {
    std::fs::read_dir(Path::new("/proc/driver/nvidia/gpus")).map_or(0, |entries| entries.count())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::UsageError;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn launch_flags_are_taken_out_in_every_spelling_and_the_rest_is_verbatim() {
        let args = words(
            "--epochs 2 --nproc_per_node=4 --nnodes 2 --learning_rate=1e-3 --node-rank 1 \
             --master_addr host --master-port=29500 --max_restarts 3 --use-moe -- x",
        );
        let (flags, rest) = split(args).unwrap();
        assert_eq!(rest, words("--epochs 2 --learning_rate=1e-3 --use-moe -- x"));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            flags,
            LaunchFlags {
                nproc_per_node: some("4"),
                nnodes: some("2"),
                node_rank: some("1"),
                master_addr: some("host"),
                master_port: some("29500"),
                max_restarts: some("3"),
            }
        );
    }

    #[test]
    fn one_process_is_accepted_and_more_are_a_usage_error() {
        let check =
            |text: &str| split(words(text)).and_then(|(flags, _)| flags.require_one_process());
        check("").unwrap();
        check("--nproc-per-node 1 --nnodes=1 --node-rank 0 --master-port 1234").unwrap();
        for (wrong, said) in [
            ("--nproc-per-node 2", "not there yet"),
            ("--nnodes 2", "not there yet"),
            ("--nproc-per-node 0", "at least 1"),
            ("--nproc-per-node many", "whole number"),
            ("--max-restarts 1", "not there yet"),
            ("--node-rank 1", "rank 0"),
            ("--nnodes", "needs a value"),
            ("--nnodes --epochs 1", "needs a value"),
        ] {
            let error = check(wrong).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn flags_are_found_in_both_spellings_and_not_in_values() {
        assert!(contains(&words("--data_path x"), &["data-path"]));
        assert!(contains(&words("--epochs 1 --data-path=x"), &["data-path"]));
        assert!(!contains(&words("--out-dir data-path"), &["data-path"]));
    }
}
