//! Makes the nested value of a row from the values of leaf columns with their levels, which the
//! Parquet format calls record assembly. It knows neither pages nor files.

use parquet::basic::{ConvertedType, LogicalType, Repetition};
use parquet::schema::types::{SchemaDescriptor, Type};

use crate::limits::MAX_COLUMN_DEPTH;
use crate::record::{Field, Record};

/// A value of a leaf column, or a missing one, with its levels.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) definition: i16,
    /// Zero at the start of a row.
    pub(super) repetition: i16,
    /// Null unless `definition` is the highest level of the column.
    pub(super) value: Field,
}

/// A top-level column of the table, which may be nested.
#[derive(Debug)]
pub(super) struct TopColumn {
    pub(super) name: String,
    /// Indices of its leaf columns in the file.
    pub(super) leaves: std::ops::Range<usize>,
    node: Node,
}

/// A part of a column.
#[derive(Debug)]
struct Node {
    /// The value is null below this definition level.
    present_at: i16,
    /// Indices of its leaf columns among those of the top-level column.
    leaves: std::ops::Range<usize>,
    shape: Shape,
}

#[derive(Debug)]
enum Shape {
    Leaf,
    Object(Vec<(String, Node)>),
    /// A list has elements from definition level `filled_at` on; each begins at repetition level
    /// `repeated_at` or below.
    List {
        filled_at: i16,
        repeated_at: i16,
        element: Box<Node>,
    },
}

/// The columns of a file.
///
/// # Errors
/// A column that is nested too deep.
pub(super) fn top_columns(schema: &SchemaDescriptor) -> Result<Vec<TopColumn>, String> {
    let mut next_leaf = 0;
    let fields = schema.root_schema().get_fields();
    fields
        .iter()
        .map(|field| {
            let first = next_leaf;
            let node = Builder { first, next_leaf: &mut next_leaf }.node(field, 0, 0, 0)?;
            Ok(TopColumn { name: field.name().to_owned(), leaves: first..next_leaf, node })
        })
        .collect()
}

struct Builder<'a> {
    first: usize,
    next_leaf: &'a mut usize,
}

impl Builder<'_> {
    /// The node of `field`, below a parent with these levels.
    fn node(
        &mut self,
        field: &Type,
        definition: i16,
        repetition: i16,
        depth: usize,
    ) -> Result<Node, String> {
        if depth > MAX_COLUMN_DEPTH {
            return Err(format!(
                "the column {:?} is nested more than {MAX_COLUMN_DEPTH} deep",
                field.name()
            ));
        }
        let info = field.get_basic_info();
        let kind = if info.has_repetition() { info.repetition() } else { Repetition::REQUIRED };
        if kind == Repetition::REPEATED {
            // A list without the enclosing groups that the format requires today.
            let start = *self.next_leaf - self.first;
            let (filled_at, repeated_at) = (definition + 1, repetition + 1);
            let element = Box::new(self.plain(field, filled_at, repeated_at, depth + 1)?);
            let shape = Shape::List { filled_at, repeated_at, element };
            let leaves = start..*self.next_leaf - self.first;
            return Ok(Node { present_at: definition, leaves, shape });
        }
        let definition = definition + i16::from(kind == Repetition::OPTIONAL);
        self.plain(field, definition, repetition, depth)
    }

    /// The node of `field`, which is present from level `definition` on.
    fn plain(
        &mut self,
        field: &Type,
        definition: i16,
        repetition: i16,
        depth: usize,
    ) -> Result<Node, String> {
        let start = *self.next_leaf - self.first;
        let shape = if field.is_primitive() {
            *self.next_leaf += 1;
            Shape::Leaf
        } else if let Some(repeated) = repeated_of_list(field) {
            let (filled_at, repeated_at) = (definition + 1, repetition + 1);
            let element = match element_of(field, repeated) {
                Some(element) => self.node(element, filled_at, repeated_at, depth + 1)?,
                None => self.plain(repeated, filled_at, repeated_at, depth + 1)?,
            };
            Shape::List { filled_at, repeated_at, element: Box::new(element) }
        } else {
            let fields = field.get_fields();
            let children = fields.iter().map(|child| {
                Ok((child.name().to_owned(), self.node(child, definition, repetition, depth + 1)?))
            });
            Shape::Object(children.collect::<Result<_, String>>()?)
        };
        let leaves = start..*self.next_leaf - self.first;
        Ok(Node { present_at: definition, leaves, shape })
    }
}

/// The repeated field in a group that is marked as a list.
fn repeated_of_list(field: &Type) -> Option<&Type> {
    let info = field.get_basic_info();
    let is_list = info.converted_type() == ConvertedType::LIST
        || info.logical_type_ref() == Some(&LogicalType::List);
    let [only] = field.get_fields() else { return None };
    let only_info = only.get_basic_info();
    let repeats = only_info.has_repetition() && only_info.repetition() == Repetition::REPEATED;
    (is_list && repeats).then_some(only.as_ref())
}

/// The element in the repeated field of a list; `None` where older writers made the repeated field
/// itself the element.
fn element_of<'a>(list: &Type, repeated: &'a Type) -> Option<&'a Type> {
    if repeated.is_primitive() {
        return None;
    }
    let [element] = repeated.get_fields() else { return None };
    let is_element =
        repeated.name() == "array" || repeated.name() == format!("{}_tuple", list.name());
    (!is_element).then_some(element.as_ref())
}

impl TopColumn {
    /// The value of a row; `cells` has the row's cells of each leaf column.
    ///
    /// # Errors
    /// Leaf columns that contradict each other.
    pub(super) fn assemble(&self, cells: &[&[Cell]]) -> Result<Field, String> {
        self.node.assemble(cells)
    }

    /// Whether it is a struct of `bytes` and `path`, or a list of such structs: an image or audio.
    pub(super) fn is_image_struct(&self) -> bool {
        let mut node = &self.node;
        while let Shape::List { element, .. } = &node.shape {
            node = element;
        }
        match &node.shape {
            Shape::Object(fields) => {
                fields.len() == 2
                    && fields.iter().all(|(name, _)| name == "bytes" || name == "path")
            }
            _ => false,
        }
    }
}

impl Node {
    fn assemble(&self, cells: &[&[Cell]]) -> Result<Field, String> {
        let own = cells.get(self.leaves.clone()).ok_or("a leaf column is missing")?;
        let Some(first) = own.first().and_then(|cells| cells.first()) else {
            return Ok(Field::Null);
        };
        if first.definition < self.present_at {
            return Ok(Field::Null);
        }
        match &self.shape {
            Shape::Leaf => Ok(first.value.clone()),
            Shape::Object(children) => {
                let child =
                    |(name, node): &(String, Node)| Ok((name.clone(), node.assemble(cells)?));
                Ok(Field::Object(Record(
                    children.iter().map(child).collect::<Result<_, String>>()?,
                )))
            }
            Shape::List { filled_at, .. } if first.definition < *filled_at => {
                Ok(Field::List(Vec::new()))
            }
            Shape::List { repeated_at, element, .. } => {
                let mut rest: Vec<&[Cell]> = cells.to_vec();
                let mut list = Vec::new();
                while !rest[self.leaves.start].is_empty() {
                    let mut of_element = vec![&[][..]; cells.len()];
                    for leaf in self.leaves.clone() {
                        let column = rest[leaf];
                        let begins = |cell: &Cell| cell.repetition <= *repeated_at;
                        let length = column.iter().skip(1).position(begins);
                        let length = length.map_or(column.len(), |at| at + 1);
                        if length == 0 {
                            return Err("its leaf columns have lists of different lengths".into());
                        }
                        (of_element[leaf], rest[leaf]) = column.split_at(length);
                    }
                    list.push(element.assemble(&of_element)?);
                }
                Ok(Field::List(list))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parquet::schema::parser::parse_message_type;

    use super::*;

    #[test]
    fn a_column_that_is_nested_too_deep_is_refused_by_name() {
        let columns = |depth: usize| {
            let open = "required group g { ".repeat(depth);
            let text = format!("message m {{ {open} required int32 x; {} }}", "}".repeat(depth));
            let schema = parse_message_type(&text).unwrap();
            top_columns(&SchemaDescriptor::new(Arc::new(schema)))
        };
        assert_eq!(columns(MAX_COLUMN_DEPTH).unwrap().len(), 1);
        let message = columns(MAX_COLUMN_DEPTH + 1).unwrap_err();
        assert_eq!(message, "the column \"x\" is nested more than 32 deep");
    }
}
