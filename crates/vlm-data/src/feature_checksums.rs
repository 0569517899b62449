//! Checksums of a feature cache: the CRC-32C of each image's features, four bytes in little-endian
//! order, in the order of the features. Caches of earlier versions have none.

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use vlm_display::count;

use crate::error::DataError;

/// Name of the file in the folder of the cache.
pub(crate) const CHECKSUMS: &str = "checksums.bin";
/// Bytes of a checksum.
pub(crate) const CHECKSUM: usize = 4;

/// The checksum of one image's features, as it is stored.
pub(crate) fn checksum(features: &[u8]) -> [u8; CHECKSUM] {
    crc32c::crc32c(features).to_le_bytes()
}

/// The checksums of `num_images` images from the file in `folder`.
///
/// # Errors
/// A file that is missing or has another length.
pub(crate) fn read_checksums(
    folder: &Path,
    num_images: usize,
) -> Result<Vec<[u8; CHECKSUM]>, DataError> {
    let path = folder.join(CHECKSUMS);
    let mut file = File::open(&path).map_err(DataError::io(&path, "open the checksums"))?;
    let found = file.metadata().map_err(DataError::io(&path, "open the checksums"))?.len();
    // A damaged number of images must not size any memory.
    let expected = (num_images as u64).checked_mul(CHECKSUM as u64);
    if expected != Some(found) {
        return Err(DataError::content(
            &path,
            format!(
                "expected {} bytes for {}, found {found}; run the same `vlm cache-features` again \
                 to complete the cache",
                expected.unwrap_or(u64::MAX),
                count(num_images, "image")
            ),
        ));
    }
    let mut bytes = vec![0; num_images * CHECKSUM];
    file.read_exact(&mut bytes).map_err(DataError::io(&path, "read the checksums"))?;
    let (checksums, _) = bytes.as_chunks::<CHECKSUM>();
    Ok(checksums.to_vec())
}

/// The indices of those of the first `num_images` images whose features in the file `features`
/// differ from their checksum in `folder`, in ascending order.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn damaged_images(
    folder: &Path,
    features: &Path,
    bytes_per_image: usize,
    num_images: u64,
) -> Result<Vec<u64>, DataError> {
    let checksums = folder.join(CHECKSUMS);
    let open = |path: &Path| {
        File::open(path).map(BufReader::new).map_err(DataError::io(path, "open the feature cache"))
    };
    let (mut of_features, mut of_checksums) = (open(features)?, open(&checksums)?);
    let (mut image, mut expected) = (vec![0; bytes_per_image], [0; CHECKSUM]);
    let mut damaged = Vec::new();
    for index in 0..num_images {
        let read = of_features.read_exact(&mut image);
        read.map_err(DataError::io(features, "read the features"))?;
        let read = of_checksums.read_exact(&mut expected);
        read.map_err(DataError::io(&checksums, "read the checksums"))?;
        if checksum(&image) != expected {
            damaged.push(index);
        }
    }
    Ok(damaged)
}

/// Writes the checksums of the first `num_images` images in the file `features` to `file`, the empty
/// file of checksums in `folder`: those of a cache that was begun without them.
///
/// # Errors
/// A file that cannot be read or written.
pub(crate) fn write_checksums(
    folder: &Path,
    features: &Path,
    bytes_per_image: usize,
    num_images: u64,
    file: &mut File,
) -> Result<(), DataError> {
    let path = folder.join(CHECKSUMS);
    let source = File::open(features).map_err(DataError::io(features, "read the features"))?;
    let mut source = BufReader::new(source);
    let mut image = vec![0; bytes_per_image];
    for _ in 0..num_images {
        source.read_exact(&mut image).map_err(DataError::io(features, "read the features"))?;
        file.write_all(&checksum(&image)).map_err(DataError::io(&path, "write the checksums"))?;
    }
    file.sync_data().map_err(DataError::io(&path, "write the checksums"))
}
