//! Objects whose tables were damaged where it hurts: sizes and places of sections, symbols, relocations, types, code. They are refused
//! or run; nothing panics, hangs or takes memory without bound. `PROPTEST_CASES` makes it longer.

mod common;

use std::ops::Range;
use std::sync::LazyLock;

use common::{compile, quietly, try_all};
use object::{Object as _, ObjectSection as _};
use proptest::prelude::*;
use tap_engine::Object;

/// With all tables that an object can have, and all that is done with them: sections under old names, values of program arrays, global data
/// that can be set, callbacks, calls across sections, records for the user.
static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    compile(
        r#"
        int second(struct __sk_buff *skb);
        struct {
            __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 4); __uint(key_size, 4);
            __array(values, int(void *));
        } next SEC(".maps") = { .values = { [1] = (void *)&second } };
        struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 4); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
        struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } records SEC(".maps");
        const volatile char word[8] = "secret";
        const volatile unsigned limits[3] = { 1, 2, 3 };
        enum mode { ON, OFF };
        const volatile enum mode mode = OFF;
        int calls = 5;
        int zeroed[4];
        struct state { int sum; };
        static long add(unsigned index, struct state *state) { state->sum += limits[index & 1]; return 0; }
        static __attribute__((noinline)) int sum(int count) {
            struct state state = {};
            bpf_loop(count & 7, add, &state, 0);
            return state.sum;
        }
        SEC("sk_skb1") int first(struct __sk_buff *skb) {
            zeroed[skb->len & 3]++;
            if (mode == ON) bpf_tail_call(skb, &next, 1);
            return sum(skb->len) + word[skb->len & 7];
        }
        SEC("sk_skb2") int second(struct __sk_buff *skb) {
            __u32 key = skb->len & 7;
            __u64 *count = bpf_map_lookup_elem(&counts, &key);
            if (count) *count += ++calls;
            bpf_ringbuf_output(&records, &key, sizeof(key), 0);
            return sum(key);
        }
        SEC("socket") int third(struct __sk_buff *skb) { return skb->len; }
        SEC("xdp") int other(struct xdp_md *context) { return 2; }"#,
    )
});

/// Where the numbers of tables lie in [`SAMPLE`].
struct Fields {
    /// The fields of the file's header and of section headers: place and size.
    headers: Vec<(usize, usize)>,
    /// Those of symbols and relocations.
    entries: Vec<(usize, usize)>,
    /// 32-bit words of types and line information.
    types: Vec<(usize, usize)>,
    /// Instructions: code, registers, offset, immediate.
    code: Vec<(usize, usize)>,
}

static FIELDS: LazyLock<Fields> = LazyLock::new(|| {
    let bytes = SAMPLE.as_slice();
    let file = object::File::parse(bytes).unwrap();
    let records = |range: Range<usize>, size: usize, layout: &[(usize, usize)]| -> Vec<(usize, usize)> {
        let starts = range.step_by(size);
        starts.flat_map(|start| layout.iter().map(move |(at, size)| (start + at, *size)).collect::<Vec<_>>()).collect()
    };
    let table = u64::from_le_bytes(bytes[0x28..0x30].try_into().unwrap()) as usize;
    let mut fields = Fields { headers: Vec::new(), entries: Vec::new(), types: Vec::new(), code: Vec::new() };
    fields.headers.extend([(0x10, 2), (0x28, 8), (0x34, 2), (0x3a, 2), (0x3c, 2), (0x3e, 2)]);
    let header = [(0, 4), (4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 4), (44, 4), (48, 8), (56, 8)];
    fields.headers.extend(
        records(table..bytes.len() / 64 * 64, 64, &header).into_iter().filter(|(at, size)| at + size <= bytes.len()),
    );
    for section in file.sections() {
        let Some((start, size)) = section.file_range() else { continue };
        let range = start as usize..(start + size) as usize;
        match section.name().unwrap() {
            ".symtab" => fields.entries.extend(records(range, 24, &[(0, 4), (4, 1), (5, 1), (6, 2), (8, 8), (16, 8)])),
            name if name.starts_with(".rel") => fields.entries.extend(records(range, 16, &[(0, 8), (8, 4), (12, 4)])),
            ".BTF" | ".BTF.ext" => {
                fields.types.extend(records(range, 4, &[(0, 4)]).into_iter().filter(|(at, _)| at + 4 <= bytes.len()))
            }
            ".text" | "sk_skb1" | "sk_skb2" | "socket" => {
                fields.code.extend(records(range, 8, &[(0, 1), (1, 1), (2, 2), (4, 4)]))
            }
            _ => {}
        }
    }
    fields
});

/// A number that is at the edge of something.
fn edge() -> impl Strategy<Value = u64> {
    prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(SAMPLE.len() as u64),
        any::<u64>(),
        0..40_u64,
        (0..64_u32, -1..2_i64).prop_map(|(bit, more)| (1_u64 << bit).wrapping_add_signed(more)),
    ]
}

/// Changes of fields: which, and to what; or by how much.
fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, u64, bool)>> {
    prop::collection::vec((any::<prop::sample::Index>(), edge(), any::<bool>()), 1..4)
}

fn damaged(fields: &[(usize, usize)], changes: &[(prop::sample::Index, u64, bool)]) -> Vec<u8> {
    let mut bytes = SAMPLE.clone();
    for (which, value, is_difference) in changes {
        let (at, size) = fields[which.index(fields.len())];
        let mut field = [0; 8];
        field[..size].copy_from_slice(&bytes[at..at + size]);
        let old = u64::from_le_bytes(field);
        let new = if *is_difference { old.wrapping_add(*value) } else { *value };
        bytes[at..at + size].copy_from_slice(&new.to_le_bytes()[..size]);
    }
    bytes
}

fn config() -> ProptestConfig {
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

#[test]
fn the_sample_is_whole() {
    let object = Object::from_bytes("sample", &SAMPLE).unwrap();
    assert_eq!(object.functions().count(), 3);
    try_all(&SAMPLE);
    let Fields { headers, entries, types, code } = &*FIELDS;
    assert!([headers, entries, types, code].iter().all(|fields| fields.len() > 50));
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn damaged_headers_are_refused_or_run(changes in changes()) {
        quietly();
        try_all(&damaged(&FIELDS.headers, &changes));
    }

    #[test]
    fn damaged_symbols_and_relocations_are_refused_or_run(changes in changes()) {
        quietly();
        try_all(&damaged(&FIELDS.entries, &changes));
    }

    #[test]
    fn damaged_types_are_refused_or_run(changes in changes()) {
        quietly();
        try_all(&damaged(&FIELDS.types, &changes));
    }

    #[test]
    fn damaged_instructions_are_refused_or_run(changes in changes()) {
        quietly();
        try_all(&damaged(&FIELDS.code, &changes));
    }
}
