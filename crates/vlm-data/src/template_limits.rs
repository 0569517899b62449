//! Limits on what rendering a chat template may cost, so that one that loops without end or doubles
//! a text again and again is refused instead of filling memory or keeping a thread busy.
//!
//! The template engine counts instructions. It does not count the bytes that one instruction makes,
//! so the operators that build texts and lists, and the filters and methods whose results can be
//! much longer than what they are given, are replaced by functions that count these bytes first.

use std::cell::Cell;
use std::collections::BTreeMap;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, Vm, WhitespaceConfig, make_string_output,
    parse, tokenize,
};
use minijinja::value::{Rest, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, Value, filters};

/// Instructions of one rendering. The templates in use need some hundred for a turn.
pub(crate) const MAX_STEPS: u64 = 500_000;

/// Bytes that one rendering may build, its output included; the text of a row counts a few times.
pub(crate) const MAX_BYTES: usize = 128 << 20;

/// How deeply lists may lie in each other, and macros may call each other.
const MAX_DEPTH: usize = 64;

thread_local! {
    /// What the rendering of this thread may still build.
    static BYTES_LEFT: Cell<usize> = const { Cell::new(0) };
}

/// How the message about a limit that was reached begins.
pub(crate) const TOO_MUCH_WORK: &str = "the template does too much work";

fn exceeded(what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{TOO_MUCH_WORK}: {what}"))
}

/// An error of the engine that says that a limit was reached, in words.
pub(crate) fn explain(error: &Error) -> Option<String> {
    (error.kind() == ErrorKind::OutOfFuel)
        .then(|| format!("{TOO_MUCH_WORK}: more than {MAX_STEPS} steps"))
}

fn spend(bytes: usize) -> Result<(), Error> {
    let left = BYTES_LEFT.get().checked_sub(bytes);
    BYTES_LEFT.set(left.unwrap_or(0));
    left.map(drop).ok_or_else(|| exceeded(&format!("it builds more than {MAX_BYTES} bytes")))
}

/// Counts the bytes of a value's text, or as many for each item of a list.
fn spend_value(value: &Value, depth: usize) -> Result<(), Error> {
    /// An item takes memory however short it is.
    const ITEM: usize = 64;
    if depth > MAX_DEPTH {
        return Err(exceeded(&format!("its lists lie more than {MAX_DEPTH} deep in each other")));
    }
    match value.kind() {
        ValueKind::String => spend(value.as_str().map_or(0, str::len)),
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

/// A template compiled with the functions below in the place of operators.
#[derive(Debug)]
pub(crate) struct BoundedTemplate {
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

const ADD: &str = "operator +";
const CONCAT: &str = "operator ~";
const TIMES: &str = "operator *";
const LIST: &str = "list of";
const MAP: &str = "map of";

impl BoundedTemplate {
    /// Compiles `source`, which must live as long as the program: a program opens few tokenizers.
    ///
    /// # Errors
    /// The template's syntax; constants that are too large when they are multiplied.
    pub(crate) fn compile(
        name: &'static str,
        source: &'static str,
        whitespace: WhitespaceConfig,
    ) -> Result<Self, Error> {
        check_constant_products(source, whitespace)?;
        let syntax_tree = parse(source, name, Default::default(), whitespace)?;
        let mut generator = CodeGenerator::new(name, source);
        generator.compile_stmt(&syntax_tree);
        let (mut instructions, mut blocks) = generator.finish();
        count_bytes(&mut instructions);
        blocks.values_mut().for_each(count_bytes);
        Ok(Self { instructions, blocks })
    }

    /// Renders the template with what it sees as `root`.
    ///
    /// # Errors
    /// What the template raises; a limit that was reached, see [`explain`].
    pub(crate) fn render(
        &self,
        environment: &Environment<'static>,
        root: Value,
    ) -> Result<String, Error> {
        BYTES_LEFT.set(MAX_BYTES);
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let escape = AutoEscape::None;
        Vm::new(environment).eval(&self.instructions, root, &self.blocks, &mut output, escape)?;
        Ok(text)
    }

    /// The most instructions that a rendering may have: fewer where the template's own words are
    /// so long that repeating them would fill memory.
    pub(crate) fn max_steps(&self) -> u64 {
        let all = std::iter::once(&self.instructions).chain(self.blocks.values());
        let longest = all
            .flat_map(|list| (0..list.len() as u32).filter_map(|index| list.get(index)))
            .map(|instruction| match instruction {
                Instruction::EmitRaw(words) => words.len(),
                _ => 0,
            })
            .max();
        MAX_STEPS.min(2 * (MAX_BYTES / longest.unwrap_or(0).max(1)) as u64)
    }
}

/// The compiler works out what consists of constants, a text times a number among them, before any
/// limit holds.
///
/// # Errors
/// A product of a constant that is large, or very many products.
fn check_constant_products(source: &str, whitespace: WhitespaceConfig) -> Result<(), Error> {
    const MAX_PRODUCTS: usize = 16;
    const MAX_FACTOR: u64 = 1000;
    let is_large = |token: Option<&Token>| match token {
        Some(Token::Int(number)) => *number > MAX_FACTOR,
        Some(Token::Int128(_)) => true,
        Some(Token::Str(text)) => text.len() as u64 > MAX_FACTOR,
        Some(Token::String(text)) => text.len() as u64 > MAX_FACTOR,
        _ => false,
    };
    let tokens = tokenize(source, false, Default::default(), whitespace);
    let tokens: Vec<Token> = tokens.map(|token| Ok(token?.0)).collect::<Result<_, Error>>()?;
    let products = tokens.iter().enumerate().filter(|(_, token)| matches!(token, Token::Mul));
    for (number, (at, _)) in products.enumerate() {
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        if number == MAX_PRODUCTS || is_large(before) || is_large(tokens.get(at + 1)) {
            return Err(exceeded(&format!(
                "it has more than {MAX_PRODUCTS} products, or one with a constant above {MAX_FACTOR}"
            )));
        }
    }
    Ok(())
}

fn count_bytes(instructions: &mut Instructions<'static>) {
    for index in 0..instructions.len() as u32 {
        let Some(instruction) = instructions.get_mut(index) else { continue };
        // The same number of values is taken from the stack, and one put there.
        *instruction = match instruction {
            Instruction::Add => Instruction::CallFunction(ADD, Some(2)),
            Instruction::StringConcat => Instruction::CallFunction(CONCAT, Some(2)),
            Instruction::Mul => Instruction::CallFunction(TIMES, Some(2)),
            Instruction::BuildList(Some(n)) if *n <= usize::from(u16::MAX) => {
                Instruction::CallFunction(LIST, Some(*n as u16))
            }
            Instruction::BuildMap(pairs) if *pairs <= usize::from(u16::MAX / 2) => {
                Instruction::CallFunction(MAP, Some(2 * *pairs as u16))
            }
            _ => continue,
        };
    }
}

/// Adds the functions, and filters and methods that count.
pub(crate) fn set_up(environment: &mut Environment<'static>) {
    environment.set_recursion_limit(4 * MAX_DEPTH);
    environment.add_function(ADD, add);
    environment.add_function(CONCAT, |a: &Value, b: &Value| -> Result<Value, Error> {
        spend_value(a, 0)?;
        spend_value(b, 0)?;
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
    let growing = [
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
    for (name, filter) in growing {
        environment.add_filter(name, move |state: &State, args: Rest<Value>| {
            spend_result(name, &args)?;
            filter.call(state, &args)
        });
    }
    environment.add_filter("tojson", |value: Value| -> Result<String, Error> {
        spend_value(&value, 0)?;
        serde_json::to_string(&value)
            .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
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
        spend_value(value, 0)?;
        minijinja::escape_formatter(out, state, value)
    });
}

/// Counts what a filter or method makes of its arguments, the value itself first.
fn spend_result(name: &str, args: &[Value]) -> Result<(), Error> {
    spend_all(args)?;
    let text = |k: usize| args.get(k).and_then(Value::as_str).unwrap_or_default();
    let number = |k: usize| args.get(k).and_then(Value::as_usize).unwrap_or(0);
    let named = |name: &str| args.last().and_then(|last| last.get_attr(name).ok()?.as_usize());
    let more = match name {
        "replace" => text(0).matches(text(1)).count().saturating_mul(text(2).len()),
        "join" => args[0].len().unwrap_or(0).saturating_mul(text(1).len()),
        "indent" => {
            let width = number(1).max(named("width").unwrap_or(0));
            (text(0).lines().count() + 1).saturating_mul(width)
        }
        "batch" | "slice" => number(1).saturating_mul(16),
        // Widths are digits in the text ('%99s', '{:99}') or numbers beside it ('%*d').
        "format" if text(0).contains('*') => {
            return Err(exceeded("it formats a text with a width that is not written in it"));
        }
        "format" => {
            let digits = text(0).split(|c: char| !c.is_ascii_digit()).filter(|run| !run.is_empty());
            digits.map(|run| run.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add)
        }
        _ => 0,
    };
    spend(more)
}

/// `a + b`, as the engine has it.
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

/// `a * b`, as the engine has it.
fn times(a: &Value, b: &Value) -> Result<Value, Error> {
    let (value, count) = if a.as_usize().is_some() { (b, a) } else { (a, b) };
    let count = count.as_usize();
    match (value.kind(), count) {
        (ValueKind::String, Some(count)) => {
            let text = value.as_str().unwrap_or_default();
            spend(text.len().saturating_mul(count))?;
            Ok(Value::from(text.repeat(count)))
        }
        (ValueKind::Seq | ValueKind::Iterable, Some(count)) => {
            let items: Vec<Value> = value.try_iter()?.collect();
            spend(items.len().saturating_mul(count).saturating_mul(16))?;
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
    use super::*;
    use crate::template::ChatTemplate;

    fn error(source: &str) -> String {
        let rendered = ChatTemplate::new(source, BTreeMap::new())
            .and_then(|template| template.render(&[], false).map_err(|reject| reject.detail));
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
                "2{\"z\":1,\"a\":2}",
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
            assert_eq!(template.render(&[], false).unwrap(), expected, "{source}");
        }
        assert!(error("{{ 'a' + 1 }}").contains("+ cannot be used between string and number"));
    }
}
