//! Maps: memory that the programs of a tap share, in all workers, and that outlives them.
//!
//! ```text
//!   MapStore    the maps of one tap, by name; a reload finds those again whose definition is the same
//!     └ Map     one map: array.rs, hash.rs (also LRU and per CPU), lpm.rs, ring.rs; global data are arrays of one value
//!   Maps        those of one object, by the number that its instructions have for them
//! ```
//! A program holds a map as an opaque handle, which only helpers understand, and a value as its address. Values stay mapped as long as
//! the map. One that is deleted while another worker uses it may come back as another key's, as with the kernel's preallocated maps; never as
//! anything but a value of the same map.
//!
//! Two sides use a map: programs, through helpers (results are addresses and errnos), and control (copies and [`MapError`]).

mod array;
mod hash;
mod lpm;
mod ring;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use aya_obj::EbpfSectionKind;

use self::array::Array;
pub(crate) use self::array::ArrayLayout;
use self::hash::Hash;
use self::lpm::Lpm;
pub(crate) use self::ring::Ring;
use crate::error::LoadError;
use crate::machine::{MemoryError, Region};
use crate::names;

/// Upper half of a handle: an address that no memory has, so that a program that follows a handle faults.
const HANDLE: u64 = 0xb9f0_5e7a << 32;

/// The most bytes that keys and values of one map may take, over all CPUs. They are committed when they are first touched.
const MAX_MAP_BYTES: u64 = 1 << 30;

/// The longest key, in bytes (kernel: `MAX_BPF_STACK`, where programs make them).
pub(crate) const MAX_KEY: usize = 512;

/// Types of maps (`enum bpf_map_type`).
mod kind {
    pub(super) const HASH: u32 = 1;
    pub(super) const ARRAY: u32 = 2;
    pub(super) const PROG_ARRAY: u32 = 3;
    pub(super) const PERCPU_HASH: u32 = 5;
    pub(super) const PERCPU_ARRAY: u32 = 6;
    pub(super) const LRU_HASH: u32 = 9;
    pub(super) const LRU_PERCPU_HASH: u32 = 10;
    pub(super) const LPM_TRIE: u32 = 11;
    pub(super) const SOCKMAP: u32 = 15;
    pub(super) const SOCKHASH: u32 = 18;
    pub(super) const RINGBUF: u32 = 27;
}

/// `map_flags`.
mod flag {
    pub(super) const NO_PREALLOC: u32 = 1 << 0;
    pub(super) const NUMA_NODE: u32 = 1 << 2;
    pub(super) const RDONLY_PROG: u32 = 1 << 7;
    pub(super) const WRONLY_PROG: u32 = 1 << 8;
    pub(super) const ZERO_SEED: u32 = 1 << 6;
    pub(super) const MMAPABLE: u32 = 1 << 10;
}

/// Flags of updates.
pub(crate) mod update {
    pub(crate) const NOEXIST: u64 = 1;
    pub(crate) const EXIST: u64 = 2;
}

/// What a map is, as its object defines it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct MapDefinition {
    /// `enum bpf_map_type`.
    pub map_type: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// The most entries; bytes of a ring buffer.
    pub max_entries: u32,
    /// `BPF_F_...`.
    pub flags: u32,
}

impl MapDefinition {
    /// The kernel's name of its type, as `BPF_MAP_TYPE_HASH`.
    pub fn type_name(&self) -> String {
        names::map_type(self.map_type)
    }
}

/// Why an operation on a map failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// There is no such key.
    #[error("there is no such key")]
    NoSuchKey,
    /// A key of another size.
    #[error("a key has {expected} bytes, not {given}")]
    KeySize {
        /// Bytes of the map's keys.
        expected: usize,
        /// Bytes that were given.
        given: usize,
    },
    /// A value of another size.
    #[error("a value has {expected} bytes, not {given}")]
    ValueSize {
        /// Bytes of the map's values.
        expected: usize,
        /// Bytes that were given.
        given: usize,
    },
    /// The map is full.
    #[error("the map is full: it has room for {0} entries")]
    Full(u32),
    /// Constants of a program.
    #[error("its values are constants")]
    ReadOnly,
    /// The map's type has no such operation.
    #[error("a map of this type does not do that")]
    Unsupported,
}

/// One map.
#[derive(Debug)]
pub struct Map {
    name: String,
    definition: MapDefinition,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Array(Array),
    Hash(Hash),
    Lpm(Lpm),
    Ring(Ring),
    /// Programs by index: their number in the object and one, or 0.
    Programs(Region, u32),
    /// Sockets, of which there are none here: lookups miss, updates fail.
    Sockets,
}

impl Map {
    fn new(object: &str, name: &str, definition: MapDefinition, cpus: u32) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError::BadMap { object: object.to_owned(), map: name.to_owned(), reason };
        let content = Content::new(&definition, cpus).map_err(|problem| match problem {
            Problem::Bad(reason) => bad(reason),
            Problem::Memory(error) => error.into(),
            Problem::Type => LoadError::UnsupportedMap {
                object: object.to_owned(),
                map: name.to_owned(),
                map_type: definition.type_name(),
            },
        })?;
        Ok(Self { name: name.to_owned(), definition, content })
    }

    /// Its name in the object: a map's own, or that of a section of global data.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it is.
    pub fn definition(&self) -> MapDefinition {
        self.definition
    }

    /// The value of `key`, copied; of maps with a value a CPU, all of them one after the other, each rounded up to 8 bytes. While programs run
    /// it can hold a part of one value and a part of another.
    ///
    /// # Errors
    /// There is no such key, or it cannot be one.
    pub fn get(&self, key: &[u8]) -> Result<Vec<u8>, MapError> {
        self.check_key(key)?;
        match &self.content {
            Content::Array(array) => array.get(index(key)).ok_or(MapError::NoSuchKey),
            Content::Hash(hash) => hash.get(key).ok_or(MapError::NoSuchKey),
            Content::Lpm(lpm) => lpm.get(key).ok_or(MapError::NoSuchKey),
            Content::Programs(..) => {
                self.program_at(index(key)).map(|program| program.to_ne_bytes().into()).ok_or(MapError::NoSuchKey)
            }
            Content::Ring(_) | Content::Sockets => Err(MapError::Unsupported),
        }
    }

    /// Gives `key` this value: of maps with a value a CPU, one for all of them, or all as [`get`](Self::get) has them.
    ///
    /// # Errors
    /// The map is full or cannot be written, or a size is wrong.
    pub fn set(&self, key: &[u8], value: &[u8]) -> Result<(), MapError> {
        self.check_key(key)?;
        let expected = self.definition.value_size as usize;
        let set = |result: Result<(), i32>| {
            result.map_err(|errno| match errno {
                libc::E2BIG | libc::ENOSPC | libc::ENOMEM => MapError::Full(self.definition.max_entries),
                libc::EPERM => MapError::ReadOnly,
                _ => MapError::NoSuchKey,
            })
        };
        let is_all = || {
            is_per_cpu(self.definition.map_type) && value.len() == expected.next_multiple_of(8) * self.cpus() as usize
        };
        if value.len() != expected && !is_all() {
            return Err(MapError::ValueSize { expected, given: value.len() });
        }
        match &self.content {
            Content::Array(array) => set(array.set(index(key), value)),
            Content::Hash(hash) => set(hash.set(key, value)),
            Content::Lpm(lpm) => set(lpm.update(key, value, 0)),
            Content::Ring(_) | Content::Sockets | Content::Programs(..) => Err(MapError::Unsupported),
        }
    }

    /// Removes `key`.
    ///
    /// # Errors
    /// There is no such key, or entries of this map are there for good.
    pub fn delete(&self, key: &[u8]) -> Result<(), MapError> {
        self.check_key(key)?;
        self.delete_elem(key).map_err(|errno| match errno {
            libc::ENOENT => MapError::NoSuchKey,
            _ => MapError::Unsupported,
        })
    }

    /// All keys; of maps that change meanwhile, most, and some perhaps twice.
    pub fn keys(&self) -> Vec<Vec<u8>> {
        let numbers = |count: u32| (0..count).map(|index| index.to_ne_bytes().to_vec()).collect();
        match &self.content {
            Content::Array(array) => numbers(array.entries()),
            Content::Hash(hash) => hash.keys(),
            Content::Lpm(lpm) => lpm.keys(),
            Content::Programs(_, entries) => numbers(*entries),
            Content::Ring(_) | Content::Sockets => Vec::new(),
        }
    }

    /// Of a ring buffer: takes the records that were submitted, oldest first.
    pub fn drain(&self, each: &mut dyn FnMut(&[u8])) {
        if let Content::Ring(ring) = &self.content {
            ring.drain(each);
        }
    }

    /// Of a ring buffer: records that found no room so far.
    pub fn lost(&self) -> u64 {
        if let Content::Ring(ring) = &self.content { ring.lost() } else { 0 }
    }

    /// Values for each key: one for each CPU, or one.
    pub fn cpus(&self) -> u32 {
        match &self.content {
            Content::Array(array) => array.cpus(),
            Content::Hash(hash) => hash.cpus(),
            _ => 1,
        }
    }

    fn check_key(&self, key: &[u8]) -> Result<(), MapError> {
        let (expected, given) = (self.definition.key_size as usize, key.len());
        if expected == given { Ok(()) } else { Err(MapError::KeySize { expected, given }) }
    }

    /// How its values lie, if it is an array with one value a key: native code finds them by itself.
    pub(crate) fn array(&self) -> Option<ArrayLayout> {
        if let Content::Array(array) = &self.content { array.layout() } else { None }
    }

    /// Programs: the address of the value of `key`, of CPU `cpu` if each has its own.
    pub(crate) fn lookup(&self, key: &[u8], cpu: u32) -> Option<u64> {
        match &self.content {
            Content::Array(array) => array.address(index(key), cpu),
            Content::Hash(hash) => hash.lookup(key, cpu),
            Content::Lpm(lpm) => lpm.lookup(key),
            Content::Ring(_) | Content::Programs(..) | Content::Sockets => None,
        }
    }

    /// Programs: gives `key` a value, on CPU `cpu`. Errors are the kernel's errnos.
    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64, cpu: u32) -> Result<(), i32> {
        if flags > update::EXIST {
            return Err(libc::EINVAL);
        }
        match &self.content {
            Content::Array(array) => array.update(index(key), value, flags, cpu),
            Content::Hash(hash) => hash.update(key, value, flags, cpu),
            Content::Lpm(lpm) => lpm.update(key, value, flags),
            Content::Ring(_) | Content::Programs(..) | Content::Sockets => Err(libc::EOPNOTSUPP),
        }
    }

    /// Programs: removes `key`.
    pub(crate) fn delete_elem(&self, key: &[u8]) -> Result<(), i32> {
        match &self.content {
            Content::Array(_) => Err(libc::EINVAL),
            Content::Hash(hash) => hash.delete(key),
            Content::Lpm(lpm) => lpm.delete(key),
            Content::Ring(_) | Content::Programs(..) | Content::Sockets => Err(libc::EOPNOTSUPP),
        }
    }

    /// Programs: calls `each` with the addresses of each key and value until it breaks. How many it was called for.
    pub(crate) fn for_each<E>(
        &self,
        cpu: u32,
        each: &mut dyn FnMut(ElementKey, u64) -> Result<ControlFlow<()>, E>,
    ) -> Result<Result<u32, i32>, E> {
        match &self.content {
            Content::Array(array) => array.for_each(cpu, each).map(Ok),
            Content::Hash(hash) => hash.for_each(cpu, each).map(Ok),
            _ => Ok(Err(libc::EINVAL)),
        }
    }

    /// Memory that programs may touch, and whether they may write it.
    pub(crate) fn windows(&self) -> Vec<(Range<u64>, bool)> {
        let writable = !self.is_read_only();
        match &self.content {
            Content::Array(array) => vec![(array.addresses(), writable)],
            Content::Hash(hash) => vec![(hash.values(), writable), (hash.key_addresses(), false)],
            Content::Lpm(lpm) => vec![(lpm.values(), writable)],
            Content::Ring(ring) => vec![(ring.addresses(), true)],
            Content::Programs(..) | Content::Sockets => Vec::new(),
        }
    }

    /// Programs may not write its values.
    pub(crate) fn is_read_only(&self) -> bool {
        self.definition.flags & flag::RDONLY_PROG != 0
    }

    /// The ring buffer that it is.
    pub(crate) fn ring(&self) -> Option<&Ring> {
        if let Content::Ring(ring) = &self.content { Some(ring) } else { None }
    }

    /// The number of the program at `index`.
    pub(crate) fn program_at(&self, index: u32) -> Option<u32> {
        self.program_place(index)?.load(Ordering::Relaxed).checked_sub(1)
    }

    /// Puts the object's program `program` at `index` of a program array; false: it is none, or too short.
    pub(crate) fn set_program(&self, index: u32, program: u32) -> bool {
        let Some(place) = self.program_place(index) else { return false };
        place.store(program + 1, Ordering::Relaxed);
        true
    }

    fn program_place(&self, index: u32) -> Option<&AtomicU32> {
        let Content::Programs(programs, entries) = &self.content else { return None };
        (index < *entries).then(|| programs.atomic_u32(index as usize))
    }
}

/// What a callback over a map gets for a key.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ElementKey {
    /// An array's index, which has no memory of its own.
    Index(u32),
    /// The address of the key.
    Address(u64),
}

/// Whether maps of this type keep a value for each CPU.
fn is_per_cpu(map_type: u32) -> bool {
    matches!(map_type, kind::PERCPU_ARRAY | kind::PERCPU_HASH | kind::LRU_PERCPU_HASH)
}

/// An array's key.
fn index(key: &[u8]) -> u32 {
    key.try_into().map_or(u32::MAX, u32::from_ne_bytes)
}

/// Why a map cannot be made.
enum Problem {
    Type,
    Bad(String),
    Memory(MemoryError),
}

impl From<MemoryError> for Problem {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

impl Content {
    /// Checks a definition as the kernel's `..._alloc_check` functions do, and makes the map, empty.
    fn new(definition: &MapDefinition, cpus: u32) -> Result<Self, Problem> {
        let MapDefinition { map_type, key_size, value_size, max_entries, flags } = *definition;
        let bad = |reason: String| Err(Problem::Bad(reason));
        let common = flag::NUMA_NODE | flag::RDONLY_PROG | flag::WRONLY_PROG;
        let allowed = match map_type {
            kind::ARRAY => common | flag::MMAPABLE,
            kind::HASH | kind::PERCPU_HASH => common | flag::NO_PREALLOC | flag::ZERO_SEED,
            kind::LRU_HASH | kind::LRU_PERCPU_HASH => common | flag::ZERO_SEED,
            kind::LPM_TRIE => common | flag::NO_PREALLOC,
            _ => common,
        };
        if flags & !allowed != 0 {
            return bad(format!("it has the flags {:#x}, which its type does not know here", flags & !allowed));
        }
        if max_entries == 0 {
            return bad("it has no entries".into());
        }
        let per_cpu = is_per_cpu(map_type);
        let values = if per_cpu { cpus } else { 1 };
        let entry =
            u64::from(key_size).next_multiple_of(8) + u64::from(value_size).next_multiple_of(8) * u64::from(values);
        if u128::from(entry) * u128::from(max_entries) > u128::from(MAX_MAP_BYTES) {
            return bad(format!("{max_entries} entries of {entry} bytes are more than {MAX_MAP_BYTES} bytes"));
        }
        let needs_key = |size: u32| {
            if key_size == size {
                Ok(())
            } else {
                Err(Problem::Bad(format!("its key has {size} bytes, not {key_size}")))
            }
        };
        let has_key = || {
            if (1..=MAX_KEY).contains(&(key_size as usize)) {
                Ok(())
            } else {
                Err(Problem::Bad(format!("a key has 1 to {MAX_KEY} bytes, not {key_size}")))
            }
        };
        let needs_value = || if value_size > 0 { Ok(()) } else { Err(Problem::Bad("its values have 0 bytes".into())) };
        match map_type {
            kind::ARRAY | kind::PERCPU_ARRAY => {
                needs_key(4)?;
                needs_value()?;
                Ok(Self::Array(Array::new(value_size, max_entries, values, per_cpu)?))
            }
            kind::HASH | kind::PERCPU_HASH | kind::LRU_HASH | kind::LRU_PERCPU_HASH => {
                has_key()?;
                needs_value()?;
                let evicts = matches!(map_type, kind::LRU_HASH | kind::LRU_PERCPU_HASH);
                Ok(Self::Hash(Hash::new(key_size, value_size, max_entries, values, per_cpu, evicts)?))
            }
            kind::LPM_TRIE => {
                if !(5..=4 + 256).contains(&key_size) {
                    return bad(format!("a key has a prefix length of 4 bytes and 1 to 256 bytes, not {key_size}"));
                }
                if flags & flag::NO_PREALLOC == 0 {
                    return bad("an LPM trie needs BPF_F_NO_PREALLOC".into());
                }
                needs_value()?;
                Ok(Self::Lpm(Lpm::new(key_size, value_size, max_entries)?))
            }
            kind::RINGBUF => {
                if key_size != 0 || value_size != 0 {
                    return bad("a ring buffer has neither keys nor values".into());
                }
                if !max_entries.is_power_of_two() || max_entries % 4096 != 0 {
                    return bad(format!("a ring buffer's size is a power of two of pages, not {max_entries}"));
                }
                Ok(Self::Ring(Ring::new(max_entries)?))
            }
            kind::PROG_ARRAY => {
                needs_key(4)?;
                // None is told where an object lists its programs, as `__array(values, …)`.
                if !matches!(value_size, 0 | 4) {
                    return bad(format!("a program is a value of 4 bytes, not {value_size}"));
                }
                Ok(Self::Programs(Region::new(4 * max_entries as usize)?, max_entries))
            }
            kind::SOCKMAP => needs_key(4).map(|()| Self::Sockets),
            kind::SOCKHASH => has_key().map(|()| Self::Sockets),
            _ => Err(Problem::Type),
        }
    }
}

/// The maps of one tap, by name: its objects share those that they define alike. How many workers there are is how many values maps
/// have that keep one for each CPU.
#[derive(Debug)]
pub struct MapStore {
    cpus: u32,
    /// Those of the generation before, of which the next one takes over what it defines alike.
    previous: BTreeMap<String, Arc<Map>>,
    current: Mutex<BTreeMap<String, Arc<Map>>>,
}

impl Default for MapStore {
    fn default() -> Self {
        Self::new(1)
    }
}

impl MapStore {
    /// A store without maps, for `cpus` workers.
    pub fn new(cpus: u32) -> Self {
        Self { cpus: cpus.max(1), previous: BTreeMap::new(), current: Mutex::default() }
    }

    /// A store for the objects of a reload: what they define as before is the same map, with its contents. This one stays as it is.
    pub fn successor(&self) -> Self {
        let previous = self.current.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { cpus: self.cpus, previous, current: Mutex::default() }
    }

    /// The maps that objects have asked for.
    pub fn maps(&self) -> Vec<Arc<Map>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn find(&self, object: &str, name: &str, definition: MapDefinition) -> Result<Arc<Map>, LoadError> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(map) = current.get(name) {
            if map.definition == definition {
                return Ok(Arc::clone(map));
            }
            let reason = "another object of the same tap defines it otherwise".to_owned();
            return Err(LoadError::BadMap { object: object.to_owned(), map: name.to_owned(), reason });
        }
        // Programs by number are those of one object.
        let kept = self
            .previous
            .get(name)
            .filter(|map| map.definition == definition && definition.map_type != kind::PROG_ARRAY);
        let map = match kept {
            Some(map) => Arc::clone(map),
            None => Arc::new(Map::new(object, name, definition, self.cpus)?),
        };
        current.insert(name.to_owned(), Arc::clone(&map));
        Ok(map)
    }
}

/// The maps of one object, in an order that stays: a map's index is its file descriptor for relocation.
#[derive(Debug)]
pub(crate) struct Maps(Vec<Arc<Map>>);

impl Maps {
    /// The maps `definitions`, by name and in this order; global data, filled with its initial values, is the object's own.
    pub(crate) fn new<'a>(
        object: &str,
        definitions: impl Iterator<Item = (&'a str, &'a aya_obj::Map)>,
        store: &MapStore,
    ) -> Result<Self, LoadError> {
        let mut maps = Vec::new();
        for (name, map) in definitions {
            let definition = MapDefinition {
                map_type: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: map.max_entries(),
                flags: map.map_flags(),
            };
            let is_constant = map.section_kind() == EbpfSectionKind::Rodata;
            let made = match map.section_kind() {
                EbpfSectionKind::Rodata | EbpfSectionKind::Data | EbpfSectionKind::Bss => {
                    let flags = if is_constant { flag::RDONLY_PROG } else { 0 };
                    Arc::new(Map::new(object, name, MapDefinition { flags, ..definition }, 1)?)
                }
                // Programs by number are those of one object.
                _ if definition.map_type == kind::PROG_ARRAY => Arc::new(Map::new(object, name, definition, 1)?),
                _ => store.find(object, name, definition)?,
            };
            if let (Content::Array(array), false) = (&made.content, map.data().is_empty()) {
                array.fill(map.data(), is_constant)?;
            }
            maps.push(made);
        }
        Ok(Self(maps))
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Arc<Map>] {
        &self.0
    }

    /// What a program holds for map `index`.
    pub(crate) fn handle(&self, index: usize) -> Option<u64> {
        (index < self.0.len()).then_some(HANDLE | index as u64)
    }

    /// The map behind a handle.
    pub(crate) fn resolve(&self, handle: u64) -> Option<&Map> {
        self.0.get(usize::try_from(handle ^ HANDLE).ok()?).map(|map| &**map)
    }

    /// The map of that name: a map's own name, or `.rodata`, `.data`, `.bss`.
    pub(crate) fn by_name(&self, name: &str) -> Option<&Arc<Map>> {
        self.0.iter().find(|map| map.name == name)
    }

    /// How the values of map `index` lie in memory, if it is an array.
    pub(crate) fn array(&self, index: usize) -> Option<ArrayLayout> {
        let map = self.0.get(index)?;
        let read_only = map.is_read_only();
        map.array().map(|layout| ArrayLayout { read_only, ..layout })
    }

    /// Memory that programs may touch, and whether they may write it.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (Range<u64>, bool)> {
        self.0.iter().flat_map(|map| map.windows())
    }

    /// The address of byte `offset` of the only value of map `index`, for a global variable.
    pub(crate) fn value_address(&self, index: usize, offset: u32) -> Option<u64> {
        let map = self.0.get(index)?;
        // One past the end is an address that a program may form, as in C.
        let inside = offset <= map.definition.value_size;
        map.array().filter(|_| inside).map(|layout| layout.base + u64::from(offset))
    }
}
