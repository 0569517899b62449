//! Flags that other trainers of vision-language models have: what to write here instead.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flag of MiniMind-V, nanoVLM, LLaVA or the Hugging Face trainer, and what is done here.
const FOREIGN: &[(&str, &str)] = &[
    ("bf16", "use --dtype bfloat16"),
    ("compile", "nothing is compiled at run time here; leave it out"),
    ("dataloader-num-workers", "use --num-workers"),
    ("ddp-backend", "NCCL is used on CUDA and Gloo on the CPU; leave it out"),
    ("deepspeed", "use `cargo xtask pretrain --nproc-per-node N` for several GPUs"),
    ("fp16", "use --dtype float16"),
    ("freeze-llm", "use --unfreeze-last-layers 0 (the projector alone) or --train-lm (all)"),
    ("from-resume", "use --resume auto"),
    ("from-weight", "use --lm with a weight file or folder"),
    ("gradient-accumulation-steps", "use --accumulation-steps"),
    ("gradient-checkpointing", "use --activation-checkpointing"),
    ("image-folder", "use --images-path"),
    ("local-rank", "ranks are read from the environment, as torchrun sets it; leave it out"),
    ("logging-steps", "use --log-interval"),
    ("lr", "use --learning-rate"),
    ("lr-backbones", "use --lr-lm and --lr-vision"),
    ("lr-language-backbone", "use --lr-lm"),
    ("lr-mp", "use --lr-projector"),
    ("lr-scheduler-type", "use --lr-schedule cosine, linear, constant or wsd"),
    ("lr-vision-backbone", "use --lr-vision"),
    ("max-grad-norm", "use --grad-clip"),
    ("max-length", "use --max-seq-len"),
    ("mm-projector-lr", "use --lr-projector"),
    ("mm-projector-type", "use --projector"),
    ("model-max-length", "use --max-seq-len"),
    ("model-name-or-path", "use --lm with a local folder"),
    ("num-train-epochs", "use --epochs"),
    ("num-workers-per-gpu", "use --num-workers"),
    ("output-dir", "use --out-dir"),
    ("per-device-train-batch-size", "use --batch-size"),
    ("pretrain-mm-mlp-adapter", "use --lm with weights that hold the projector"),
    ("report-to", "TensorBoard's files are written into --out-dir; leave it out"),
    ("resume-from-checkpoint", "use --resume with auto or a checkpoint's folder"),
    ("save-dir", "use --out-dir"),
    ("save-steps", "use --save-interval"),
    ("save-total-limit", "use --keep-checkpoints"),
    ("save-weight", "weights are named pretrain_vlm_{dim} in --out-dir; leave it out"),
    ("train-batch-size", "use --batch-size"),
    ("use-compile", "nothing is compiled at run time here; leave it out"),
    ("use-wandb", "TensorBoard's files and metrics.jsonl are in --out-dir; leave it out"),
    ("vision-model-path", "use --vision"),
    ("vision-tower", "use --vision with a local folder"),
    ("wandb-project", "TensorBoard's files and metrics.jsonl are in --out-dir; leave it out"),
    ("warmup-ratio", "use --warmup-fraction"),
    ("warmup-steps", "use --warmup-iters, which counts micro-batches"),
];

/// Replaces clap's guess at an unknown flag by what is known of it, and drops guesses at flags of
/// quite another name.
pub fn explain(mut error: clap::Error) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(found)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let name = found.trim_start_matches('-').split('=').next().unwrap_or_default().to_owned();
    if let Some((_, advice)) = FOREIGN.iter().find(|(foreign, _)| *foreign == name) {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.remove(ContextKind::TrailingArg);
        let tip = ContextValue::StyledStrs(vec![(*advice).into()]);
        error.insert(ContextKind::Suggested, tip);
        return error;
    }
    let is_far = match error.get(ContextKind::SuggestedArg) {
        Some(ContextValue::String(guess)) => !shares_a_word(&name, guess),
        _ => false,
    };
    if is_far {
        error.remove(ContextKind::SuggestedArg);
    }
    error
}

/// Whether the two names begin alike or have a word's beginning in common, so that one may be a
/// misspelling of the other.
fn shares_a_word(name: &str, guess: &str) -> bool {
    let guess = guess.trim_start_matches('-').split([' ', '=']).next().unwrap_or_default();
    let first_word = |text: &str| text.split('-').next().unwrap_or_default().to_owned();
    let begins = |text: &str| text.chars().take(3).collect::<String>();
    begins(name) == begins(guess) || begins(&first_word(name)) == begins(&first_word(guess))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::Cli;

    fn said(flag: &str) -> String {
        let error = Cli::try_parse_from(["vlm", "pretrain", flag, "1"]).unwrap_err();
        explain(error).to_string()
    }

    #[test]
    fn flags_of_other_trainers_are_translated() {
        for (flag, part) in [
            ("--lr", "--learning-rate"),
            ("--per-device-train-batch-size", "--batch-size"),
            ("--vision-tower", "--vision with a local folder"),
        ] {
            let said = said(flag);
            assert!(said.contains(part) && said.contains(flag), "{said}");
        }
    }

    #[test]
    fn misspelled_flags_get_the_right_one_and_strange_ones_no_guess() {
        assert!(said("--batch-sise").contains("--batch-size"));
        assert!(!said("--tidden-size").contains("--batch-size"));
    }

    #[test]
    fn every_translated_flag_is_unknown_here() {
        for (flag, _) in FOREIGN {
            let error = Cli::try_parse_from(["vlm", "pretrain", &format!("--{flag}=1")]);
            assert_eq!(error.unwrap_err().kind(), ErrorKind::UnknownArgument, "{flag}");
        }
    }
}
