//! Vision encoders at another resolution than they were trained with: the configuration for images
//! of another size. The position embeddings are interpolated when the weights are read
//! (`vlm-model`).

use std::path::Path;

use crate::{OpenClip, ShapeError, VisionConfig};

impl VisionConfig {
    /// The configuration of the encoder in `folder`: that of open_clip if it is an [`OpenClip`],
    /// else `config.json`.
    ///
    /// # Errors
    /// As [`Self::from_file`].
    pub fn from_folder(folder: &Path) -> Result<Self, ShapeError> {
        match OpenClip::beside(folder)? {
            Some(tower) => tower.vision(),
            None => Self::from_file(&folder.join("config.json")),
        }
    }

    /// This encoder for images of `image_size` pixels per side; `None` and the size that it has
    /// change nothing.
    ///
    /// # Errors
    /// The size is not a multiple of the patch size; the message gives the nearest sizes.
    pub fn with_image_size(self, image_size: Option<i64>) -> Result<Self, ShapeError> {
        let Some(image_size) = image_size.filter(|size| *size != self.image_size) else {
            return Ok(self);
        };
        let patch = self.patch_size;
        if image_size < patch || image_size % patch != 0 {
            let below = image_size / patch * patch;
            let nearest = match below {
                ..1 => format!("the smallest is {patch}"),
                _ => format!("the nearest are {below} and {}", below + patch),
            };
            return Err(ShapeError::Config(format!(
                "`image_size` is {image_size}, but must be a multiple of the vision encoder's \
                 patch size {patch}; {nearest}"
            )));
        }
        Ok(Self { image_size, ..self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_image_size_must_hold_whole_patches() {
        let at = |size| VisionConfig::default().with_image_size(size);
        assert_eq!(at(None).unwrap(), VisionConfig::default());
        assert_eq!(at(Some(336)).unwrap().num_patches(), 21 * 21);
        let error = at(Some(230)).unwrap_err().to_string();
        assert!(error.contains("patch size 16; the nearest are 224 and 240"), "{error}");
        let error = at(Some(7)).unwrap_err().to_string();
        assert!(error.contains("the smallest is 16"), "{error}");
        // The size that it was trained with need not be a multiple.
        let siglip = VisionConfig { image_size: 384, patch_size: 14, ..VisionConfig::siglip() };
        assert_eq!(siglip.clone().with_image_size(Some(384)).unwrap(), siglip);
    }
}
