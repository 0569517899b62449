//! The string that stands for an image in the prompt.

/// How images are spelled in a prompt: one token, repeated for each feature of the image. Some
/// models have further tokens before and after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImagePlaceholder {
    token: String,
    before: String,
    after: String,
}

impl Default for ImagePlaceholder {
    /// `@`, as in MiniMind-V.
    fn default() -> Self {
        Self::new("@")
    }
}

impl ImagePlaceholder {
    /// A placeholder with another spelling, which must be a single token of the tokenizer.
    pub fn new(token: impl Into<String>) -> Self {
        Self { token: token.into(), before: String::new(), after: String::new() }
    }

    /// The same token with the text `before` in front of every image and `after` behind it.
    #[must_use]
    pub(crate) fn between(mut self, before: String, after: String) -> Self {
        (self.before, self.after) = (before, after);
        self
    }

    /// Whether every image has further tokens around it.
    pub fn has_tags(&self) -> bool {
        !self.before.is_empty() || !self.after.is_empty()
    }

    /// The spelling of one token of an image.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The spelling of a whole image.
    pub fn run(&self, tokens_per_image: usize) -> String {
        format!("{}{}{}", self.before, self.token.repeat(tokens_per_image), self.after)
    }
}
