//! Separates the launch flags from the arguments that are passed to `vlm` unchanged. They have the
//! names of torchrun's flags, with hyphens or underscores.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::layout::Layout;
use crate::workspace::usage_error;

/// Help text that `cargo xtask pretrain --help` prints after the help of `vlm`.
pub const HELP: &str = "
Launch flags:
      --nproc-per-node <N|gpu>  Number of processes on this machine; gpu for one per GPU
                                [default: 1]
      --nnodes <N>              Number of machines [default: 1]
      --node-rank <N>           Index of this machine, from 0 [default: 0]
      --master-addr <HOST>      Address of machine 0, where rank 0 waits for the other processes
                                [default: this machine]
      --master-port <PORT>      Port at that address [default: a free one; 29500 with several
                                machines]
      --max-restarts <N>        How often all processes are started again from the newest checkpoint
                                after a failure [default: 0]";

/// torchrun's default. Used with several machines, which cannot agree on a free port.
const DEFAULT_PORT: u16 = 29500;

/// The launch flags as the user wrote them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LaunchFlags {
    nproc_per_node: Option<String>,
    nnodes: Option<String>,
    node_rank: Option<String>,
    master_addr: Option<String>,
    master_port: Option<String>,
    max_restarts: Option<String>,
}

/// Returns the launch flags and the other arguments, whose order and spelling are kept.
///
/// # Errors
/// A launch flag without a value.
pub fn split(args: Vec<OsString>) -> Result<(LaunchFlags, Vec<OsString>)> {
    let mut flags = LaunchFlags::default();
    let mut rest = Vec::with_capacity(args.len());
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        if !flags.take(&arg, &mut args)? {
            rest.push(arg);
        }
    }
    Ok((flags, rest))
}

/// Splits the arguments of `cargo xtask launch` into launch flags, program, and the program's
/// arguments.
///
/// # Errors
/// A launch flag without a value; another flag before the program; no program.
pub fn split_before_program(args: Vec<OsString>) -> Result<(LaunchFlags, PathBuf, Vec<OsString>)> {
    let mut flags = LaunchFlags::default();
    let mut args = args.into_iter();
    let mut may_be_flag = true;
    while let Some(arg) = args.next() {
        if may_be_flag && arg == "--" {
            may_be_flag = false;
        } else if may_be_flag && flag_name(&arg).is_some() {
            if !flags.take(&arg, &mut args)? {
                return Err(usage_error(format!(
                    "{} is not a launch flag; expected --nproc-per-node etc., then a program",
                    arg.to_string_lossy()
                )));
            }
        } else {
            return Ok((flags, arg.into(), args.collect()));
        }
    }
    Err(usage_error("no program to launch: cargo xtask launch [FLAGS] PROGRAM [ARGUMENTS]"))
}

/// The value of the flag `name` (with hyphens), in either spelling. If the flag is repeated, its
/// last value is returned.
pub fn value(args: &[OsString], name: &str) -> Option<OsString> {
    let (at, (_, inline)) = args
        .iter()
        .enumerate()
        .filter_map(|(at, arg)| Some((at, flag_name(arg)?)))
        .rfind(|(_, (found, _))| found == name)?;
    inline.map(OsString::from).or_else(|| args.get(at + 1).cloned())
}

/// Removes every occurrence of the flag `name`, which takes a value, together with its value.
pub fn remove(args: &mut Vec<OsString>, name: &str) {
    let is_it = |arg: &OsString| flag_name(arg).filter(|(found, _)| found == name);
    while let Some(at) = args.iter().position(|arg| is_it(arg).is_some()) {
        let has_inline_value = is_it(&args[at]).is_some_and(|(_, inline)| inline.is_some());
        let end = (at + if has_inline_value { 1 } else { 2 }).min(args.len());
        args.drain(at..end);
    }
}

/// The name of a flag, with hyphens, and its value after `=`: `--data_path=x` gives `data-path` and
/// `x`.
fn flag_name(arg: &OsString) -> Option<(String, Option<String>)> {
    let flag = arg.to_str()?.strip_prefix("--")?;
    let (name, value) = match flag.split_once('=') {
        Some((name, value)) => (name, Some(value.to_owned())),
        None => (flag, None),
    };
    Some((name.replace('_', "-"), value))
}

impl LaunchFlags {
    /// Stores the value if `arg` is a launch flag, and returns whether it is. A value that does not
    /// follow `=` is taken from `rest`.
    fn take(&mut self, arg: &OsString, rest: &mut impl Iterator<Item = OsString>) -> Result<bool> {
        let Some((name, inline_value)) = flag_name(arg) else { return Ok(false) };
        let Some(slot) = self.slot(&name) else { return Ok(false) };
        let value = match inline_value {
            Some(value) => value,
            None => match rest.next().map(OsString::into_string) {
                Some(Ok(value)) if !value.starts_with("--") => value,
                _ => return Err(usage_error(format!("--{name} needs a value"))),
            },
        };
        *slot = Some(value);
        Ok(true)
    }

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

    /// The processes that the flags describe.
    ///
    /// # Errors
    /// A value that is not a number; values that contradict each other; `gpu` without a GPU.
    pub fn layout(&self) -> Result<Layout> {
        let nproc_per_node = match self.nproc_per_node.as_deref() {
            Some("gpu") => num_gpus(),
            other => number("nproc-per-node", other, 1)?,
        };
        let nnodes = number("nnodes", self.nnodes.as_deref(), 1)?;
        let node_rank = number("node-rank", self.node_rank.as_deref(), 0)?;
        if nproc_per_node == 0 {
            return Err(usage_error(
                "--nproc-per-node is 0: expected at least 1, or `gpu` where there is a GPU",
            ));
        }
        if nnodes == 0 {
            return Err(usage_error("--nnodes is 0: expected at least 1"));
        }
        if node_rank >= nnodes {
            return Err(usage_error(format!(
                "--node-rank {node_rank} with --nnodes {nnodes}: expected a number from 0 to {}",
                nnodes - 1
            )));
        }
        let master_addr = match &self.master_addr {
            Some(host) => host.clone(),
            None if nnodes == 1 => "127.0.0.1".to_owned(),
            None => {
                return Err(usage_error(format!(
                    "--nnodes {nnodes} needs --master-addr: the address of machine 0, the same on \
                     every machine"
                )));
            }
        };
        let master_port = match self.master_port.as_deref() {
            None => (nnodes > 1).then_some(DEFAULT_PORT),
            given => match number("master-port", given, 0_u16)? {
                // A single machine can choose a free port for all its ranks.
                0 if nnodes == 1 => None,
                0 => {
                    return Err(usage_error(
                        "--master-port 0 with several machines: give a port, the same on every \
                         machine",
                    ));
                }
                port => Some(port),
            },
        };
        let max_restarts = number("max-restarts", self.max_restarts.as_deref(), 0)?;
        Ok(Layout { nproc_per_node, nnodes, node_rank, master_addr, master_port, max_restarts })
    }
}

fn number<T: std::str::FromStr>(name: &str, value: Option<&str>, default: T) -> Result<T> {
    let Some(value) = value else { return Ok(default) };
    value.parse().map_err(|_| {
        let largest = if name == "master-port" { " up to 65535" } else { "" };
        usage_error(format!("--{name} {value}: expected a whole number{largest}"))
    })
}

/// Number of GPUs in `CUDA_VISIBLE_DEVICES`, or else of those that the NVIDIA driver lists.
fn num_gpus() -> usize {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(devices) => devices.split(',').filter(|device| !device.trim().is_empty()).count(),
        Err(_) => std::fs::read_dir(Path::new("/proc/driver/nvidia/gpus"))
            .map_or(0, |entries| entries.count()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::UsageError;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn launch_flags_are_found_in_every_spelling_and_the_other_arguments_are_unchanged() {
        let args = words(
            "--epochs 2 --nproc_per_node=4 --nnodes 2 --learning_rate=1e-3 --node-rank 1 \
             --master_addr host --master-port=29501 --max_restarts 3 --use-moe -- x",
        );
        let (flags, rest) = split(args).unwrap();
        assert_eq!(rest, words("--epochs 2 --learning_rate=1e-3 --use-moe -- x"));
        let layout = flags.layout().unwrap();
        assert_eq!(
            layout,
            Layout {
                nproc_per_node: 4,
                nnodes: 2,
                node_rank: 1,
                master_addr: "host".to_owned(),
                master_port: Some(29501),
                max_restarts: 3,
            }
        );
    }

    #[test]
    fn contradictory_flags_are_usage_errors() {
        let layout = |text: &str| split(words(text)).and_then(|(flags, _)| flags.layout());
        assert!(layout("").unwrap().is_one_process());
        assert_eq!(layout("--nproc-per-node 2").unwrap().master_port, None);
        assert_eq!(layout("--nnodes 2 --master-addr a").unwrap().master_port, Some(DEFAULT_PORT));
        assert!(!layout("--max-restarts 1").unwrap().is_one_process());
        for (wrong, said) in [
            ("--nproc-per-node 0", "at least 1"),
            ("--nproc-per-node many", "whole number"),
            ("--nnodes 0", "at least 1"),
            ("--nnodes 2", "--master-addr"),
            ("--nnodes 2 --node-rank 2 --master-addr a", "from 0 to 1"),
            ("--node-rank 1", "from 0 to 0"),
            ("--nnodes 2 --master-addr a --master-port 0", "same on every machine"),
            ("--master-port 70000", "up to 65535"),
            ("--nnodes", "needs a value"),
            ("--nnodes --epochs 1", "needs a value"),
        ] {
            let error = layout(wrong).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(said), "{error}");
        }
    }

    #[test]
    fn program_after_the_launch_flags_keeps_its_own_flags() {
        let (flags, program, args) =
            split_before_program(words("--nproc-per-node 2 vlm pretrain --nnodes 5")).unwrap();
        assert_eq!(flags.layout().unwrap().nproc_per_node, 2);
        assert_eq!((program, args), (PathBuf::from("vlm"), words("pretrain --nnodes 5")));
        assert!(split_before_program(words("--epochs 2 vlm")).is_err());
        assert!(split_before_program(words("--nnodes 1")).is_err());
        assert_eq!(split_before_program(words("-- --odd")).unwrap().1, PathBuf::from("--odd"));
    }

    #[test]
    fn values_are_found_in_both_spellings_and_the_last_one_is_used() {
        let found = |text: &str| value(&words(text), "data-path");
        assert_eq!(found("--data_path x"), Some("x".into()));
        assert_eq!(found("--data_path x --data-path=y --epochs 1"), Some("y".into()));
        assert_eq!(found("--out-dir data-path"), None);
    }
}
