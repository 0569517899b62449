//! The page about training runs. [`Board`] follows the files of runs that may still be written and
//! answers the requests of the page in a browser; [`report_html`] renders the same page about one run
//! into one file, with its data inside.
//!
//! Nothing here knows a model, libtorch or HTTP: a run is the files of its folder.

mod board;
mod followed_file;
mod held_out;
mod metrics;
mod page;
mod run_folder;
mod samples;

pub use board::{Board, Response};
pub use held_out::{Example, HELD_OUT_FILE, HeldOutSection};
pub use page::report_html;
pub use samples::{SAMPLE_IMAGES, image_file_name};
