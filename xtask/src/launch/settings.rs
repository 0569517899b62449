//! The settings of the run that the launcher needs itself.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use vlm_config::Layers;

use super::flags;

/// The value of a setting that is a path, from the command line or else from the file of
/// `--config`.
pub(super) fn setting(args: &[OsString], name: &str) -> Option<PathBuf> {
    flags::value(args, name).map(PathBuf::from).or_else(|| {
        // `vlm` reports a file that cannot be read.
        let layers = Layers::of_file(Path::new(&flags::value(args, "config")?)).ok()?;
        let (setting, _) = vlm_config::find(name)?;
        let value = layers.get(&setting.path)?;
        // Of several paths the first one is enough here.
        value.as_str().or_else(|| value[0].as_str()).map(PathBuf::from)
    })
}
