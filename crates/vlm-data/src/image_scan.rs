//! Reads every distinct image of a source once and preprocesses it, for example to compute its
//! features.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::DataError;
use crate::feature_cache::ImageHash;
use crate::ordered_map::panic_message;
use crate::preprocess::ImageProcessor;
use crate::reject::{Reject, Rejected};
use crate::row_error::RowError;
use crate::rows::RowImage;
use crate::source::{PreparedRow, RowSource};

/// Number of rows in a chunk, per thread.
const ROWS_A_THREAD: usize = 32;
/// Number of finished chunks that are kept; each holds the images of its rows.
const CHUNKS_AHEAD: usize = 2;

/// Number of images in a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ImageCount {
    /// Rows that could be read.
    pub rows: usize,
    /// Images of all rows together.
    pub references: usize,
    /// Upper bound of the distinct images: files with different names may hold the same image.
    pub distinct: usize,
}

/// The result for some consecutive rows.
#[derive(Debug)]
pub struct ScannedChunk {
    /// Number of rows.
    pub num_rows: usize,
    /// Images that were not seen before: hash of the encoded bytes, and pixels `[S, S, 3]`.
    pub images: Vec<(ImageHash, Vec<u8>)>,
    /// Rows with an image that cannot be used.
    pub rejected: Vec<Rejected>,
}

/// The chunks of a scan, in the order of the rows, made ahead of their use by threads.
pub struct ImageScan {
    chunks: Receiver<Result<ScannedChunk, DataError>>,
    num_rows_left: usize,
}

struct Scanner {
    source: Arc<dyn RowSource>,
    processor: Arc<ImageProcessor>,
    seen: HashSet<ImageHash>,
    pool: ThreadPool,
}

/// Counts the images of all rows by their hashes or names, without opening them.
pub fn count_images(source: &dyn RowSource) -> ImageCount {
    #[derive(PartialEq, Eq, Hash)]
    enum ImageId {
        Hash(ImageHash),
        Name(String),
        /// Only its position in the rows is known.
        Place(usize, usize),
    }
    let of_row = |row: usize| -> Option<Vec<ImageId>> {
        let id = |(k, image): (usize, RowImage)| match (image.hash, image.bytes) {
            (Some(hash), _) => ImageId::Hash(hash),
            (None, Some(_)) => ImageId::Place(row, k),
            (None, None) => ImageId::Name(image.name),
        };
        let images = images_of(source, row).ok()?;
        Some(images.into_iter().enumerate().map(id).collect())
    };
    let mut count = ImageCount::default();
    let mut distinct = HashSet::new();
    let rows: Vec<usize> = (0..source.len()).collect();
    for chunk in rows.chunks(1 << 14) {
        let found: Vec<_> = chunk.par_iter().filter_map(|&row| of_row(row)).collect();
        count.rows += found.len();
        count.references += found.iter().map(Vec::len).sum::<usize>();
        distinct.extend(found.into_iter().flatten());
    }
    ImageCount { distinct: distinct.len(), ..count }
}

impl ImageScan {
    /// Starts at the first row; images in `seen` are skipped.
    ///
    /// # Errors
    /// Threads that cannot be started.
    pub fn start(
        source: Arc<dyn RowSource>,
        processor: Arc<ImageProcessor>,
        seen: HashSet<ImageHash>,
        num_workers: usize,
    ) -> Result<Self, DataError> {
        let failed = |source| DataError::Threads { source };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_workers).build();
        let pool = pool.map_err(|e| failed(std::io::Error::other(e)))?;
        let num_rows_left = source.len();
        let mut scanner = Scanner { source, processor, seen, pool };
        let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
        std::thread::Builder::new()
            .name("image-scan".into())
            .spawn(move || scanner.run(&sender))
            .map_err(failed)?;
        Ok(Self { chunks, num_rows_left })
    }
}

impl Iterator for ImageScan {
    type Item = Result<ScannedChunk, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.num_rows_left == 0 {
            return None;
        }
        let Ok(chunk) = self.chunks.recv() else {
            self.num_rows_left = 0;
            return Some(Err(DataError::Internal(
                "the threads that read images ended before their work did".into(),
            )));
        };
        self.num_rows_left = match &chunk {
            Ok(chunk) => self.num_rows_left - chunk.num_rows,
            Err(_) => 0,
        };
        Some(chunk)
    }
}

impl Scanner {
    fn run(&mut self, chunks: &SyncSender<Result<ScannedChunk, DataError>>) {
        let rows: Vec<usize> = (0..self.source.len()).collect();
        let chunk_len = ROWS_A_THREAD * self.pool.current_num_threads();
        for rows in rows.chunks(chunk_len) {
            let chunk = self.chunk(rows);
            let is_last = chunk.is_err();
            // The receiver of the chunks may be gone.
            if chunks.send(chunk).is_err() || is_last {
                return;
            }
        }
    }

    fn chunk(&mut self, rows: &[usize]) -> Result<ScannedChunk, DataError> {
        let read = |&row: &usize| (row, self.read_images(row));
        let read: Vec<_> = self.pool.install(|| rows.par_iter().map(read).collect());
        let mut rejected = Vec::new();
        let mut reject = |row: usize, Reject { reason, detail }| {
            rejected.push(Rejected { row, location: self.source.locate(row), reason, detail });
        };
        let mut new = Vec::new();
        for (row, images) in read {
            match images {
                Ok(images) => {
                    for (hash, name, bytes) in images {
                        if self.seen.insert(hash) {
                            new.push((row, hash, name, bytes));
                        }
                    }
                }
                Err(error) => reject(row, error.at(self.source.locate(row))?),
            }
        }
        let crop = |(row, hash, name, bytes): (usize, ImageHash, String, bytes::Bytes)| {
            // A decoder that panics on a hostile file must not end the scan.
            let crop = catch_unwind(AssertUnwindSafe(|| self.processor.crop_u8(&bytes)));
            let crop = crop.unwrap_or_else(|panic| {
                Err(Reject::unreadable_image(panic_message(panic.as_ref())))
            });
            let named = |e: Reject| Reject::new(e.reason, format!("{name:?}: {}", e.detail));
            (row, crop.map(|crop| (hash, crop)).map_err(named))
        };
        let cropped: Vec<_> = self.pool.install(|| new.into_par_iter().map(crop).collect());
        let mut images = Vec::with_capacity(cropped.len());
        for (row, image) in cropped {
            match image {
                Ok(image) => images.push(image),
                Err(problem) => reject(row, problem),
            }
        }
        Ok(ScannedChunk { num_rows: rows.len(), images, rejected })
    }

    /// Hash, name and encoded bytes of each image of a row.
    fn read_images(&self, row: usize) -> Result<Vec<(ImageHash, String, bytes::Bytes)>, RowError> {
        let images = images_of(self.source.as_ref(), row)?;
        let mut read = Vec::with_capacity(images.len());
        for (k, image) in images.into_iter().enumerate() {
            if image.hash.is_some_and(|hash| self.seen.contains(&hash)) {
                continue;
            }
            let bytes = self.source.image_bytes(row, k, &image)?;
            let hash = image.hash.unwrap_or_else(|| blake3::hash(&bytes).into());
            read.push((hash, image.name, bytes));
        }
        Ok(read)
    }
}

fn images_of(source: &dyn RowSource, row: usize) -> Result<Vec<RowImage>, RowError> {
    Ok(match source.prepared_row(row)? {
        Some(PreparedRow { images, .. }) => images,
        None => source.row(row)?.images,
    })
}
