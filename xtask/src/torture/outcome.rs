//! A line of the table of results.

/// What happened when something was done to a run.
pub struct Outcome {
    /// What was done.
    pub fault: String,
    /// How often.
    pub times: usize,
    /// What must happen.
    pub expected: &'static str,
    /// What happened.
    pub seen: String,
    /// Whether what must happen happened each time.
    pub is_kept: bool,
}
