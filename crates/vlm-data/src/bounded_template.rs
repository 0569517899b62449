//! A compiled chat template whose rendering is limited: its operators are replaced by the counting
//! functions of [`template_limits`].

use std::collections::BTreeMap;

use minijinja::machinery::{
    CodeGenerator, Instruction, Instructions, Token, Vm, WhitespaceConfig, make_string_output,
    parse, tokenize,
};
use minijinja::{AutoEscape, Environment, Error, Value};

use crate::limits::{MAX_ELIFS, MAX_RENDERED_BYTES, MAX_TAG_TOKENS, MAX_TEMPLATE_STEPS};
use crate::template_limits::{self, ADD, CONCAT, LIST, MAP, TIMES, exceeded};

/// A template compiled with counting functions instead of operators.
#[derive(Debug)]
pub(crate) struct BoundedTemplate {
    instructions: Instructions<'static>,
    blocks: BTreeMap<&'static str, Instructions<'static>>,
}

impl BoundedTemplate {
    /// Compiles `source`, which must live as long as the program; a program opens few tokenizers.
    ///
    /// # Errors
    /// A syntax error; a tag or a chain of `elif` that is too long; products of large constants.
    pub(crate) fn compile(
        name: &'static str,
        source: &'static str,
        whitespace: WhitespaceConfig,
    ) -> Result<Self, Error> {
        let tokens = tokenize(source, false, Default::default(), whitespace);
        let tokens: Vec<Token> = tokens.map(|token| Ok(token?.0)).collect::<Result<_, Error>>()?;
        check_depth(&tokens)?;
        check_constant_products(&tokens)?;
        let syntax_tree = parse(source, name, Default::default(), whitespace)?;
        let mut generator = CodeGenerator::new(name, source);
        generator.compile_stmt(&syntax_tree);
        let (mut instructions, mut blocks) = generator.finish();
        count_bytes(&mut instructions);
        blocks.values_mut().for_each(count_bytes);
        Ok(Self { instructions, blocks })
    }

    /// Renders the template with the variables in `root`.
    ///
    /// # Errors
    /// An error that the template raises; a limit that was reached, see [`explain`].
    pub(crate) fn render(
        &self,
        environment: &Environment<'static>,
        root: Value,
    ) -> Result<String, Error> {
        template_limits::start_counting();
        let mut text = String::new();
        let mut output = make_string_output(&mut text);
        let escape = AutoEscape::None;
        Vm::new(environment).eval(&self.instructions, root, &self.blocks, &mut output, escape)?;
        Ok(text)
    }

    /// Largest number of instructions of a rendering: fewer if the template's own text is so long
    /// that repeating it would fill the memory.
    pub(crate) fn max_steps(&self) -> u64 {
        let all = std::iter::once(&self.instructions).chain(self.blocks.values());
        let longest = all
            .flat_map(|list| (0..list.len() as u32).filter_map(|index| list.get(index)))
            .map(|instruction| match instruction {
                Instruction::EmitRaw(words) => words.len(),
                _ => 0,
            })
            .max();
        MAX_TEMPLATE_STEPS.min(2 * (MAX_RENDERED_BYTES / longest.unwrap_or(0).max(1)) as u64)
    }
}

/// Checks the lengths of tags and the number of `elif`. The compiler calls itself for each operator,
/// filter or call of a chain and for each `elif`, until the stack overflows, and its time grows with
/// the square of their number.
///
/// # Errors
/// A tag with too many tokens; too many `elif`.
fn check_depth(tokens: &[Token]) -> Result<(), Error> {
    let is_start = |token: &Token| matches!(token, Token::VariableStart | Token::BlockStart);
    let longest = tokens.split(is_start).map(|tag| {
        // After its end, only text follows.
        let is_end = |token: &Token| matches!(token, Token::VariableEnd | Token::BlockEnd);
        tag.iter().position(is_end).unwrap_or(tag.len())
    });
    if longest.max().unwrap_or(0) > MAX_TAG_TOKENS {
        return Err(exceeded(&format!("a tag of it has more than {MAX_TAG_TOKENS} tokens")));
    }
    let is_elif = |pair: &&[Token]| matches!(pair, [Token::BlockStart, Token::Ident("elif")]);
    if tokens.windows(2).filter(is_elif).count() > MAX_ELIFS {
        return Err(exceeded(&format!("it has more than {MAX_ELIFS} elif")));
    }
    Ok(())
}

/// Checks products of constants, because the compiler computes them, also a text times a number,
/// before any limit applies.
///
/// # Errors
/// A product of a large constant, or very many products.
fn check_constant_products(tokens: &[Token]) -> Result<(), Error> {
    const MAX_PRODUCTS: usize = 16;
    const MAX_FACTOR: u64 = 1000;
    let is_large = |token: Option<&Token>| match token {
        Some(Token::Int(number)) => *number > MAX_FACTOR,
        Some(Token::Int128(_)) => true,
        Some(Token::Str(text)) => text.len() as u64 > MAX_FACTOR,
        Some(Token::String(text)) => text.len() as u64 > MAX_FACTOR,
        _ => false,
    };
    let products = tokens.iter().enumerate().filter(|(_, token)| matches!(token, Token::Mul));
    for (number, (at, _)) in products.enumerate() {
        let before = at.checked_sub(1).and_then(|at| tokens.get(at));
        if number == MAX_PRODUCTS || is_large(before) || is_large(tokens.get(at + 1)) {
            return Err(exceeded(&format!(
                "it has more than {MAX_PRODUCTS} products, or one with a constant over {MAX_FACTOR}"
            )));
        }
    }
    Ok(())
}

fn count_bytes(instructions: &mut Instructions<'static>) {
    for index in 0..instructions.len() as u32 {
        let Some(instruction) = instructions.get_mut(index) else { continue };
        // A function call takes the same number of values from the stack and puts one there.
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
