//! The string that an image becomes in the prompt.

/// How images are spelled in a prompt: one token, once for each of the image's features.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlaceholder {
    token: String,
}

impl Default for ImagePlaceholder {
    /// The seed's form, `@`.
    fn default() -> Self {
        Self { token: "@".into() }
    }
}

impl ImagePlaceholder {
    /// A placeholder of another spelling; it must be a single token of the tokenizer.
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into() }
    }

    /// The spelling of one of an image's tokens.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The spelling of a whole image.
    pub fn run(&self, tokens_per_image: usize) -> String {
        self.token.repeat(tokens_per_image)
    }
}
