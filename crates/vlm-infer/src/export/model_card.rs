//! Writes the `README.md` of an exported model: what it is, what it was trained on and how it is
//! used.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::Value;
use vlm_model::VisionFamily;

use super::container::Container;
use super::joined::Joined;
use super::source::ExportSource;
use crate::InferError;
use crate::json_file::read_json;

/// Writes `README.md` to `folder`.
///
/// # Errors
/// A failure of the file system, with the path.
pub(super) fn write(
    joined: &Joined,
    container: Container,
    source: &ExportSource,
    folder: &Path,
) -> Result<(), InferError> {
    let path = folder.join("README.md");
    let text = text(joined, container, source);
    fs::write(&path, text).map_err(InferError::io(&path, "write it"))
}

fn text(joined: &Joined, container: Container, source: &ExportSource) -> String {
    let mut card = String::from("---\npipeline_tag: image-text-to-text\n");
    if container != Container::Gguf {
        card += "library_name: transformers\n";
    }
    card += "tags: [vision-language-model]\n---\n\n# A small vision-language model\n\n";
    card += &parts(joined);
    card += &training(joined, &source.model);
    card += &usage(joined, container);
    card += &origin(source, container);
    card
}

fn parts(joined: &Joined) -> String {
    let (lm, vision) = (&joined.parts.lm, joined.vision);
    let encoder = match vision.family {
        VisionFamily::Clip => "CLIP",
        VisionFamily::Siglip => "SigLIP",
    };
    let experts = match lm.use_moe {
        true => format!(", {} experts", lm.moe.n_routed_experts),
        false => String::new(),
    };
    format!(
        "| part | |\n|---|---|\n\
         | language model | {} blocks, hidden size {}, {} query heads, {} key and value heads, {} \
         tokens{experts} |\n\
         | vision encoder | {encoder}, {} blocks, width {}, images of {size} × {size}, patches of \
         {} |\n\
         | projector | {}, {} tokens per image |\n\n",
        lm.n_layers,
        lm.dim,
        lm.n_heads,
        lm.n_kv_heads,
        lm.vocab_size,
        vision.num_hidden_layers,
        vision.hidden_size,
        vision.patch_size,
        serde_json::to_value(joined.projector.kind).unwrap_or_default().as_str().unwrap_or(""),
        joined.projector.tokens_per_image,
        size = vision.image_size,
    )
}

/// Numbers of `summary.json` that depend on the machine.
const OF_THE_MACHINE: [&str; 5] = [
    "wall_secs", "samples_per_sec", "peak_memory_bytes", "matrix_flops_per_sec",
    "matrix_flops_source",
];

/// The settings of the run, and its results from `summary.json` in the folder of the model.
fn training(joined: &Joined, model: &Path) -> String {
    let run = &joined.parts.run;
    if run.is_null() {
        return "## Training\nThe settings of the training are unknown.\n\n".into();
    }
    let mut section = String::from("## Training\n| setting | value |\n|---|---|\n");
    for part in ["data", "optim"] {
        for (key, value) in run[part].as_object().into_iter().flatten() {
            if let Some(value) = setting(key, value) {
                // Writing to a String does not fail.
                let _ = writeln!(section, "| `{key}` | {value} |");
            }
        }
    }
    let folder = if model.is_dir() { model } else { model.parent().unwrap_or(model) };
    let path = folder.join("summary.json");
    let summary = if path.exists() { read_json(&path) } else { Ok(Value::Null) };
    let summary = summary.unwrap_or_else(|error| {
        tracing::warn!("the results of the training are left out of README.md: {error}");
        Value::Null
    });
    let results: Vec<_> = summary
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| value.is_number() && !OF_THE_MACHINE.contains(&key.as_str()))
        .collect();
    if !results.is_empty() {
        section += "\n| result | value |\n|---|---|\n";
    }
    for (key, value) in results {
        let _ = writeln!(section, "| `{key}` | {value} |");
    }
    section + "\n"
}

/// A setting as text; `None` if it is not set. Of a path only the last part is published.
fn setting(key: &str, value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::Array(list) if list.is_empty() => None,
        Value::String(path) if key.ends_with("_path") => {
            let name = Path::new(path).file_name()?;
            Some(name.to_string_lossy().into_owned())
        }
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

fn usage(joined: &Joined, container: Container) -> String {
    let size = joined.vision.image_size;
    if container == Container::Gguf {
        return "## Use with llama.cpp\n```\nllama-server --model model.gguf --mmproj mmproj.gguf \
                --jinja\n```\nThe server writes no line break behind an image, but the model was \
                trained with one: begin the question with a line break.\n\n"
            .into();
    }
    let version = match container {
        Container::SmolVlm => {
            "transformers 5 or later is needed: version 4 computes the encoder's positions \
             differently. The package num2words must be installed."
        }
        Container::Lfm2Vl => "transformers 5 or later is needed.",
        Container::Llava | Container::Gguf => "transformers 4.57 or later is needed.",
    };
    let filter = match joined.preprocessing["resample"].as_i64() {
        Some(0) => "NEAREST",
        Some(1) => "LANCZOS",
        Some(2) => "BILINEAR",
        _ => "BICUBIC",
    };
    let resize = match container {
        // The processor of this container preprocesses as in training.
        Container::Llava | Container::Gguf => String::new(),
        _ if joined.preprocessing["do_center_crop"] == true => {
            format!("image = ImageOps.fit(image, ({size}, {size}), Image.Resampling.{filter})\n")
        }
        _ => format!("image = image.resize(({size}, {size}), Image.Resampling.{filter})\n"),
    };
    let note = match resize.is_empty() {
        true => "",
        false => {
            " The processor of this class keeps the aspect ratio of an image, but the model was \
             trained with square images: make them square first, as below."
        }
    };
    format!(
        "## Use with transformers\n{version}{note}\n```python\nfrom PIL import Image, ImageOps\nfrom \
         transformers import AutoModelForImageTextToText, AutoProcessor\n\nprocessor = \
         AutoProcessor.from_pretrained(\"FOLDER\")\nmodel = \
         AutoModelForImageTextToText.from_pretrained(\"FOLDER\")\nimage = \
         Image.open(\"IMAGE\").convert(\"RGB\")\n{resize}messages = [{{\"role\": \"user\", \
         \"content\": [{{\"type\": \"image\"}}, {{\"type\": \"text\", \"text\": \"Describe the \
         image.\"}}]}}]\nprompt = processor.apply_chat_template(messages, \
         add_generation_prompt=True)\ninputs = processor(images=image, text=prompt, \
         return_tensors=\"pt\")\nids = model.generate(**inputs, max_new_tokens=64)\n\
         print(processor.decode(ids[0][inputs[\"input_ids\"].shape[1]:], \
         skip_special_tokens=True))\n```\n{}\n",
        match container {
            Container::Llava =>
                "vLLM has no `linear` activation for the projector of LLaVA and refuses this \
                 model.\n",
            _ => "",
        }
    )
}

fn origin(source: &ExportSource, container: Container) -> String {
    format!(
        "## Origin\nWritten by `vlm convert {} --to {}`, version {}.\n",
        source.model.display(),
        container.name(),
        env!("CARGO_PKG_VERSION")
    )
}
