//! Random changes of a conversation before it is tokenized, as in the loader of current MiniMind-V:
//! some rows get a system prompt, and in most rows the empty thinking blocks are left out.

use crate::mix::{GOLDEN_GAMMA, mix_bits};
use crate::rows::{Role, Turn};

/// A thinking block without a thought, with which a template begins an answer.
pub(crate) const EMPTY_THINK: &str = "<think>\n\n</think>\n\n";

/// How often a conversation is changed. The default changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatDraws {
    /// Fraction of the rows, from 0 to 1, that keep the empty thinking blocks of their answers.
    pub empty_think_ratio: f64,
    /// Fraction of the rows, from 0 to 1, that get one of `system_prompts`. Rows with a system turn
    /// are not changed.
    pub add_system_ratio: f64,
    /// The system prompts, which are equally likely.
    pub system_prompts: Vec<String>,
}

impl Default for ChatDraws {
    fn default() -> Self {
        Self { empty_think_ratio: 1.0, add_system_ratio: 0.0, system_prompts: Vec::new() }
    }
}

/// The changes of one conversation. The default changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChatChanges<'a> {
    /// A system prompt for a conversation that has none.
    pub system_prompt: Option<&'a str>,
    /// Whether the empty thinking blocks at the beginning of answers are left out.
    pub drops_empty_think: bool,
}

/// The independent draws of a row.
#[derive(Debug, Clone, Copy)]
enum Draw {
    AddSystem = 0,
    SystemPrompt = 1,
    EmptyThink = 2,
}

impl ChatDraws {
    /// The changes of row `index` in `epoch`. They depend on the arguments alone, so that they are
    /// the same for any number of threads and processes, and after a continued run.
    pub fn of_row(&self, seed: u64, epoch: u64, index: usize) -> ChatChanges<'_> {
        let uniform = |draw: Draw| uniform([seed, epoch, index as u64, draw as u64]);
        let added = uniform(Draw::AddSystem) < self.add_system_ratio;
        let which = uniform(Draw::SystemPrompt) * self.system_prompts.len() as f64;
        ChatChanges {
            system_prompt: self
                .system_prompts
                .get(which as usize)
                .map(String::as_str)
                .filter(|_| added),
            drops_empty_think: uniform(Draw::EmptyThink) > self.empty_think_ratio,
        }
    }
}

impl ChatChanges<'_> {
    /// Whether nothing is changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The turns with the system prompt; `None` if they stay as they are.
    pub(crate) fn with_system(&self, turns: &[Turn]) -> Option<Vec<Turn>> {
        let prompt = self.system_prompt?;
        if turns.first().is_none_or(|first| first.role == Role::System) {
            return None;
        }
        let mut changed = Vec::with_capacity(turns.len() + 1);
        let tools = turns.first().and_then(|first| first.tools.clone());
        changed.push(Turn { tools, ..Turn::new(Role::System, prompt) });
        changed.extend_from_slice(turns);
        Some(changed)
    }
}

/// A number from 0 (inclusive) to 1 (exclusive) that looks random and depends on all of `values`.
fn uniform(values: [u64; 4]) -> f64 {
    let mut state = 0;
    for value in values {
        state = mix_bits((state ^ value).wrapping_add(GOLDEN_GAMMA));
    }
    // The 53 bits of a double's mantissa.
    (state >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws() -> ChatDraws {
        ChatDraws {
            empty_think_ratio: 0.2,
            add_system_ratio: 0.2,
            system_prompts: vec!["a".into(), "b".into(), "c".into(), "d".into()],
        }
    }

    #[test]
    fn the_fractions_are_those_of_the_settings_and_the_draws_are_independent() {
        let draws = draws();
        let rows = 20_000;
        let changes: Vec<_> = (0..rows).map(|row| draws.of_row(1337, 0, row)).collect();
        let share = |of: &dyn Fn(&ChatChanges) -> bool| {
            changes.iter().filter(|changes| of(changes)).count() as f64 / rows as f64
        };
        // Three standard deviations of a fraction of 20,000 draws are below 0.0085.
        let near = |share: f64, expected: f64| (share - expected).abs() < 0.0085;
        assert!(near(share(&|c| c.system_prompt.is_some()), 0.2));
        assert!(near(share(&|c| c.drops_empty_think), 0.8));
        assert!(near(share(&|c| c.drops_empty_think && c.system_prompt.is_some()), 0.16));
        for prompt in ["a", "b", "c", "d"] {
            assert!(near(share(&|c| c.system_prompt == Some(prompt)), 0.05), "{prompt}");
        }
    }

    #[test]
    fn seed_and_epoch_change_the_draws_and_the_default_changes_nothing() {
        let draws = draws();
        let of =
            |seed, epoch| (0..50).map(|row| draws.of_row(seed, epoch, row)).collect::<Vec<_>>();
        assert_eq!(of(1, 2), of(1, 2));
        assert_ne!(of(1, 2), of(1, 3));
        assert_ne!(of(1, 2), of(2, 2));
        let none = ChatDraws::default();
        assert!((0..5000).all(|row| none.of_row(7, 0, row).is_empty()));
    }

    #[test]
    fn a_row_with_a_system_turn_gets_no_other() {
        let changes = ChatChanges { system_prompt: Some("s"), drops_empty_think: false };
        let question = Turn::new(Role::User, "q");
        let with = changes.with_system(std::slice::from_ref(&question)).unwrap();
        assert_eq!(with, [Turn::new(Role::System, "s"), question]);
        assert_eq!(changes.with_system(&with), None);
    }
}
