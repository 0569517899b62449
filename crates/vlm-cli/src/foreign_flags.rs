//! Suggestions for flags of other training programs for vision-language models.

use clap::error::{ContextKind, ContextValue, ErrorKind};

/// Flags of MiniMind-V, nanoVLM, LLaVA and the Hugging Face trainer, with what to do instead.
const FOREIGN: &[(&str, &str)] = &[
    ("bf16", "use --dtype bfloat16"),
    ("compile", "leave it out; nothing is compiled at run time"),
    ("dataloader-num-workers", "use --num-workers"),
    ("ddp-backend", "leave it out; NCCL is used on CUDA and Gloo on the CPU"),
    ("deepspeed", "use `cargo xtask pretrain --nproc-per-node N` for several GPUs"),
    ("fp16", "use --dtype float16"),
    ("freeze-llm", "use --unfreeze-last-layers 0 (only the projector) or --train-lm (all)"),
    ("from-resume", "use --resume auto"),
    ("from-weight", "use --lm with a weights file or folder, or --init-from with a whole model"),
    ("gradient-accumulation-steps", "use --accumulation-steps"),
    ("gradient-checkpointing", "use --activation-checkpointing"),
    ("image-folder", "use --images-path"),
    ("local-rank", "leave it out; ranks are read from the environment that torchrun sets"),
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
    ("model-name-or-path", "use --lm with a local folder, or --init-from with a whole model"),
    ("num-train-epochs", "use --epochs"),
    ("num-workers-per-gpu", "use --num-workers"),
    ("output-dir", "use --out-dir"),
    ("per-device-train-batch-size", "use --batch-size"),
    ("pretrain-mm-mlp-adapter", "use --lm with weights that hold the projector"),
    ("report-to", "leave it out; files for TensorBoard are written to --out-dir"),
    ("resume-from-checkpoint", "use --resume with auto or the folder of a checkpoint"),
    ("save-dir", "use --out-dir"),
    ("save-steps", "use --save-interval"),
    ("save-total-limit", "use --keep-checkpoints"),
    ("save-weight", "leave it out; the weights are saved as pretrain_vlm_{dim} in --out-dir"),
    ("train-batch-size", "use --batch-size"),
    ("use-compile", "leave it out; nothing is compiled at run time"),
    ("use-wandb", "leave it out; metrics.jsonl and files for TensorBoard are in --out-dir"),
    ("vision-model-path", "use --vision"),
    ("vision-tower", "use --vision with a local folder"),
    ("wandb-project", "leave it out; metrics.jsonl and files for TensorBoard are in --out-dir"),
    ("warmup-ratio", "use --warmup-fraction"),
    ("warmup-steps", "use --warmup-iters, which counts micro-batches"),
];

/// Replaces clap's suggestion for an unknown flag by the advice in the table, and removes
/// suggestions with a very different name.
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

/// Whether the names or their first words begin with the same letters, so that one may be a
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

    fn message(flag: &str) -> String {
        let error = Cli::try_parse_from(["vlm", "pretrain", flag, "1"]).unwrap_err();
        explain(error).to_string()
    }

    #[test]
    fn an_unknown_flag_of_another_program_gets_advice() {
        for (flag, part) in [
            ("--lr", "--learning-rate"),
            ("--per-device-train-batch-size", "--batch-size"),
            ("--vision-tower", "--vision with a local folder"),
        ] {
            let message = message(flag);
            assert!(message.contains(part) && message.contains(flag), "{message}");
        }
    }

    #[test]
    fn a_long_argument_is_cut_and_its_length_is_shown() {
        let long = "a b ".repeat(1250);
        for args in [
            ["vlm", "pretrain", "--batch-size", &long],
            ["vlm", "pretrain", "--epochs=1", &long],
            ["vlm", "pretrain", "--epochs=1", &format!("--{long}")],
            ["vlm", &long, "--epochs", "1"],
        ] {
            let error = crate::short_errors::shortened(Cli::try_parse_from(args).unwrap_err());
            let message = error.to_string();
            assert!(message.len() < 1500 && message.contains("characters)"), "{message}");
        }
    }

    #[test]
    fn a_misspelled_flag_gets_a_suggestion_and_an_unrelated_one_gets_none() {
        assert!(message("--batch-sise").contains("--batch-size"));
        assert!(!message("--tidden-size").contains("--batch-size"));
    }

    #[test]
    fn no_flag_of_the_table_is_a_flag_of_this_program() {
        for (flag, _) in FOREIGN {
            let error = Cli::try_parse_from(["vlm", "pretrain", &format!("--{flag}=1")]);
            assert_eq!(error.unwrap_err().kind(), ErrorKind::UnknownArgument, "{flag}");
        }
    }
}
