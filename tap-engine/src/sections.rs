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

/// A copy of the object `bytes`, which is `file`, in which aya-obj knows the names of all sections of programs. Damaged tables are left as they are.
pub(crate) fn with_known_names(bytes: &[u8], file: &object::File<'_>) -> Vec<u8> {
    let mut renamed = Vec::new();
    for section in file.sections().filter(|section| section.kind() == SectionKind::Text) {
        let Ok(name) = section.name() else { continue };
        if !name.starts_with(".text") && !name.is_empty() {
            // What is no program of ours is a socket filter to aya-obj, and to us nothing.
            let alias = Role::of(name).map_or("socket", Role::alias);
            renamed.push((section.index().0, alias));
        }
    }
    let mut copy = rename(bytes, &renamed).unwrap_or_else(|| bytes.to_vec());
    hide_values(&mut copy, file);
    copy
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

/// Gives sections other names: a longer string table, at the end of the file. Only ELF files of 64 bits have these offsets.
fn rename(bytes: &[u8], names: &[(usize, &str)]) -> Option<Vec<u8>> {
    const SECTION_HEADER: usize = 64;
    let number = |at: usize, size: usize| -> Option<usize> {
        let mut value = [0; 8];
        let field = bytes.get(at..at.checked_add(size)?)?;
        value[..size].copy_from_slice(field);
        if cfg!(target_endian = "big") {
            value[..size].reverse();
        }
        usize::try_from(u64::from_le_bytes(value)).ok()
    };
    let headers = number(40, 8)?;
    let header = |index: usize| headers.checked_add(index.checked_mul(SECTION_HEADER)?);
    let strings = header(number(62, 2)?)?;
    let (offset, size) = (number(strings + 24, 8)?, number(strings + 32, 8)?);
    let mut table = bytes.get(offset..offset.checked_add(size)?)?.to_vec();
    let mut out = bytes.to_vec();
    let mut put = |at: usize, value: &[u8]| Some(out.get_mut(at..at + value.len())?.copy_from_slice(value));
    for (index, name) in names {
        put(header(*index)?, &(table.len() as u32).to_ne_bytes())?;
        table.extend(name.bytes().chain([0]));
    }
    put(strings + 24, &(bytes.len() as u64).to_ne_bytes())?;
    put(strings + 32, &(table.len() as u64).to_ne_bytes())?;
    out.extend(table);
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
