//! Out-of-memory errors: the message says how much memory was requested, what the run keeps in
//! memory, and which settings reduce it.
//!
//! Most tensor operations of `tch` panic when libtorch fails, so panics with an out-of-memory
//! message of libtorch are caught here. Every other panic continues.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use tch::Device;
use vlm_model::Vlm;

use crate::TrainError;

/// Advice at the end of each message.
pub(crate) const REMEDIES: &str = "To need less memory, lower `batch_size` and raise `accumulation_steps` by \
                        the same factor, lower `max_seq_len`, set `activation_checkpointing`, \
                        train on cached `features`, train fewer blocks, compute in `dtype = \
                        bfloat16`, or with several GPUs set `shard_optimizer`. Earlier checkpoints are unaffected";

/// Parts of libtorch's out-of-memory messages, on CUDA and on the CPU.
const MARKS: [&str; 4] = [
    "out of memory",
    "can't allocate memory",
    "not enough memory: you tried to allocate",
    "std::bad_alloc",
];

/// Sizes of what a training run keeps on its device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryParts {
    /// Weights of the language model, the projector and the vision encoder.
    pub weights: u64,
    /// Gradients of the trained parameters.
    pub gradients: u64,
    /// The two moments of AdamW.
    pub optimizer: u64,
    /// The device, if it is a GPU: there libtorch reports how much memory was in use.
    pub gpu: Option<Device>,
}

impl MemoryParts {
    /// The sizes for training `model`, if the optimizer is divided among `num_shards` ranks.
    pub fn of(model: &Vlm, num_shards: usize) -> Self {
        let bytes = |named: Vec<(String, tch::Tensor)>| crate::parallel::gradient_bytes(&named);
        let weights = bytes(model.params().named()) + bytes(model.vision_params().named());
        let gradients = bytes(model.trainable());
        let optimizer = (2 * gradients).div_ceil(num_shards as u64);
        let gpu = Some(model.device()).filter(|device| device.is_cuda());
        Self { weights, gradients, optimizer, gpu }
    }
}

/// Whether `message` contains an out-of-memory message of libtorch.
pub fn is_out_of_memory(message: &str) -> bool {
    MARKS.iter().any(|mark| message.contains(mark))
}

/// Runs `body`. If it runs out of memory, the error says what to do. `parts` are the sizes of what
/// the run keeps in memory; `None` while the model is created.
///
/// # Errors
/// The errors of `body`; out of memory.
pub fn with_memory_advice<T>(
    parts: Option<MemoryParts>,
    body: impl FnOnce() -> Result<T, TrainError>,
) -> Result<T, TrainError> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Err(error)) if is_out_of_memory(&error.to_string()) => {
            Err(TrainError::Failed(advice(&error.to_string(), parts)))
        }
        Ok(result) => result,
        Err(panic) => match panic_message(&*panic) {
            Some(message) if is_out_of_memory(message) => {
                Err(TrainError::Failed(advice(message, parts)))
            }
            _ => resume_unwind(panic),
        },
    }
}

/// The message of a panic, if it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied())
}

/// A size in MiB, for a message.
pub(crate) fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64)
}

fn advice(message: &str, parts: Option<MemoryParts>) -> String {
    let kept = match parts {
        Some(MemoryParts { weights, gradients, optimizer, gpu }) => {
            let peak = gpu.and_then(|gpu| vlm_torch::peak_memory_bytes(gpu).ok());
            let rest = peak.map(|peak| peak.saturating_sub(weights + gradients + optimizer));
            let rest =
                rest.map_or_else(|| "the rest".to_owned(), |rest| format!("up to {}", mib(rest)));
            format!(
                "The run keeps {} of weights, {} of gradients and {} of optimizer state; {rest} \
                 are activations, which grow with the rows and tokens of a micro-batch. ",
                mib(weights),
                mib(gradients),
                mib(optimizer)
            )
        }
        None => "The memory ran out while the model was created. ".to_owned(),
    };
    let shortage = shortage(message);
    let shortage =
        shortage.unwrap_or_else(|| "libtorch did not report the requested size".to_owned());
    format!("out of memory: {shortage}. {kept}{REMEDIES}")
}

/// A readable message to report instead of an out-of-memory message of libtorch, which contains C++
/// stack frames; `None` for any other message. The text before libtorch's message is kept. For
/// commands that do not train; a training run uses `with_memory_advice`.
pub fn out_of_memory_message(message: &str) -> Option<String> {
    let shortage = shortage(message)?;
    let before = message.split("libtorch:").next().unwrap_or("").trim().trim_end_matches(':');
    let before = if before.len() == message.trim().len() { "" } else { before };
    let gap = if before.is_empty() { "" } else { ": " };
    Some(format!("{before}{gap}out of memory: {shortage}. {REMEDIES}"))
}

/// How much memory libtorch requested, and the limit of this process if it has one; `None` for any
/// other message.
fn shortage(message: &str) -> Option<String> {
    // The messages of c10's allocators for the CPU and for CUDA.
    let wanted = ["you tried to allocate ", "Tried to allocate "]
        .iter()
        .find_map(|before| Some(message.split_once(before)?.1));
    let wanted = match wanted {
        None if message.contains("std::bad_alloc") => "memory",
        wanted => wanted?,
    };
    let wanted = wanted.split(". ").next().unwrap_or(wanted).trim_end_matches(['.', '"', ')']);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let limit = match limit.and_then(|line| line.split_whitespace().next()) {
        None | Some("unlimited") => String::new(),
        Some(bytes) => format!(" (ulimit -v limits this process to {bytes} bytes)"),
    };
    let device = if message.contains("CUDA") { " on the GPU" } else { "" };
    let of = if wanted == "memory" { "" } else { " for a tensor" };
    Some(format!("libtorch could not allocate {wanted}{of}{device}{limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: MemoryParts =
        MemoryParts { weights: 1 << 20, gradients: 2 << 20, optimizer: 4 << 20, gpu: None };

    #[test]
    fn an_out_of_memory_panic_becomes_an_error_with_advice() {
        let run = || -> Result<(), TrainError> {
            panic!(
                "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to \
                 allocate 2.00 MiB. GPU 0 has a total capacity of 8.00 MiB\")"
            )
        };
        let message = with_memory_advice(Some(PARTS), run).unwrap_err().to_string();
        for part in [
            "out of memory: libtorch could not allocate 2.00 MiB for a tensor on the GPU",
            "1.0 MiB of weights, 2.0 MiB of gradients and 4.0 MiB of optimizer state",
            "`batch_size`",
        ] {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }

    #[test]
    fn out_of_memory_errors_get_the_same_advice_and_other_errors_are_unchanged() {
        let failed = |text: &str| Err::<(), _>(TrainError::Failed(text.to_owned()));
        let cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes";
        let message = with_memory_advice(None, || failed(cpu)).unwrap_err().to_string();
        assert!(message.contains("while the model was created"), "{message}");
        let message =
            with_memory_advice(Some(PARTS), || failed("disk full")).unwrap_err().to_string();
        assert_eq!(message, "disk full");
    }

    #[test]
    fn an_out_of_memory_message_is_replaced_without_stack_frames() {
        let message = "step 3: libtorch: Internal torch error: [enforce fail at alloc_cpu.cpp:127] \
                       err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate \
                       1204224 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10::";
        let message = out_of_memory_message(message).unwrap();
        let expected =
            "step 3: out of memory: libtorch could not allocate 1204224 bytes for a tensor";
        assert!(message.starts_with(expected) && !message.contains("frame"), "{message}");
        let cuda =
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3";
        let message = out_of_memory_message(cuda).unwrap();
        assert!(
            message.starts_with("out of memory: libtorch could not allocate 2.00 GiB for"),
            "{message}"
        );
        let message = out_of_memory_message("loading: libtorch: std::bad_alloc").unwrap();
        assert!(
            message.starts_with("loading: out of memory: libtorch could not allocate memory"),
            "{message}"
        );
        assert_eq!(out_of_memory_message("no such file"), None);
    }

    #[test]
    fn other_panics_are_not_caught() {
        let caught = catch_unwind(|| with_memory_advice::<()>(None, || panic!("a bug")));
        assert_eq!(panic_message(&*caught.unwrap_err()), Some("a bug"));
    }
}
