//! Generation: text for a conversation with images, for a batch of them, and token by token.

use tch::Tensor;
use vlm_data::{ChatTokenizer, IMAGE_TAG, ImageProcessor, Reject, Role, TextStream, Turn};
use vlm_model::generate::{GenerateOptions, Prompt, generate};
use vlm_model::sampling::Sampling;
use vlm_model::{ImageInput, Vlm};
use vlm_shapes::Dtype;

use crate::InferError;
use crate::precision::autocast_kind;

/// Generates the assistant's next turn. Made by
/// [`VisionLanguageModel::generator`](crate::VisionLanguageModel::generator), or from the parts of
/// a model that is being trained.
#[derive(Clone)]
pub struct Generator<'a> {
    /// The model.
    pub model: &'a Vlm,
    /// Its tokenizer.
    pub tokenizer: &'a ChatTokenizer,
    /// Its image preprocessing.
    pub processor: &'a ImageProcessor,
    /// Type of the forward pass.
    pub dtype: Dtype,
    /// Largest number of prompts in one forward pass of
    /// [`generate_rows`](Self::generate_rows).
    pub batch_size: usize,
    /// Largest number of tokens that are generated for a prompt.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Replace every image by a blank one. What is then generated is what the language model
    /// guesses without seeing anything.
    pub blank_images: bool,
}

/// A conversation as the model takes it.
#[derive(Debug, Clone)]
pub struct PreparedPrompt {
    /// Its tokens and the positions of its images.
    pub prompt: Prompt,
    /// Pixels of its images, `[num_images, 3, S, S]`.
    pub pixels: Vec<f32>,
}

/// A turn of the user about `num_images` images. Where `text` does not say with `<image>` where
/// they stand, they come first.
pub fn user_turn(text: &str, num_images: usize) -> Turn {
    if text.contains(IMAGE_TAG) {
        return Turn::new(Role::User, text);
    }
    Turn::new(Role::User, format!("{IMAGE_TAG}\n").repeat(num_images) + text)
}

impl Generator<'_> {
    /// The text of the assistant's next turn. `images` are the encoded bytes (JPEG, PNG, …) of the
    /// conversation's images, in order; `<image>` in a turn's text marks where an image stands, see
    /// [`user_turn`].
    ///
    /// # Errors
    /// An image that cannot be decoded; a number of images that is not the number of `<image>`
    /// marks; a failure of the model.
    pub fn generate(
        &self,
        turns: &[Turn],
        images: &[impl AsRef<[u8]>],
    ) -> Result<String, InferError> {
        self.generate_streaming(turns, images, &mut |_| ())
    }

    /// As [`generate`](Self::generate); `on_text` is called with each piece of the text as soon as
    /// it is generated.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn generate_streaming(
        &self,
        turns: &[Turn],
        images: &[impl AsRef<[u8]>],
        on_text: &mut dyn FnMut(&str),
    ) -> Result<String, InferError> {
        let prepared = self.prepare(turns, images)?;
        self.stream_text(&prepared.prompt, self.image_input(&prepared.pixels), on_text)
    }

    /// Tokenizes a conversation and preprocesses the encoded bytes of its images.
    ///
    /// # Errors
    /// An image that cannot be decoded; turns that [`ChatTokenizer::encode_prompt`] refuses.
    pub fn prepare(
        &self,
        turns: &[Turn],
        images: &[impl AsRef<[u8]>],
    ) -> Result<PreparedPrompt, Reject> {
        let prompt = self.encode_prompt(turns, images.len())?;
        let mut pixels = Vec::new();
        for bytes in images {
            pixels.extend(self.processor.preprocess(bytes.as_ref())?);
        }
        Ok(PreparedPrompt { prompt, pixels })
    }

    /// The tokens of a conversation with `num_images` images.
    ///
    /// # Errors
    /// As [`ChatTokenizer::encode_prompt`].
    pub fn encode_prompt(&self, turns: &[Turn], num_images: usize) -> Result<Prompt, Reject> {
        let tokens_per_image = self.model.tokens_per_image() as usize;
        let (input_ids, starts) =
            self.tokenizer.encode_prompt(turns, num_images, tokens_per_image)?;
        let image_starts = starts.into_iter().map(|start| start as i64).collect();
        Ok(Prompt { input_ids, image_starts })
    }

    /// Pixels as a tensor `[num_images, 3, S, S]` on the model's device;
    /// [`ImageInput::None`] where there are no pixels.
    pub fn image_input(&self, pixels: &[f32]) -> ImageInput {
        if pixels.is_empty() {
            return ImageInput::None;
        }
        let side = self.processor.image_size() as i64;
        let pixels = Tensor::from_slice(pixels).view([-1, 3, side, side]);
        let pixels = pixels.to_device(self.model.device());
        // Zero is the mean colour of what the encoder was trained on: a grey image without content.
        ImageInput::Pixels(if self.blank_images { pixels.zeros_like() } else { pixels })
    }

    /// The patch features of images, `[num_images, P, V]`, as [`ImageInput::Features`] takes them:
    /// a long conversation then encodes an image once.
    ///
    /// # Errors
    /// A failure of the model.
    pub fn encode_images(&self, pixels: &[f32]) -> Result<Option<Tensor>, InferError> {
        let ImageInput::Pixels(pixels) = self.image_input(pixels) else { return Ok(None) };
        let features = tch::no_grad(|| {
            vlm_torch::autocast(self.model.device(), autocast_kind(self.dtype), || {
                self.model.encode_images(&pixels)
            })
        })??;
        Ok(Some(features))
    }

    /// Generates for several prompts in one batch, and returns the new token ids of each.
    /// `on_token` is called with the index of the prompt and the id of each token as soon as it is
    /// chosen.
    ///
    /// # Errors
    /// A failure of the model.
    pub fn generate_tokens(
        &self,
        prompts: &[Prompt],
        images: ImageInput,
        on_token: &mut dyn FnMut(usize, i64),
    ) -> Result<Vec<Vec<i64>>, InferError> {
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            stop_token_ids: self.tokenizer.stop_token_ids().to_vec(),
            sampling: self.sampling.clone(),
        };
        let kind = autocast_kind(self.dtype);
        let generated = vlm_torch::autocast(self.model.device(), kind, || {
            generate(self.model, prompts, images, &options, on_token)
        })??;
        Ok(generated)
    }

    /// The texts for several prompts, generated in one batch.
    ///
    /// # Errors
    /// A failure of the model.
    pub fn generate_batch(&self, prompts: &[PreparedPrompt]) -> Result<Vec<String>, InferError> {
        let pixels: Vec<f32> = prompts.iter().flat_map(|p| p.pixels.iter().copied()).collect();
        let prompts: Vec<Prompt> = prompts.iter().map(|p| p.prompt.clone()).collect();
        let generated =
            self.generate_tokens(&prompts, self.image_input(&pixels), &mut |_, _| ())?;
        Ok(generated.iter().map(|ids| self.tokenizer.decode(ids).trim().to_owned()).collect())
    }

    /// The text for one prompt. `on_text` is called once for each token with the text that is
    /// complete since the last call, which may be empty, and once at the end with the rest.
    ///
    /// # Errors
    /// A failure of the model.
    pub fn stream_text(
        &self,
        prompt: &Prompt,
        images: ImageInput,
        on_text: &mut dyn FnMut(&str),
    ) -> Result<String, InferError> {
        let (mut stream, mut text) = (TextStream::default(), String::new());
        let mut push = |piece: String| {
            text += &piece;
            on_text(&piece);
        };
        self.generate_tokens(std::slice::from_ref(prompt), images, &mut |_, id| {
            push(stream.push(self.tokenizer, id));
        })?;
        push(stream.finish(self.tokenizer));
        Ok(text.trim().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_come_first_unless_the_text_says_where() {
        assert_eq!(user_turn("What?", 2).content, "<image>\n<image>\nWhat?");
        assert_eq!(user_turn("Is <image> red?", 1).content, "Is <image> red?");
        assert_eq!(user_turn("Hello", 0).content, "Hello");
    }
}
