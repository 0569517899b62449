//! Tells whether two sources hold the same rows without reading all of them.

use crate::error::DataError;
use crate::row_error::RowError;
use crate::rows::{Row, RowImage};
use crate::source::RowSource;

/// Number of rows that are read, spread evenly.
const NUM_SAMPLES: usize = 64;

/// A hash of the number of rows and of the content of up to 64 of them, spread evenly. It is the
/// same on every machine that has the same rows, wherever they are. Images are not read. Changes to
/// other rows show in [`crate::DataPaths::fingerprint`], which covers the files.
///
/// # Errors
/// A disk that fails.
pub fn fingerprint(source: &dyn RowSource) -> Result<String, DataError> {
    let num_rows = source.len();
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(num_rows as u64).to_le_bytes());
    for k in 0..NUM_SAMPLES.min(num_rows) {
        let index = k * num_rows / NUM_SAMPLES.min(num_rows);
        match content(source, index) {
            Ok((text, images)) => {
                hasher.update(&text);
                for RowImage { name, bytes, hash } in &images {
                    hasher.update(name.as_bytes());
                    hasher.update(bytes.as_deref().unwrap_or_default());
                    hasher.update(hash.as_ref().map_or(&[], |hash| hash.as_slice()));
                }
            }
            // A row that cannot be used must be rejected for the same reason on every machine.
            Err(error) => {
                let reject = error.at(source.locate(index))?;
                hasher.update(reject.reason.name().as_bytes());
            }
        }
        hasher.update(&[0xff]);
    }
    Ok(format!("{num_rows} rows, {}", &hasher.finalize().to_hex()[..16]))
}

/// A row's token ids if the source holds them, otherwise its text; and its images.
fn content(source: &dyn RowSource, index: usize) -> Result<(Vec<u8>, Vec<RowImage>), RowError> {
    if let Some(prepared) = source.prepared_row(index)? {
        let ids = prepared.encoded.input_ids.iter().flat_map(|id| id.to_le_bytes());
        return Ok((ids.collect(), prepared.images));
    }
    let Row { turns, images } = source.row(index)?;
    let text = turns.iter().flat_map(|turn| [turn.role.name().as_bytes(), turn.content.as_bytes()]);
    Ok((text.collect::<Vec<_>>().concat(), images))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::reject::Reject;
    use crate::rows::{Role, Turn};

    struct Numbers(Vec<u32>);

    impl RowSource for Numbers {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn row(&self, index: usize) -> Result<Row, RowError> {
            let turns = vec![Turn::new(Role::User, self.0[index].to_string())];
            Ok(Row { turns, ..Row::default() })
        }

        fn image_bytes(&self, _: usize, _: usize, _: &RowImage) -> Result<Bytes, RowError> {
            Err(Reject::missing_image("none").into())
        }

        fn locate(&self, index: usize) -> String {
            index.to_string()
        }
    }

    #[test]
    fn other_rows_or_another_number_of_them_have_another_fingerprint() {
        let of = |rows: Vec<u32>| fingerprint(&Numbers(rows)).unwrap();
        let base = of((0..200).collect());
        assert_eq!(base, of((0..200).collect()));
        assert_ne!(base, of((0..201).collect()));
        assert_ne!(base, of((1..201).collect()));
        assert_eq!(of(vec![]), of(vec![]));
    }
}
