//! Finds where an answer ends: which of the tokens that the template writes after an assistant's
//! text are learned, and which of them stop generation.

use std::collections::HashSet;
use std::ops::Range;

use crate::prompt_tokens::Tokens;
use crate::template_profile::{Probe, common_prefix, common_suffix};

/// Where the answers of a template end.
#[derive(Debug)]
pub(crate) struct AnswerEnds {
    /// Tokens that may end an answer: those added to the vocabulary, except white space, and those
    /// that the tokenizer's files name.
    markers: HashSet<i64>,
    /// What the template writes between an answer and the header of the next turn.
    closing: String,
    /// The token that ends an answer followed by another turn, and the token that ends the last
    /// answer; `None` where there is none.
    ends: [Option<i64>; 2],
}

impl AnswerEnds {
    /// Reads the ends from a rendering of two questions with their answers. The closing of the
    /// first answer is what it has in common with the closing of the last one, or what comes before
    /// the header that the first question also has; the longer of the two counts. Where it contains
    /// no marker, a token of `stops` that follows is part of it: some templates end an answer with
    /// the token of the next role.
    pub(crate) fn from_probe(
        probe: &Probe,
        tokens: &Tokens,
        mut markers: HashSet<i64>,
        stops: &[i64],
    ) -> Self {
        markers.extend(stops);
        let text = probe.text.as_str();
        let words = &text[probe.between.clone()];
        let last = &text[probe.last_end..];
        let first = tokens.at(probe.between.start);
        let next_text = tokens.at(probe.between.end);
        let common = probe.between.start + common_prefix(words, last);
        let by_last = tokens.whole_until(first, common, text.len());
        let header = common_suffix(words, &text[..probe.first_question]);
        let by_header = match text[probe.between.end - header..probe.between.end].trim() {
            "" => by_last,
            _ => tokens.at(probe.between.end - header),
        };
        let mut end = by_last.max(by_header).clamp(first, next_text);
        let has_marker = tokens.ids[first..end].iter().any(|id| markers.contains(id));
        let follows = (end < next_text).then(|| tokens.ids[end]);
        if !has_marker && follows.is_some_and(|id| stops.contains(&id)) {
            end += 1;
        }
        let byte = |token: usize| tokens.starts.get(token).copied().unwrap_or(text.len());
        let closing = text[probe.between.start..byte(end).max(probe.between.start)].to_owned();
        let marker = |ids: &[i64]| ids.iter().copied().find(|id: &i64| markers.contains(id));
        let ends =
            [marker(&tokens.ids[first..end]), marker(&tokens.ids[tokens.at(probe.last_end)..])];
        Self { markers, closing, ends }
    }

    /// For a template that cannot render the probe: the token `eos`, spelled `text`, ends every
    /// answer.
    pub(crate) fn from_eos(eos: i64, text: &str) -> Self {
        Self { markers: [eos].into(), closing: text.to_owned(), ends: [Some(eos); 2] }
    }

    /// The tokens that end an answer by the template, each once.
    pub(crate) fn ids(&self) -> impl Iterator<Item = i64> {
        let [between, last] = self.ends;
        between.into_iter().chain(last.filter(|_| last != between))
    }

    /// Whether the last answer of a row ends with a token from which a model learns to stop.
    pub(crate) fn has_last(&self) -> bool {
        self.ends[1].is_some()
    }

    /// The tokens to be learned of the answer at bytes `answer` of `text`: those of its text, those
    /// that the template writes after it up to the first marker, and the one token after the marker
    /// if it belongs to this turn and is no marker itself. Where there is no marker, all tokens
    /// that the template writes in this turn.
    pub(crate) fn span(
        &self,
        tokens: &Tokens,
        text: &str,
        answer: &Range<usize>,
        is_last: bool,
    ) -> Range<usize> {
        let start = tokens.at(answer.start);
        // The token may consist of a space and the first word, where the header ends with the
        // space.
        let straddles = |&token: &usize| {
            let end = tokens.starts.get(token + 1).copied().unwrap_or(text.len());
            let before = text.get(tokens.starts[token]..answer.start);
            end > answer.start && before.is_some_and(|before| before.chars().all(|c| c == ' '))
        };
        let start = start.checked_sub(1).filter(straddles).unwrap_or(start);
        let first = tokens.at(answer.end);
        let words = &text[answer.end..];
        let closing = if is_last { words.len() } else { common_prefix(words, &self.closing) };
        let end = tokens.whole_until(first, answer.end + closing, text.len());
        let marker = tokens.ids[first..end].iter().position(|id| self.markers.contains(id));
        let Some(marker) = marker.map(|at| first + at) else { return start..end.max(first) };
        let after = marker + 1;
        let has_after = after < end && !self.markers.contains(&tokens.ids[after]);
        start..after + usize::from(has_after)
    }

    /// Whether these ends give the same spans as the earlier rule that knew only `eos`: the answer,
    /// the next `eos`, and the token after it.
    pub(crate) fn is_by_eos(&self, eos: i64, probe: &Probe, tokens: &Tokens) -> bool {
        let answer = probe.between.start..probe.between.start;
        let span = self.span(tokens, &probe.text, &answer, false);
        self.ends == [Some(eos); 2] && tokens.ids.get(span.end.wrapping_sub(2)) == Some(&eos)
    }

    /// Everything that decides the spans, as text to be hashed.
    pub(crate) fn describe(&self) -> String {
        format!("{:?} {:?}", self.closing, self.ends)
    }
}
