//! Chooses the columns of a table with a schema (Parquet, Arrow) from which rows are read.

use std::path::Path;
use std::sync::Arc;

use crate::file_source::Columns;
use crate::form;
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::row_error::{ReadError, RowError};
use crate::row_options::RowOptions;

/// The columns from which rows are read.
#[derive(Debug)]
pub(crate) struct UsedColumns<C>(Vec<UsedColumn<C>>);

#[derive(Debug)]
struct UsedColumn<C> {
    name: String,
    column: C,
    holds_images: bool,
}

impl<C> UsedColumns<C> {
    /// Those of the columns, each with its name, that are known to `options`.
    pub(crate) fn of(all: impl Iterator<Item = (String, C)>, options: &RowOptions) -> Self {
        let used = |(name, column): (String, C)| UsedColumn {
            holds_images: form::is_image_column(&name, &options.image_keys),
            name,
            column,
        };
        Self(all.filter(|(name, _)| form::is_known_column(name, options)).map(used).collect())
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &C> {
        self.0.iter().map(|used| &used.column)
    }

    /// The values of a row of the file at `path`; `value` reads that of a column.
    ///
    /// # Errors
    /// A value that cannot be read; the message names its column.
    pub(crate) fn record(
        &self,
        path: &Path,
        columns: Columns,
        value: impl Fn(&C) -> Result<Field, ReadError>,
    ) -> Result<Record, RowError> {
        let mut record = Record::default();
        for UsedColumn { name, column, holds_images } in &self.0 {
            if columns == Columns::All || !holds_images {
                let rejected = |e: String| Reject::invalid_row(format!("column {name:?}: {e}"));
                let value = value(column).map_err(|e| e.into_row_error(path, rejected))?;
                record.0.push((name.clone(), value));
            }
        }
        Ok(record)
    }
}

/// The properties by which a column is chosen.
#[derive(Debug)]
pub(crate) struct TableColumn<'a> {
    pub(crate) name: &'a str,
    /// Whether it is a struct of `bytes` and `path`, or a list of such structs: an image or audio.
    pub(crate) is_image_struct: bool,
    /// Whether it has bytes that are not marked as text.
    pub(crate) is_binary: bool,
    /// The names of the column and of all nested fields.
    pub(crate) parts: Vec<&'a str>,
}

/// The options with which the rows are read. If the only image column is known by its type and not
/// by its name, they name it. Rows are read from the columns that [`form::is_known_column`] then
/// accepts.
///
/// # Errors
/// Columns of no known form, or with images that would not be read; ratings that do not exist.
/// `described` lists the columns for the messages.
pub(crate) fn resolve_options(
    columns: &[TableColumn<'_>],
    described: &str,
    options: &Arc<RowOptions>,
) -> Result<Arc<RowOptions>, String> {
    let mut options = Arc::clone(options);
    let is_known =
        |column: &&TableColumn, options: &RowOptions| form::is_known_column(column.name, options);
    let is_image = |column: &TableColumn, options: &RowOptions| {
        form::is_image_column(column.name, &options.image_keys)
    };
    let by_type: Vec<&str> = columns
        .iter()
        .filter(|column| column.is_image_struct && !is_known(column, &options))
        .map(|column| column.name)
        .collect();
    if let [first, ..] = by_type[..]
        && options.image_keys.is_empty()
    {
        if by_type.len() > 1 || columns.iter().any(|column| is_image(column, &options)) {
            return Err(format!(
                "the column {first:?} seems to hold images, but its name is not known; rename the \
                 column whose images the rows show to \"image\", and drop the others; the columns \
                 are: {described}"
            ));
        }
        Arc::make_mut(&mut options).image_keys = vec![first.to_owned()];
    }
    let known: Vec<&TableColumn> =
        columns.iter().filter(|column| is_known(column, &options)).collect();
    let names: Vec<&str> = known.iter().map(|column| column.name).collect();
    if !form::has_form(&names) {
        return Err(format!(
            "expected a column \"conversations\", \"messages\" or \"texts\", a question with an \
             answer, or a caption (and images as \"image\", \"images\" or \"image_bytes\"); found: \
             {described}"
        ));
    }
    let has_image = known.iter().any(|column| is_image(column, &options));
    let unread = |column: &&TableColumn| column.is_binary && !is_known(column, &options);
    if let (false, Some(column)) = (has_image, columns.iter().find(unread)) {
        return Err(format!(
            "the column {:?} has bytes that may be images, and no other column has images; rename \
             it to \"image\", or drop it",
            column.name
        ));
    }
    let has_rating = |name: &str| {
        columns.iter().flat_map(|column| &column.parts).any(|part| form::is_rating(part, name))
    };
    if let Some((name, _)) = options.min_ratings.iter().find(|(name, _)| !has_rating(name)) {
        return Err(format!(
            "`min_rating` names {name:?}, but there is no such column (nor {name}_ratings); found: \
             {described}"
        ));
    }
    Ok(options)
}
