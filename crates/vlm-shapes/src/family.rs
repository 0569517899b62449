//! The families of language models.

/// The published format of a language model: the names of its tensors and the keys of its
/// `config.json`. The fields of [`LmConfig`](crate::LmConfig) define what the model computes;
/// [`LmFamily::default_config`] and the readers of files set them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LmFamily {
    /// MiniMind of April 2025: its own names, interleaved rotary embedding.
    #[default]
    MiniMind,
    /// MiniMind from late April 2025 to early 2026 (`MiniMind2`): Hugging Face's names, half-split
    /// rotary embedding, numbered shared experts.
    MiniMind2,
    /// The current MiniMind (`minimind-3`): Hugging Face's names, half-split rotary embedding,
    /// normalised queries and keys.
    MiniMind3,
    /// LLaMA in Hugging Face's format, which SmolLM2 uses; Qwen2, which adds biases to queries,
    /// keys and values; and Qwen3, which normalises queries and keys.
    Llama,
}
