//! The embedded demo: small generated scenes with captions and questions in English and Chinese,
//! their split into starting, training and held-out scenes, and the data set that is written from
//! them.
//!
//! This crate depends neither on models, nor on a tokenizer, nor on libtorch. The crate
//! `vlm-demo-train` makes the tokenizer and the starting weights, and evaluates models on the held-out
//! scenes.
//!
//! ```
//! use vlm_demo::{Language, Layout, Split, seeded_rng};
//!
//! let mut rng = seeded_rng(7);
//! let scene = Split::Starting.sample(1, &mut rng);
//! let image = Layout::of(&scene, &mut rng).draw();
//! assert_eq!(image.len(), 224 * 224 * 3);
//! assert!(scene.caption(Language::English).starts_with("A "));
//! ```

mod caption;
mod dataset;
mod dataset_images;
mod draw;
mod error;
mod layout;
mod question;
mod scene;
mod split;
mod task;

pub use caption::Language;
pub use dataset::{
    DemoFiles, HELD_OUT_FILE, HELD_OUT_PER_GROUP, NUM_TRAIN_IMAGES, TRAIN_FILE, demo_files,
    write_demo_dataset,
};
pub use dataset_images::{Asked, HeldOutGroup};
pub use error::DemoError;
pub use layout::{Background, CELL, GRID, IMAGE_SIZE, Layout, NUM_CELLS, PlacedObject};
pub use question::Question;
pub use scene::{Arrangement, Colour, Object, Place, Relation, Scene, Shape, Size};
pub use split::{Split, is_held_out, is_unseen_pair};
pub use task::Task;

/// Default settings of `vlm pretrain` on the demo.
pub mod defaults {
    /// Number of passes over the training images.
    pub const EPOCHS: u64 = 1;
    /// Rows per step.
    pub const BATCH_SIZE: usize = 32;
    /// Peak learning rate.
    pub const LEARNING_RATE: f64 = 2e-3;
    /// Steps between two log lines.
    pub const LOG_INTERVAL: u64 = 25;
    /// Steps between two checkpoints.
    pub const SAVE_INTERVAL: u64 = 120;
}

/// A random number generator with a seed. The same seed gives the same scenes on every machine.
pub fn seeded_rng(seed: u64) -> rand_chacha::ChaCha8Rng {
    rand::SeedableRng::seed_from_u64(seed)
}
