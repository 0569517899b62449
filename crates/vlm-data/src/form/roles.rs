//! The names that data sets give to the roles of a conversation.

use crate::rows::Role;

/// Names in lower case, by role.
const SYSTEM: [&str; 3] = ["system", "developer", "system_prompt"];
const USER: [&str; 10] = [
    "user", "human", "prompter", "question", "instruction", "customer", "client", "player", "q",
    "usr",
];
const ASSISTANT: [&str; 18] = [
    "assistant", "gpt", "bot", "model", "chatgpt", "gpt4", "gpt-4", "bing", "bard", "claude", "ai",
    "chatbot", "llm", "answer", "output", "a",
    // A call of a function is text that the assistant writes.
    "function_call", "tool_call",
];
const TOOL: [&str; 8] = [
    "tool", "function", "observation", "ipython", "tool_response", "function_response",
    "tool_result", "environment",
];

/// The role called `name`, in any case.
pub(crate) fn role(name: &str) -> Option<Role> {
    let name = name.trim().to_lowercase();
    let is_in = |table: &[&str]| table.contains(&name.as_str());
    if is_in(&USER) {
        Some(Role::User)
    } else if is_in(&ASSISTANT) {
        Some(Role::Assistant)
    } else if is_in(&SYSTEM) {
        Some(Role::System)
    } else if is_in(&TOOL) {
        Some(Role::Tool)
    } else {
        None
    }
}

/// The known names, for a message.
pub(crate) const KNOWN: &str = "system, user (human, …), assistant (gpt, bot, model, …), tool \
                                (function, observation, …)";
