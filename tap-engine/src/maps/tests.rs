//! Maps against models, against the kernel's, and under threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use proptest::prelude::*;

use super::*;

fn map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32, cpus: u32) -> Arc<Map> {
    let definition = MapDefinition { map_type, key_size, value_size, max_entries, flags };
    Arc::new(Map::new("o", "m", definition, cpus).unwrap())
}

fn refusal(map_type: u32, key_size: u32, value_size: u32, max_entries: u32, flags: u32) -> String {
    let definition = MapDefinition { map_type, key_size, value_size, max_entries, flags };
    Map::new("o", "m", definition, 1).unwrap_err().to_string()
}

/// The bytes at an address that a map gave.
fn at(map: &Map, address: u64, length: usize) -> Vec<u8> {
    for window in map.windows().into_iter().map(|(window, _)| window) {
        if window.contains(&address) {
            let offset = (address - window.start) as usize;
            let region = match &map.content {
                Content::Array(array) => array.region(),
                Content::Hash(hash) => hash.region(),
                _ => panic!("no region"),
            };
            let mut bytes = vec![0; length];
            region.copy_out(offset, &mut bytes);
            return bytes;
        }
    }
    panic!("{address:#x} is not in the map");
}

#[test]
fn definitions_that_the_kernel_refuses_are_refused() {
    let cases = [
        ((kind::ARRAY, 8, 8, 1, 0), "its key has 4 bytes, not 8"),
        ((kind::ARRAY, 4, 0, 1, 0), "0 bytes"),
        ((kind::ARRAY, 4, 8, 0, 0), "no entries"),
        ((kind::ARRAY, 4, u32::MAX, u32::MAX, 0), "more than"),
        ((kind::ARRAY, 4, 8, 1, flag::NO_PREALLOC), "flags 0x1"),
        ((kind::HASH, 0, 8, 1, 0), "1 to 512 bytes"),
        ((kind::HASH, 513, 8, 1, 0), "1 to 512 bytes"),
        ((kind::LRU_HASH, 4, 8, 1, flag::NO_PREALLOC), "flags"),
        ((kind::LPM_TRIE, 8, 8, 1, 0), "BPF_F_NO_PREALLOC"),
        ((kind::LPM_TRIE, 4, 8, 1, 1), "prefix length"),
        ((kind::RINGBUF, 0, 0, 4097, 0), "power of two"),
        ((kind::RINGBUF, 4, 0, 4096, 0), "neither keys nor values"),
        ((kind::PROG_ARRAY, 4, 8, 1, 0), "4 bytes, not 8"),
        ((kind::SOCKMAP, 8, 4, 1, 0), "its key has 4 bytes, not 8"),
        ((kind::SOCKHASH, 513, 4, 1, 0), "1 to 512 bytes"),
        ((14, 4, 4, 1, 0), "BPF_MAP_TYPE_DEVMAP"),
    ];
    for ((map_type, key, value, entries, flags), word) in cases {
        let error = refusal(map_type, key, value, entries, flags);
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn only_handles_resolve() {
    let array = aya_obj::Map::new_from_params(kind::ARRAY, 4, 8, 1, 0);
    let store = MapStore::default();
    let maps = Maps::new("o", [("a", &array), ("b", &array)].into_iter(), &store).unwrap();
    let handle = maps.handle(1).unwrap();
    assert_eq!(maps.resolve(handle).unwrap().name(), "b");
    assert_eq!(maps.handle(2), None);
    for wrong in [0, 1, handle + 1, u64::MAX, maps.array(0).unwrap().base] {
        assert!(maps.resolve(wrong).is_none(), "{wrong:#x}");
    }
}

#[test]
fn a_store_shares_maps_and_its_successor_keeps_them() {
    let one = aya_obj::Map::new_from_params(kind::HASH, 4, 8, 10, 0);
    let other = aya_obj::Map::new_from_params(kind::HASH, 4, 8, 11, 0);
    let make = |store: &MapStore, map: &aya_obj::Map| Maps::new("o", [("m", map)].into_iter(), store);
    let store = MapStore::new(2);
    let (first, second) = (make(&store, &one).unwrap(), make(&store, &one).unwrap());
    assert!(Arc::ptr_eq(&first.0[0], &second.0[0]));
    assert!(make(&store, &other).unwrap_err().to_string().contains("defines it otherwise"));
    first.0[0].set(&[1; 4], &[2; 8]).unwrap();
    let next = store.successor();
    assert_eq!(make(&next, &one).unwrap().0[0].get(&[1; 4]).unwrap(), [2; 8]);
    // One that is defined otherwise begins anew; the store that it came from stays.
    let changed = store.successor();
    assert_eq!(make(&changed, &other).unwrap().0[0].get(&[1; 4]), Err(MapError::NoSuchKey));
    assert_eq!(make(&store, &one).unwrap().0[0].get(&[1; 4]).unwrap(), [2; 8]);
}

#[test]
fn each_cpu_has_its_value() {
    for map_type in [kind::PERCPU_ARRAY, kind::PERCPU_HASH, kind::LRU_PERCPU_HASH] {
        let map = map(map_type, 4, 5, 3, 0, 2);
        let key = 1_u32.to_ne_bytes();
        map.update(&key, b"first", 0, 0).unwrap();
        map.update(&key, b"other", 0, 1).unwrap();
        assert_eq!(map.get(&key).unwrap(), b"first\0\0\0other\0\0\0");
        let (one, other) = (map.lookup(&key, 0).unwrap(), map.lookup(&key, 1).unwrap());
        assert_eq!((at(&map, one, 5), at(&map, other, 5)), (b"first".to_vec(), b"other".to_vec()));
        map.set(&key, b"equal").unwrap();
        assert_eq!(map.get(&key).unwrap(), b"equal\0\0\0equal\0\0\0");
        map.set(&key, b"1....\0\0\x002....\0\0\0").unwrap();
        assert_eq!(at(&map, other, 5), b"2....");
        assert_eq!(map.set(&key, b"four").unwrap_err(), MapError::ValueSize { expected: 5, given: 4 });
    }
}

#[test]
fn what_control_gets_of_one_cpu_it_can_set() {
    for map_type in [kind::PERCPU_ARRAY, kind::PERCPU_HASH, kind::LRU_PERCPU_HASH] {
        let map = map(map_type, 4, 5, 3, 0, 1);
        let key = 1_u32.to_ne_bytes();
        map.update(&key, b"first", 0, 0).unwrap();
        assert_eq!(map.get(&key).unwrap(), b"first\0\0\0");
        map.set(&key, b"other\0\0\0").unwrap();
        assert_eq!(map.get(&key).unwrap(), b"other\0\0\0");
    }
    let map = map(kind::HASH, 4, 5, 3, 0, 1);
    assert_eq!(map.set(&[1; 4], b"other\0\0\0").unwrap_err(), MapError::ValueSize { expected: 5, given: 8 });
}

#[test]
fn all_keys_of_a_large_map_are_told() {
    let map = map(kind::HASH, 4, 4, 5000, 0, 1);
    for number in 0..4000_u32 {
        map.set(&number.to_ne_bytes(), &[0; 4]).unwrap();
    }
    for number in (0..4000_u32).step_by(3) {
        map.delete(&number.to_ne_bytes()).unwrap();
    }
    let keys = map.keys();
    let told: BTreeSet<u32> = keys.iter().map(|key| index(key)).collect();
    assert_eq!(told, (0..4000).filter(|number| number % 3 != 0).collect());
    assert_eq!(told.len(), keys.len());
}

#[test]
fn a_new_element_has_zeros_for_other_cpus() {
    let map = map(kind::PERCPU_HASH, 4, 8, 1, 0, 2);
    map.set(&[1; 4], &[7; 8]).unwrap();
    map.delete(&[1; 4]).unwrap();
    map.update(&[2; 4], &[9; 8], 0, 1).unwrap();
    assert_eq!(map.get(&[2; 4]).unwrap(), [[0; 8], [9; 8]].concat());
}

#[test]
fn least_recently_used_elements_make_room() {
    let map = map(kind::LRU_HASH, 4, 4, 100, 0, 1);
    let key = |number: u32| number.to_ne_bytes();
    for number in 0..100 {
        map.update(&key(number), &key(number), 0, 0).unwrap();
    }
    // What is looked up all the time stays, whatever comes.
    for number in 100..1000 {
        assert!(map.lookup(&key(7), 0).is_some(), "{number}");
        map.update(&key(number), &key(number), 0, 0).unwrap();
        assert!(map.lookup(&key(number), 0).is_some());
        assert_eq!(map.keys().len(), 100);
    }
}

#[test]
fn for_each_visits_all_until_it_is_stopped() {
    for (map_type, cpus) in [(kind::ARRAY, 1), (kind::HASH, 1), (kind::PERCPU_ARRAY, 2)] {
        let map = map(map_type, 4, 8, 5, 0, cpus);
        for number in 0..5_u32 {
            map.set(&number.to_ne_bytes(), &u64::from(number).to_ne_bytes()).unwrap();
        }
        let mut seen = BTreeSet::new();
        let visited = map.for_each::<()>(0, &mut |_, value| {
            seen.insert(at(&map, value, 8)[0]);
            Ok(if seen.len() == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        assert_eq!((visited, seen.len()), (Ok(Ok(4)), 4));
        assert_eq!(map.for_each::<()>(0, &mut |_, _| Ok(ControlFlow::Continue(()))), Ok(Ok(5)));
        assert_eq!(map.for_each(0, &mut |_, _| Err(1)), Err(1));
    }
}

/// Takes the records of a ring buffer: how long each is.
fn lengths(ring: &Map) -> Vec<usize> {
    let mut lengths = Vec::new();
    ring.drain(&mut |record| lengths.push(record.len()));
    lengths
}

#[test]
fn records_come_in_order_once_they_are_submitted() {
    let map = map(kind::RINGBUF, 0, 0, 4096, 0, 1);
    let ring = map.ring().unwrap();
    let taken = || lengths(&map);
    let (first, second, third) = (ring.reserve(10).unwrap(), ring.reserve(20).unwrap(), ring.reserve(30).unwrap());
    assert!(ring.end(second, true));
    assert_eq!(taken(), []);
    assert!(ring.end(first, false) && !ring.end(first, true) && !ring.end(first + 8, true) && !ring.end(0, true));
    assert_eq!(taken(), [20]);
    assert!(ring.end(third, true));
    assert_eq!(taken(), [30]);
    // Around the end, many times, and no more than there is room for.
    for _ in 0..50 {
        let many: Vec<u64> = (0..4).map(|_| ring.reserve(1000).unwrap()).collect();
        assert_eq!(ring.reserve(1000), None);
        assert!(many.iter().all(|record| ring.end(*record, true)));
        assert_eq!(taken(), [1000; 4]);
    }
    assert_eq!(map.lost(), 50);
    assert_eq!((ring.reserve(u64::MAX), ring.reserve(4096)), (None, None));
    assert_eq!((ring.query(0), ring.query(1), ring.query(2)), (0, 4096, ring.query(3)));
}

#[test]
fn records_without_bytes_take_the_last_room() {
    let map = map(kind::RINGBUF, 0, 0, 4096, 0, 1);
    let ring = map.ring().unwrap();
    let taken = || lengths(&map);
    // One on its own, and one where its data begins at the very end of the room: of every round.
    for _ in 0..600 {
        let only = ring.reserve(0).unwrap();
        assert!(ring.end(only, true));
        assert_eq!(taken(), [0]);
        let (large, last) = (ring.reserve(4096 - 16).unwrap(), ring.reserve(0).unwrap());
        assert_eq!(ring.reserve(0), None);
        assert!(ring.end(last, true) && !ring.end(last, true));
        assert_eq!(taken(), []);
        assert!(ring.end(large, true));
        assert_eq!(taken(), [4096 - 16, 0]);
    }
}

#[test]
fn control_never_gets_another_keys_value() {
    // Long ones: the only element changes hands all the time, also while its value is copied.
    const LENGTH: usize = 8192;
    let map = map(kind::LRU_HASH, 1, LENGTH as u32, 1, 0, 1);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..20_000 {
                let key = [round as u8 % 2];
                map.update(&key, &[key[0]; LENGTH], 0, 0).unwrap();
            }
            done.store(true, Ordering::Release);
        });
        while !done.load(Ordering::Acquire) {
            for key in [0, 1] {
                if let Ok(value) = map.get(&[key]) {
                    assert!(value.iter().all(|byte| *byte == key));
                }
            }
        }
    });
}

#[test]
fn threads_find_what_others_have_put() {
    let map = map(kind::HASH, 8, 8, 64, 0, 1);
    std::thread::scope(|scope| {
        for thread in 0..3_u64 {
            let map = &map;
            scope.spawn(move || {
                for round in 0..4000_u64 {
                    // Ten keys of its own; and some that all fight for.
                    let own = (((thread + 1) << 32) | (round % 10)).to_ne_bytes();
                    let value = ((round << 8) | thread).to_ne_bytes();
                    map.update(&own, &value, 0, 0).unwrap();
                    assert_eq!(map.get(&own).unwrap(), value);
                    let shared = (round % 7).to_ne_bytes();
                    if round % 3 == 0 {
                        let _ = map.delete_elem(&shared);
                    } else {
                        map.update(&shared, &[thread as u8; 8], 0, 0).unwrap();
                    }
                    // A value is one thread's, whole.
                    if let Ok(value) = map.get(&shared) {
                        assert!(value.iter().all(|byte| *byte == value[0]), "{value:?}");
                    }
                    if round % 5 == 0 {
                        map.delete_elem(&own).unwrap();
                        assert_eq!(map.get(&own), Err(MapError::NoSuchKey));
                    }
                }
            });
        }
    });
}

#[test]
fn threads_write_records_and_one_reads_them() {
    const EACH: u64 = 3000;
    let map = map(kind::RINGBUF, 0, 0, 8192, 0, 1);
    let mut next = [0_u64; 2];
    std::thread::scope(|scope| {
        for writer in 0..2_u64 {
            let map = &map;
            scope.spawn(move || {
                let ring = map.ring().unwrap();
                for number in 0..EACH {
                    let address = loop {
                        match ring.reserve(16) {
                            Some(address) => break address,
                            None => std::thread::yield_now(),
                        }
                    };
                    ring.write(address, &[writer.to_ne_bytes(), number.to_ne_bytes()].concat());
                    assert!(ring.end(address, true));
                }
            });
        }
        while next != [EACH; 2] {
            map.drain(&mut |record| {
                let number = |at: usize| u64::from_ne_bytes(record[at..at + 8].try_into().unwrap());
                let writer = number(0) as usize;
                assert_eq!(number(8), next[writer]);
                next[writer] += 1;
            });
            std::thread::yield_now();
        }
    });
}

/// An operation on a map with few keys.
#[derive(Clone, Debug)]
enum Operation {
    Update(u8, u8, u64),
    Delete(u8),
    Lookup(u8),
}

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let update = (0..12_u8, any::<u8>(), prop::sample::select(vec![0, 0, 1, 2, 3]));
    prop::collection::vec(
        prop_oneof![
            3 => update.prop_map(|(key, value, flags)| Operation::Update(key, value, flags)),
            1 => (0..12_u8).prop_map(Operation::Delete),
            1 => (0..12_u8).prop_map(Operation::Lookup),
        ],
        1..60,
    )
}

/// Four bits of prefix length, four of address: keys that contain one another.
fn prefix(key: u8) -> Vec<u8> {
    let length = u32::from(key % 4) * 8 + 1;
    [&length.to_ne_bytes()[..], &[0x80, key / 4 * 0x40, 0, 1]].concat()
}

/// What an operation gives: the value, or the errno.
fn apply(map: &Map, key: &[u8], operation: &Operation) -> Result<Option<u8>, i32> {
    match operation {
        Operation::Update(_, value, flags) => map.update(key, &[*value; 8], *flags, 0).map(|()| None),
        Operation::Delete(_) => map.delete_elem(key).map(|()| None),
        Operation::Lookup(_) => map.get(key).map(|value| Some(value[0])).map_err(|_| libc::ENOENT),
    }
}

fn key_of(operation: &Operation) -> u8 {
    match operation {
        Operation::Update(key, ..) | Operation::Delete(key) | Operation::Lookup(key) => *key,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_hash_is_what_a_tree_is(operations in operations(), entries in 1..14_u32, key_size in 1..20_u32) {
        let map = map(kind::HASH, key_size, 8, entries, 0, 1);
        let mut model: BTreeMap<u8, u8> = BTreeMap::new();
        for operation in &operations {
            let key = key_of(operation);
            let bytes = vec![key; key_size as usize];
            let known = model.get(&key).copied();
            let expected = match *operation {
                Operation::Update(_, _, 3..) => Err(libc::EINVAL),
                Operation::Update(_, _, update::NOEXIST) if known.is_some() => Err(libc::EEXIST),
                Operation::Update(_, _, update::EXIST) if known.is_none() => Err(libc::ENOENT),
                Operation::Update(..) if known.is_none() && model.len() == entries as usize => Err(libc::E2BIG),
                Operation::Update(_, value, _) => { model.insert(key, value); Ok(None) }
                Operation::Delete(_) => model.remove(&key).map(|_| None).ok_or(libc::ENOENT),
                Operation::Lookup(_) => known.map(Some).ok_or(libc::ENOENT),
            };
            prop_assert_eq!(apply(&map, &bytes, operation), expected, "{:?}", operation);
        }
        let keys: BTreeSet<u8> = map.keys().iter().map(|key| key[0]).collect();
        prop_assert_eq!(keys, model.keys().copied().collect());
    }

    #[test]
    fn maps_are_the_kernels(operations in operations(), which in 0..4_usize) {
        let (map_type, key_size, flags) = [
            (kind::HASH, 4, 0),
            (kind::ARRAY, 4, 0),
            (kind::LPM_TRIE, 8, flag::NO_PREALLOC),
            (kind::HASH, 4, flag::NO_PREALLOC),
        ][which];
        let ours = map(map_type, key_size, 8, 9, flags, 1);
        let Some(theirs) = kernel::KernelMap::new(map_type, key_size, 8, 9, flags) else { return Ok(()) };
        for operation in &operations {
            let key = key_of(operation);
            let bytes = if map_type == kind::LPM_TRIE { prefix(key) } else { u32::from(key).to_ne_bytes().to_vec() };
            let (got, expected) = (apply(&ours, &bytes, operation), theirs.apply(&bytes, operation));
            prop_assert_eq!(got, expected, "{:?}", operation);
        }
    }
}

/// Maps of the kernel.
mod kernel {
    #![expect(unsafe_code, reason = "bpf(2) has no other way in")]

    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::Operation;

    pub(super) struct KernelMap(OwnedFd);

    impl KernelMap {
        /// None: we may not.
        pub(super) fn new(map_type: u32, key: u32, value: u32, entries: u32, flags: u32) -> Option<Self> {
            let words: Vec<u8> =
                [map_type, key, value, entries, flags].iter().flat_map(|word| word.to_ne_bytes()).collect();
            match bpf(0, &words) {
                // SAFETY: the call returned a new descriptor, which nobody else owns.
                Ok(file) => Some(Self(unsafe { OwnedFd::from_raw_fd(file) })),
                Err(libc::EPERM) => None,
                Err(errno) => panic!("{}", std::io::Error::from_raw_os_error(errno)),
            }
        }

        pub(super) fn apply(&self, key: &[u8], operation: &Operation) -> Result<Option<u8>, i32> {
            let mut value = [0_u8; 8];
            let (command, flags) = match operation {
                Operation::Lookup(_) => (1, 0),
                Operation::Update(_, byte, flags) => {
                    value = [*byte; 8];
                    (2, *flags)
                }
                Operation::Delete(_) => (3, 0),
            };
            let words = [
                self.0.as_raw_fd() as u64,
                key.as_ptr().expose_provenance() as u64,
                value.as_mut_ptr().expose_provenance() as u64,
                flags,
            ];
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
            // Deletion has no value: its attributes end before.
            bpf(command, if command == 3 { &bytes[..16] } else { &bytes })?;
            Ok((command == 1).then_some(value[0]))
        }
    }

    fn bpf(command: i64, attributes: &[u8]) -> Result<i32, i32> {
        let mut all = [0_u8; 128];
        all[..attributes.len()].copy_from_slice(attributes);
        // SAFETY: the attributes are within `all`; the addresses in them are of the caller's keys and values, of the map's sizes.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, all.as_mut_ptr(), all.len()) };
        if result < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result as i32) }
    }
}
