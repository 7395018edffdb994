//! Programs in C with maps and helpers of all kinds: the kernel's verifier takes them, and they give what they would give there. Each runs
//! with run-time checks and without.

mod common;

use std::sync::Arc;

use common::{compile, is_root, run};
use tap_engine::{Kind, Map, Object, ProgramFault};

/// What verdict `f` of `source` returns for each of `messages`, one after the other; in both modes the same.
#[track_caller]
fn results(source: &str, messages: &[&[u8]]) -> Vec<u32> {
    let bytes = compile(source);
    let in_mode = |verified: bool| {
        let mut object = Object::from_bytes("filter.bpf.o", &bytes).unwrap_or_else(|error| panic!("{error}"));
        if verified {
            object.verify().unwrap_or_else(|error| panic!("{error}"));
        }
        let mut program = object.program("f", Kind::StreamVerdict).unwrap();
        messages.iter().map(|message| run(&mut program, message).unwrap()).collect::<Vec<u32>>()
    };
    let checked = in_mode(false);
    if is_root() {
        assert_eq!(in_mode(true), checked);
    }
    checked
}

const MAP: &str = r#"
#define MAP(name, kind, keys, values, entries) struct { __uint(type, BPF_MAP_TYPE_##kind); __uint(max_entries, entries); __type(key, keys); __type(value, values); } name SEC(".maps");
"#;

fn with_map(rest: &str) -> String {
    format!("{MAP}{rest}")
}

#[test]
fn counts_by_key_in_hash_maps() {
    for kind in ["HASH", "LRU_HASH", "PERCPU_HASH", "LRU_PERCPU_HASH"] {
        let source = with_map(&format!(
            r#"MAP(seen, {kind}, __u32, __u64, 10)
            VERDICT int f(struct __sk_buff *skb) {{
                __u32 key = skb->len; __u64 one = 1, *count = bpf_map_lookup_elem(&seen, &key);
                if (count) {{ *count += 1; return *count; }}
                return bpf_map_update_elem(&seen, &key, &one, BPF_NOEXIST) ? 1000 : 1;
            }}"#
        ));
        assert_eq!(results(&source, &[b"a", b"bb", b"a", b"a", b"bb"]), [1, 1, 2, 3, 2], "{kind}");
    }
}

#[test]
fn full_and_missing_and_deleted() {
    let source = with_map(
        r#"MAP(few, HASH, __u32, __u32, 2)
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = skb->len;
            if (key == 9) { key = 1; return -bpf_map_delete_elem(&few, &key); }
            return -bpf_map_update_elem(&few, &key, &key, BPF_ANY);
        }"#,
    );
    let nine = &[0; 9][..];
    assert_eq!(results(&source, &[b"1", b"12", b"123", nine, nine, b"123"]), [0, 0, 7, 0, 2, 0]);
}

#[test]
fn addresses_are_found_by_prefix() {
    let source = with_map(
        r#"
        struct key { __u32 bits; unsigned char address[4]; };
        struct { __uint(type, BPF_MAP_TYPE_LPM_TRIE); __uint(map_flags, BPF_F_NO_PREALLOC); __uint(max_entries, 8); __type(key, struct key); __type(value, __u32); } nets SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) {
            struct key wide = { 8, { 10 } }, narrow = { 24, { 10, 1, 2 } }, asked = { 32, { 10, 1, 2, 3 } };
            __u32 eight = 8, long_one = 24, *found;
            unsigned char *data = (void *)(long)skb->data;
            if (data + 3 > (unsigned char *)(long)skb->data_end) return 1000;
            bpf_map_update_elem(&nets, &wide, &eight, 0);
            bpf_map_update_elem(&nets, &narrow, &long_one, 0);
            asked.address[0] = data[0]; asked.address[1] = data[1]; asked.address[2] = data[2];
            found = bpf_map_lookup_elem(&nets, &asked);
            return found ? *found : 0;
        }"#,
    );
    assert_eq!(results(&source, &[&[10, 1, 2], &[10, 1, 3], &[11, 1, 2]]), [24, 8, 0]);
}

#[test]
fn arrays_per_cpu_and_others_values() {
    let source = with_map(
        r#"MAP(counts, PERCPU_ARRAY, __u32, __u64, 3)
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = skb->len; __u64 *count = bpf_map_lookup_elem(&counts, &key);
            if (!count) return 1000;
            *count += 5;
            count = bpf_map_lookup_percpu_elem(&counts, &key, bpf_get_smp_processor_id());
            return count ? *count : 2000;
        }"#,
    );
    // `bpf_map_lookup_percpu_elem` sees the same value, since the program is on that CPU.
    assert_eq!(results(&source, &[b"a", b"a", b"123"]), [5, 10, 1000]);
}

#[test]
fn atomics_in_maps() {
    let source = r#"
        __u64 total; __u32 small;
        VERDICT int f(struct __sk_buff *skb) {
            __u64 before = __sync_fetch_and_add(&total, skb->len);
            __sync_fetch_and_or(&small, 1U << skb->len);
            return before + 100 * small;
        }"#;
    // -mcpu=v3 is needed for what fetches.
    let bytes = common::compile_with(source, &["-mcpu=v3"]);
    let mut object = Object::from_bytes("filter.bpf.o", &bytes).unwrap();
    if is_root() {
        object.verify().unwrap();
    }
    let mut program = object.program("f", Kind::StreamVerdict).unwrap();
    assert_eq!([b"a".as_slice(), b"bb", b"a"].map(|m| run(&mut program, m).unwrap()), [200, 601, 603]);
}

#[test]
fn loops_call_back() {
    let source = r#"
        struct sum { __u64 value; __u32 limit; };
        static long add(__u32 turn, void *context) { struct sum *sum = context; sum->value += turn; return turn == sum->limit; }
        VERDICT int f(struct __sk_buff *skb) {
            struct sum sum = { .limit = skb->len };
            long turns = bpf_loop(100, add, &sum, 0);
            return turns * 10000 + sum.value;
        }"#;
    // 0..=3 and stopped; all of 0..=99.
    assert_eq!(results(source, &[b"123", &[0; 200]]), [40_006, 1_004_950]);
}

#[test]
fn each_element_is_visited() {
    for (kind, keys) in [("HASH", "__u32"), ("ARRAY", "__u32")] {
        let source = with_map(&format!(
            r#"MAP(table, {kind}, {keys}, __u64, 3)
            static long add(struct bpf_map *map, __u32 *key, __u64 *value, __u64 *sum) {{ *sum += 100 * *key + *value; return 0; }}
            VERDICT int f(struct __sk_buff *skb) {{
                __u64 sum = 0;
                for (int i = 0; i < 3; i++) {{ __u32 key = i; __u64 value = i + 1; bpf_map_update_elem(&table, &key, &value, 0); }}
                long visited = bpf_for_each_map_elem(&table, add, &sum, 0);
                return visited * 1000 + sum;
            }}"#
        ));
        assert_eq!(results(&source, &[b""]), [3_306], "{kind}");
    }
}

#[test]
fn records_are_written_to_ring_buffers() {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) {
            __u32 length = skb->len, *record = bpf_ringbuf_reserve(&events, 4, 0);
            if (!record) return 1000;
            *record = length;
            if (length == 2) bpf_ringbuf_discard(record, 0); else bpf_ringbuf_submit(record, 0);
            return bpf_ringbuf_output(&events, &length, 3, 0) ? 2000 : bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA);
        }"#;
    let mut object = Object::from_bytes("filter.bpf.o", &compile(source)).unwrap();
    if is_root() {
        object.verify().unwrap();
    }
    let mut program = object.program("f", Kind::StreamVerdict).unwrap();
    assert_eq!([b"a".as_slice(), b"bb"].map(|message| run(&mut program, message).unwrap()), [32, 64]);
    let mut records = Vec::new();
    object.map("events").unwrap().drain(&mut |record| records.push(record.to_vec()));
    assert_eq!(records, [vec![1, 0, 0, 0], vec![1, 0, 0], vec![2, 0, 0]]);
}

#[test]
fn text_helpers() {
    let source = r#"
        static const char word[] = "GET";
        VERDICT int f(struct __sk_buff *skb) {
            char copy[4] = {}; long number = 0;
            if (bpf_skb_load_bytes(skb, 0, copy, 3)) return 1000;
            if (!bpf_strncmp(copy, 3, word)) return 1;
            return bpf_strtol(copy, 4, 10, &number) < 0 ? 2000 : number + 100;
        }"#;
    assert_eq!(results(source, &[b"GET /", b"-42", b"xyz", b"7 9", b"ab"]), [1, 58, 2000, 107, 1000]);
}

#[test]
fn checksums_differ_by_what_changed() {
    let source = r#"
        VERDICT int f(struct __sk_buff *skb) {
            __u32 from = 0x01020304, to = 0x05060708;
            return bpf_csum_diff(&from, 4, &to, 4, 7);
        }"#;
    let bytes = compile(source);
    // sk_skb programs of older kernels may not call it: only what it computes is looked at.
    let object = Object::from_bytes("filter.bpf.o", &bytes).unwrap();
    let mut sum = 7_u64 + u64::from(!0x0102_0304_u32) + 0x0506_0708;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    assert_eq!(run(&mut object.program("f", Kind::StreamVerdict).unwrap(), b""), Ok(sum as u32));
}

#[test]
fn a_lock_is_taken_and_given_back() {
    let source = with_map(
        r#"
        struct entry { struct bpf_spin_lock lock; __u32 count; };
        MAP(table, ARRAY, __u32, struct entry, 1)
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = 0, count; struct entry *entry = bpf_map_lookup_elem(&table, &key);
            if (!entry) return 1000;
            bpf_spin_lock(&entry->lock); count = ++entry->count; bpf_spin_unlock(&entry->lock);
            return count;
        }"#,
    );
    let bytes = compile(&source);
    let object = Object::from_bytes("filter.bpf.o", &bytes).unwrap();
    let table: &Arc<Map> = object.map("table").unwrap();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let mut program = object.program("f", Kind::StreamVerdict).unwrap();
            scope.spawn(move || {
                (0..2000).for_each(|_| assert!(run(&mut program, b"").is_ok_and(|count| count <= 4000)))
            });
        }
    });
    assert_eq!(table.get(&[0; 4]).unwrap()[4..8], 4000_u32.to_ne_bytes());
}

#[test]
fn workers_have_numbers_and_values_of_their_own() {
    let source = with_map(
        r#"MAP(counts, PERCPU_ARRAY, __u32, __u64, 1)
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = 0; __u64 *count = bpf_map_lookup_elem(&counts, &key);
            return count ? ++*count * 10 + bpf_get_smp_processor_id() : 1000;
        }"#,
    );
    let options = tap_engine::LoadOptions { maps: Arc::new(tap_engine::MapStore::new(2)), ..Default::default() };
    let object = Object::from_bytes_with("filter.bpf.o", &compile(&source), &options).unwrap();
    let mut programs = [0, 1].map(|cpu| {
        let mut program = object.program("f", Kind::StreamVerdict).unwrap();
        program.on_cpu(cpu);
        program
    });
    assert_eq!(run(&mut programs[0], b""), Ok(10));
    assert_eq!(run(&mut programs[0], b""), Ok(20));
    assert_eq!(run(&mut programs[1], b""), Ok(11));
}

#[test]
fn unverified_callbacks_that_do_not_end_are_ended() {
    let source = r#"
        static long add(__u32 turn, void *context) { return 0; }
        static long outer(__u32 turn, void *context) { bpf_loop(1 << 22, add, 0, 0); return 0; }
        VERDICT int f(struct __sk_buff *skb) { bpf_loop(1 << 22, outer, 0, 0); return 1; }"#;
    let mut object = Object::from_bytes("filter.bpf.o", &compile(source)).unwrap();
    for verified in [false, is_root()] {
        if verified {
            object.verify().unwrap();
        }
        let fault = run(&mut object.program("f", Kind::StreamVerdict).unwrap(), b"").unwrap_err();
        assert_eq!(fault, ProgramFault::StepLimit);
    }
}

#[test]
fn there_are_no_sockets_to_redirect_to() {
    let source = with_map(
        r#"MAP(sockets, SOCKMAP, __u32, __u32, 2)
        VERDICT int f(struct __sk_buff *skb) { return 100 + bpf_sk_redirect_map(skb, &sockets, 0, 0); }"#,
    );
    assert_eq!(results(&source, &[b"a"]), [100]);
}

/// Runs `f` of `source`, unverified, on each of `messages`; and what it has put into the ring buffer `events`.
fn unverified(source: &str, messages: &[&[u8]]) -> (Vec<Result<u32, ProgramFault>>, Vec<Vec<u8>>) {
    let object = Object::from_bytes("filter.bpf.o", &compile(source)).unwrap();
    let mut program = object.program("f", Kind::StreamVerdict).unwrap();
    let results = messages.iter().map(|message| run(&mut program, message)).collect();
    let mut records = Vec::new();
    if let Some(events) = object.map("events") {
        events.drain(&mut |record| records.push(record.to_vec()));
    }
    (results, records)
}

#[test]
fn a_fault_gives_back_the_records_that_were_reserved() {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) {
            __u32 length = skb->len, *record;
            if (length == 3) return bpf_ringbuf_reserve(&events, 8, 0) != 0;
            record = bpf_ringbuf_reserve(&events, 4, 0);
            if (!record) return 1000;
            if (length == 2) *record = *(volatile __u32 *)8;
            *record = length;
            bpf_ringbuf_submit(record, 0);
            return 7;
        }"#;
    let (results, records) = unverified(source, &[b"a", b"bb", b"ccc", b"a"]);
    assert!(matches!(results[..], [Ok(7), Err(ProgramFault::OutOfBounds { .. }), Ok(1), Ok(7)]), "{results:?}");
    assert_eq!(records, [1_u32.to_ne_bytes(), 1_u32.to_ne_bytes()]);
}

#[test]
fn a_loop_that_is_ended_gives_back_its_record() {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
        static long inner(__u32 turn, void *context) { return 0; }
        static long outer(__u32 turn, void *context) { bpf_loop(1 << 22, inner, 0, 0); return 0; }
        VERDICT int f(struct __sk_buff *skb) {
            __u32 length = skb->len, *record = bpf_ringbuf_reserve(&events, 4, 0);
            if (!record) return 1000;
            *record = length;
            if (length == 2) bpf_loop(1 << 22, outer, 0, 0);
            bpf_ringbuf_submit(record, 0);
            return 7;
        }"#;
    for verified in [false, is_root()] {
        let mut object = Object::from_bytes("filter.bpf.o", &compile(source)).unwrap();
        if verified {
            object.verify().unwrap();
        }
        let mut program = object.program("f", Kind::StreamVerdict).unwrap();
        assert_eq!(run(&mut program, b"bb"), Err(ProgramFault::StepLimit));
        assert_eq!(run(&mut program, b"a"), Ok(7));
        let mut last = Vec::new();
        object.map("events").unwrap().drain(&mut |record| last = record.to_vec());
        assert_eq!(last, 1_u32.to_ne_bytes(), "{verified}");
    }
}

#[test]
fn one_run_ends_no_record_of_another() {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) {
            long held = 0;
            for (int i = 0; i < 100; i++) held += bpf_ringbuf_reserve(&events, 1, 0) != 0;
            if (skb->len == 1) { void *record = bpf_ringbuf_reserve(&events, 1, 1); bpf_ringbuf_submit(record, 0); }
            return held;
        }"#;
    let (results, records) = unverified(source, &[b"", b"a", b""]);
    assert!(matches!(results[..], [Ok(64), Err(ProgramFault::BadArgument { helper: 132 }), Ok(64)]), "{results:?}");
    assert!(records.is_empty());
}

#[test]
fn a_fault_opens_the_lock_that_was_taken() {
    let source = with_map(
        r#"
        struct entry { struct bpf_spin_lock lock; __u32 count; };
        MAP(table, ARRAY, __u32, struct entry, 2)
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = 0, count; struct entry *entry = bpf_map_lookup_elem(&table, &key), *other;
            key = 1; other = bpf_map_lookup_elem(&table, &key);
            if (!entry || !other) return 1000;
            if (skb->len == 3) bpf_spin_unlock(&entry->lock);
            bpf_spin_lock(&entry->lock);
            if (skb->len == 1) entry->count = *(volatile __u32 *)8;
            if (skb->len == 2) bpf_spin_lock(&other->lock);
            if (skb->len == 4) return 8;
            count = ++entry->count; bpf_spin_unlock(&entry->lock);
            return count;
        }"#,
    );
    let (results, _) = unverified(&source, &[b"a", b"", b"bb", b"", b"ccc", b"", b"dddd", b""]);
    assert!(matches!(results[0], Err(ProgramFault::OutOfBounds { .. })), "{results:?}");
    let refused = |helper| Err(ProgramFault::BadArgument { helper });
    assert_eq!(results[1..], [Ok(1), refused(93), Ok(2), refused(94), Ok(3), Ok(8), Ok(4)]);
}

#[test]
fn maps_that_programs_may_not_write_are_not_written_through_helpers() {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 2); __uint(map_flags, BPF_F_RDONLY_PROG); __type(key, __u32); __type(value, __u32); } table SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = 1;
            return -bpf_map_update_elem(&table, &key, &key, 0) * 100 - bpf_map_delete_elem(&table, &key);
        }"#;
    assert_eq!(unverified(source, &[b""]).0, [Ok(101)]);
}

#[test]
fn maps_of_sockets_have_keys_as_the_kernels() {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_SOCKHASH); __uint(max_entries, 2); __uint(key_size, 1000); __uint(value_size, 4); } sockets SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) { char key[8] = {}; return bpf_map_lookup_elem(&sockets, key) != 0; }"#;
    let error = Object::from_bytes("filter.bpf.o", &compile(source)).unwrap_err();
    assert!(error.to_string().contains("1 to 512 bytes"), "{error}");
}
