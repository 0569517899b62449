//! Reads single values out of the record batches of an Arrow file.

use arrow_schema::DataType;
use bytes::Bytes;
use serde_json::Number;
use vlm_display::count;

use super::batches::{Batches, Header};
use super::layout::Layout;
use crate::record::{Field, Record};
use crate::row_error::ReadError;

/// The value of `column` in row `index`, which exists.
pub(super) fn value(batches: &Batches, column: &Layout, index: usize) -> Result<Field, ReadError> {
    let (header, row) = batches.locate(index)?;
    Reader { batches, header }.value(column, row)
}

/// Reads the values of one record batch.
struct Reader<'a> {
    batches: &'a Batches,
    header: &'a Header,
}

impl Reader<'_> {
    fn value(&self, column: &Layout, row: u64) -> Result<Field, ReadError> {
        let length = self.header.nodes.get(column.node).copied().unwrap_or(0);
        if row >= length {
            return Err(format!(
                "{:?} has {}, none for row {row}",
                column.name(),
                count(length, "value")
            )
            .into());
        }
        let data_type = column.data_type();
        if matches!(data_type, DataType::Null) || !self.is_valid(column, row)? {
            return Ok(Field::Null);
        }
        let data = column.buffer + 1;
        let signed = |bytes: [u8; 8]| Field::Number(i64::from_le_bytes(bytes).into());
        let float = |value: f64| Number::from_f64(value).map_or(Field::Null, Field::Number);
        Ok(match data_type {
            DataType::Boolean => {
                let byte = self.buffer::<1>(data, row / 8)?[0];
                Field::Bool(byte >> (row % 8) & 1 == 1)
            }
            DataType::Int8 => Field::Number(i8::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::UInt8 => Field::Number(u8::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::Int16 => Field::Number(i16::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::UInt16 => Field::Number(u16::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::Int32 => Field::Number(i32::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::UInt32 => Field::Number(u32::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::Int64 => signed(self.buffer(data, row)?),
            DataType::UInt64 => Field::Number(u64::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::Float32 => float(f32::from_le_bytes(self.buffer(data, row)?).into()),
            DataType::Float64 => float(f64::from_le_bytes(self.buffer(data, row)?)),
            DataType::Utf8 | DataType::Binary | DataType::LargeUtf8 | DataType::LargeBinary => {
                let is_large = matches!(data_type, DataType::LargeUtf8 | DataType::LargeBinary);
                let (start, end) = self.offsets(data, row, is_large)?;
                let bytes = self.bytes(data + 1, start, end - start)?;
                if matches!(data_type, DataType::Utf8 | DataType::LargeUtf8) {
                    Field::Text(String::from_utf8(bytes).map_err(|_| "text that is not UTF-8")?)
                } else {
                    Field::Bytes(Bytes::from(bytes))
                }
            }
            DataType::List(_) | DataType::LargeList(_) => {
                let is_large = matches!(data_type, DataType::LargeList(_));
                let (start, end) = self.offsets(data, row, is_large)?;
                self.list(column, start, end)?
            }
            DataType::FixedSizeList(_, size) => {
                let size = u64::try_from(*size).map_err(|e| e.to_string())?;
                let start = row.checked_mul(size).ok_or("an implausible length")?;
                self.list(column, start, start.saturating_add(size))?
            }
            DataType::Struct(_) => {
                let value = |child: &Layout| {
                    Ok::<_, ReadError>((child.name().to_owned(), self.value(child, row)?))
                };
                Field::Object(Record(column.children.iter().map(value).collect::<Result<_, _>>()?))
            }
            other => {
                let name = column.name();
                return Err(
                    format!("{name:?} is of the type {other}, which is not supported").into()
                );
            }
        })
    }

    fn list(&self, column: &Layout, start: u64, end: u64) -> Result<Field, ReadError> {
        let element = column.children.first().ok_or("a list without a type of its elements")?;
        let length = self.header.nodes.get(element.node).copied().unwrap_or(0);
        // Values that take no bytes could be of any number.
        if end > length || end - start > self.batches.length() {
            return Err("a list is beyond the end of its values".into());
        }
        let values = (start..end).map(|k| self.value(element, k));
        Ok(Field::List(values.collect::<Result<_, _>>()?))
    }

    fn is_valid(&self, column: &Layout, row: u64) -> Result<bool, ReadError> {
        // A column without nulls may have no validity bits.
        let (_, length) = self.place(column.buffer)?;
        if length == 0 {
            return Ok(true);
        }
        Ok(self.buffer::<1>(column.buffer, row / 8)?[0] >> (row % 8) & 1 == 1)
    }

    /// Where the values of `row` begin and end.
    fn offsets(&self, buffer: usize, row: u64, is_large: bool) -> Result<(u64, u64), ReadError> {
        let (start, end) = if is_large {
            let at = |row| Ok::<_, ReadError>(i64::from_le_bytes(self.buffer(buffer, row)?));
            (at(row)?, at(row + 1)?)
        } else {
            let at = |row| Ok::<_, ReadError>(i32::from_le_bytes(self.buffer(buffer, row)?));
            (i64::from(at(row)?), i64::from(at(row + 1)?))
        };
        match (u64::try_from(start), u64::try_from(end)) {
            (Ok(start), Ok(end)) if start <= end => Ok((start, end)),
            _ => Err(format!("the offsets {start} and {end} are not valid").into()),
        }
    }

    /// Value `index` of a buffer whose values have `N` bytes each.
    fn buffer<const N: usize>(&self, buffer: usize, index: u64) -> Result<[u8; N], ReadError> {
        let start = index.checked_mul(N as u64).ok_or("an implausible position")?;
        let bytes = self.bytes(buffer, start, N as u64)?;
        bytes.try_into().map_err(|_| "a buffer is truncated".into())
    }

    fn bytes(&self, buffer: usize, start: u64, length: u64) -> Result<Vec<u8>, ReadError> {
        let (offset, whole) = self.place(buffer)?;
        let beyond = || ReadError::from("a value is beyond the end of its buffer");
        let end = start.checked_add(length).ok_or_else(beyond)?;
        if let Some(codec) = self.header.compression {
            let key = (self.header.number, buffer);
            let unpacked = self.batches.unpacked(key, (offset, whole), codec)?;
            let range = usize::try_from(start).ok().zip(usize::try_from(end).ok());
            let (start, end) = range.ok_or_else(beyond)?;
            return unpacked.get(start..end).map(<[u8]>::to_vec).ok_or_else(beyond);
        }
        if end > whole {
            return Err(beyond());
        }
        self.batches.read(offset.saturating_add(start), length)
    }

    fn place(&self, buffer: usize) -> Result<(u64, u64), ReadError> {
        let place = self.header.buffers.get(buffer).copied();
        place.ok_or_else(|| "a record batch with fewer buffers than its schema has".into())
    }
}
