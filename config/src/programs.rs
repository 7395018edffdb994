//! `receive`, `send` and their `shadow`: which functions of which object files, and with which settings.

use std::collections::BTreeMap;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use crate::document::{Reader, Table, Value, kind, printable};
use crate::limits;
use crate::source::{Located, Location};

/// The programs of one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programs {
    /// The whole table's place.
    pub at: Location,
    /// The object file, resolved against the folder of the ops file. Not opened here.
    pub object: Located<PathBuf>,
    /// The function that is the stream parser.
    pub parser: Located<String>,
    /// The function that is the verdict; `None` = all messages pass.
    pub verdict: Option<Located<String>>,
    /// Initial values of the object's global variables.
    pub set: Set,
    /// Who vouches for the object.
    pub verify: Verify,
    /// A second verdict beside the live one.
    pub shadow: Option<Shadow>,
}

/// A verdict that is asked about the same messages as the live one, and decides nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shadow {
    /// The whole table's place.
    pub at: Location,
    /// The object file, resolved against the folder of the ops file. Not opened here.
    pub object: Located<PathBuf>,
    /// The function that is the verdict.
    pub verdict: Located<String>,
    /// Initial values of the object's global variables.
    pub set: Set,
    /// Who vouches for the object.
    pub verify: Verify,
}

/// Values of `set`, by the name of the variable, each with the place of the value. Whether there is such a variable is not
/// checked here.
pub type Set = BTreeMap<String, Located<Setting>>;

/// A value of `set`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// A whole number.
    Integer(i64),
    /// `true` or `false`.
    Boolean(bool),
    /// A string.
    Text(String),
    /// A list; lists are in each other up to [`limits::SETTING_DEPTH`] deep.
    List(Vec<Setting>),
}

/// `verify`: who vouches for the programs of an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verify {
    /// The kernel's verifier; what it refuses is not run.
    #[default]
    Kernel,
    /// Nobody: each access is checked while the programs run.
    Off,
}

/// Reads the table of one direction, which is called `key`.
pub(crate) fn read(reader: &mut Reader, key: &'static str, value: &Value<'_>) -> Option<Programs> {
    let form = "{ object = \"FILE\", parser = \"FUNCTION\", verdict = \"FUNCTION\" }";
    let (at, entries) = table(reader, key, value, form)?;
    let name = format!("`{key}`");
    let table = Table { name: &name, entries, at };
    reader.check_keys(table, &["object", "parser", "verdict", "set", "verify", "shadow"]);
    let verdict = entries.get("verdict").map(|value| function(reader, "verdict", value));
    let shadow = entries.get("shadow").map(|value| shadow(reader, value));
    let needs = [("verdict", verdict.is_some()), ("shadow", shadow.is_some())].into_iter().find(|(_, there)| *there);
    let parser = if let Some((what, _)) = needs
        && !entries.contains_key("parser")
    {
        let message = format!("`{key}` has a `{what}` but no `parser`");
        reader.problem(at, message, "a verdict judges whole messages: name the `parser` that finds them");
        None
    } else {
        reader.required(table, "parser", "\"FUNCTION\"").and_then(|value| function(reader, "parser", value))
    };
    let (object, set, verify) = source(reader, table);
    Some(Programs {
        at,
        object: object?,
        parser: parser?,
        verdict: all_or_nothing(verdict)?,
        set,
        verify,
        shadow: all_or_nothing(shadow)?,
    })
}

/// What is absent may be; what is there must be right.
fn all_or_nothing<T>(found: Option<Option<T>>) -> Option<Option<T>> {
    match found {
        Some(found) => found.map(Some),
        None => Some(None),
    }
}

fn shadow(reader: &mut Reader, value: &Value<'_>) -> Option<Shadow> {
    let (at, entries) = table(reader, "shadow", value, "{ object = \"FILE\", verdict = \"FUNCTION\" }")?;
    let table = Table { name: "`shadow`", entries, at };
    reader.check_keys(table, &["object", "verdict", "set", "verify"]);
    let verdict = reader.required(table, "verdict", "\"FUNCTION\"");
    let verdict = verdict.and_then(|value| function(reader, "verdict", value));
    let (object, set, verify) = source(reader, table);
    Some(Shadow { at, object: object?, verdict: verdict?, set, verify })
}

fn table<'a>(reader: &mut Reader, key: &str, value: &'a Value<'a>, form: &str) -> Option<(Location, &'a DeTable<'a>)> {
    let at = reader.at(value.span());
    if let DeValue::Table(entries) = value.get_ref() {
        return Some((at, entries));
    }
    let message = format!("`{key}` must be a table, found {}", kind(value.get_ref()));
    reader.problem(at, message, format_args!("write it as: {key} = {form}"));
    None
}

/// The keys that say where programs come from.
fn source(reader: &mut Reader, table: Table<'_>) -> (Option<Located<PathBuf>>, Set, Verify) {
    let object = reader.required(table, "object", "\"FILE.bpf.o\"");
    let object = object.and_then(|value| reader.string("object", value)).and_then(|path| {
        if path.value.is_empty() || path.value.contains('\0') {
            reader.problem(path.at, "`object` is not the name of a file", "name the compiled object file");
            return None;
        }
        Some(Located { value: reader.source.resolve(path.value), at: path.at })
    });
    let set = table.entries.get("set").map(|value| settings(reader, value)).unwrap_or_default();
    let verify = table
        .entries
        .get("verify")
        .and_then(|value| reader.choice("verify", value, &[("kernel", Verify::Kernel), ("off", Verify::Off)]));
    (object, set, verify.unwrap_or_default())
}

fn settings(reader: &mut Reader, value: &Value<'_>) -> Set {
    let Some((_, entries)) = table(reader, "set", value, "{ VARIABLE = VALUE }") else { return Set::new() };
    let mut set = Set::new();
    for (name, value) in entries {
        let at = reader.at(name.span());
        let name: &str = name.get_ref();
        if !is_identifier(name) {
            let message = format!("\"{}\" cannot be the name of a variable", printable(name));
            reader.problem(at, message, "give the variable's name as it stands in the program's source");
            continue;
        }
        match setting(value, 0) {
            Ok(setting) => {
                let at = reader.at(value.span());
                set.insert(name.to_owned(), Located { value: setting, at });
            }
            Err((place, problem)) => {
                let at = reader.at(place.span());
                reader.problem(at, format!("`{name}` cannot be {problem}"), SETTING_FORM);
            }
        }
    }
    set
}

const SETTING_FORM: &str = "values are whole numbers of 64 bits, true or false, strings, and lists of these";

/// The value; or what is wrong with which part of it.
fn setting<'a>(value: &'a Value<'a>, depth: usize) -> Result<Setting, (&'a Value<'a>, String)> {
    match value.get_ref() {
        DeValue::Integer(integer) => match i64::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(integer) => Ok(Setting::Integer(integer)),
            Err(_) => Err((value, "a number of more than 64 bits".to_owned())),
        },
        DeValue::Boolean(boolean) => Ok(Setting::Boolean(*boolean)),
        DeValue::String(text) => Ok(Setting::Text(text.as_ref().to_owned())),
        DeValue::Array(_) if depth == limits::SETTING_DEPTH => {
            Err((value, format!("lists that are more than {} deep", limits::SETTING_DEPTH)))
        }
        DeValue::Array(entries) => {
            let entries = entries.iter().map(|entry| setting(entry, depth + 1));
            entries.collect::<Result<_, _>>().map(Setting::List)
        }
        other => Err((value, kind(other).to_owned())),
    }
}

fn function(reader: &mut Reader, key: &str, value: &Value<'_>) -> Option<Located<String>> {
    let name = reader.string(key, value)?;
    if !is_identifier(name.value) {
        let message = format!("\"{}\" cannot be the name of a function", printable(name.value));
        reader.problem(name.at, message, "give the C function's name as it stands in the program's source");
        return None;
    }
    Some(Located { value: name.value.to_owned(), at: name.at })
}

/// Whether C takes it for a name.
fn is_identifier(name: &str) -> bool {
    let mut bytes = name.bytes();
    let starts = bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
    starts && name.len() <= 255 && bytes.all(|b| b.is_ascii_alphanumeric() || b == b'_')
}
