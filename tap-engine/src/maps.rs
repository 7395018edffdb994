//! Array maps and global data: memory that all programs of an object share, in all workers.
//!
//! A map's values lie one after the other in one [`Region`], each rounded up to 8 bytes as in the kernel
//! (`kernel/bpf/arraymap.c`). Global variables (`.rodata`, `.data`, `.bss`) are maps of one value.
//!
//! In bytecode a reference to a *map* is an opaque handle, which only helpers understand; a reference to a *value* (a global
//! variable) is its address.

use std::sync::Arc;

use aya_obj::EbpfSectionKind;

use crate::error::LoadError;
use crate::machine::Region;
use crate::names;

const BPF_MAP_TYPE_ARRAY: u32 = 2;

/// Upper half of a handle: an address that no memory has, so that a program that follows a handle faults.
const HANDLE: u64 = 0xb9f0_5e7a << 32;

/// The most bytes that the values of one map may take.
const MAX_MAP_BYTES: usize = 1 << 30;

/// The maps of one object, in an order that stays: a map's index is its file descriptor for relocation.
#[derive(Debug)]
pub(crate) struct Maps {
    layouts: Vec<Layout>,
    regions: Arc<[Region]>,
}

/// Where the values of an array lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArrayLayout {
    pub(crate) base: u64,
    pub(crate) stride: u64,
    pub(crate) entries: u32,
    pub(crate) read_only: bool,
}

/// How a map's values lie in its region.
#[derive(Debug)]
struct Layout {
    name: String,
    value_size: usize,
    stride: usize,
    entries: u32,
}

impl Maps {
    /// Makes the maps `definitions`, by name and in this order, and fills global data with its initial values.
    pub(crate) fn new<'a>(
        object: &str,
        definitions: impl Iterator<Item = (&'a str, &'a aya_obj::Map)>,
    ) -> Result<Self, LoadError> {
        let mut layouts = Vec::new();
        let mut regions = Vec::new();
        for (name, map) in definitions {
            let layout = Layout::new(object, name, map)?;
            let region = Region::new(layout.stride * layout.entries as usize)?;
            if map.section_kind() != EbpfSectionKind::BtfMaps && map.section_kind() != EbpfSectionKind::Maps {
                let initial = map.data();
                region.copy_in(0, &initial[..initial.len().min(region.length())]);
            }
            layouts.push(layout);
            regions.push(region);
        }
        Ok(Self { layouts, regions: regions.into() })
    }

    /// How the values of map `index` lie in memory, if it is an array.
    pub(crate) fn array(&self, index: usize) -> Option<ArrayLayout> {
        let (layout, region) = (self.layouts.get(index)?, self.regions.get(index)?);
        let (stride, entries) = (layout.stride as u64, layout.entries);
        Some(ArrayLayout { base: region.address(), stride, entries, read_only: false })
    }

    /// Addresses of values, and whether programs may write there.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (std::ops::Range<u64>, bool)> {
        self.regions.iter().map(|region| (region.addresses(), true))
    }

    /// What a program holds for map `index`.
    pub(crate) fn handle(&self, index: usize) -> Option<u64> {
        (index < self.layouts.len()).then_some(HANDLE | index as u64)
    }

    /// The map behind a handle.
    pub(crate) fn resolve(&self, handle: u64) -> Option<MapRef<'_>> {
        let index = usize::try_from(handle ^ HANDLE).ok()?;
        Some(MapRef { layout: self.layouts.get(index)?, region: self.regions.get(index)? })
    }

    /// The map of that name: an array's own name, or `.rodata`, `.data`, `.bss`.
    pub(crate) fn by_name(&self, name: &str) -> Option<MapRef<'_>> {
        let index = self.layouts.iter().position(|layout| layout.name == name)?;
        Some(MapRef { layout: &self.layouts[index], region: &self.regions[index] })
    }

    /// The address of byte `offset` of the only value of map `index`, for a global variable.
    pub(crate) fn value_address(&self, index: usize, offset: u32) -> Option<u64> {
        let (layout, region) = (self.layouts.get(index)?, self.regions.get(index)?);
        // One past the end is an address that a program may form, as in C.
        (offset as usize <= layout.value_size).then(|| region.address() + u64::from(offset))
    }
}

impl Layout {
    /// Checks a definition as `array_map_alloc_check` does.
    fn new(object: &str, name: &str, map: &aya_obj::Map) -> Result<Self, LoadError> {
        let bad = |reason: String| LoadError::BadMap { object: object.to_owned(), map: name.to_owned(), reason };
        if map.map_type() != BPF_MAP_TYPE_ARRAY {
            let map_type = names::map_type(map.map_type());
            return Err(LoadError::UnsupportedMap { object: object.to_owned(), map: name.to_owned(), map_type });
        }
        let (key_size, value_size, entries) = (map.key_size(), map.value_size() as usize, map.max_entries());
        if key_size != 4 {
            return Err(bad(format!("an array's key has 4 bytes, not {key_size}")));
        }
        if value_size == 0 || entries == 0 {
            return Err(bad(format!("{entries} values of {value_size} bytes")));
        }
        let stride = value_size.next_multiple_of(8);
        match stride.checked_mul(entries as usize) {
            Some(bytes) if bytes <= MAX_MAP_BYTES => Ok(Self { name: name.to_owned(), value_size, stride, entries }),
            _ => Err(bad(format!("{entries} values of {value_size} bytes are more than {MAX_MAP_BYTES} bytes"))),
        }
    }
}

/// One array map.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MapRef<'a> {
    layout: &'a Layout,
    region: &'a Region,
}

impl MapRef<'_> {
    /// The address of value `index`, if there is one.
    pub(crate) fn value_address(&self, index: u32) -> Option<u64> {
        (index < self.layout.entries).then(|| self.region.address() + index as u64 * self.layout.stride as u64)
    }

    /// Bytes of a value.
    pub(crate) fn value_size(&self) -> usize {
        self.layout.value_size
    }

    /// A copy of value `index`. Workers may be writing to it: the copy can hold a part of one value and a part of another.
    pub(crate) fn value(&self, index: u32) -> Option<Vec<u8>> {
        let offset = (index < self.layout.entries).then(|| index as usize * self.layout.stride)?;
        let mut value = vec![0; self.layout.value_size];
        self.region.copy_out(offset, &mut value);
        Some(value)
    }

    /// Overwrites value `index`; false if there is none, or if `value` has another size.
    pub(crate) fn set_value(&self, index: u32, value: &[u8]) -> bool {
        let fits = index < self.layout.entries && value.len() == self.layout.value_size;
        if fits {
            self.region.copy_in(index as usize * self.layout.stride, value);
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn array(key_size: u32, value_size: u32, entries: u32) -> aya_obj::Map {
        aya_obj::Map::new_from_params(BPF_MAP_TYPE_ARRAY, key_size, value_size, entries, 0)
    }

    #[test]
    fn values_lie_apart_and_keep_what_is_written() {
        let map = array(4, 5, 3);
        let maps = Maps::new("o", [("counts", &map)].into_iter()).unwrap();
        let counts = maps.by_name("counts").unwrap();
        assert_eq!(counts.value_address(2).unwrap() - counts.value_address(0).unwrap(), 16);
        assert_eq!(counts.value_address(3), None);
        assert!(counts.set_value(2, b"12345"));
        assert!(!counts.set_value(3, b"12345"));
        assert!(!counts.set_value(2, b"1234"));
        assert_eq!(counts.value(2).unwrap(), b"12345");
        assert_eq!(counts.value(1).unwrap(), [0; 5]);
    }

    #[test]
    fn only_handles_resolve() {
        let map = array(4, 8, 1);
        let maps = Maps::new("o", [("a", &map), ("b", &map)].into_iter()).unwrap();
        let handle = maps.handle(1).unwrap();
        assert_eq!(maps.resolve(handle).unwrap().layout.name, "b");
        assert_eq!(maps.handle(2), None);
        for wrong in [0, 1, handle + 1, u64::MAX, maps.regions[0].address()] {
            assert!(maps.resolve(wrong).is_none(), "{wrong:#x}");
        }
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        let cases = [
            (array(8, 8, 1), "key"),
            (array(4, 0, 1), "0 bytes"),
            (array(4, 8, 0), "0 values"),
            (array(4, u32::MAX, u32::MAX), "more than"),
        ];
        for (map, word) in cases {
            let error = Maps::new("o", [("m", &map)].into_iter()).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        let hash = aya_obj::Map::new_from_params(1, 4, 8, 1, 0);
        let error = Maps::new("o", [("m", &hash)].into_iter()).unwrap_err().to_string();
        assert!(error.contains("BPF_MAP_TYPE_HASH"), "{error}");
    }
}
