//! Finds the files of a folder that hold its rows, and the folders that hold their images.

use std::path::{Path, PathBuf};

/// Kinds of files that hold rows, by their names. The content decides how a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    Json,
    Table,
    Parquet,
    Arrow,
    Tar,
}

impl FileKind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Table => "CSV or TSV",
            Self::Parquet => "Parquet",
            Self::Arrow => "Arrow",
            Self::Tar => "tar",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let plain = [".gz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
        if name.ends_with(".tgz") {
            return Some(Self::Tar);
        }
        match plain.rsplit_once('.')?.1 {
            "json" | "jsonl" | "ndjson" => Some(Self::Json),
            "csv" | "tsv" => Some(Self::Table),
            "parquet" | "pq" => Some(Self::Parquet),
            "arrow" | "feather" => Some(Self::Arrow),
            "tar" => Some(Self::Tar),
            _ => None,
        }
    }
}

/// Files that describe a data set and hold no rows.
const DESCRIPTIONS: [&str; 12] = [
    "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "info.json",
    "config.json", "meta.json", "stats.json", "package.json", "generation_config.json",
    "tokenizer.json", "tokenizer_config.json",
];
/// Names of folders of images, in which no rows are searched.
const IMAGE_FOLDERS: [&str; 6] = ["images", "image", "imgs", "pictures", "photos", "pics"];
/// How file and folder names of parts that are not trained on begin.
const HELD_OUT: [&str; 6] = ["test", "validation", "val", "valid", "dev", "eval"];
/// Deepest level of folders that is searched.
const MAX_DEPTH: usize = 8;

/// The files of a folder that hold rows, all of one kind, in the order of their names.
#[derive(Debug, Clone, Default)]
pub(crate) struct FolderFiles {
    pub(crate) kind: Option<FileKind>,
    pub(crate) files: Vec<PathBuf>,
    /// Files of a held-out part, if the folder also has another part to train on.
    pub(crate) held_out: Vec<PathBuf>,
    /// The kinds of files that were found, with one file of each.
    pub(crate) found: Vec<(FileKind, PathBuf)>,
    /// Number of files of other kinds, and one of them.
    pub(crate) num_others: usize,
    pub(crate) other: Option<PathBuf>,
}

impl FolderFiles {
    /// Searches `folder` and the folders in it, except hidden ones and folders of images.
    ///
    /// # Errors
    /// A folder that cannot be listed.
    pub(crate) fn find(folder: &Path) -> std::io::Result<Self> {
        let mut this = Self::default();
        let mut files: Vec<(FileKind, PathBuf)> = Vec::new();
        this.collect(folder, 0, &mut files)?;
        files.sort_by(|(_, a), (_, b)| a.cmp(b));
        // Files that img2dataset writes beside each archive.
        let tars: Vec<PathBuf> = files
            .iter()
            .filter(|(kind, _)| *kind == FileKind::Tar)
            .map(|(_, path)| path.with_extension(""))
            .collect();
        files.retain(|(kind, path)| {
            let stem = path.with_extension("");
            let of_stats = stem.to_str().and_then(|stem| stem.strip_suffix("_stats"));
            let is_beside =
                |stem: &Path| tars.binary_search_by(|tar| tar.as_path().cmp(stem)).is_ok();
            *kind == FileKind::Tar
                || !(is_beside(&stem) || of_stats.is_some_and(|stem| is_beside(Path::new(stem))))
        });
        for (kind, path) in &files {
            if !this.found.iter().any(|(known, _)| known == kind) {
                this.found.push((*kind, path.clone()));
            }
        }
        if let [(kind, _)] = this.found[..] {
            this.kind = Some(kind);
            this.files = files.into_iter().map(|(_, path)| path).collect();
            let (held_out, rest): (Vec<_>, Vec<_>) =
                this.files.iter().cloned().partition(|path| is_held_out(folder, path));
            if !rest.is_empty() && !held_out.is_empty() {
                (this.files, this.held_out) = (rest, held_out);
            }
        }
        Ok(this)
    }

    fn collect(
        &mut self,
        folder: &Path,
        depth: usize,
        files: &mut Vec<(FileKind, PathBuf)>,
    ) -> std::io::Result<()> {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned)
            else {
                continue;
            };
            if name.starts_with('.') || name.starts_with("__MACOSX") {
                continue;
            }
            let kind = entry.file_type()?;
            let is_dir = kind.is_dir() || (kind.is_symlink() && path.is_dir());
            if is_dir {
                let is_of_images = IMAGE_FOLDERS.contains(&name.to_ascii_lowercase().as_str());
                if depth < MAX_DEPTH && !is_of_images {
                    self.collect(&path, depth + 1, files)?;
                }
                continue;
            }
            match FileKind::from_name(&name) {
                Some(kind) if !DESCRIPTIONS.contains(&name.as_str()) && path.is_file() => {
                    files.push((kind, path));
                }
                _ => {
                    self.num_others += 1;
                    self.other.get_or_insert(path);
                }
            }
        }
        Ok(())
    }
}

/// Whether a file below `folder` belongs, by its name or that of a folder, to a held-out part.
fn is_held_out(folder: &Path, path: &Path) -> bool {
    let relative = path.strip_prefix(folder).unwrap_or(path);
    relative.iter().filter_map(|part| part.to_str()).any(|part| {
        let word = part.split(['-', '_', '.']).next().unwrap_or_default().to_ascii_lowercase();
        HELD_OUT.contains(&word.as_str())
    })
}

/// The folder of images in `folder`, if there is one.
pub(crate) fn images_within(folder: &Path) -> Option<PathBuf> {
    IMAGE_FOLDERS.iter().map(|name| folder.join(name)).find(|path| path.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(names: &[&str]) -> (Vec<String>, Vec<String>, usize) {
        let folder = tempfile::tempdir().unwrap();
        for name in names {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let found = FolderFiles::find(folder.path()).unwrap();
        let names_of = |paths: &[PathBuf]| {
            let name =
                |path: &PathBuf| path.strip_prefix(folder.path()).unwrap().display().to_string();
            paths.iter().map(name).collect::<Vec<_>>()
        };
        (names_of(&found.files), names_of(&found.held_out), found.found.len())
    }

    #[test]
    fn files_of_rows_are_distinguished_from_other_files() {
        let (found, held_out, _) = files(&[
            "README.md",
            "dataset_infos.json",
            "data/train-00001-of-00002.parquet",
            "data/train-00000-of-00002.parquet",
            "data/test-00000-of-00001.parquet",
            ".cache/x.parquet",
        ]);
        let expected = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"];
        assert_eq!(found, expected);
        assert_eq!(held_out, ["data/test-00000-of-00001.parquet"]);
        let (found, ..) = files(&["00000.tar", "00000.parquet", "00000_stats.json", "00001.tar"]);
        assert_eq!(found, ["00000.tar", "00001.tar"]);
        let (found, ..) = files(&["a/rows.jsonl.gz", "b/rows.json", "images/labels.json", "x.txt"]);
        assert_eq!(found, ["a/rows.jsonl.gz", "b/rows.json"]);
        let (found, ..) = files(&["dataset_info.json", "state.json", "data-00000-of-00001.arrow"]);
        assert_eq!(found, ["data-00000-of-00001.arrow"]);
        assert_eq!(files(&["test.jsonl"]).0, ["test.jsonl"], "the only part there is");
        let (found, _, num_kinds) = files(&["a.jsonl", "b.parquet"]);
        assert_eq!((found.len(), num_kinds), (0, 2));
    }
}
