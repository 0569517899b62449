//! Errors for memory that runs out: how much was wanted, what the run keeps in memory, and the settings
//! that reduce it.
//!
//! Most tensor operations of `tch` panic when libtorch fails, so a panic with libtorch's message about
//! memory is caught here. Every other panic is passed on.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use vlm_model::Vlm;

use crate::TrainError;

/// What to do about it.
const REMEDIES: &str = "To need less memory, lower `batch_size` and raise `accumulation_steps` by the \
                        same factor, lower `max_seq_len`, set `activation_checkpointing`, train on \
                        cached `features`, train fewer blocks, or compute in `dtype = bfloat16`. \
                        Earlier checkpoints are unaffected";

/// Parts of libtorch's messages that memory ran out, on CUDA and on the CPU.
const MARKS: [&str; 3] =
    ["out of memory", "can't allocate memory", "not enough memory: you tried to allocate"];

/// What a training run keeps on its device, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryParts {
    /// Weights of the language model, the projector and the vision encoder.
    pub weights: u64,
    /// Gradients of the trained parameters.
    pub gradients: u64,
    /// AdamW's two moments.
    pub optimizer: u64,
}

impl MemoryParts {
    /// What training `model` keeps in memory.
    pub fn of(model: &Vlm) -> Self {
        let bytes = |named: Vec<(String, tch::Tensor)>| crate::parallel::gradient_bytes(&named);
        let weights = bytes(model.params().named()) + bytes(model.vision_params().named());
        let gradients = bytes(model.trainable());
        Self { weights, gradients, optimizer: 2 * gradients }
    }
}

/// Whether `message` is libtorch's message that memory ran out.
pub fn is_out_of_memory(message: &str) -> bool {
    MARKS.iter().any(|mark| message.contains(mark))
}

/// Runs `body`, and makes an error with advice of memory that runs out in it. `parts` is what the run
/// keeps in memory; `None` while the model is created.
///
/// # Errors
/// Those of `body`; memory that ran out.
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

fn panic_message(panic: &(dyn Any + Send)) -> Option<&str> {
    panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied())
}

fn advice(message: &str, parts: Option<MemoryParts>) -> String {
    let mib = |bytes: u64| format!("{:.1} MiB", bytes as f64 / (1 << 20) as f64);
    let kept = match parts {
        Some(MemoryParts { weights, gradients, optimizer }) => format!(
            "The run keeps {} of weights, {} of gradients and {} of optimizer state; the rest are \
             activations, which grow with the rows and tokens of a micro-batch. ",
            mib(weights),
            mib(gradients),
            mib(optimizer)
        ),
        None => "The memory ran out while the model was created. ".to_owned(),
    };
    let shortage = shortage(message);
    let shortage = shortage.unwrap_or_else(|| "libtorch did not say how much it wanted".to_owned());
    format!("out of memory: {shortage}. {kept}{REMEDIES}")
}

/// What to report instead of libtorch's message, with the frames of its C++ stack, that there was no
/// memory for a tensor; `None` for any other message. What `message` says before libtorch's part is
/// kept. For commands that do not train; a training run adds what it keeps in memory.
pub fn out_of_memory_message(message: &str) -> Option<String> {
    let shortage = shortage(message)?;
    let before = message.split("libtorch:").next().unwrap_or("").trim().trim_end_matches(':');
    let before = if before.len() == message.trim().len() { "" } else { before };
    let gap = if before.is_empty() { "" } else { ": " };
    Some(format!("{before}{gap}out of memory: {shortage}. {REMEDIES}"))
}

/// How much memory libtorch wanted, and this process's own limit where it has one; `None` for any other
/// message.
fn shortage(message: &str) -> Option<String> {
    // c10's allocator for the CPU, and the one for CUDA.
    let wanted = ["you tried to allocate ", "Tried to allocate "]
        .iter()
        .find_map(|before| Some(message.split_once(before)?.1))?;
    let wanted = wanted.split(". ").next().unwrap_or(wanted).trim_end_matches(['.', '"', ')']);
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max address space"));
    let limit = match limit.and_then(|line| line.split_whitespace().next()) {
        None | Some("unlimited") => String::new(),
        Some(bytes) => format!(" (this process may use {bytes} bytes in all: ulimit -v)"),
    };
    let device = if message.contains("CUDA") { " on the GPU" } else { "" };
    Some(format!("libtorch wanted {wanted} for a tensor{device} and did not get it{limit}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: MemoryParts =
        MemoryParts { weights: 1 << 20, gradients: 2 << 20, optimizer: 4 << 20 };

    #[test]
    fn a_panic_about_memory_becomes_an_error_with_advice() {
        let run = || -> Result<(), TrainError> {
            panic!(
                "called `Result::unwrap()` on an `Err` value: Torch(\"CUDA out of memory. Tried to \
                 allocate 2.00 MiB. GPU 0 has a total capacity of 8.00 MiB\")"
            )
        };
        let said = with_memory_advice(Some(PARTS), run).unwrap_err().to_string();
        for part in [
            "out of memory: libtorch wanted 2.00 MiB for a tensor on the GPU and did not get it",
            "1.0 MiB of weights, 2.0 MiB of gradients and 4.0 MiB of optimizer state",
            "`batch_size`",
        ] {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
    }

    #[test]
    fn errors_about_memory_get_the_same_advice_and_others_stay() {
        let failed = |text: &str| Err::<(), _>(TrainError::Failed(text.to_owned()));
        let cpu = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 9 bytes";
        let said = with_memory_advice(None, || failed(cpu)).unwrap_err().to_string();
        assert!(said.contains("while the model was created"), "{said}");
        let said = with_memory_advice(Some(PARTS), || failed("disk full")).unwrap_err().to_string();
        assert_eq!(said, "disk full");
    }

    #[test]
    fn a_message_of_libtorch_is_replaced_without_its_frames() {
        let message = "step 3: libtorch: Internal torch error: [enforce fail at alloc_cpu.cpp:127] \
                       err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate \
                       1204224 bytes. Error code 12 (Cannot allocate memory)\nframe #0: c10::";
        let said = out_of_memory_message(message).unwrap();
        let expected = "step 3: out of memory: libtorch wanted 1204224 bytes for a tensor";
        assert!(said.starts_with(expected) && !said.contains("frame"), "{said}");
        let cuda =
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 3";
        let said = out_of_memory_message(cuda).unwrap();
        assert!(said.starts_with("out of memory: libtorch wanted 2.00 GiB for"), "{said}");
        assert_eq!(out_of_memory_message("no such file"), None);
    }

    #[test]
    fn other_panics_pass_through() {
        let caught = catch_unwind(|| with_memory_advice::<()>(None, || panic!("a bug")));
        assert_eq!(panic_message(&*caught.unwrap_err()), Some("a bug"));
    }
}
