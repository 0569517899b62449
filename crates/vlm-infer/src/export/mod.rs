//! Exports a model: as a folder in Hugging Face format with this program's own keys, from which it
//! can be loaded again, or in a container of other programs ([`Container`]).

mod chat_files;
mod container;
mod file_names;
mod gguf;
mod hugging_face;
mod joined;
mod language_model;
mod lfm2_vl;
mod llava;
mod model_card;
mod parts;
mod smolvlm;
mod source;
mod whole_model;

pub use container::Container;
pub use file_names::is_exported_name;
pub use hugging_face::export_hf;
pub use source::ExportSource;
pub use whole_model::export_to;
