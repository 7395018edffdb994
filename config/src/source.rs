//! The text of the ops file, places in it, and messages about them.

use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::ConfigError;
use crate::limits;

/// The ops file's name and text. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Source {
    path: PathBuf,
    text: Arc<str>,
    /// Where each line begins: asking for a place must not read the whole file again.
    lines: Arc<[usize]>,
}

/// A place in the ops file: line and column count from 1, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    /// The line, from 1.
    pub line: usize,
    /// The first character's column, from 1.
    pub column: usize,
    /// How many characters of that line are meant; at least 1.
    pub length: usize,
}

/// A value and where it stands in the ops file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located<T> {
    /// The value.
    pub value: T,
    /// Its place.
    pub at: Location,
}

/// One thing that is wrong, as the user sees it:
///
/// ```text
/// ops.toml:3:1: unknown key `clent` in [ports]
///   |
/// 3 | clent = "eth1"
///   | ^^^^^
/// help: did you mean `client`?
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// Where.
    pub at: Location,
    /// What is wrong, without place and advice. Lines after the first are shown below the quoted line.
    pub message: String,
    /// The way out.
    pub help: Option<String>,
    rendered: String,
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rendered)
    }
}

impl std::error::Error for Diagnostic {}

impl Source {
    /// Names a text.
    pub fn new(path: &Path, text: &str) -> Source {
        let breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Source { path: path.to_owned(), text: text.into(), lines: std::iter::once(0).chain(breaks).collect() }
    }

    /// The file's name, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// `path` as the ops file means it: relative to the folder that the file lies in.
    pub fn resolve(&self, path: &str) -> PathBuf {
        match self.path.parent() {
            Some(folder) => folder.join(path),
            None => PathBuf::from(path),
        }
    }

    /// The place of a range of bytes of the text. Any range is taken: one that is out of the text, or that
    /// cuts a character, means the nearest place there is.
    pub fn location(&self, span: Range<usize>) -> Location {
        let start = self.boundary(span.start);
        let line = self.lines.partition_point(|&first| first <= start);
        let line_start = self.lines[line - 1];
        let line_end = self.lines.get(line).map_or(self.text.len(), |next| next - 1);
        let end = self.boundary(span.end).clamp(start, line_end);
        Location {
            line,
            column: self.text[line_start..start].chars().count() + 1,
            length: self.text[start..end].trim_end().chars().count().max(1),
        }
    }

    /// Forms the message.
    pub fn diagnostic(&self, at: Location, message: String, help: Option<String>) -> Diagnostic {
        let rendered = self.render(at, &message, help.as_deref());
        Diagnostic { at, message, help, rendered }
    }

    /// The last boundary between characters that is not behind `at`.
    fn boundary(&self, at: usize) -> usize {
        (0..=at.min(self.text.len())).rev().find(|&at| self.text.is_char_boundary(at)).unwrap_or(0)
    }

    fn render(&self, at: Location, message: &str, help: Option<&str>) -> String {
        let (headline, more) = message.split_once('\n').unwrap_or((message, ""));
        let mut out = format!("{}:{}:{}: {headline}", self.path.display(), at.line, at.column);
        if let Some(line) = self.text.split('\n').nth(at.line - 1) {
            // A window of the line, so that one enormous line does not fill the screen.
            let whole = line.chars().count() <= WINDOW;
            let skip = if whole { 0 } else { at.column.saturating_sub(1 + WINDOW / 2) };
            // Control characters would do things to the terminal; a tab would move the caret.
            let shown: String =
                line.chars().skip(skip).take(WINDOW).map(|c| if c.is_control() { ' ' } else { c }).collect();
            let shown = shown.trim_end();
            let column = at.column - 1 - skip;
            let carets = at.length.clamp(1, shown.chars().count().saturating_sub(column).max(1));
            let number = at.line.to_string();
            let gutter = " ".repeat(number.len());
            out +=
                &format!("\n{gutter} |\n{number} | {shown}\n{gutter} | {}{}", " ".repeat(column), "^".repeat(carets));
        }
        let more = more.trim_end();
        if !more.is_empty() {
            out += &format!("\n{more}");
        }
        if let Some(help) = help {
            out += &format!("\nhelp: {help}");
        }
        out
    }
}

/// Characters of a line that a message shows at most.
const WINDOW: usize = 120;

/// Reads the file, which must be UTF-8 and of bounded size.
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |reason: std::io::Error| ConfigError::Read { path: path.to_owned(), reason };
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(limits::FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limits::FILE_BYTES {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let source = Source::new(path, &String::from_utf8_lossy(error.as_bytes()));
        // Up to the first fault the replaced text equals the bytes.
        let at = source.location(valid..valid + 1);
        let help = Some("save the file as UTF-8".to_owned());
        ConfigError::invalid(vec![source.diagnostic(at, "this is not UTF-8 text".to_owned(), help)])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new(Path::new("dir/ops.toml"), text)
    }

    #[test]
    fn locations_count_characters() {
        let s = source("a = 1\nü = \"x\"\n");
        assert_eq!(s.location(0..1), Location { line: 1, column: 1, length: 1 });
        assert_eq!(s.location(11..14), Location { line: 2, column: 5, length: 3 });
        // Within a character, past the end, reversed, over the end of the line.
        assert_eq!(s.location(7..8).column, 1);
        assert_eq!(s.location(500..900).line, 3);
        #[expect(clippy::reversed_empty_ranges, reason = "hostile on purpose")]
        let reversed = s.location(5..2);
        assert_eq!(reversed.length, 1);
        assert_eq!(s.location(4..9).length, 1);
        assert_eq!(source("").location(0..0), Location { line: 1, column: 1, length: 1 });
    }

    #[test]
    fn caret_stands_under_the_fault() {
        let s = source("x = 1\n\tkey = \u{1b}[31m\n");
        let d = s.diagnostic(s.location(7..10), "bad".into(), Some("mend it".into()));
        assert_eq!(d.to_string(), "dir/ops.toml:2:2: bad\n  |\n2 |  key =  [31m\n  |  ^^^\nhelp: mend it");
    }

    #[test]
    fn further_lines_follow_the_quoted_one() {
        let s = source("object = 1\n");
        let d = s.diagnostic(s.location(9..10), "refused\nline 1\nline 2\n".into(), None);
        assert_eq!(d.to_string(), "dir/ops.toml:1:10: refused\n  |\n1 | object = 1\n  |          ^\nline 1\nline 2");
    }

    #[test]
    fn long_lines_are_cut() {
        let text = format!("{}bad{}", "a".repeat(5000), "z".repeat(5000));
        let s = source(&text);
        let shown = s.diagnostic(s.location(5000..5003), "here".into(), None).to_string();
        assert!(shown.lines().all(|line| line.len() <= WINDOW + 4), "{shown}");
        let (text, carets) = (shown.lines().nth(2).unwrap(), shown.lines().nth(3).unwrap());
        assert_eq!(text.find("bad"), carets.find("^^^"));
        // A line that fits is shown from its beginning.
        let text = format!("{}bad", "a".repeat(WINDOW - 3));
        let s = source(&text);
        let shown = s.diagnostic(s.location(WINDOW - 3..WINDOW), "here".into(), None).to_string();
        assert_eq!(shown.lines().nth(2).unwrap(), format!("1 | {text}"));
    }

    #[test]
    fn paths_are_relative_to_the_file() {
        assert_eq!(source("").resolve("a.o"), Path::new("dir/a.o"));
        assert_eq!(source("").resolve("/a.o"), Path::new("/a.o"));
        assert_eq!(Source::new(Path::new("ops.toml"), "").resolve("a.o"), Path::new("a.o"));
    }
}
