//! Reads the records of a `.pth`, which is a zip archive, and checks their sizes and names.

use std::cell::RefCell;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

use zip::{CompressionMethod, ZipArchive};

use super::WeightsError;
use super::error::{Refusal, refuse};

/// Largest size of a pickle; that of a model with 100,000 tensors has 20 MB.
const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// Largest compression ratio. PyTorch does not compress, and weights compress by much less.
const MAX_RATIO: u64 = 200;
/// Below this size the compression ratio is not checked.
const HARMLESS_BYTES: u64 = 1 << 20;

/// An open zip archive whose records are all in one folder.
#[derive(Debug)]
pub(super) struct Archive {
    path: PathBuf,
    zip: RefCell<ZipArchive<BufReader<File>>>,
    root: String,
}

impl Archive {
    /// Opens the archive and checks the names and sizes of all records.
    ///
    /// # Errors
    /// The file is truncated, a record's name leaves the archive, a size exceeds the file, there is
    /// no `data.pkl`, or the data is big-endian.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = File::open(path).map_err(WeightsError::io(path))?;
        let file_bytes = file.metadata().map_err(WeightsError::io(path))?.len();
        let refused = |refusal: Refusal| refusal.in_file(path);
        let mut zip = ZipArchive::new(BufReader::new(file)).map_err(|error| {
            refused(Refusal(format!(
                "the zip archive is damaged or truncated ({error}); download the file again"
            )))
        })?;
        check_entries(&mut zip, file_bytes).map_err(refused)?;
        let root = find_root(&zip).map_err(refused)?;
        let archive = Self { path: path.to_owned(), zip: RefCell::new(zip), root };
        archive.check_byte_order()?;
        Ok(archive)
    }

    /// The pickle that describes the tensors.
    ///
    /// # Errors
    /// As [`Self::record`], or the pickle has more than 64 MB.
    pub fn pickle(&self) -> Result<Vec<u8>, WeightsError> {
        match self.size("data.pkl")? {
            size if size > MAX_PICKLE_BYTES => {
                self.refused(format!("data.pkl has {size} bytes, too many for a list of tensors"))
            }
            size => self.record("data.pkl", size),
        }
    }

    /// The size of a record in bytes.
    ///
    /// # Errors
    /// There is no such record.
    pub fn size(&self, name: &str) -> Result<u64, WeightsError> {
        let full = format!("{}{name}", self.root);
        let mut zip = self.zip.borrow_mut();
        let index = zip.index_for_name(&full);
        match index.map(|index| zip.by_index_raw(index)) {
            Some(Ok(entry)) => Ok(entry.size()),
            Some(Err(error)) => self.refused(format!("record {full}: {error}")),
            None => self.refused(format!("there is no record {full}")),
        }
    }

    /// The first `wanted` bytes of a record.
    ///
    /// # Errors
    /// The record is missing, shorter or damaged.
    pub fn record(&self, name: &str, wanted: u64) -> Result<Vec<u8>, WeightsError> {
        let full = format!("{}{name}", self.root);
        let mut zip = self.zip.borrow_mut();
        let entry = match zip.by_name(&full) {
            Ok(entry) => entry,
            Err(error) => return self.refused(format!("record {full}: {error}")),
        };
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size().min(wanted)).unwrap_or(0));
        // One byte more than wanted, because the checksum is compared at the end of the record.
        if let Err(error) = entry.take(wanted.saturating_add(1)).read_to_end(&mut bytes) {
            return self.refused(format!("record {full}: {error}"));
        }
        bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
        if (bytes.len() as u64) < wanted {
            return self
                .refused(format!("record {full} has {} bytes; expected {wanted}", bytes.len()));
        }
        Ok(bytes)
    }

    /// An error about this file.
    pub fn refused<T>(&self, message: impl Into<String>) -> Result<T, WeightsError> {
        Err(Refusal(message.into()).in_file(&self.path))
    }

    fn check_byte_order(&self) -> Result<(), WeightsError> {
        let name = format!("{}byteorder", self.root);
        if self.zip.borrow().index_for_name(&name).is_none() {
            // Files from before PyTorch 2.1 have no such record; they are little-endian.
            return Ok(());
        }
        let order = self.record("byteorder", self.size("byteorder")?.min(16))?;
        match order.as_slice() {
            b"little" => Ok(()),
            other => self.refused(format!(
                "its numbers are {}-endian; expected little-endian: save it on another machine",
                String::from_utf8_lossy(other)
            )),
        }
    }
}

fn check_entries(zip: &mut ZipArchive<BufReader<File>>, file_bytes: u64) -> Result<(), Refusal> {
    for index in 0..zip.len() {
        let entry = zip
            .by_index_raw(index)
            .map_err(|error| Refusal(format!("record {index} of the zip: {error}")))?;
        let (name, size, packed) = (entry.name(), entry.size(), entry.compressed_size());
        if entry.enclosed_name().is_none() || name.contains('\\') || name.contains("..") {
            return refuse!(
                "the record name {name:?} leaves the archive; torch.save does not write such \
                 names, and nothing was written there"
            );
        }
        if packed > file_bytes {
            return refuse!(
                "record {name} claims {packed} bytes, but the whole file has {file_bytes}"
            );
        }
        match entry.compression() {
            CompressionMethod::Stored if size != packed => {
                return refuse!(
                    "record {name} is not compressed, but claims {size} bytes in {packed}"
                );
            }
            CompressionMethod::Stored => {}
            CompressionMethod::Deflated
                if size > HARMLESS_BYTES && size / packed.max(1) > MAX_RATIO =>
            {
                return refuse!(
                    "record {name} claims to unpack {packed} bytes to {size}, which weights never \
                     do; it may be a zip bomb, and nothing was unpacked"
                );
            }
            CompressionMethod::Deflated => {}
            other => {
                return refuse!(
                    "record {name} is compressed with {other:?}, which PyTorch does not use"
                );
            }
        }
    }
    Ok(())
}

/// The folder in the archive that has `data.pkl`, with its slash; PyTorch names it after the file.
fn find_root(zip: &ZipArchive<BufReader<File>>) -> Result<String, Refusal> {
    let roots: Vec<_> = zip
        .file_names()
        .filter_map(|name| name.strip_suffix("data.pkl"))
        .filter(|root| root.is_empty() || root.ends_with('/') && root.matches('/').count() == 1)
        .collect();
    match roots.as_slice() {
        [] => refuse!("the zip archive has no data.pkl, so torch.save did not write it"),
        [root] if zip.index_for_name(&format!("{root}constants.pkl")).is_some() => {
            refuse!(
                "it is a TorchScript archive; in Python, save the plain dict: \
                 torch.save(model.state_dict(), path)"
            )
        }
        [root] => Ok((*root).to_owned()),
        several => refuse!("the zip archive has {} records called data.pkl", several.len()),
    }
}
