//! Decodes pages to values with their levels. It does not know where pages are in a file.

use std::collections::VecDeque;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Type};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::column::reader::ColumnReaderImpl;
use parquet::data_type::{
    BoolType, ByteArrayType, DataType, DoubleType, FixedLenByteArrayType, FloatType, Int32Type,
    Int64Type,
};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::schema::types::ColumnDescPtr;
use serde_json::Number;

use super::assemble::Cell;
use crate::record::Field;

/// The rows that begin in one page.
#[derive(Debug, Default)]
pub(crate) struct PageRows {
    cells: Vec<Cell>,
    /// End of each row in `cells`.
    ends: Vec<u32>,
    num_bytes: usize,
}

impl PageRows {
    pub(super) fn row(&self, index: usize) -> &[Cell] {
        let end = |k: usize| self.ends.get(k).map_or(0, |&end| end as usize);
        let start = if index == 0 { 0 } else { end(index - 1) };
        &self.cells[start..end(index).max(start)]
    }

    pub(super) fn num_bytes(&self) -> usize {
        self.num_bytes
    }
}

/// Values of decoded pages, with their levels.
pub(super) struct Levels {
    values: Vec<Field>,
    definition: Vec<i16>,
    /// Zero at the start of a row.
    pub(super) repetition: Vec<i16>,
    max_definition: i16,
}

impl Levels {
    /// Decodes `pages` of a column, of which the dictionary comes first.
    pub(super) fn decode(descriptor: ColumnDescPtr, pages: VecDeque<Page>) -> ParquetResult<Self> {
        let is_text = matches!(
            descriptor.converted_type(),
            ConvertedType::UTF8 | ConvertedType::JSON | ConvertedType::ENUM
        ) || matches!(
            descriptor.logical_type_ref(),
            Some(LogicalType::String | LogicalType::Json | LogicalType::Enum)
        );
        // The value is copied, because a slice would keep the whole page in memory.
        let bytes = |value: &[u8]| match std::str::from_utf8(value) {
            Ok(text) if is_text => Field::Text(text.to_owned()),
            _ => Field::Bytes(Bytes::copy_from_slice(value)),
        };
        let number = |value: f64| Number::from_f64(value).map_or(Field::Null, Field::Number);
        match descriptor.physical_type() {
            Type::BYTE_ARRAY => {
                Self::of::<ByteArrayType>(descriptor, pages, |value| bytes(value.data()))
            }
            Type::FIXED_LEN_BYTE_ARRAY => {
                Self::of::<FixedLenByteArrayType>(descriptor, pages, |value| bytes(value.data()))
            }
            Type::INT32 => {
                Self::of::<Int32Type>(descriptor, pages, |value| Field::Number(value.into()))
            }
            Type::INT64 => {
                Self::of::<Int64Type>(descriptor, pages, |value| Field::Number(value.into()))
            }
            Type::FLOAT => Self::of::<FloatType>(descriptor, pages, |value| number(value.into())),
            Type::DOUBLE => Self::of::<DoubleType>(descriptor, pages, number),
            Type::BOOLEAN => Self::of::<BoolType>(descriptor, pages, Field::Bool),
            Type::INT96 => Err(ParquetError::NYI("a column of INT96 timestamps".into())),
        }
    }

    fn of<T: DataType>(
        descriptor: ColumnDescPtr,
        pages: VecDeque<Page>,
        field: impl Fn(T::T) -> Field,
    ) -> ParquetResult<Self> {
        let max_definition = descriptor.max_def_level();
        let (mut values, mut definition, mut repetition) = (Vec::new(), Vec::new(), Vec::new());
        let is_list = descriptor.max_rep_level() > 0;
        let mut reader = ColumnReaderImpl::<T>::new(descriptor, Box::new(PageQueue(pages)));
        let (_, _, num_levels) = reader.read_records(
            usize::MAX,
            Some(&mut definition),
            Some(&mut repetition),
            &mut values,
        )?;
        if max_definition == 0 {
            definition = vec![0; num_levels];
        }
        if !is_list {
            repetition = vec![0; num_levels];
        }
        let values = values.into_iter().map(field).collect();
        Ok(Self { values, definition, repetition, max_definition })
    }

    /// The first `num_rows` rows that begin in these pages.
    pub(super) fn rows(self, num_rows: usize) -> PageRows {
        let mut rows = PageRows::default();
        let mut values = self.values.into_iter();
        let mut num_begun = 0;
        for (&definition, &repetition) in self.definition.iter().zip(&self.repetition) {
            if repetition == 0 {
                if num_begun == num_rows {
                    break;
                }
                if num_begun > 0 {
                    rows.ends.push(rows.cells.len() as u32);
                }
                num_begun += 1;
            }
            let value = if definition == self.max_definition { values.next() } else { None };
            if num_begun > 0 {
                let value = value.unwrap_or(Field::Null);
                rows.num_bytes += size_of::<Cell>()
                    + match &value {
                        Field::Text(text) => text.len(),
                        Field::Bytes(bytes) => bytes.len(),
                        _ => 0,
                    };
                rows.cells.push(Cell { definition, repetition, value });
            }
        }
        if num_begun > 0 {
            rows.ends.push(rows.cells.len() as u32);
        }
        rows
    }
}

/// Passes pages that were read before to the column reader.
struct PageQueue(VecDeque<Page>);

impl Iterator for PageQueue {
    type Item = ParquetResult<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.pop_front().map(Ok)
    }
}

impl PageReader for PageQueue {
    fn get_next_page(&mut self) -> ParquetResult<Option<Page>> {
        Ok(self.0.pop_front())
    }

    fn peek_next_page(&mut self) -> ParquetResult<Option<PageMetadata>> {
        Ok(self.0.front().map(|page| PageMetadata {
            num_rows: None,
            num_levels: Some(page.num_values() as usize),
            is_dict: page.is_dictionary_page(),
        }))
    }

    fn skip_next_page(&mut self) -> ParquetResult<()> {
        self.0.pop_front();
        Ok(())
    }
}
