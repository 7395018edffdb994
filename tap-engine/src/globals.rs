//! Values for global variables: the ops file's `set = { name = value }`, written into the object's data before anybody verifies or runs it.
//!
//! What a variable is, its BTF says (`Documentation/bpf/btf.rst`): integers of any size and sign, enumerations, arrays of characters for text, and
//! arrays of these. Of the object's BTF only the types that variables are made of are read here.

use std::collections::BTreeMap;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _};

use crate::object::Setting;

/// Kinds of types (`BTF_KIND_...`).
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const ENUM: u32 = 6;
    pub(super) const TYPEDEF: u32 = 8;
    pub(super) const VOLATILE: u32 = 9;
    pub(super) const CONST: u32 = 10;
    pub(super) const RESTRICT: u32 = 11;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const TYPE_TAG: u32 = 18;
    pub(super) const ENUM64: u32 = 19;
}

/// The most bytes of a variable that can be set.
const MAX_VARIABLE: usize = 1 << 20;

/// Types that refer to types: as many of them may follow one another.
const MAX_DEPTH: usize = 32;

/// The type of a variable, as far as it can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Type {
    Integer {
        size: usize,
        signed: bool,
    },
    /// A byte that is a character.
    Character,
    Array(Box<Type>, usize),
    /// A structure, a pointer, ...
    Other,
}

impl Type {
    fn size(&self) -> usize {
        match self {
            Self::Integer { size, .. } => *size,
            Self::Character => 1,
            Self::Array(element, count) => element.size().saturating_mul(*count),
            Self::Other => 0,
        }
    }

    /// As a C programmer would write it.
    fn name(&self) -> String {
        match self {
            Self::Integer { size, signed } => format!("{}{}", if *signed { "s" } else { "u" }, size * 8),
            Self::Character => "char".into(),
            Self::Array(element, count) => format!("{}[{count}]", element.name()),
            Self::Other => "a type that cannot be set".into(),
        }
    }

    /// Writes `value` over `bytes`, which are as many as the type has.
    fn write(&self, value: &Setting, bytes: &mut [u8]) -> Result<(), String> {
        match (self, value) {
            (Self::Integer { size, signed }, Setting::Integer(number)) => {
                let bits = 8 * *size as u32;
                let fits = match (signed, bits) {
                    (_, 64..) => *signed || *number >= 0,
                    (true, bits) => (-(1_i64 << (bits - 1))..1_i64 << (bits - 1)).contains(number),
                    (false, bits) => (0..1_i64 << bits).contains(number),
                };
                if !fits {
                    return Err(format!("{number} is not within the range of {}", self.name()));
                }
                let number = number.to_le_bytes();
                let number: Vec<u8> =
                    if *size <= 8 { number[..*size].into() } else { return Err("it is too wide".into()) };
                bytes.copy_from_slice(&number);
                if cfg!(target_endian = "big") {
                    bytes.reverse();
                }
                Ok(())
            }
            (Self::Character, Setting::Integer(_)) => Self::Integer { size: 1, signed: false }.write(value, bytes),
            (Self::Integer { .. }, Setting::Boolean(value)) => self.write(&Setting::Integer((*value).into()), bytes),
            (Self::Array(element, count), Setting::Text(text)) if **element == Self::Character => {
                // With room for the NUL that ends it.
                if text.len() >= *count {
                    return Err(format!(
                        "the text has {} bytes, and there is room for {}",
                        text.len(),
                        count.saturating_sub(1)
                    ));
                }
                if text.contains('\0') {
                    return Err("the text has a NUL in it".into());
                }
                bytes.fill(0);
                bytes[..text.len()].copy_from_slice(text.as_bytes());
                Ok(())
            }
            (Self::Array(element, count), Setting::List(values)) => {
                if values.len() > *count {
                    return Err(format!("the list has {} values, and there is room for {count}", values.len()));
                }
                bytes.fill(0);
                for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(element.size().max(1))) {
                    element.write(value, bytes)?;
                }
                Ok(())
            }
            _ => {
                let given = match value {
                    Setting::Integer(_) => "a number",
                    Setting::Boolean(_) => "true or false",
                    Setting::Text(_) => "text",
                    Setting::List(_) => "a list",
                };
                Err(format!("it is {}, not {given}", self.name()))
            }
        }
    }
}

/// A global variable of an object.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    /// The section that holds it: `.rodata`, `.data`, `.bss`, `.rodata.foo`, ...
    section: String,
    offset: usize,
    variable_type: Type,
}

/// The bytes that a variable gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Patch {
    /// The variable's name.
    pub(crate) name: String,
    /// The section that holds it, and where.
    pub(crate) section: String,
    pub(crate) offset: usize,
    /// All of it.
    pub(crate) bytes: Vec<u8>,
}

/// All global variables of an object, by name, and bytes of the definitions of maps.
pub(crate) struct Variables {
    variables: BTreeMap<String, Variable>,
    definitions: BTreeMap<String, u64>,
}

impl Variables {
    /// Reads them from an object file: what they are from its section `.BTF`, where they are from its symbols. What is damaged there is not found.
    pub(crate) fn read(object: &object::File<'_>) -> Self {
        let btf = object.section_by_name_bytes(b".BTF").and_then(|section| section.data().ok()).unwrap_or_default();
        let types = Types::read(btf);
        let definitions = types.as_ref().map(Types::definitions).unwrap_or_default();
        let mut variables = types.map(|types| types.variables()).unwrap_or_default();
        // Compilers leave the places to whoever links.
        let place = |name: &str, section: &str| {
            let in_section = |index| object.section_by_index(index).is_ok_and(|found| found.name() == Ok(section));
            let mut symbols = object.symbols();
            let symbol =
                symbols.find(|symbol| symbol.name() == Ok(name) && symbol.section_index().is_some_and(in_section));
            usize::try_from(symbol?.address()).ok()
        };
        variables.retain(|name, variable| {
            let found = place(name, &variable.section);
            variable.offset = found.unwrap_or_default();
            found.is_some()
        });
        Self { variables, definitions }
    }

    /// Bytes of the definition of `map`, without a last member that is an array of no fixed length.
    pub(crate) fn definition_size(&self, map: &str) -> Option<u64> {
        self.definitions.get(map).copied()
    }

    /// What `settings` put where. The error is a variable's name and what is wrong.
    pub(crate) fn patches(&self, settings: &BTreeMap<String, Setting>) -> Result<Vec<Patch>, (String, String)> {
        let patch = |(name, value): (&String, &Setting)| {
            let variable = self.variables.get(name).ok_or_else(|| self.unknown(name))?;
            let size = variable.variable_type.size();
            if size > MAX_VARIABLE {
                return Err(format!("it has {size} bytes; {MAX_VARIABLE} are the limit"));
            }
            let mut bytes = vec![0; size];
            variable.variable_type.write(value, &mut bytes)?;
            Ok(Patch { name: name.clone(), section: variable.section.clone(), offset: variable.offset, bytes })
        };
        settings.iter().map(|setting| patch(setting).map_err(|reason| (setting.0.clone(), reason))).collect()
    }

    /// Names and types of those that can be set without changing what a program computes with: constants.
    pub(crate) fn settings(&self) -> impl Iterator<Item = (&str, String)> {
        let constants = self
            .variables
            .iter()
            .filter(|(_, variable)| variable.section.starts_with(".rodata") && variable.variable_type.size() > 0);
        constants.map(|(name, variable)| (name.as_str(), variable.variable_type.name()))
    }

    fn unknown(&self, name: &str) -> String {
        let nearest = self.variables.keys().map(|known| (strsim::damerau_levenshtein(known, name), known)).min();
        let hint = match nearest {
            Some((distance, known)) if distance <= 3 => format!("; do you mean `{known}`?"),
            _ => String::new(),
        };
        let known: Vec<String> = self.settings().map(|(name, kind)| format!("{name} ({kind})")).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        format!("there is no such variable{hint}\nhelp: it has {known}")
    }
}

/// A type's record in the section.
#[derive(Clone, Copy, Debug)]
struct Record<'a> {
    name: u32,
    info: u32,
    /// Bytes, or another type.
    size_or_type: u32,
    /// What follows, by kind.
    rest: &'a [u8],
}

/// The types of an object, by number from 1.
struct Types<'a> {
    records: Vec<Record<'a>>,
    strings: &'a [u8],
}

fn number(bytes: &[u8], index: usize) -> Option<u32> {
    let word = bytes.get(4 * index..4 * index + 4)?;
    Some(u32::from_ne_bytes(word.try_into().ok()?))
}

impl<'a> Types<'a> {
    fn read(btf: &'a [u8]) -> Option<Self> {
        const MAGIC: u16 = 0xeb9f;
        if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
            return None;
        }
        let field = |index: usize| number(btf, index).map(|value| value as usize);
        let body = btf.get(field(1)?..)?;
        let part = |offset: usize, length: usize| body.get(offset..offset.checked_add(length)?);
        let (mut types, strings) = (part(field(2)?, field(3)?)?, part(field(4)?, field(5)?)?);
        let mut records = Vec::new();
        while types.len() >= 12 {
            let (name, info, size_or_type) = (number(types, 0)?, number(types, 1)?, number(types, 2)?);
            let count = (info & 0xffff) as usize;
            let length = match kind_of(info) {
                kind::INT | kind::VAR | 17 => 4,
                kind::ARRAY => 12,
                4 | 5 | kind::DATASEC | kind::ENUM64 => 12 * count,
                kind::ENUM | 13 => 8 * count,
                _ => 0,
            };
            let rest = types.get(12..12 + length)?;
            records.push(Record { name, info, size_or_type, rest });
            types = &types[12 + length..];
        }
        Some(Self { records, strings })
    }

    fn record(&self, id: u32) -> Option<&Record<'a>> {
        self.records.get((id as usize).checked_sub(1)?)
    }

    fn string(&self, offset: u32) -> Option<&'a str> {
        let bytes = self.strings.get(offset as usize..)?;
        std::str::from_utf8(bytes.split(|byte| *byte == 0).next()?).ok()
    }

    fn variables(&self) -> BTreeMap<String, Variable> {
        let mut found = BTreeMap::new();
        for section in self.records.iter().filter(|record| kind_of(record.info) == kind::DATASEC) {
            let Some(section_name) = self.string(section.name) else { continue };
            // Each: type, place, bytes.
            for entry in section.rest.chunks_exact(12) {
                let Some(variable) = number(entry, 0).and_then(|id| self.record(id)) else { continue };
                let Some(name) = self.string(variable.name) else { continue };
                if kind_of(variable.info) == kind::VAR
                    && !section_name.starts_with(".maps")
                    && section_name != "license"
                {
                    let variable_type = self.type_of(variable.size_or_type, 0);
                    let section = section_name.to_owned();
                    found.insert(name.to_owned(), Variable { section, offset: 0, variable_type });
                }
            }
        }
        found
    }

    /// Bytes of each variable of the section `.maps`, which is a structure.
    fn definitions(&self) -> BTreeMap<String, u64> {
        let sections = self.records.iter().filter(|record| kind_of(record.info) == kind::DATASEC);
        let maps = sections.filter(|section| self.string(section.name) == Some(".maps"));
        let definition = |entry: &[u8]| {
            let variable = self.record(number(entry, 0)?)?;
            let size = self.record(variable.size_or_type)?.size_or_type;
            Some((self.string(variable.name)?.to_owned(), u64::from(size)))
        };
        maps.flat_map(|section| section.rest.chunks_exact(12)).filter_map(definition).collect()
    }

    fn type_of(&self, id: u32, depth: usize) -> Type {
        let Some(record) = self.record(id).filter(|_| depth < MAX_DEPTH) else { return Type::Other };
        let size = record.size_or_type as usize;
        match kind_of(record.info) {
            kind::INT => {
                let encoding = number(record.rest, 0).unwrap_or(0) >> 24;
                let is_character = size == 1 && matches!(self.string(record.name), Some("char"));
                if is_character { Type::Character } else { integer(size, encoding & 1 != 0) }
            }
            kind::ENUM | kind::ENUM64 => integer(size, record.info >> 31 != 0),
            kind::ARRAY => {
                let (element, count) = (number(record.rest, 0).unwrap_or(0), number(record.rest, 2).unwrap_or(0));
                Type::Array(Box::new(self.type_of(element, depth + 1)), count as usize)
            }
            kind::TYPEDEF | kind::VOLATILE | kind::CONST | kind::RESTRICT | kind::TYPE_TAG => {
                self.type_of(record.size_or_type, depth + 1)
            }
            _ => Type::Other,
        }
    }
}

fn integer(size: usize, signed: bool) -> Type {
    if matches!(size, 1 | 2 | 4 | 8) { Type::Integer { size, signed } } else { Type::Other }
}

fn kind_of(info: u32) -> u32 {
    info >> 24 & 0x1f
}
