//! The setting `data_path`: one data set, several read one after another, or several mixed by weight.
//! A path may be a pattern for many files.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};
use vlm_display::count;

use crate::error::DataError;
use crate::file_hash::hash_file;
use crate::glob;
use crate::mixture::{Concatenation, Mixture};
use crate::open::{files_of_rows, open_source_with};
use crate::row_options::RowOptions;
use crate::source::RowSource;

/// Data sets as a user names them: one or several paths, each as `path` or `path:weight`. A path
/// that does not exist and has `*`, `?`, `[…]` or `{…}` is a pattern: it stands for the files that
/// match it, one after another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "OneOrMany", into = "OneOrMany")]
pub struct DataPaths(Vec<String>);

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl From<OneOrMany> for DataPaths {
    fn from(paths: OneOrMany) -> Self {
        match paths {
            OneOrMany::One(path) => Self(vec![path]),
            OneOrMany::Many(paths) => Self(paths),
        }
    }
}

impl From<DataPaths> for OneOrMany {
    fn from(DataPaths(mut paths): DataPaths) -> Self {
        match paths.len() {
            1 => Self::One(paths.remove(0)),
            _ => Self::Many(paths),
        }
    }
}

impl From<Vec<String>> for DataPaths {
    fn from(paths: Vec<String>) -> Self {
        Self(paths)
    }
}

impl From<&Path> for DataPaths {
    fn from(path: &Path) -> Self {
        Self(vec![path.display().to_string()])
    }
}

impl DataPaths {
    /// The paths of the data sets, without their weights. A pattern gives the files that match it,
    /// or itself if none does.
    pub fn paths(&self) -> Vec<PathBuf> {
        let of = |path: &String| {
            let path = split(path).0;
            expand(path).unwrap_or_else(|_| vec![PathBuf::from(path)])
        };
        self.0.iter().flat_map(of).collect()
    }

    /// Names, sizes and modification times of the files of rows: they show whether a file was
    /// changed. Image files are not included.
    ///
    /// # Errors
    /// A file or folder that cannot be read.
    pub fn file_states(&self) -> Result<Vec<String>, DataError> {
        let mut states = Vec::new();
        for path in self.expanded()? {
            push_states(&path, &mut states).map_err(DataError::io(&path, "look at the rows"))?;
        }
        Ok(states)
    }

    /// The weight of each data set, where it has one.
    pub fn weights(&self) -> Vec<Option<f64>> {
        self.0.iter().map(|path| split(path).1).collect()
    }

    /// A hash of the files of rows: of their sizes, and of the whole content of small ones. For a
    /// prepared folder it covers every byte. It is the same on every machine that has copies of the
    /// same files, wherever they are. Image files are not included.
    ///
    /// # Errors
    /// A file or folder that cannot be read.
    pub fn fingerprint(&self) -> Result<String, DataError> {
        let mut hasher = blake3::Hasher::new();
        for path in self.expanded()? {
            let files = files_of_rows(&path).map_err(DataError::io(&path, "look at the rows"))?;
            hasher.update(&files.len().to_le_bytes());
            for file in &files {
                hash_file(file, &mut hasher).map_err(DataError::io(file, "look at the rows"))?;
            }
        }
        Ok(hasher.finalize().to_hex()[..16].to_owned())
    }

    /// All files and folders that are named, with patterns expanded.
    fn expanded(&self) -> Result<Vec<PathBuf>, DataError> {
        let paths = self.0.iter().map(|path| expand(split(path).0));
        Ok(paths.collect::<Result<Vec<_>, DataError>>()?.concat())
    }

    /// Opens the data sets as one source with the default options: a single data set as it is,
    /// several without weights one after another, several with weights as a [`Mixture`].
    ///
    /// # Errors
    /// See [`crate::open_source`] and [`Mixture::new`]; weights for some of the paths but not for
    /// others.
    pub fn open(&self, images_root: Option<&Path>) -> Result<Arc<dyn RowSource>, DataError> {
        self.open_with(images_root, &RowOptions::default())
    }

    /// Like [`Self::open`], with other options.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_with(
        &self,
        images_root: Option<&Path>,
        options: &RowOptions,
    ) -> Result<Arc<dyn RowSource>, DataError> {
        let named: Vec<(&str, Option<f64>)> = self.0.iter().map(|path| split(path)).collect();
        let num_weights = named.iter().filter(|(_, weight)| weight.is_some()).count();
        if num_weights != 0 && num_weights != named.len() {
            return Err(DataError::Settings(format!(
                "{num_weights} of {} data paths have a weight; give a weight to each (path:0.7) or \
                 to none",
                named.len()
            )));
        }
        let open = |(path, weight): (&str, Option<f64>)| {
            let open = |path: &PathBuf| open_source_with(path, images_root, options);
            let mut parts =
                expand(path)?.iter().map(open).collect::<Result<Vec<_>, DataError>>()?;
            let source: Arc<dyn RowSource> = match parts.len() {
                1 => parts.remove(0),
                _ => Arc::new(Concatenation::new(parts)),
            };
            Ok((source, weight.unwrap_or(1.0)))
        };
        let mut sources = named.into_iter().map(open).collect::<Result<Vec<_>, DataError>>()?;
        match sources.len() {
            0 => Err(DataError::Settings("expected at least one `data_path`, found none".into())),
            1 => Ok(sources.remove(0).0),
            _ if num_weights == 0 => {
                Ok(Arc::new(Concatenation::new(sources.into_iter().map(|(s, _)| s).collect())))
            }
            _ => {
                let mixture = Mixture::new(sources)?;
                for (path, (num_rows, num_drawn)) in self.0.iter().zip(mixture.counts()) {
                    let drawn = count(num_drawn, "row");
                    tracing::info!("{path}: {drawn} per epoch, from {num_rows}");
                }
                Ok(Arc::new(mixture))
            }
        }
    }
}

/// The files that `path` names: itself, or the files that match it if it is a pattern.
fn expand(path: &str) -> Result<Vec<PathBuf>, DataError> {
    if !glob::is_pattern(path) {
        return Ok(vec![PathBuf::from(path)]);
    }
    let failed = DataError::io(Path::new(path), "list the files of the pattern");
    let found = glob::expand(path).map_err(failed)?;
    if found.is_empty() {
        let problem = "no file matches this pattern";
        return Err(DataError::content(Path::new(path), problem));
    }
    Ok(found)
}

/// Adds name, size and modification time of a file, or of each file of rows in a folder.
fn push_states(path: &Path, states: &mut Vec<String>) -> std::io::Result<()> {
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = files_of_rows(path)?;
    }
    for file in files.iter().filter(|file| file.is_file()) {
        let metadata = file.metadata()?;
        let changed = metadata.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = file.file_name().unwrap_or_default().display();
        states.push(format!("{name}: {} bytes of {}", metadata.len(), changed.as_nanos()));
    }
    Ok(())
}

/// Splits `rows.jsonl:0.7` into the path and its weight. A path that exists with its colon has no
/// weight.
fn split(text: &str) -> (&str, Option<f64>) {
    let weight = text.rsplit_once(':').and_then(|(path, weight)| {
        let weight: f64 = weight.parse().ok()?;
        (!path.is_empty() && !Path::new(text).exists()).then_some((path, weight))
    });
    weight.map_or((text, None), |(path, weight)| (path, Some(weight)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(folder: &Path, name: &str, count: usize) -> String {
        let path = folder.join(name);
        let row = r#"{"conversations":[{"content":"q"},{"content":"a"}]}"#;
        std::fs::write(&path, format!("{row}\n").repeat(count)).unwrap();
        path.display().to_string()
    }

    fn open(paths: &[&str]) -> Result<Vec<String>, String> {
        let paths: Vec<String> = paths.iter().map(|&path| path.to_owned()).collect();
        let source = DataPaths::from(paths).open(None).map_err(|e| e.to_string())?;
        Ok((0..source.len()).map(|index| source.locate(index)).collect())
    }

    #[test]
    fn paths_follow_one_another_or_are_mixed_by_weight() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (rows(folder.path(), "a.jsonl", 2), rows(folder.path(), "b.jsonl", 1));
        assert_eq!(open(&[&a, &b]).unwrap(), ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]);
        let mixed = open(&[&format!("{a}:0.5"), &format!("{b}:0.5")]).unwrap();
        assert_eq!(mixed, ["a.jsonl:1", "b.jsonl:1", "a.jsonl:2", "b.jsonl:1"]);
        assert_eq!(open(&[&format!("{a}:3")]).unwrap().len(), 2, "one path needs no weight");
        assert!(open(&[&a, &format!("{b}:0.5")]).unwrap_err().contains("1 of 2"));
    }

    #[test]
    fn copies_have_one_fingerprint_and_one_changed_row_another() {
        let [one, two] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        let of = |path: &str| DataPaths(vec![path.to_owned()]).fingerprint().unwrap();
        let (a, b) = (rows(one.path(), "a.jsonl", 1000), rows(two.path(), "b.jsonl", 1000));
        assert_eq!(of(&a), of(&b), "names and times need not be the same");
        let text = std::fs::read_to_string(&b).unwrap();
        let at = text.len() / 3;
        let changed = text[at..].replacen('q', "Q", 1);
        std::fs::write(&b, format!("{}{changed}", &text[..at])).unwrap();
        assert_ne!(of(&a), of(&b), "a row that is none of the 64 that are read");
        assert_eq!(of(&a), of(&format!("{a}:0.5")));
    }

    #[test]
    fn a_pattern_names_its_files_and_may_have_a_weight() {
        let folder = tempfile::tempdir().unwrap();
        let a = rows(folder.path(), "p-1.jsonl", 1);
        rows(folder.path(), "p-0.jsonl", 2);
        let pattern = folder.path().join("p-*.jsonl").display().to_string();
        assert_eq!(open(&[&pattern]).unwrap(), ["p-0.jsonl:1", "p-0.jsonl:2", "p-1.jsonl:1"]);
        assert_eq!(open(&[&format!("{pattern}:0.5"), &format!("{a}:0.5")]).unwrap().len(), 6);
        let states = DataPaths(vec![pattern.clone()]).file_states().unwrap();
        assert_eq!(states.len(), 2);
        let of = |paths: Vec<String>| DataPaths(paths).fingerprint().unwrap();
        assert_eq!(of(vec![pattern]), of(vec![a.replace("p-1", "p-0"), a.clone()]));
        let none = folder.path().join("q-*.jsonl").display().to_string();
        assert_eq!(DataPaths(vec![none.clone()]).paths(), [PathBuf::from(&none)]);
        assert!(open(&[&none]).unwrap_err().contains("no file matches this pattern"));
    }

    #[test]
    fn a_path_with_a_colon_is_still_a_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = rows(folder.path(), "v1:2", 3);
        assert_eq!(open(&[&path]).unwrap().len(), 3);
        assert_eq!(split("C:rows.jsonl"), ("C:rows.jsonl", None));
    }

    #[test]
    fn one_path_is_text_in_a_file_and_several_are_a_list() {
        let parse = |text: &str| serde_json::from_str::<DataPaths>(text).unwrap();
        assert_eq!(parse("\"a\""), DataPaths(vec!["a".into()]));
        assert_eq!(parse("[\"a:1\",\"b:2\"]"), DataPaths(vec!["a:1".into(), "b:2".into()]));
        assert_eq!(serde_json::to_string(&parse("[\"a\"]")).unwrap(), "\"a\"");
    }
}
