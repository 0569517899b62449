//! Which nodes and buffers of a record batch are a column's, as the Arrow format orders them.

use arrow_schema::{DataType, Field as ArrowField, Schema};

use crate::limits::MAX_COLUMN_DEPTH;
use crate::table_columns::TableColumn;

/// A column, or a part of one.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    field: ArrowField,
    /// Index of its node, which has the number of its values.
    pub(super) node: usize,
    /// Index of its first buffer; its other buffers follow.
    pub(super) buffer: usize,
    pub(super) children: Vec<Layout>,
}

impl Layout {
    pub(super) fn name(&self) -> &str {
        self.field.name()
    }

    pub(super) fn data_type(&self) -> &DataType {
        self.field.data_type()
    }

    /// The description by which [`table_columns`](crate::table_columns) chooses columns.
    pub(super) fn table_column(&self) -> TableColumn<'_> {
        TableColumn {
            name: self.name(),
            is_image_struct: self.is_image_struct(),
            is_binary: false,
            parts: self.names(),
        }
    }

    /// The names of the column and of all nested fields.
    fn names(&self) -> Vec<&str> {
        let of_children = self.children.iter().flat_map(Layout::names);
        std::iter::once(self.name()).chain(of_children).collect()
    }

    /// Whether it is a struct of `bytes` and `path`, or a list of such structs: an image or audio.
    fn is_image_struct(&self) -> bool {
        match self.data_type() {
            DataType::List(_) | DataType::LargeList(_) => {
                self.children.first().is_some_and(Layout::is_image_struct)
            }
            DataType::Struct(fields) => {
                fields.len() == 2
                    && fields.iter().all(|field| field.name() == "bytes" || field.name() == "path")
            }
            _ => false,
        }
    }
}

/// The columns of a file.
///
/// # Errors
/// A data type that this reader does not know.
pub(super) fn columns(schema: &Schema) -> Result<Vec<Layout>, String> {
    let mut counts = Counts::default();
    schema.fields().iter().map(|field| counts.layout(field, 0)).collect()
}

/// `image (Struct), text (Utf8)`
pub(super) fn describe(columns: &[Layout]) -> String {
    let kind = |column: &Layout| {
        let kind = column.data_type().to_string();
        kind.split(['(', '<']).next().unwrap_or_default().to_owned()
    };
    let described = columns.iter().map(|column| format!("{} ({})", column.name(), kind(column)));
    described.collect::<Vec<_>>().join(", ")
}

#[derive(Default)]
struct Counts {
    nodes: usize,
    buffers: usize,
}

impl Counts {
    fn layout(&mut self, field: &ArrowField, depth: usize) -> Result<Layout, String> {
        if depth > MAX_COLUMN_DEPTH {
            return Err(format!(
                "the column {:?} is nested more than {MAX_COLUMN_DEPTH} deep",
                field.name()
            ));
        }
        let (node, buffer) = (self.nodes, self.buffers);
        self.nodes += 1;
        let fields: Vec<&ArrowField> = match field.data_type() {
            DataType::Null => Vec::new(),
            DataType::Utf8 | DataType::Binary | DataType::LargeUtf8 | DataType::LargeBinary => {
                self.buffers += 3;
                Vec::new()
            }
            DataType::List(child) | DataType::LargeList(child) | DataType::Map(child, _) => {
                self.buffers += 2;
                vec![child]
            }
            DataType::FixedSizeList(child, _) => {
                self.buffers += 1;
                vec![child]
            }
            DataType::Struct(fields) => {
                self.buffers += 1;
                fields.iter().map(AsRef::as_ref).collect()
            }
            other @ (DataType::Union(..)
            | DataType::RunEndEncoded(..)
            | DataType::Utf8View
            | DataType::BinaryView
            | DataType::ListView(_)
            | DataType::LargeListView(_)) => {
                return Err(format!(
                    "the column {:?} has the type {other}, which is not supported; write the file \
                     as Parquet",
                    field.name()
                ));
            }
            _ => {
                self.buffers += 2;
                Vec::new()
            }
        };
        let children = fields.into_iter().map(|field| self.layout(field, depth + 1));
        let children = children.collect::<Result<_, String>>()?;
        Ok(Layout { field: field.clone(), node, buffer, children })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_column_that_is_nested_too_deep_is_refused_by_name() {
        let nested = |levels: usize| {
            let field = |data_type| Arc::new(ArrowField::new("a", data_type, true));
            let list = (0..levels).fold(DataType::Int32, |inner, _| DataType::List(field(inner)));
            columns(&Schema::new(vec![ArrowField::new("a", list, true)]))
        };
        assert!(nested(MAX_COLUMN_DEPTH).is_ok());
        let message = nested(MAX_COLUMN_DEPTH + 1).unwrap_err();
        assert!(message.contains("\"a\" is nested more than 32 deep"), "{message}");
    }
}
