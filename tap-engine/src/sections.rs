//! Sections of an object file: which programs they declare, under names that loaders have given them over the years.
//!
//! aya-obj refuses an object that has a program section whose name it does not know. So it gets a copy in which such sections have other names; what they
//! declare is told by the true ones. It knows no program arrays with initial values either: these are read here.

use std::collections::BTreeMap;

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SectionKind, SymbolKind};

use crate::object::Kind;

/// What a program is declared as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Role {
    /// As what it can be used; `None`: as either.
    pub(crate) kind: Option<Kind>,
    /// It is a `BPF_PROG_TYPE_SOCKET_FILTER`; else a `BPF_PROG_TYPE_SK_SKB`.
    pub(crate) is_socket_filter: bool,
}

impl Role {
    /// What a section declares (`section_defs` of libbpf, and the names that it had before 1.0); `None`: programs of another type.
    fn of(section: &str) -> Option<Self> {
        let sk_skb = |kind| Some(Self { kind, is_socket_filter: false });
        let mut parts = section.split('/');
        match (parts.next()?, parts.next()) {
            ("sk_skb", Some("stream_parser")) => sk_skb(Some(Kind::StreamParser)),
            ("sk_skb", Some("stream_verdict" | "verdict")) => sk_skb(Some(Kind::StreamVerdict)),
            ("sk_skb" | "sk_skb1" | "sk_skb2" | "sk_skb3", _) => sk_skb(None),
            ("socket" | "socket1" | "socket2", _) => Some(Self { kind: None, is_socket_filter: true }),
            _ => None,
        }
    }

    /// A name of a section that declares the same, and that aya-obj knows.
    fn alias(self) -> &'static str {
        match self {
            Self { is_socket_filter: true, .. } => "socket",
            Self { kind: Some(Kind::StreamParser), .. } => "sk_skb/stream_parser",
            _ => "sk_skb/stream_verdict",
        }
    }
}

/// The roles of an object's functions, by name; programs of other types have none.
pub(crate) fn roles(file: &object::File<'_>) -> BTreeMap<String, Role> {
    let functions = file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text);
    functions
        .filter_map(|symbol| {
            let section = file.section_by_index(symbol.section_index()?).ok()?;
            Some((symbol.name().ok()?.to_owned(), Role::of(section.name().ok()?)?))
        })
        .collect()
}

/// A section that gets another name.
struct Renamed<'a> {
    index: usize,
    name: &'a str,
    alias: String,
}

/// A copy of the object `bytes`, which is `file`, in which aya-obj knows the names of all sections of programs. Damaged tables are left as they are.
pub(crate) fn with_known_names(bytes: &[u8], file: &object::File<'_>) -> Vec<u8> {
    let mut renamed = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let Ok(name) = section.name() else { continue };
        if !name.starts_with(".text") && !name.is_empty() {
            // What is no program of ours is a socket filter to aya-obj, and to us nothing. Each name is there once, because it finds
            // information on functions by it.
            let index = section.index().0;
            let alias = format!("{}/{index}", Role::of(name).map_or("socket", Role::alias));
            renamed.push(Renamed { index, name, alias });
        }
    }
    let mut copy = rename(bytes, &renamed).unwrap_or_else(|| bytes.to_vec());
    hide_values(&mut copy, file);
    rename_in_types(&copy, file, &renamed).unwrap_or(copy)
}

/// aya-obj takes `values` of a map's definition for maps only, not for functions: under another name it passes them over.
fn hide_values(copy: &mut [u8], file: &object::File<'_>) {
    const NAME: &[u8] = b"\0values\0";
    let range = file.section_by_name_bytes(b".BTF").and_then(|section| section.file_range());
    let Some((start, length)) = range else { return };
    let Some(types) = copy.get_mut(start as usize..start.saturating_add(length) as usize) else { return };
    if let Some(at) = types.windows(NAME.len()).position(|window| window == NAME) {
        types[at + 1] = b'V';
    }
}

/// Bytes of a section's header; only ELF files of 64 bits have these offsets.
const SECTION_HEADER: usize = 64;

/// The number of `size` bytes at `at`.
fn number(bytes: &[u8], at: usize, size: usize) -> Option<usize> {
    let mut value = [0; 8];
    let field = bytes.get(at..at.checked_add(size)?)?;
    value[..size].copy_from_slice(field);
    if cfg!(target_endian = "big") {
        value[..size].reverse();
    }
    usize::try_from(u64::from_le_bytes(value)).ok()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) -> Option<()> {
    bytes.get_mut(at..at.checked_add(value.len())?)?.copy_from_slice(value);
    Some(())
}

/// Where the header of section `index` is.
fn header(bytes: &[u8], index: usize) -> Option<usize> {
    number(bytes, 40, 8)?.checked_add(index.checked_mul(SECTION_HEADER)?)
}

/// The contents of the section whose header is at `header`.
fn contents(bytes: &[u8], header: usize) -> Option<&[u8]> {
    let (offset, size) = (number(bytes, header + 24, 8)?, number(bytes, header + 32, 8)?);
    bytes.get(offset..offset.checked_add(size)?)
}

/// Gives the section whose header is at `header` other contents, at the end of the file.
fn replace(bytes: &mut Vec<u8>, header: usize, contents: &[u8]) -> Option<()> {
    let end = bytes.len() as u64;
    put(bytes, header + 24, &end.to_ne_bytes())?;
    put(bytes, header + 32, &(contents.len() as u64).to_ne_bytes())?;
    bytes.extend(contents);
    Some(())
}

/// Gives sections other names in the table of sections.
fn rename(bytes: &[u8], names: &[Renamed<'_>]) -> Option<Vec<u8>> {
    let strings = header(bytes, number(bytes, 62, 2)?)?;
    let mut table = contents(bytes, strings)?.to_vec();
    let mut out = bytes.to_vec();
    for Renamed { index, alias, .. } in names {
        put(&mut out, header(bytes, *index)?, &(table.len() as u32).to_ne_bytes())?;
        table.extend(alias.bytes().chain([0]));
    }
    replace(&mut out, strings, &table)?;
    Some(out)
}

/// The same where lines and functions are told by section: `.BTF.ext`, whose strings are in `.BTF` (`struct btf_ext_header`, `struct
/// btf_header`). Without it the kernel would get programs whose functions have no types.
fn rename_in_types(bytes: &[u8], file: &object::File<'_>, names: &[Renamed<'_>]) -> Option<Vec<u8>> {
    let header_of = |name| header(bytes, file.section_by_name(name)?.index().0);
    let (types_header, lines_header) = (header_of(".BTF")?, header_of(".BTF.ext")?);
    let mut types = contents(bytes, types_header)?.to_vec();
    let mut lines = contents(bytes, lines_header)?.to_vec();
    let strings = number(&types, 4, 4)?.checked_add(number(&types, 16, 4)?)?;
    let length = number(&types, 20, 4)?;
    // They come last, so that more can follow.
    if strings.checked_add(length)? != types.len() {
        return None;
    }
    let mut offsets = Vec::new();
    for Renamed { alias, .. } in names {
        offsets.push(types.len() - strings);
        types.extend(alias.bytes().chain([0]));
    }
    let longer = (types.len() - strings) as u32;
    put(&mut types, 20, &longer.to_ne_bytes())?;

    // Functions, then lines: the size of a record; for each section its name, the number of records, and these.
    for place in [8, 16] {
        let mut at = number(&lines, 4, 4)?.checked_add(number(&lines, place, 4)?)?;
        let end = at.checked_add(number(&lines, place + 4, 4)?)?;
        let record = number(&lines, at, 4)?;
        at += 4;
        while at < end {
            let name = types.get(strings.checked_add(number(&lines, at, 4)?)?..)?.split(|byte| *byte == 0).next()?;
            if let Some(found) = names.iter().position(|renamed| renamed.name.as_bytes() == name) {
                put(&mut lines, at, &(offsets[found] as u32).to_ne_bytes())?;
            }
            at = at.checked_add(8)?.checked_add(number(&lines, at + 4, 4)?.checked_mul(record)?)?;
        }
    }
    let mut out = bytes.to_vec();
    replace(&mut out, types_header, &types)?;
    replace(&mut out, lines_header, &lines)?;
    Some(out)
}

/// The initial values of program arrays, `.values = { [1] = &f }`: map, index and function. `sizes` tells bytes of each map's definition without them.
pub(crate) fn array_values(file: &object::File<'_>, sizes: impl Fn(&str) -> Option<u64>) -> Vec<(String, u32, String)> {
    let Some(section) = file.section_by_name(".maps") else { return Vec::new() };
    let maps: Vec<_> = file.symbols().filter(|symbol| symbol.section_index() == Some(section.index())).collect();
    let value = |(at, relocation): (u64, object::Relocation)| {
        let RelocationTarget::Symbol(target) = relocation.target() else { return None };
        let function = file.symbol_by_index(target).ok().filter(|symbol| symbol.kind() == SymbolKind::Text)?;
        let map = maps.iter().find(|map| (map.address()..map.address().saturating_add(map.size())).contains(&at))?;
        let name = map.name().ok()?;
        let index = (at - map.address()).checked_sub(sizes(name)?)? / 8;
        Some((name.to_owned(), u32::try_from(index).ok()?, function.name().ok()?.to_owned()))
    };
    section.relocations().filter_map(value).collect()
}
