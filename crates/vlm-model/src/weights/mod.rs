//! Reads and writes weights files: PyTorch's `.pth` and `.safetensors`, in one file or in shards.
//!
//! Files may come from untrusted sources: nothing in them is executed, and sizes are checked before
//! memory is allocated for them. This module handles names, shapes and dtypes; it does not know
//! which model they belong to.

mod archive;
mod derive;
mod error;
mod foreign;
mod gguf;
mod heap;
mod load;
mod load_report;
mod open;
mod opened;
mod pickle;
mod pth;
mod rebuild;
mod rename;
mod safetensors;
mod save;
mod shards;
mod tensor_info;
mod tied;
mod transform;

pub use error::WeightsError;
pub use gguf::{GgufValue, save_gguf};
pub use load_report::{LoadReport, Misshapen};
pub use open::{hub_name, require_there};
pub use opened::{SummaryRow, Weights};
pub use save::{Format, save, save_with};
pub use shards::save_shards;
pub use tensor_info::TensorInfo;
pub use transform::Transform;
