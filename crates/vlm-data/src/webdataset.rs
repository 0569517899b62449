//! Rows from WebDataset shards: tar archives in which the members `KEY.json` and `KEY.jpg` (or the
//! extension of another image format) are one sample, wherever they are in the archive. A sample
//! without a conversation takes its caption from `KEY.txt` or from `caption` in its JSON, as
//! img2dataset writes them. Opening a shard reads only the headers; some thirty bytes per row are
//! kept.

use std::os::unix::fs::FileExt;

use bytes::Bytes;

use crate::error::DataError;
use crate::file_source::{self, RowFile};
use crate::form;
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::row_error::RowError;
use crate::row_reader::RowReader;
use crate::row_text::{ByteRange, RowTexts, file_name};
use crate::rows::{Row, RowImage, Turn};
use crate::source::RowSource;
use crate::tar_index::{Index, Sample, index};

/// The samples of one tar archive, in its order.
#[derive(Debug)]
pub(crate) struct WebDatasetSource {
    texts: RowTexts,
    samples: Vec<Sample>,
    /// Images of all samples.
    images: Vec<ByteRange>,
    reader: RowReader,
    format: String,
}

const BLOCK: u64 = 512;

impl WebDatasetSource {
    /// Finds the samples of the archive.
    ///
    /// # Errors
    /// A file that cannot be read, is not a tar archive, is truncated, or has no sample.
    pub(crate) fn open(file: RowFile) -> Result<Self, DataError> {
        // The images are members of the archive.
        let file = RowFile { images_root: None, ..file };
        let RowFile { plain, options, .. } = &file;
        let length =
            plain.file.metadata().map_err(DataError::io(&plain.path, "open the archive"))?;
        let Index { samples, images } = index(plain, length.len(), options)?;
        if samples.is_empty() {
            return Err(DataError::content(
                &plain.path,
                "no samples in this archive; expected members KEY.jpg (or .png, …) with KEY.json or \
                 KEY.txt",
            ));
        }
        let (reader, format) = (file.row_reader()?, plain.format("WebDataset"));
        let texts = RowTexts::new(file.plain, &file.options);
        Ok(Self { texts, samples, images, reader, format })
    }

    fn members(&self, index: usize) -> &[ByteRange] {
        let range = self.samples.get(index).map_or(0..0, |sample| sample.images.clone());
        &self.images[range.start as usize..range.end as usize]
    }

    /// The name in a member's header, without its folder. It is used only for messages and for
    /// samples of several images; a name of more than a hundred bytes may be truncated.
    fn name_of(&self, member: ByteRange) -> String {
        let mut name = [0; 100];
        let header = member.offset.saturating_sub(BLOCK);
        if self.texts.file.read_exact_at(&mut name, header).is_err() {
            return "a member".into();
        }
        let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
        let name = String::from_utf8_lossy(&name[..end]).into_owned();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    }

    /// The indices in the sample of the images in `names`, in the order of `names`.
    fn match_names(&self, members: &[ByteRange], names: &[String]) -> Result<Vec<usize>, Reject> {
        let held: Vec<String> = members.iter().map(|&member| self.name_of(member)).collect();
        names
            .iter()
            .map(|name| {
                let name = name.rsplit(['/', '\\']).next().unwrap_or_default();
                held.iter().position(|held| held == name).ok_or_else(|| {
                    Reject::missing_image(format!(
                        "no {:?} in the sample, which holds {}",
                        name,
                        held.join(", ")
                    ))
                })
            })
            .collect()
    }

    /// The sample's values: those of its JSON, with its text as the caption if the JSON has no
    /// known form.
    fn record(&self, index: usize) -> Result<Record, RowError> {
        let Some(sample) = self.samples.get(index) else {
            return Err(Reject::no_such_row(index, self.samples.len()).into());
        };
        if sample.has_other_media {
            return Err(Reject::unsupported_media("the sample has video or audio").into());
        }
        let mut record = match sample.json {
            None => Record::default(),
            Some(json) => Field::from_json(&self.texts.read(json)?)
                .and_then(Field::into_record)
                .map_err(Reject::invalid_row)?,
        };
        match sample.text {
            Some(text) if !form::is_row(&record) => {
                let caption = self.texts.read(text)?.trim().to_owned();
                record.0.push(("caption".to_owned(), Field::Text(caption)));
            }
            None if sample.json.is_none() => {
                return Err(Reject::invalid_row(
                    "expected a .json or .txt for the image, found none",
                )
                .into());
            }
            _ => {}
        }
        Ok(record)
    }

    /// The row with the names of its images, and the member of each image.
    fn unread_row(&self, index: usize) -> Result<(Row, Vec<ByteRange>), RowError> {
        let context = self.reader.context();
        let (mut record, names) = form::take_images(self.record(index)?, &context)?;
        let members = self.members(index);
        // If the sample has one image there is nothing to mix up, so its name in the row need not
        // match.
        let order = match (members.len(), names.len()) {
            (0, 0) => Vec::new(),
            (0, _) => return Err(missing(&names[0]).into()),
            (1, _) => vec![0],
            (count, 0) => (0..count).collect(),
            _ => self.match_names(members, &names)?,
        };
        // Images are named by number, because members may share a name and the row may put them in
        // another order.
        let images = (0..order.len()).map(|k| Field::Text(format!("#{k}"))).collect();
        let key = context.options.image_keys.first().map_or("image", String::as_str);
        record.0.push((key.to_owned(), Field::List(images)));
        let mut row = self.reader.row(&record)?;
        let mut chosen = Vec::with_capacity(row.images.len());
        for image in &mut row.images {
            let number = image.name.strip_prefix('#').and_then(|number| number.parse().ok());
            let member = number.and_then(|number: usize| order.get(number));
            let member = members[*member.ok_or_else(|| missing(&image.name))?];
            image.name = self.name_of(member);
            chosen.push(member);
        }
        Ok((row, chosen))
    }

    fn read_image(&self, member: ByteRange) -> Result<Bytes, RowError> {
        let max_bytes = self.reader.options().max_image_bytes;
        if member.bytes > max_bytes {
            return Err(Reject::image_too_large("the image", member.bytes, max_bytes).into());
        }
        let mut bytes = vec![0; member.bytes as usize];
        let unreadable =
            |e: String| Reject::unreadable_image(format!("{:?}: {e}", self.name_of(member)));
        self.texts
            .file
            .read_exact_at(&mut bytes, member.offset)
            .map_err(|e| RowError::from_io(self.texts.path(), "read the image", e, unreadable))?;
        Ok(bytes.into())
    }
}

impl RowSource for WebDatasetSource {
    fn len(&self) -> usize {
        self.samples.len()
    }

    fn row(&self, index: usize) -> Result<Row, RowError> {
        let (mut row, members) = self.unread_row(index)?;
        for (image, member) in row.images.iter_mut().zip(members) {
            image.bytes = Some(self.read_image(member)?);
        }
        Ok(row)
    }

    fn image_bytes(&self, _: usize, _: usize, image: &RowImage) -> Result<Bytes, RowError> {
        image.bytes.clone().ok_or_else(|| missing(&image.name).into())
    }

    fn locate(&self, index: usize) -> String {
        let name = file_name(self.texts.path());
        let member = self.samples.get(index).and_then(|sample| sample.json.or(sample.text));
        match member.or(self.members(index).first().copied()) {
            Some(member) => format!("{name}:{}", self.name_of(member)),
            None => format!("{name}, sample {index}"),
        }
    }

    fn turns(&self, index: usize) -> Result<Vec<Turn>, RowError> {
        Ok(self.unread_row(index)?.0.turns)
    }

    fn describe(&self) -> Vec<String> {
        let described = file_source::describe(self, &self.format, |index| self.record(index).ok());
        vec![format!("{}: {described}", self.texts.path().display())]
    }
}

fn missing(name: &str) -> Reject {
    Reject::missing_image(format!("no {name:?} in the sample"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::reject::RejectReason;
    use crate::row_error::failing_file;
    use crate::row_options::RowOptions;

    fn open(path: &Path, options: RowOptions) -> Result<WebDatasetSource, DataError> {
        WebDatasetSource::open(RowFile::open(path, None, &Arc::new(options))?)
    }

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
        let source = open(&path, RowOptions::default()).unwrap();
        assert_eq!(source.len(), 5);
        let images_of = |index: usize| -> Vec<Bytes> {
            let row = source.row(index).unwrap();
            let bytes = |k| source.image_bytes(index, k, &row.images[k]).unwrap();
            (0..row.images.len()).map(bytes).collect()
        };
        assert_eq!(images_of(0), [&b"A"[..]]);
        assert_eq!(images_of(1), [&b"B2"[..], b"B1"], "in the order of the row");
        assert!(images_of(2).is_empty());
        let reason = |row: usize| source.row(row).unwrap_err().reject().unwrap().reason;
        assert_eq!(reason(3), RejectReason::InvalidRow);
        assert_eq!(reason(4), RejectReason::MissingImage);
        assert_eq!(source.locate(1), "00000.tar:b.json");
        assert_eq!(source.turns(1).unwrap(), source.row(1).unwrap().turns);
        // An image that the system fails to read is not a fault of its row.
        let member = source.images[0];
        let mut failing = source;
        failing.texts.file = failing_file();
        assert!(matches!(failing.read_image(member), Err(RowError::Fatal(_))));
        assert!(matches!(failing.row(0), Err(RowError::Fatal(_))));
    }

    #[test]
    fn members_are_joined_wherever_they_stand_and_captions_are_rows() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("00000.tar");
        let caption = br#"{"caption": "by JSON", "url": "http://x/1.jpg", "status": "success"}"#;
        write_tar(
            &path,
            &[
                ("./._0.json", b"mac"),
                ("./0.json", json(r#","image":"0.jpg""#).as_bytes()),
                ("./1.json", caption),
                ("__MACOSX/0.jpg", b"mac"),
                ("./1.txt", b"by text\n"),
                ("./0.jpg", b"A"),
                ("./1.JPG", b"B"),
                ("2.txt", b" by text\n"),
                ("2.png", b"C"),
                // An archive joined to another one begins again.
                ("0.jpg", b"D"),
                ("0.json", json("").as_bytes()),
                ("3.mp4", b"E"),
            ],
        );
        let source = open(&path, RowOptions::default()).unwrap();
        assert_eq!(source.len(), 5);
        let read = |index: usize| {
            let row = source.row(index).unwrap();
            assert_eq!(source.turns(index).unwrap(), row.turns);
            let bytes = source.image_bytes(index, 0, &row.images[0]).unwrap();
            (row.images.len(), bytes, row.turns[1].content.clone())
        };
        assert_eq!(read(0), (1, Bytes::from_static(b"A"), "a".into()));
        assert_eq!(read(1), (1, Bytes::from_static(b"B"), "by JSON".into()));
        assert_eq!(read(2), (1, Bytes::from_static(b"C"), "by text".into()));
        assert_eq!(read(3), (1, Bytes::from_static(b"D"), "a".into()));
        let reject = source.row(4).unwrap_err().reject().unwrap();
        assert_eq!(reject.reason, RejectReason::UnsupportedMedia);
        let options = RowOptions { max_archive_members: 3, ..RowOptions::default() };
        let message = open(&path, options).unwrap_err().to_string();
        assert!(message.contains("more than 3 members"), "{message}");
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tar");
        write_tar(&path, &[("a.json", &[b' '; 2000]), ("b.json", &[b' '; 2000])]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..4000]).unwrap();
        let error = open(&path, RowOptions::default()).unwrap_err().to_string();
        assert!(error.contains("a.tar: broken after 1 sample:"), "{error}");
        std::fs::write(&path, b"no archive").unwrap();
        assert!(open(&path, RowOptions::default()).is_err());
    }
}
