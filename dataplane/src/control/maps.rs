//! The maps of the running taps, by their addresses, and their elements as JSON.
//!
//! A map of a tap is `TAP/MAP`, whatever objects of the tap share it. Global data (`.data`, `.bss`, `.rodata`) is an object's
//! own: `TAP/.bss` if only one object of the tap has some, else `TAP/DIRECTION/.bss`.

use std::io;
use std::sync::Arc;

use serde::Serialize;
use tap_engine::{Map, MapError};

use super::Failure;
use super::values::{as_number, parse};
use crate::events::hex;
use crate::load::LoadedTap;

/// A map and its address.
pub(super) struct Named {
    pub(super) address: String,
    pub(super) map: Arc<Map>,
}

/// A map as `map list` shows it.
#[derive(Serialize)]
pub(super) struct Listed<'a> {
    map: &'a str,
    r#type: String,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// An element as `map dump` and `map get` show it.
#[derive(Serialize)]
struct Element {
    key: Number,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Number>,
    /// Of maps that keep one for each worker.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<Number>,
}

/// Bytes, and the number that they are.
#[derive(Serialize)]
struct Number {
    bytes: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
}

impl Number {
    fn new(bytes: &[u8]) -> Self {
        Self { bytes: hex(bytes), number: as_number(bytes) }
    }
}

impl Named {
    pub(super) fn listed(&self) -> Listed<'_> {
        let definition = self.map.definition();
        Listed {
            map: &self.address,
            r#type: definition.type_name(),
            key_size: definition.key_size,
            value_size: definition.value_size,
            max_entries: definition.max_entries,
            flags: definition.flags,
        }
    }

    /// All elements; those that go meanwhile are left out.
    pub(super) fn dump(&self, each: &mut dyn FnMut(String) -> io::Result<()>) -> Result<(), Failure> {
        for key in self.map.keys() {
            match self.map.get(&key) {
                Ok(value) => each(self.element(&key, &value)?)?,
                Err(MapError::NoSuchKey) => {}
                Err(error) => return Err(self.failure(&error)),
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Result<String, Failure> {
        let key = self.key(key)?;
        let value = self.map.get(&key).map_err(|error| self.failure(&error))?;
        self.element(&key, &value)
    }

    pub(super) fn set(&self, key: &str, value: &str) -> Result<(), Failure> {
        let size = self.map.definition().value_size as usize;
        let value = parse(value, size).map_err(|problem| self.bad("value", &problem))?;
        self.map.set(&self.key(key)?, &value).map_err(|error| self.failure(&error))
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), Failure> {
        self.map.delete(&self.key(key)?).map_err(|error| self.failure(&error))
    }

    fn key(&self, text: &str) -> Result<Vec<u8>, Failure> {
        parse(text, self.map.definition().key_size as usize).map_err(|problem| self.bad("key", &problem))
    }

    fn element(&self, key: &[u8], value: &[u8]) -> Result<String, Failure> {
        let size = self.map.definition().value_size as usize;
        let (value, values) = if self.map.cpus() > 1 {
            let each = value.chunks(size.next_multiple_of(8).max(1)).map(|value| &value[..size.min(value.len())]);
            (None, each.map(Number::new).collect())
        } else {
            (Some(Number::new(value)), Vec::new())
        };
        serde_json::to_string(&Element { key: Number::new(key), value, values }).map_err(Failure::failed)
    }

    fn bad(&self, what: &str, problem: &str) -> Failure {
        Failure::bad(format!("{what} of {}: {problem}", self.address))
    }

    fn failure(&self, error: &MapError) -> Failure {
        Failure::failed(format!("{}: {error}", self.address))
    }
}

/// The map at `address`.
pub(super) fn find(taps: &[LoadedTap], address: &str) -> Result<Named, Failure> {
    let mut all = all(taps);
    match all.iter().position(|named| named.address == address) {
        Some(found) => Ok(all.swap_remove(found)),
        None if all.is_empty() => Err(Failure::bad("the programs have no maps")),
        None => {
            let known: Vec<_> = all.into_iter().map(|named| named.address).collect();
            Err(Failure::bad(format!("there is no map {address}\nhelp: there are {}", known.join(", "))))
        }
    }
}

/// All maps, in the order of the taps, and by name.
pub(super) fn all(taps: &[LoadedTap]) -> Vec<Named> {
    taps.iter().flat_map(of_tap).collect()
}

fn of_tap(tap: &LoadedTap) -> Vec<Named> {
    let mut found: Vec<(String, Arc<Map>)> = Vec::new();
    for (direction, loaded) in tap.directions() {
        let shadow = loaded.shadow.iter().map(|(object, _)| (format!("{direction}.shadow"), object));
        for (owner, object) in std::iter::once((direction.to_owned(), &loaded.object)).chain(shadow) {
            for map in object.maps() {
                if !found.iter().any(|(_, known)| Arc::ptr_eq(known, map)) {
                    found.push((owner.clone(), Arc::clone(map)));
                }
            }
        }
    }
    found.sort_by(|one, other| (one.1.name(), &one.0).cmp(&(other.1.name(), &other.0)));
    let tap = &tap.config.name.value;
    let address = |(owner, map): &(String, Arc<Map>)| {
        let alone = found.iter().filter(|(_, other)| other.name() == map.name()).count() == 1;
        if alone { format!("{tap}/{}", map.name()) } else { format!("{tap}/{owner}/{}", map.name()) }
    };
    found.iter().map(|entry| Named { address: address(entry), map: Arc::clone(&entry.1) }).collect()
}
