//! Recognises weights in unsupported formats of other programs, with a message about the conversion
//! of each.

use std::collections::BTreeSet;
use std::path::Path;

const GGUF: &str = "it is a GGUF file of llama.cpp; convert it in Python: \
     AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).save_pretrained(new_folder)";
const ONNX: &str = "it is an ONNX model, which does not keep the names of the weights; use the \
     .safetensors or .bin file that it was exported from";
const TENSORFLOW: &str = "it is a TensorFlow model; convert it in Python: \
     AutoModel.from_pretrained(folder, from_tf=True).save_pretrained(new_folder) (transformers 4)";
const FLAX: &str = "it is a Flax model; convert it in Python: AutoModel.from_pretrained(folder, \
     from_flax=True).save_pretrained(new_folder) (transformers 4)";
const ADAPTER: &str = "it is a LoRA adapter, not a whole model; merge it into its model first, in \
     Python: PeftModel.from_pretrained(model, folder).merge_and_unload().save_pretrained(merged)";
const ZERO: &str = "it is a DeepSpeed ZeRO checkpoint, whose weights are sharded over the ranks; \
     merge them first: python zero_to_fp32.py FOLDER OUTPUT, with the script that DeepSpeed saved \
     beside it";
const DISTRIBUTED: &str = "it is a distributed checkpoint of PyTorch, whose weights are sharded \
     over the ranks; merge them first: python -m torch.distributed.checkpoint.format_utils \
     dcp_to_torch FOLDER weights.pth";
const MLX: &str = "it is an archive of NumPy arrays, as MLX writes it; save it as .safetensors";

/// The message for a folder without supported weights, by the names of its files; `None` if the
/// format is not recognised.
pub(super) fn of_folder(names: &BTreeSet<String>) -> Option<String> {
    let any = |is: &dyn Fn(&str) -> bool| names.iter().any(|name| is(name));
    let ends = |end: &'static str| move |name: &str| name.ends_with(end);
    let is_zero = |name: &str| name.contains("zero_pp_rank_") || name.ends_with("optim_states.pt");
    let is_checkpoint_folder = |name: &str| {
        name.strip_prefix("global_step")
            .is_some_and(|step| step.bytes().all(|b| b.is_ascii_digit()))
    };
    let is_adapter =
        |name: &str| name == "adapter_config.json" || name.starts_with("adapter_model.");
    let is_weights = |name: &str| {
        [".safetensors", ".pth", ".pt", ".bin", ".ckpt"].iter().any(|end| name.ends_with(end))
            && !name.starts_with("adapter_model.")
    };
    let message = if any(&is_adapter) && !any(&is_weights) {
        ADAPTER
    } else if any(&is_zero) || any(&is_checkpoint_folder) {
        ZERO
    } else if any(&ends(".distcp")) {
        DISTRIBUTED
    } else if any(&is_weights) {
        return None;
    } else if any(&ends(".gguf")) {
        GGUF
    } else if any(&ends(".onnx")) {
        ONNX
    } else if any(&ends(".h5")) || any(&ends("saved_model.pb")) || any(&ends(".ckpt.index")) {
        TENSORFLOW
    } else if any(&ends(".msgpack")) {
        FLAX
    } else if any(&ends(".npz")) {
        MLX
    } else {
        return None;
    };
    Some(format!("the folder has no supported weights: {message}"))
}

/// The message for a file in an unsupported format, by its first bytes and its name; `None` if the
/// format is not recognised.
pub(super) fn of_content(start: &[u8], path: &Path) -> Option<String> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let message = if start.starts_with(b"GGUF") {
        GGUF
    } else if start.starts_with(b"\x89HDF") || name.ends_with(".h5") {
        TENSORFLOW
    } else if name.ends_with(".onnx") {
        ONNX
    } else if name.ends_with(".msgpack") {
        FLAX
    } else if name.ends_with(".distcp") {
        DISTRIBUTED
    } else {
        return None;
    };
    Some(message.to_owned())
}
