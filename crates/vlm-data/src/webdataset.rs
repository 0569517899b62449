//! Rows from WebDataset shards: tar archives in which the members `KEY.json` and `KEY.jpg` (or
//! another picture's extension) are one sample. Only the headers are read when a shard is opened;
//! some thirty bytes a row are kept.

use std::fs::File;
use std::io::BufReader;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::error::DataError;
use crate::image_root::MAX_FILE_BYTES;
use crate::obstacle::Obstacle;
use crate::reject::{Reject, RejectReason};
use crate::row_text::{file_name, read_row_text};
use crate::rows::{Row, RowImage, Turn};
use crate::source::RowSource;

/// Extensions of members that are pictures.
const IMAGE_EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "gif", "bmp"];

/// The samples of one tar archive, in its order.
#[derive(Debug)]
pub struct WebDatasetSource {
    path: PathBuf,
    file: File,
    samples: Vec<Sample>,
    /// Pictures of all samples.
    images: Vec<Member>,
}

#[derive(Debug, Clone)]
struct Sample {
    json: Option<Member>,
    /// In `images`.
    images: Range<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    /// Of the content; the header is the block before it.
    offset: u64,
    bytes: u64,
}

const BLOCK: u64 = 512;

impl WebDatasetSource {
    /// Opens the archive at `path` and finds its samples.
    ///
    /// # Errors
    /// A file that cannot be read, is no tar archive, is cut off, or holds no sample.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io(path, "open the archive"))?;
        let length = file.metadata().map_err(DataError::io(path, "open the archive"))?.len();
        let mut source =
            Self { path: path.to_owned(), samples: Vec::new(), images: Vec::new(), file };
        source.index(length)?;
        if source.samples.is_empty() {
            return Err(DataError::content(
                path,
                "no samples in this archive; expected members KEY.json with KEY.jpg (or .png, …) \
                 beside each other",
            ));
        }
        Ok(source)
    }

    fn index(&mut self, length: u64) -> Result<(), DataError> {
        let path = self.path.clone();
        let reader = self.file.try_clone().map_err(DataError::io(&path, "open the archive"))?;
        let mut archive = tar::Archive::new(BufReader::new(reader));
        let cut_off = |num_samples: usize, problem: String| {
            DataError::content(&path, format!("broken after {num_samples} samples: {problem}"))
        };
        let entries = archive.entries_with_seek().map_err(|e| cut_off(0, e.to_string()))?;
        let mut key = None;
        for entry in entries {
            let entry = entry.map_err(|e| cut_off(self.samples.len(), e.to_string()))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some((sample, extension)) = split_name(&name) else { continue };
            let member = Member { offset: entry.raw_file_position(), bytes: entry.size() };
            if member.offset + member.bytes > length {
                return Err(cut_off(
                    self.samples.len(),
                    format!("{name} goes beyond the end of the file; fetch it anew"),
                ));
            }
            if key.as_deref() != Some(sample) {
                let end = self.images.len() as u32;
                self.samples.push(Sample { json: None, images: end..end });
                key = Some(sample.to_owned());
            }
            let Some(current) = self.samples.last_mut() else { continue };
            let kind = extension.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            if kind == "json" {
                current.json = Some(member);
            } else if IMAGE_EXTENSIONS.contains(&kind.as_str()) {
                self.images.push(member);
                current.images.end += 1;
            }
        }
        // A sample of other members alone, as an index that some writers add, is no row.
        self.samples.retain(|sample| sample.json.is_some() || !sample.images.is_empty());
        Ok(())
    }

    fn members(&self, index: usize) -> &[Member] {
        let range = self.samples.get(index).map_or(0..0, |sample| sample.images.clone());
        &self.images[range.start as usize..range.end as usize]
    }

    /// The name in a member's header, without that of its folder. Only for messages and for samples
    /// of several pictures: a name of more than a hundred bytes may be told by its beginning.
    fn name_of(&self, member: Member) -> String {
        let mut name = [0; 100];
        let header = member.offset.saturating_sub(BLOCK);
        if self.file.read_exact_at(&mut name, header).is_err() {
            return "a member".into();
        }
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// The places in the sample of the pictures that `names` names, in its order.
    fn match_names(&self, members: &[Member], names: &[RowImage]) -> Result<Vec<usize>, Reject> {
        let held: Vec<String> = members.iter().map(|&member| self.name_of(member)).collect();
        names
            .iter()
            .map(|image| {
                let name = image.name.rsplit('/').next().unwrap_or_default();
                held.iter().position(|held| held == name).ok_or_else(|| {
                    Reject::new(
                        RejectReason::MissingImage,
                        format!("no {:?} in the sample, which holds {}", name, held.join(", ")),
                    )
                })
            })
            .collect()
    }
}

impl RowSource for WebDatasetSource {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn row(&self, index: usize) -> Result<Row, Obstacle> {
        let row = self.conversation(index)?;
        let members = self.members(index);
        // With one picture there is nothing to mix up, so its name in the row need not fit.
        let order = match (members.len(), row.images.len()) {
            (0, 0) => Vec::new(),
            (0, _) => return Err(missing(&row.images[0]).into()),
            (1, _) => vec![0],
            (count, 0) => (0..count).collect(),
            _ => self.match_names(members, &row.images)?,
        };
        let images = order
            .into_iter()
            .map(|k| {
                let bytes = self.read_image(members[k])?;
                Ok(RowImage { name: self.name_of(members[k]), bytes: Some(bytes), hash: None })
            })
            .collect::<Result<_, Obstacle>>()?;
        Ok(Row { turns: row.turns, images })
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, Obstacle> {
        image.bytes.clone().ok_or_else(|| missing(image).into())
    }

    fn locate(&self, index: usize) -> String {
        let name = file_name(&self.path);
        let member = self.samples.get(index).and_then(|sample| sample.json);
        match member.or(self.members(index).first().copied()) {
            Some(member) => format!("{name}:{}", self.name_of(member)),
            None => format!("{name}, sample {index}"),
        }
    }

    fn turns(&self, index: usize) -> Result<Vec<Turn>, Obstacle> {
        Ok(self.conversation(index)?.turns)
    }
}

impl WebDatasetSource {
    /// The row as its JSON has it.
    fn conversation(&self, index: usize) -> Result<Row, Obstacle> {
        let json = self.samples.get(index).and_then(|sample| sample.json).ok_or_else(|| {
            Reject::new(RejectReason::InvalidRow, "no .json beside the picture in the archive")
        })?;
        let text = read_row_text(&self.file, &self.path, json.offset, json.bytes)?;
        Ok(Row::from_json(&text)?)
    }

    fn read_image(&self, member: Member) -> Result<Bytes, Obstacle> {
        if member.bytes > MAX_FILE_BYTES {
            return Err(Obstacle::Row(Reject::new(
                RejectReason::ImageTooLarge,
                format!("{} bytes; at most {MAX_FILE_BYTES} are read", member.bytes),
            )));
        }
        let mut bytes = vec![0; member.bytes as usize];
        let unreadable = |e: String| {
            Reject::new(RejectReason::UnreadableImage, format!("{:?}: {e}", self.name_of(member)))
        };
        self.file
            .read_exact_at(&mut bytes, member.offset)
            .map_err(|e| Obstacle::of_system(&self.path, "read the image", e, unreadable))?;
        Ok(bytes.into())
    }
}

fn missing(image: &RowImage) -> Reject {
    Reject::new(RejectReason::MissingImage, format!("no {:?} in the sample", image.name))
}

/// `dir/0001.left.jpg` → `dir/0001`, `left.jpg`: a sample's key ends at the first dot of the file's
/// name, as WebDataset has it.
fn split_name(name: &str) -> Option<(&str, &str)> {
    let file_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = file_start + name[file_start..].find('.')?;
    (dot > file_start).then(|| (&name[..dot], &name[dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obstacle::failing_file;

    fn write_tar(path: &Path, members: &[(&str, &[u8])]) {
        let mut builder = tar::Builder::new(File::create(path).unwrap());
        for (name, content) in members {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.finish().unwrap();
    }

    fn json(image: &str) -> String {
        format!(r#"{{"conversations":[{{"content":"<image>"}},{{"content":"a"}}]{image}}}"#)
    }

    #[test]
    fn members_of_one_key_are_a_row() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.tar");
        let (plain, named) = (json(""), json(r#","image":["x/b.two.png","b.one.jpg"]"#));
        let outside = json(r#","image":"elsewhere.jpg""#);
        write_tar(
            &path,
            &[
                ("d/a.jpg", b"A"),
                ("d/a.json", outside.as_bytes()),
                ("d/b.json", named.as_bytes()),
                ("d/b.one.jpg", b"B1"),
                ("d/b.two.png", b"B2"),
                ("index.txt", b"not a sample"),
                ("c.json", plain.as_bytes()),
                ("e.png", b"E"),
                ("f.json", outside.as_bytes()),
            ],
        );
        let source = WebDatasetSource::open(&path).unwrap();
        assert_eq!(source.len(), 5);
        let pictures = |index: usize| -> Vec<Bytes> {
            let row = source.row(index).unwrap();
            let bytes = |k| source.image_bytes(index, k, &row.images[k]).unwrap();
            (0..row.images.len()).map(bytes).collect()
        };
        assert_eq!(pictures(0), [&b"A"[..]]);
        assert_eq!(pictures(1), [&b"B2"[..], b"B1"], "in the order of the row");
        assert!(pictures(2).is_empty());
        let reason = |row: usize| source.row(row).unwrap_err().reject().unwrap().reason;
        assert_eq!(reason(3), RejectReason::InvalidRow);
        assert_eq!(reason(4), RejectReason::MissingImage);
        assert_eq!(source.locate(1), "00000.tar:b.json");
        assert_eq!(source.turns(1).unwrap(), source.row(1).unwrap().turns);
        // A picture that the system fails to read is no fault of its row.
        let member = source.images[0];
        let failing = WebDatasetSource { file: failing_file(), ..source };
        assert!(matches!(failing.read_image(member), Err(Obstacle::Run(_))));
        assert!(matches!(failing.row(0), Err(Obstacle::Run(_))));
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        write_tar(&path, &[("a.json", &[b' '; 2000]), ("b.json", &[b' '; 2000])]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..4000]).unwrap();
        let error = WebDatasetSource::open(&path).unwrap_err().to_string();
        assert!(error.contains("a.tar: broken after 1 samples"), "{error}");
        std::fs::write(&path, b"no archive").unwrap();
        assert!(WebDatasetSource::open(&path).is_err());
    }
}
