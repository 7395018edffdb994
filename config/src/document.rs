//! Tables of the TOML document, read key by key; everything wrong is noted and reading goes on.

use std::fmt::Display;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::limits;
use crate::source::{Diagnostic, Located, Location, Source};

/// A value with its span.
pub(crate) type Value<'a> = Spanned<DeValue<'a>>;

/// Keys of later versions: refused by name, so that nobody takes them for misspelt.
const LATER: &[&str] = &["bypass", "on_memory_cap", "on_message_too_big", "on_table_full", "untapped"];

/// Collects what is wrong.
pub(crate) struct Reader {
    pub(crate) source: Source,
    pub(crate) problems: Vec<Diagnostic>,
}

/// One table of the document and what to call it in messages.
#[derive(Clone, Copy)]
pub(crate) struct Table<'a> {
    /// As it stands in the file: `[ports]`, `[[tap]]`, `receive`.
    pub(crate) name: &'a str,
    pub(crate) entries: &'a DeTable<'a>,
    pub(crate) at: Location,
}

impl Reader {
    /// Notes a problem.
    pub(crate) fn problem(&mut self, at: Location, message: impl Into<String>, help: impl Display) {
        let help = Some(help.to_string()).filter(|help| !help.is_empty());
        self.problems.push(self.source.diagnostic(at, message.into(), help));
    }

    pub(crate) fn at(&self, span: Range<usize>) -> Location {
        self.source.location(span)
    }

    /// Notes each key of `table` that is not in `known`.
    pub(crate) fn check_keys(&mut self, table: Table<'_>, known: &[&str]) {
        for key in table.entries.keys() {
            let (name, at) = (key.get_ref().as_ref(), self.at(key.span()));
            if known.contains(&name) {
                continue;
            }
            if LATER.contains(&name) {
                let message = format!("`{name}` in {} is not supported yet", table.name);
                self.problem(at, message, "remove the key: this version cannot do what it says");
            } else {
                let message = format!("unknown key `{}` in {}", printable(name), table.name);
                self.problem(at, message, nearest(name, known, "key"));
            }
        }
    }

    /// The table under `key` of the document's root.
    pub(crate) fn section<'a>(&mut self, root: &'a DeTable<'a>, key: &str, name: &'a str) -> Option<Table<'a>> {
        let (found, value) = root.get_key_value(key)?;
        // A table written `[key]` has its header as its span; one of dotted keys has the first key's.
        let at = self.at(found.span());
        match value.get_ref() {
            DeValue::Table(entries) => Some(Table { name, entries, at }),
            other => {
                let message = format!("`{key}` must be a table, found {}", kind(other));
                self.problem(at, message, format_args!("write it as a section of its own: {name}"));
                None
            }
        }
    }

    /// The value of a key that must be there.
    pub(crate) fn required<'a>(&mut self, table: Table<'a>, key: &str, example: &str) -> Option<&'a Value<'a>> {
        let value = table.entries.get(key);
        if value.is_none() {
            let message = format!("{} has no `{key}`", table.name);
            self.problem(table.at, message, format_args!("add a line such as: {key} = {example}"));
        }
        value
    }

    pub(crate) fn string<'a>(&mut self, key: &str, value: &'a Value<'a>) -> Option<Located<&'a str>> {
        let at = self.at(value.span());
        match value.get_ref() {
            DeValue::String(text) => Some(Located { value: text.as_ref(), at }),
            other => {
                let message = format!("`{key}` must be a string, found {}", kind(other));
                self.problem(at, message, "put it in double quotes");
                None
            }
        }
    }

    /// An integer from `low` to `high`.
    pub(crate) fn integer(&mut self, key: &str, value: &Value<'_>, low: u64, high: u64) -> Option<Located<u64>> {
        let at = self.at(value.span());
        let DeValue::Integer(integer) = value.get_ref() else {
            let message = format!("`{key}` must be a whole number, found {}", kind(value.get_ref()));
            self.problem(at, message, format_args!("a number from {low} to {high}, without quotes"));
            return None;
        };
        match i128::from_str_radix(integer.as_str(), integer.radix()).ok().and_then(|n| u64::try_from(n).ok()) {
            Some(n) if (low..=high).contains(&n) => Some(Located { value: n, at }),
            _ => {
                let message = format!("`{key}` is out of bounds");
                self.problem(at, message, format_args!("a number from {low} to {high}"));
                None
            }
        }
    }

    /// One of a few words.
    pub(crate) fn choice<T: Copy>(&mut self, key: &str, value: &Value<'_>, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(key, value)?;
        if let Some((_, found)) = words.iter().find(|(word, _)| *word == text.value) {
            return Some(*found);
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        let message = format!("`{key}` cannot be \"{}\"", printable(text.value));
        self.problem(text.at, message, nearest(text.value, &known, "value"));
        None
    }

    /// The entries of a list of 1 to [`limits::LIST`] entries. `absence` says what to do instead of an
    /// empty list.
    pub(crate) fn list<'a>(&mut self, key: &str, value: &'a Value<'a>, absence: &str) -> Option<&'a [Value<'a>]> {
        let at = self.at(value.span());
        let DeValue::Array(entries) = value.get_ref() else {
            let message = format!("`{key}` must be a list, found {}", kind(value.get_ref()));
            self.problem(at, message, format_args!("put it in square brackets: {key} = [...]"));
            return None;
        };
        if entries.is_empty() {
            self.problem(at, format!("`{key}` is an empty list"), absence);
            return None;
        }
        if entries.len() > limits::LIST {
            let message = format!("`{key}` has {} entries", entries.len());
            self.problem(at, message, format_args!("at most {} are taken", limits::LIST));
            return None;
        }
        Some(entries)
    }
}

/// What a value is, with its article.
pub(crate) fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a decimal number",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// A text of the user's, short and without control characters.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 64;
    let mut out: String = text.chars().take(LONGEST).map(|c| if c.is_control() { '?' } else { c }).collect();
    if text.chars().nth(LONGEST).is_some() {
        out.push_str("...");
    }
    out
}

/// Advice: the known word that is meant, or all of them.
fn nearest(word: &str, known: &[&str], what: &str) -> String {
    let best = known.iter().map(|known| (strsim::damerau_levenshtein(word, known), known)).min();
    match best {
        // A third of the letters wrong is still a slip of the finger; `x` for `on` is not.
        Some((distance, known)) if distance <= (known.len() / 3).max(1) && distance < known.len() => {
            format!("did you mean `{known}`?")
        }
        _ => {
            let all: Vec<String> = known.iter().map(|known| format!("`{known}`")).collect();
            format!("the {what}s here are {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_word() {
        let known = ["server", "server_port", "name"];
        assert_eq!(nearest("sever_port", &known, "key"), "did you mean `server_port`?");
        assert_eq!(nearest("serevr", &known, "key"), "did you mean `server`?");
        assert_eq!(nearest("colour", &known, "key"), "the keys here are `server`, `server_port`, `name`");
    }

    #[test]
    fn hostile_text_is_shortened() {
        assert_eq!(printable("a\x1b[0m"), "a?[0m");
        assert_eq!(printable(&"x".repeat(70)), format!("{}...", "x".repeat(64)));
    }
}
