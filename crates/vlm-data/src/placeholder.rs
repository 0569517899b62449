//! The string that stands for an image in the prompt.

/// How images are spelled in a prompt: one token, repeated for each feature of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlaceholder {
    token: String,
}

impl Default for ImagePlaceholder {
    /// `@`, as in MiniMind-V.
    fn default() -> Self {
        Self { token: "@".into() }
    }
}

impl ImagePlaceholder {
    /// A placeholder with another spelling, which must be a single token of the tokenizer.
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into() }
    }

    /// The spelling of one token of an image.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The spelling of a whole image.
    pub fn run(&self, tokens_per_image: usize) -> String {
        self.token.repeat(tokens_per_image)
    }
}
