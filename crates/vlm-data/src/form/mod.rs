//! Makes one row of the values of a record: finds out which of the known forms it has, and reads
//! its turns, its images, and the position of each image in the turns. It accesses no files except
//! to check whether an image exists.
//!
//! Each form is a file with a table of its keys: lists of turns ([`turns`]), a question and an
//! answer ([`question`]), a caption ([`caption`]). Which values hold images ([`media`], [`keys`],
//! [`image_value`]) and how texts mark them ([`tags`]) is the same for all forms.

mod caption;
mod context;
mod image_value;
mod keys;
mod media;
mod parts;
mod question;
mod roles;
mod tags;
mod turns;

pub(crate) use context::{FormContext, is_rating};
pub(crate) use keys::is_image_name;
use keys::looks_like_image;
pub(crate) use media::is_image_column;

use std::sync::Once;

use crate::decode::{ImageLimits, RgbImage, image_size};
use crate::record::{Field, Record};
use crate::reject::Reject;
use crate::row_options::RowOptions;
use crate::rows::{Role, Row, RowImage, Turn};
use parts::PartImages;
use question::Question;
use vlm_display::count;

/// The row in `record`.
///
/// # Errors
/// A record of no known form, or one whose text or images cannot be used; the message says what was
/// expected and what was found.
pub(crate) fn row(record: &Record, context: &FormContext<'_>) -> Result<Row, Reject> {
    let mut part_images = PartImages::new();
    let form = Form::of(record);
    let is_caption = matches!(form, Some(Form::Caption(..)));
    let (mut turns, text_keys) = match form {
        Some(Form::Turns(key, value)) => {
            (turns::turns(value, key, record, context, &mut part_images)?, vec![key])
        }
        Some(Form::Question(question)) => {
            (question.turns(context, &mut part_images)?, question.keys())
        }
        Some(Form::Caption(key, value)) => (caption::turns((key, value), context)?, vec![key]),
        None => return Err(unknown(record)),
    };
    add_system(&mut turns, record)?;
    add_tools(&mut turns, record);
    let declared = media::images(record, &text_keys, context)?;
    if is_caption && declared.is_empty() {
        return Err(unknown(record));
    }
    let mut images = join(declared, part_images)?;
    let named = tags::take_named(&mut turns);
    if !named.is_empty() {
        warn_of_named_images();
    }
    images = match (images.is_empty(), named.is_empty()) {
        (_, true) => images,
        (true, false) => named,
        (false, false) if images.len() == named.len() => images,
        (false, false) => {
            return Err(Reject::ambiguous_images(format!(
                "{} beside the turns and {} in them as <img>…</img>; keep only one of the two",
                count(images.len(), "image"),
                named.len()
            )));
        }
    };
    if is_blank_filler(&turns, &images) {
        images.clear();
    }
    tags::place(&mut turns, &mut images)?;
    Ok(Row { turns, images })
}

/// The record with its images under one key, and their names in order, for sources that store the
/// images separately. Addresses are left out.
///
/// # Errors
/// As for [`row`].
pub(crate) fn take_images(
    record: Record,
    context: &FormContext<'_>,
) -> Result<(Record, Vec<String>), Reject> {
    let text_keys: Vec<String> = match Form::of(&record) {
        Some(Form::Turns(key, _) | Form::Caption(key, _)) => vec![key.to_owned()],
        Some(Form::Question(question)) => question.keys().into_iter().map(str::to_owned).collect(),
        None => Vec::new(),
    };
    let keys: Vec<&str> = text_keys.iter().map(String::as_str).collect();
    let images = media::images(&record, &keys, context)?;
    let names = images.into_iter().map(|image| image.name).filter(|name| !name.contains("://"));
    let is_text = |(key, value): &(String, Field)| {
        text_keys.contains(key)
            || (keys::kind_of(key) != keys::KeyKind::Image && !looks_like_image(value))
    };
    let names = names.collect();
    Ok((Record(record.0.into_iter().filter(is_text).collect()), names))
}

/// The turns of a list of turns that was parsed from JSON text.
///
/// # Errors
/// [`InvalidRow`](crate::RejectReason::InvalidRow).
pub(crate) fn turns_alone(list: &Field, context: &FormContext<'_>) -> Result<Vec<Turn>, Reject> {
    let record = Record::default();
    turns::turns(list, "conversations", &record, context, &mut PartImages::new())
}

/// Describes the form of a record and the keys it is read from: `turns from "messages", images from
/// "image"`.
pub(crate) fn describe(record: &Record) -> String {
    let form = match Form::of(record) {
        Some(Form::Turns(key, _)) => format!("turns from \"{key}\""),
        Some(Form::Question(question)) => {
            format!("a question and an answer from {}", question.name())
        }
        Some(Form::Caption(key, _)) => {
            format!("a caption from \"{key}\" as the answer to the caption question")
        }
        None => return "no known form".to_owned(),
    };
    let images: Vec<String> = record
        .0
        .iter()
        .filter(|(key, value)| !value.is_empty() && keys::kind_of(key) == keys::KeyKind::Image)
        .map(|(key, _)| format!("\"{key}\""))
        .collect();
    if images.is_empty() { form } else { format!("{form}, images from {}", images.join(", ")) }
}

/// Whether some form uses a column called `name`: rows are read only from such columns.
pub(crate) fn is_known_column(name: &str, options: &RowOptions) -> bool {
    let of_tables = [
        &turns::LIST_KEYS[..],
        &caption::CAPTION_KEYS[..],
        &question::SYSTEM_KEYS[..],
        &["history"],
        &turns::TOOL_KEYS[..],
        &question::LEFT_OUT[..],
        &media::PLAIN_KEYS[..],
    ];
    let is_key = |key: &&str| crate::record::is_key(name, key);
    let is_question =
        question::PAIRS.iter().flat_map(|(q, a)| q.iter().chain(a.iter())).any(&is_key);
    let is_rating = options.min_ratings.iter().any(|(rating, _)| is_rating(name, rating));
    is_question
        || is_rating
        || of_tables.iter().any(|table| table.iter().any(is_key))
        || keys::kind_of(name) != keys::KeyKind::Text
        || options.image_keys.iter().any(|key| key == name)
}

/// Whether records with these columns have a known form.
pub(crate) fn has_form(columns: &[&str]) -> bool {
    // The form depends only on which values are there, not on the values.
    let value = |name: &str| (name.to_owned(), Field::Text(" ".into()));
    let record = Record(columns.iter().map(|name| value(name)).collect());
    Form::of(&record).is_some()
}

/// Whether a record has a known form.
pub(crate) fn is_row(record: &Record) -> bool {
    Form::of(record).is_some()
}

enum Form<'a> {
    Turns(&'a str, &'a Field),
    Question(Question<'a>),
    Caption(&'a str, &'a Field),
}

impl<'a> Form<'a> {
    fn of(record: &'a Record) -> Option<Self> {
        // An empty list of turns counts only if there is no other list.
        let lists = turns::LIST_KEYS.iter().filter_map(|key| record.first_of(&[key]));
        let mut lists: Vec<(&str, &Field)> = lists.collect();
        lists.sort_by_key(|(_, value)| value.is_empty());
        if let Some(&(key, value)) = lists.first() {
            return Some(Self::Turns(key, value));
        }
        if let Some(question) = Question::of(record) {
            return Some(Self::Question(question));
        }
        let (key, value) = caption::of(record)?;
        Some(Self::Caption(key, value))
    }
}

/// Joins the images of the row with those that parts of its turns carry.
fn join(declared: Vec<RowImage>, parts: PartImages) -> Result<Vec<RowImage>, Reject> {
    let num_parts = parts.len();
    let carried: Vec<RowImage> = parts.into_iter().flatten().collect();
    if carried.is_empty() {
        return Ok(declared);
    }
    let is_same = || {
        let name = |image: &RowImage| image.name.rsplit(['/', '\\']).next().map(str::to_owned);
        declared.iter().map(name).eq(carried.iter().map(name))
    };
    if carried.len() < num_parts || !(declared.is_empty() || is_same()) {
        return Err(Reject::ambiguous_images(format!(
            "{} in the turns, {} of them with an image, and {} beside the turns; put all images \
                 either into the parts or beside the turns",
            count(num_parts, "image part"),
            carried.len(),
            count(declared.len(), "image")
        )));
    }
    Ok(carried)
}

/// Puts a system prompt that stands beside the turns before them.
fn add_system(turns: &mut Vec<Turn>, record: &Record) -> Result<(), Reject> {
    let Some((key, system)) = record.first_of(&question::SYSTEM_KEYS) else { return Ok(()) };
    if system.is_empty() {
        return Ok(());
    }
    let Field::Text(text) = system else {
        return Err(Reject::invalid_row(format!(
            "\"{key}\" should be text, but is {}",
            system.kind()
        )));
    };
    match turns.first() {
        Some(first) if first.role == Role::System && first.content == *text => {}
        Some(first) if first.role == Role::System => {
            return Err(Reject::invalid_row(format!(
                "the row has a system turn and another text in \"{key}\"; keep only one of them"
            )));
        }
        _ => turns.insert(0, Turn::new(Role::System, text.as_str())),
    }
    Ok(())
}

/// Gives the first turn the functions that stand beside the turns, from where the chat template gets
/// them. A key of that name may hold something else.
fn add_tools(turns: &mut [Turn], record: &Record) {
    static WARNED: Once = Once::new();
    let Some(first) = turns.first_mut().filter(|first| first.tools.is_none()) else { return };
    match turns::tools(record) {
        Ok(tools) => first.tools = tools,
        Err(reject) => WARNED.call_once(|| {
            tracing::warn!("rows have functions that are not used: {}", reject.detail);
        }),
    }
}

/// Warns once that texts name images, because a user whose text only looks like that should know.
fn warn_of_named_images() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            "rows name images in their texts as <img>…</img>, like those of Qwen-VL; each is read as \
             an image at that position"
        );
    });
}

/// Whether the only image is a black one of 8 × 8 pixels that no turn shows: MiniMind-V's text-only
/// rows have such an image, because its files need one in every row.
fn is_blank_filler(turns: &[Turn], images: &[RowImage]) -> bool {
    const SIDE: u32 = 8;
    const MAX_BYTES: usize = 4096;
    const BLACK: u8 = 2;
    let [RowImage { bytes: Some(bytes), .. }] = images else { return false };
    if bytes.len() > MAX_BYTES || crate::rows::num_image_tags(turns) > 0 {
        return false;
    }
    image_size(bytes) == Some((SIDE, SIDE))
        && RgbImage::decode(bytes, &ImageLimits::default())
            .is_ok_and(|image| image.pixels.iter().all(|&value| value <= BLACK))
}

fn unknown(record: &Record) -> Reject {
    let near = if record.first_of(&["chosen"]).is_some() {
        " (\"chosen\" is preference data; put the answer to learn under \"response\")"
    } else if caption::of(record).is_some() {
        " (a caption without an image)"
    } else if record
        .0
        .iter()
        .any(|(key, value)| keys::kind_of(key) == keys::KeyKind::Image && !value.is_empty())
    {
        " (an image without a text)"
    } else {
        ""
    };
    Reject::invalid_row(format!(
        "expected \"conversations\", \"messages\", a question with an answer, or an image with a \
         \"caption\"; found: {}{near}",
        record.keys()
    ))
}

impl Row {
    /// Parses one row of JSON in any of the forms that docs/data.md lists, with the default
    /// options: `{"conversations": [{"role", "content"}, …], "image": "a.jpg, b.jpg"}`, `messages`,
    /// a question and an answer, a caption. Names are split at commas, because there is no folder
    /// in which a file of the whole name could be.
    ///
    /// # Errors
    /// A row that cannot be used; see [`crate::RejectReason`].
    pub fn from_json(text: &str) -> Result<Self, Reject> {
        let options = RowOptions::default();
        let record =
            Field::from_json(text).and_then(Field::into_record).map_err(Reject::invalid_row)?;
        row(&record, &FormContext { options: &options, root: None })
    }

    /// Parses turns alone: a JSON list of them, or an object that has it as `conversations`.
    ///
    /// # Errors
    /// [`InvalidRow`](crate::RejectReason::InvalidRow).
    pub fn turns_from_json(text: &str) -> Result<Vec<Turn>, Reject> {
        let options = RowOptions::default();
        let context = FormContext { options: &options, root: None };
        match Field::from_json(text) {
            Ok(list @ Field::List(_)) => turns_alone(&list, &context),
            other => {
                let record = other.and_then(Field::into_record).map_err(Reject::invalid_row)?;
                Ok(row(&record, &context)?.turns)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::RejectReason;

    fn roles(text: &str) -> Vec<&'static str> {
        Row::from_json(text).unwrap().turns.iter().map(|turn| turn.role.name()).collect()
    }

    #[test]
    fn turns_without_roles_alternate_and_roles_are_honoured() {
        let row = r#"{"conversations":[{"content":"q"},{"content":"a"},{"content":"q"}]}"#;
        assert_eq!(roles(row), ["user", "assistant", "user"]);
        let row = r#"{"conversations":[{"role":"system","content":"s"},{"content":"q"},
                      {"content":"a"}]}"#;
        assert_eq!(roles(row), ["system", "user", "assistant"]);
        let row = r#"{"conversations":[{"role":"assistant","content":"a"},
                      {"from":"human","value":"q"},{"from":"gpt","value":"a"}]}"#;
        assert_eq!(roles(row), ["assistant", "user", "assistant"]);
    }

    #[test]
    fn functions_beside_the_turns_are_those_of_the_first_turn() {
        let tools = |more: &str| {
            let row =
                format!(r#"{{"messages":[{{"role":"user","content":"q"}}],"system":"s"{more}}}"#);
            let turns = Row::from_json(&row).unwrap().turns;
            assert_eq!(turns[0].role, Role::System);
            turns[0].tools.as_ref().map(ToString::to_string)
        };
        let expected = Some(r#"[{"name":"f"}]"#.to_owned());
        assert_eq!(tools(r#","tools":[{"name":"f"}]"#), expected);
        assert_eq!(tools(r#","functions":"[{\"name\":\"f\"}]""#), expected);
        assert_eq!(tools(r#","tools":["a spoon"]"#), None);
    }

    #[test]
    fn images_come_from_commas_a_list_or_nothing() {
        let images = |image: &str| {
            let row = format!(r#"{{"conversations":[{{"content":"q"}}]{image}}}"#);
            let images = Row::from_json(&row).unwrap().images;
            images.into_iter().map(|image| image.name).collect::<Vec<_>>()
        };
        assert_eq!(images(r#","image":"a.jpg, b/c.png""#), ["a.jpg", "b/c.png"]);
        assert_eq!(images(r#","image":["a, b.jpg","c.jpg"]"#), ["a, b.jpg", "c.jpg"]);
        for nothing in ["", r#","image":"""#, r#","image":null"#, r#","image":[]"#] {
            assert!(images(nothing).is_empty(), "{nothing}");
        }
    }

    #[test]
    fn what_is_no_row_is_rejected_with_what_was_found() {
        for (row, expected) in [
            ("<html>", "not JSON"),
            ("[1]", "found a list"),
            ("{\"caption\":\"x\"}", "found: caption (a caption without an image)"),
            ("{\"image\":\"x.jpg\"}", "an image without a text"),
            ("{\"label\":3}", "found: label"),
            ("{'conversations': []}", "json.dumps"),
            (r#"{"conversations":[]}"#, "empty"),
            (r#"{"conversations":"x"}"#, "is a string"),
            (r#"{"conversations":["x"]}"#, "turn 0"),
            (r#"{"conversations":[{"role":"user"}]}"#, "no \"content\""),
            (r#"{"conversations":[{"role":"juror","content":""}]}"#, "\"juror\""),
            (r#"{"conversations":[{"content":true}]}"#, "a boolean"),
            (r#"{"conversations":[{"role":"user","content":null}]}"#, "is null"),
            (r#"{"conversations":[{"content":"q"}],"image":7}"#, "a number"),
            (r#"{"conversations":[{"content":"q"}],"image":[""]}"#, "an empty name"),
        ] {
            let reject = Row::from_json(row).unwrap_err();
            assert_eq!(reject.reason, RejectReason::InvalidRow, "{row}");
            assert!(reject.detail.contains(expected), "{row}: {}", reject.detail);
        }
    }
}
