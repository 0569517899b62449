//! Limits the cost of rendering a chat template, so that a template that loops without end or
//! doubles a text again and again is refused instead of filling the memory or occupying a thread.
//!
//! The template engine counts instructions, but not the bytes that an instruction reads and makes.
//! Therefore the operators that build texts and lists, and the filters and methods that read a text
//! or make more of it, are replaced by functions that count these bytes first.

use std::cell::Cell;

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State, Value, filters};
use serde_json::ser::PrettyFormatter;

use crate::limits::{
    MAX_RENDERED_BYTES, MAX_TEMPLATE_DEPTH, MAX_TEMPLATE_STEPS, MAX_TEMPLATE_TEXT_BYTES,
};
use crate::python_json;

/// Bytes that are counted for an item of a list, however short.
const ITEM: usize = 64;

/// Largest indentation of JSON; a larger one is ignored.
const MAX_INDENT: usize = 16;

thread_local! {
    /// Number of bytes that the rendering of this thread may still build.
    static BYTES_LEFT: Cell<usize> = const { Cell::new(0) };
}

/// Start of the message about a limit that was reached.
pub(crate) const TOO_MUCH_WORK: &str = "the template does too much work";

pub(crate) fn exceeded(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{TOO_MUCH_WORK}: {what}"))
}

/// The message for an error of the engine that means that a limit was reached.
pub(crate) fn explain(error: &Error) -> Option<String> {
    (error.kind() == ErrorKind::OutOfFuel)
        .then(|| format!("{TOO_MUCH_WORK}: more than {MAX_TEMPLATE_STEPS} steps"))
}

/// Begins a rendering on this thread.
pub(crate) fn start_counting() {
    BYTES_LEFT.set(MAX_RENDERED_BYTES);
}

fn spend(bytes: usize) -> Result<(), Error> {
    let left = BYTES_LEFT.get().checked_sub(bytes);
    BYTES_LEFT.set(left.unwrap_or(0));
    left.map(drop)
        .ok_or_else(|| exceeded(&format!("it builds more than {MAX_RENDERED_BYTES} bytes")))
}

fn spend_text(bytes: usize) -> Result<(), Error> {
    if bytes > MAX_TEMPLATE_TEXT_BYTES {
        return Err(exceeded(&format!(
            "it builds a text of more than {MAX_TEMPLATE_TEXT_BYTES} bytes"
        )));
    }
    spend(bytes)
}

/// Counts the bytes of a value that becomes a text, with escapes for what a text cannot have: the
/// text is a few times longer at most.
fn spend_as_text(value: &Value) -> Result<(), Error> {
    let before = BYTES_LEFT.get();
    spend_value(value, 0)?;
    spend_text(before - BYTES_LEFT.get())
}

/// Counts the bytes of a value's text, or a fixed number for each item of a list.
fn spend_value(value: &Value, depth: usize) -> Result<(), Error> {
    if depth > MAX_TEMPLATE_DEPTH {
        return Err(exceeded(&format!("its lists are nested more than {MAX_TEMPLATE_DEPTH} deep")));
    }
    match value.kind() {
        ValueKind::String => spend_text(value.as_str().map_or(0, str::len)),
        ValueKind::Seq | ValueKind::Iterable => {
            for item in value.try_iter()? {
                spend(ITEM)?;
                spend_value(&item, depth + 1)?;
            }
            Ok(())
        }
        ValueKind::Map => {
            for key in value.try_iter()? {
                spend(ITEM)?;
                spend_value(&key, depth + 1)?;
                spend_value(&value.get_item(&key)?, depth + 1)?;
            }
            Ok(())
        }
        _ => spend(ITEM),
    }
}

fn spend_all(values: &[Value]) -> Result<(), Error> {
    values.iter().try_for_each(|value| spend_value(value, 0))
}

/// Names of the functions that replace operators.
pub(crate) const ADD: &str = "operator +";
pub(crate) const CONCAT: &str = "operator ~";
pub(crate) const TIMES: &str = "operator *";
pub(crate) const LIST: &str = "list of";
pub(crate) const MAP: &str = "map of";

/// Adds the counting functions, filters and methods.
pub(crate) fn set_up(environment: &mut Environment<'static>) {
    environment.set_recursion_limit(4 * MAX_TEMPLATE_DEPTH);
    environment.add_function(ADD, add);
    environment.add_function(CONCAT, |a: &Value, b: &Value| -> Result<Value, Error> {
        spend_as_text(a)?;
        spend_as_text(b)?;
        Ok(Value::from(format!("{a}{b}")))
    });
    environment.add_function(TIMES, times);
    environment.add_function(LIST, |items: Rest<Value>| -> Result<Value, Error> {
        spend_all(&items)?;
        Ok(Value::from(items.0))
    });
    environment.add_function(MAP, |pairs: Rest<Value>| -> Result<Value, Error> {
        spend_all(&pairs)?;
        let pairs = pairs.chunks_exact(2).map(|pair| (pair[0].clone(), pair[1].clone()));
        Ok(pairs.collect::<Value>())
    });
    let counted = [
        ("count", Value::from_function(filters::length)),
        ("e", Value::from_function(filters::escape)),
        ("escape", Value::from_function(filters::escape)),
        ("length", Value::from_function(filters::length)),
        ("lines", Value::from_function(filters::lines)),
        ("lower", Value::from_function(filters::lower)),
        ("reverse", Value::from_function(filters::reverse)),
        ("split", Value::from_function(filters::split)),
        ("title", Value::from_function(filters::title)),
        ("trim", Value::from_function(filters::trim)),
        ("upper", Value::from_function(filters::upper)),
        ("replace", Value::from_function(filters::replace)),
        ("join", Value::from_function(filters::join)),
        ("indent", Value::from_function(filters::indent)),
        ("format", Value::from_function(filters::format)),
        ("batch", Value::from_function(filters::batch)),
        ("slice", Value::from_function(filters::slice)),
        ("list", Value::from_function(filters::list)),
        ("string", Value::from_function(filters::string)),
        ("pprint", Value::from_function(filters::pprint)),
        ("sort", Value::from_function(filters::sort)),
        ("unique", Value::from_function(filters::unique)),
    ];
    for (name, filter) in counted {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            spend_result(name, &args)?;
            filter.call(state, &args)
        });
    }
    environment.add_filter("tojson", |value: Value, options: Kwargs| -> Result<String, Error> {
        spend_as_text(&value)?;
        let indent: Option<usize> = options.get("indent")?;
        options.assert_all_used()?;
        let text = match indent.filter(|&indent| indent <= MAX_INDENT) {
            Some(indent) => {
                let spaces = vec![b' '; indent];
                python_json::with_formatter(&value, PrettyFormatter::with_indent(&spaces))
            }
            None => python_json::in_one_line(&value),
        };
        text.map_err(|e| Error::new(ErrorKind::BadSerialization, e))
    });
    environment.set_unknown_method_callback(|state, value, method, args| {
        let mut all = vec![value.clone()];
        all.extend_from_slice(args);
        if method == "join" {
            all.reverse();
        }
        spend_result(method, &all)?;
        minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
    });
    environment.set_formatter(|out, state, value| {
        spend_as_text(value)?;
        minijinja::escape_formatter(out, state, value)
    });
}

/// Counts the result of a filter or method from its arguments, of which the first is the value
/// itself.
fn spend_result(name: &str, args: &[Value]) -> Result<(), Error> {
    match name {
        "format" | "join" | "pprint" | "string" => args.iter().try_for_each(spend_as_text)?,
        // Lists are not counted: `messages | length` stands in many loops.
        "count" | "length" | "reverse" => {
            spend_text(args.first().and_then(Value::as_str).map_or(0, str::len))?;
        }
        _ => spend_all(args)?,
    }
    let text = |k: usize| args.get(k).and_then(Value::as_str).unwrap_or_default();
    let number = |k: usize| args.get(k).and_then(Value::as_usize).unwrap_or(0);
    let named = |name: &str| args.last().and_then(|last| last.get_attr(name).ok()?.as_usize());
    let longer = match name {
        "replace" => text(0).matches(text(1)).count().saturating_mul(text(2).len()),
        "join" => args[0].len().unwrap_or(0).saturating_mul(text(1).len()),
        "indent" => {
            let width = number(1).max(named("width").unwrap_or(0));
            (text(0).lines().count() + 1).saturating_mul(width)
        }
        // Widths are digits in the text ('%99s', '{:99}') or separate numbers ('%*d').
        "format" if text(0).contains('*') => {
            return Err(exceeded("it formats a text with a width given as an argument"));
        }
        "format" => {
            let digits = text(0).split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
            digits.map(|run| run.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
        }
        _ => 0,
    };
    spend_text(longer)?;
    spend(pieces(name, args).saturating_mul(ITEM))
}

/// Number of items that a filter or method makes of a text or out of nothing.
fn pieces(name: &str, args: &[Value]) -> usize {
    let text = args.first().and_then(Value::as_str).unwrap_or_default();
    let of_text = match name {
        "list" | "sort" | "unique" | "batch" | "slice" => text.len(),
        "split" | "rsplit" => match args.get(1).and_then(Value::as_str) {
            Some(separator) => text.matches(separator).count(),
            None => text.split_whitespace().count(),
        },
        "lines" | "splitlines" => text.lines().count(),
        _ => 0,
    };
    let filled = match name {
        "batch" | "slice" => args.get(1).and_then(Value::as_usize).unwrap_or(0),
        _ => 0,
    };
    of_text.saturating_add(filled)
}

/// `a + b`, as in the engine.
fn add(a: &Value, b: &Value) -> Result<Value, Error> {
    spend_value(a, 0)?;
    spend_value(b, 0)?;
    if let (Some(a), Some(b)) = (a.as_str(), b.as_str()) {
        return Ok(Value::from([a, b].concat()));
    }
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    if is_list(a) && is_list(b) {
        return Ok(a.try_iter()?.chain(b.try_iter()?).collect::<Vec<Value>>().into());
    }
    of_numbers("+", a, b, i64::checked_add, |a, b| a + b)
}

/// `a * b`, as in the engine.
fn times(a: &Value, b: &Value) -> Result<Value, Error> {
    let (value, count) = if a.as_usize().is_some() { (b, a) } else { (a, b) };
    let count = count.as_usize();
    match (value.kind(), count) {
        (ValueKind::String, Some(count)) => {
            let text = value.as_str().unwrap_or_default();
            spend_text(text.len().saturating_mul(count))?;
            Ok(Value::from(text.repeat(count)))
        }
        (ValueKind::Seq | ValueKind::Iterable, Some(count)) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            spend(items.len().saturating_mul(count).saturating_mul(ITEM))?;
            let all = std::iter::repeat_n(&items, count).flatten().cloned();
            Ok(all.collect::<Vec<Value>>().into())
        }
        _ => of_numbers("*", a, b, i64::checked_mul, |a, b| a * b),
    }
}

fn of_numbers(
    operator: &str,
    a: &Value,
    b: &Value,
    of_integers: fn(i64, i64) -> Option<i64>,
    of_floats: fn(f64, f64) -> f64,
) -> Result<Value, Error> {
    let is_number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !is_number(a) || !is_number(b) {
        let problem = format!("{operator} cannot be used between {} and {}", a.kind(), b.kind());
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    if let (Some(a), Some(b)) = (a.as_i64(), b.as_i64()) {
        let result = of_integers(a, b).ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("{a} {operator} {b} is too large"))
        })?;
        return Ok(Value::from(result));
    }
    let float = |value: &Value| f64::try_from(value.clone());
    Ok(Value::from(of_floats(float(a)?, float(b)?)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crate::limits::{MAX_ELIFS, MAX_TAG_TOKENS};
    use crate::template::{ChatTemplate, TemplateInput};

    fn error(source: &str) -> String {
        let rendered = ChatTemplate::new(source, BTreeMap::new()).and_then(|template| {
            template.render(&TemplateInput::default(), false).map_err(|reject| reject.detail)
        });
        rendered
            .map(|text| format!("it rendered {} bytes", text.len()))
            .unwrap_or_else(|error| error)
    }

    #[test]
    fn templates_that_would_not_end_or_fill_memory_are_refused() {
        let doubling = |set: &str| format!("{{% set x = 'xy' %}}{}", set.repeat(60));
        let looped = |body: &str| {
            format!(
                "{{% set ns = namespace(x='xy', l=[1]) %}}{{% for i in range(99) %}}{body}{{% endfor %}}"
            )
        };
        for source in [
            "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}\
             {% endfor %}{% endfor %}{% endfor %}"
                .to_owned(),
            doubling("{% set x = x + x %}"),
            doubling("{% set x = x ~ x %}"),
            doubling("{% set x = [x, x] %}") + "{{ x }}",
            doubling("{% set x = {'a': x, 'b': x} %}") + "{{ x }}",
            doubling("{% set x = x | replace('x', x) %}"),
            doubling("{% set x = x.replace('x', x) %}"),
            doubling("{% set x = [x, x] | join(x) %}"),
            doubling("{% set x = x.join([x, x]) %}"),
            doubling("{% set x %}{{ x }}{{ x }}{% endset %}"),
            doubling("{% set x = x * 9 %}"),
            doubling("{% set x = x | pprint %}{% set x = x | pprint %}"),
            doubling("{% set x = [x] | string %}{% set x = [x] | string %}"),
            doubling("{% set x = x | tojson %}{% set x = [x] | tojson %}"),
            looped("{% set ns.x = ns.x * 2 %}{% set ns.l = [ns.l, ns.x | list] %}"),
            looped("{% set ns.x = ns.x * 2 %}{% set ns.l = [ns.l, ns.x.split('x')] %}"),
            looped("{% set ns.x = ns.x * 2 %}{% set ns.l = [ns.l, ns.x | split('y')] %}"),
            "{% set x = 'x' * 999999 %}{% for i in range(99999) %}{% set y = x | upper %}{% endfor %}"
                .to_owned(),
            looped("{% set ns.x = ns.x + ns.x %}"),
            looped("{% set ns.l = ns.l + ns.l %}") + "{{ ns.l | length }}",
            looped("{% set ns.l = [ns.l, ns.l] %}") + "{{ ns.l | tojson }}",
            looped("{% set ns.l = ns.l * 9 %}"),
            looped("{% set ns.x = ns.x | indent(99999, first=true) %}"),
            "{% set x = 'x' * 99999999999 %}".to_owned(),
            "{% set x = 'x' * 99999999 %}".to_owned(),
            "{% set n = 999 %}{% set n = n * n * n %}{{ 'x' * n }}".to_owned(),
            "{{ 'a' | indent(width=999999999, first=true) }}".to_owned(),
            "{{ '%999999999d' | format(1) }}".to_owned(),
            "{{ '{:>999999999}'.format(1) }}".to_owned(),
            "{{ [1] | batch(999999999, 0) | list }}".to_owned(),
            "{{ [1] | slice(999999999) | list }}".to_owned(),
            "{% macro f(x) %}{{ f(x ~ x) }}{% endmacro %}{{ f('xy') }}".to_owned(),
            "{% macro f(x) %}{{ x }}{% for i in range(9) %}{{ f(x) }}{% endfor %}{% endmacro %}\
             {{ f('xy') }}"
                .to_owned(),
            format!(
                "{{% set x %}}{{% for i in range(99999) %}}{}{{% endfor %}}{{% endset %}}",
                "raw ".repeat(9999)
            ),
        ] {
            let error = error(&source);
            let is_named = error.contains("too much work") || error.contains("recursion limit");
            assert!(is_named, "{source:.200}: {error}");
        }
    }

    #[test]
    fn chains_that_would_overflow_the_stack_of_the_compiler_are_refused() {
        let chain = |link: &str, links: usize| format!("{{{{ a{} }}}}", link.repeat(links));
        let elifs =
            |number: usize| format!("{{% if a %}}{}{{% endif %}}", "{% elif a %}".repeat(number));
        let compile = |source: &str| ChatTemplate::new(source, BTreeMap::new()).map(drop);
        let links = ["**1", "+1", "~x", "|e", ".a", "[0]", "()", "[1:2]", " and 1", " is x"];
        for source in links
            .map(|link| chain(link, 65_000 / link.len()))
            .into_iter()
            .chain([format!("{{{{ {}a }}}}", "not ".repeat(60_000)), elifs(20_000)])
        {
            let error = compile(&source).unwrap_err();
            assert!(error.contains("too much work"), "{source:.50}: {error}");
        }
        for link in links {
            // A link has at most five tokens.
            compile(&chain(link, MAX_TAG_TOKENS / 5 - 1)).unwrap();
        }
        compile(&elifs(MAX_ELIFS)).unwrap();
        // Text and many short tags are not limited.
        compile(&"{{ a }} text ".repeat(MAX_TAG_TOKENS)).unwrap();
    }

    #[test]
    fn operators_are_what_they_are_elsewhere() {
        for (source, expected) in [
            ("{{ 'a' + 'b' ~ 1 ~ none }}", "ab1None"),
            (
                "{{ 1 + 2 * 3 }} {{ 1.5 + 1 }} {{ 2 * 0.5 }} {{ '-' * 3 }} {{ 3 * '=' }}",
                "7 2.5 1.0 --- ===",
            ),
            ("{{ [1] + [2, 'c'] }}{{ ([0] * 2) | length }}", "[1, 2, \"c\"]2"),
            (
                "{{ {'a': 1, 'b': [2]}['b'][0] }}{{ {'z': 1, 'a': 2} | tojson }}",
                "2{\"z\": 1, \"a\": 2}",
            ),
            ("{% for k, v in {'z': 1, 'a': 2}.items() %}{{ k }}{{ v }}{% endfor %}", "z1a2"),
            (
                "{{ 'a-b' | replace('-', '+') }}{{ ['x', 'y'] | join('*') }}{{ '**b**' }}",
                "a+bx*y**b**",
            ),
            (
                "{{ 'a\nb' | indent(2) }}{{ '%s!' | format('c') }}{{ ','.join(['a', 'b']) }}",
                "a\n  bc!a,b",
            ),
        ] {
            let template = ChatTemplate::new(source, BTreeMap::new()).unwrap();
            let rendered = template.render(&TemplateInput::default(), false);
            assert_eq!(rendered.unwrap(), expected, "{source}");
        }
        assert!(error("{{ 'a' + 1 }}").contains("+ cannot be used between string and number"));
    }
}
