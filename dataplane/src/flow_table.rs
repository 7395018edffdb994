//! All flows of one worker: found by key, held by number, bounded.

use std::hash::Hasher;
use std::ops::{Index, IndexMut};

use hashbrown::HashTable;
use siphasher::sip::SipHasher13;

use crate::steer::FlowKey;

/// Number of a flow in its worker's table; reused after the flow has ended.
pub type FlowId = u32;

/// The table is at its limit.
#[derive(Debug, PartialEq, Eq)]
pub struct TableFull;

/// Hashes flow keys with a secret, so that nobody outside can choose keys that collide. Symmetric, since the key is.
#[derive(Clone)]
pub struct KeyHasher(SipHasher13);

impl KeyHasher {
    /// The hash of all who have the same `seed`: all workers, so that they agree who owns a flow.
    pub fn new(seed: u64) -> Self {
        Self(SipHasher13::new_with_keys(seed, !seed.rotate_left(32)))
    }

    /// The hash of a key.
    pub fn hash(&self, key: &FlowKey) -> u64 {
        let mut hasher = self.0;
        hasher.write(&key.to_bytes());
        hasher.finish()
    }
}

/// Flows by key and by number. Invariant: `index` holds exactly the numbers of the occupied slots.
pub struct FlowTable<F> {
    hasher: KeyHasher,
    index: HashTable<FlowId>,
    slots: Vec<Option<(FlowKey, F)>>,
    free: Vec<FlowId>,
    limit: usize,
}

impl<F> FlowTable<F> {
    /// An empty table for at most `limit` flows.
    pub fn new(limit: usize, hasher: KeyHasher) -> Self {
        assert!(limit < FlowId::MAX as usize);
        Self { hasher, index: HashTable::new(), slots: Vec::new(), free: Vec::new(), limit }
    }

    /// Number of flows.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True when there is no flow.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// All flow numbers are below this.
    pub fn capacity(&self) -> usize {
        self.slots.len()
    }

    /// True when no flow can be added.
    pub fn is_full(&self) -> bool {
        self.index.len() >= self.limit
    }

    /// The number of the flow with this key.
    pub fn find(&self, key: &FlowKey) -> Option<FlowId> {
        self.index.find(self.hasher.hash(key), |&id| self.key(id) == key).copied()
    }

    /// Adds a flow whose key is not in the table.
    pub fn insert(&mut self, key: FlowKey, flow: F) -> Result<FlowId, TableFull> {
        debug_assert!(self.find(&key).is_none());
        if self.is_full() {
            return Err(TableFull);
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as FlowId
        });
        self.slots[id as usize] = Some((key, flow));
        let Self { hasher, slots, index, .. } = self;
        index.insert_unique(hasher.hash(&key), id, |&id| hasher.hash(&occupied(slots, id).0));
        Ok(id)
    }

    /// Takes a flow out; its number may be given to another one from now on.
    pub fn remove(&mut self, id: FlowId) -> Option<(FlowKey, F)> {
        let (key, flow) = self.slots.get_mut(id as usize)?.take()?;
        let entry = self.index.find_entry(self.hasher.hash(&key), |&other| other == id);
        entry.expect("an occupied slot is in the index").remove();
        self.free.push(id);
        Some((key, flow))
    }

    /// The flow with this number, if there is one.
    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut F> {
        self.slots.get_mut(id as usize)?.as_mut().map(|(_, flow)| flow)
    }

    /// The key of flow `id`, which must exist.
    pub fn key(&self, id: FlowId) -> &FlowKey {
        &occupied(&self.slots, id).0
    }
}

impl<F> Index<FlowId> for FlowTable<F> {
    type Output = F;

    fn index(&self, id: FlowId) -> &F {
        &occupied(&self.slots, id).1
    }
}

impl<F> IndexMut<FlowId> for FlowTable<F> {
    fn index_mut(&mut self, id: FlowId) -> &mut F {
        self.get_mut(id).expect("the number of a flow in the table")
    }
}

fn occupied<F>(slots: &[Option<(FlowKey, F)>], id: FlowId) -> &(FlowKey, F) {
    slots[id as usize].as_ref().expect("the number of a flow in the table")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(number: u16) -> FlowKey {
        FlowKey { client: ([10, 0, 0, 1], number).into(), server: ([10, 0, 0, 2], 80).into(), vlan: [0; 2] }
    }

    #[test]
    fn the_limit_holds_and_a_removal_makes_room() {
        let mut table = FlowTable::new(2, KeyHasher::new(7));
        let first = table.insert(key(1), 'a').unwrap();
        table.insert(key(2), 'b').unwrap();
        assert_eq!(table.insert(key(3), 'c'), Err(TableFull));
        assert_eq!(table.remove(first), Some((key(1), 'a')));
        assert_eq!(table.remove(first), None);
        assert!(table.insert(key(3), 'c').is_ok());
    }

    proptest! {
        #[test]
        fn agrees_with_a_hash_map(operations in prop::collection::vec((any::<bool>(), 0u16..50), 1..300)) {
            let mut table = FlowTable::new(30, KeyHasher::new(1));
            let mut model = HashMap::new();
            for (step, (insert, number)) in operations.into_iter().enumerate() {
                let found = table.find(&key(number));
                prop_assert_eq!(found.map(|id| table[id]), model.get(&number).copied());
                match found {
                    None if insert => match table.insert(key(number), step) {
                        Ok(_) => { model.insert(number, step); }
                        Err(TableFull) => prop_assert_eq!(model.len(), 30),
                    },
                    Some(id) if !insert => {
                        prop_assert_eq!(table.remove(id), Some((key(number), step.min(model.remove(&number).unwrap()))));
                    }
                    _ => {}
                }
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
