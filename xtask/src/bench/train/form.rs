//! The form of the reference.

use clap::ValueEnum;
use serde::Serialize;

/// Form of the reference: the shape of the model, its encoder, and what is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// MiniMind-V of April 2025: 26 M, CLIP ViT-B/16, 196 tokens per image; trains the projector and
    /// the last block
    April,
    /// Current MiniMind-V: 64 M, SigLIP 2 B/32 at 256 pixels, 64 tokens per image; trains the
    /// projector
    Present,
}

impl Form {
    /// Longest row in tokens, to which the reference pads every row.
    pub(super) fn max_seq_len(self) -> usize {
        match self {
            Self::April => 640,
            Self::Present => 450,
        }
    }
}
