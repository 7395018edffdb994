//! What cannot be used is refused with a reason that its author understands, and never with a panic.

mod common;

use std::path::Path;
use std::sync::{Arc, LazyLock};

use common::{compile, compile_with, load, quietly, try_all};
use proptest::prelude::*;
use tap_engine::{Kind, LoadError, LoadOptions, Object};

fn refusal(source: &str) -> String {
    load(source).expect_err("it must be refused").to_string()
}

#[test]
fn files_that_are_no_objects_are_told_apart() {
    let missing = Object::load(Path::new("/nonexistent/filter.o"), &LoadOptions::default()).unwrap_err();
    assert!(matches!(missing, LoadError::NotFound { .. }), "{missing}");
    assert_eq!(missing.to_string(), "there is no file /nonexistent/filter.o");
    let folder = Object::load(Path::new("/"), &LoadOptions::default()).unwrap_err();
    assert!(matches!(folder, LoadError::Unreadable { .. }), "{folder}");
    let own = Object::load(&std::env::current_exe().unwrap(), &LoadOptions::default()).unwrap_err().to_string();
    assert!(own.contains("another machine than BPF"), "{own}");
    for (bytes, reason) in
        [(&b""[..], "not an ELF file"), (b"int main() {}", "not an ELF file"), (b"\x7fELF\x02\x01", "cut short")]
    {
        let error = Object::from_bytes("x.o", bytes).unwrap_err().to_string();
        assert!(error.starts_with("x.o is not a usable BPF object") && error.contains(reason), "{error}");
    }
}

#[test]
fn a_bss_larger_than_memory_is_refused() {
    let mut bytes = compile("char zeros[24]; VERDICT int f(struct __sk_buff *skb) { return zeros[skb->len & 15]; }");
    assert!(Object::from_bytes("bss.o", &bytes).is_ok());
    // The section headers: offset at 0x28, number of them at 0x3c. SHT_NOBITS is 8; the size stands at 0x20 of a header.
    let table = u64::from_le_bytes(bytes[0x28..0x30].try_into().unwrap()) as usize;
    let count = usize::from(u16::from_le_bytes([bytes[0x3c], bytes[0x3d]]));
    let header = (0..count).map(|index| table + index * 64).find(|&at| bytes[at + 4] == 8).expect("a .bss");
    bytes[header + 0x20..header + 0x28].copy_from_slice(&(1u64 << 53).to_le_bytes());
    let error = Object::from_bytes("bss.o", &bytes).unwrap_err().to_string();
    assert!(error.contains("`.bss` claims 9007199254740992 bytes"), "{error}");
}

#[test]
fn functions_that_are_not_there_are_named_with_those_that_are() {
    let source =
        "PARSER int parse(struct __sk_buff *skb) { return 1; } VERDICT int judge(struct __sk_buff *skb) { return 1; }";
    let object = Arc::new(load(source).unwrap());
    let error = object.program("prase", Kind::StreamParser).unwrap_err().to_string();
    assert_eq!(
        error,
        "filter.bpf.o has no function `prase`\nhelp: it has judge (stream verdict), parse (stream parser)"
    );
    let error = object.program("judge", Kind::StreamParser).unwrap_err().to_string();
    assert!(error.starts_with("`judge` in filter.bpf.o is a stream verdict, not a stream parser"), "{error}");
    assert!(error.contains("SEC(\"sk_skb/stream_verdict\")"), "{error}");
}

#[test]
fn an_object_without_programs_of_ours_says_so() {
    let error = refusal("SEC(\"xdp\") int f(struct xdp_md *context) { return 2; }");
    assert!(error.contains("holds no stream parser"), "{error}");
}

#[test]
fn other_maps_are_refused_by_name() {
    let error = refusal(
        r#"
        struct { __uint(type, BPF_MAP_TYPE_BLOOM_FILTER); __uint(max_entries, 4); __type(value, __u64); } table SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) { __u32 key = 0; return bpf_map_peek_elem(&table, &key) != 0; }"#,
    );
    assert!(
        error.contains("`table`")
            && error.contains("BPF_MAP_TYPE_BLOOM_FILTER")
            && error.contains("BPF_MAP_TYPE_ARRAY"),
        "{error}"
    );
}

#[test]
fn other_helpers_are_refused_by_name() {
    let error = refusal("VERDICT int f(struct __sk_buff *skb) { return bpf_skb_change_tail(skb, 4, 0); }");
    assert!(error.contains("calls bpf_skb_change_tail (instruction "), "{error}");
    assert!(error.contains("bpf_map_lookup_elem"), "{error}");
}

#[test]
fn recursion_is_refused() {
    let error = refusal(
        r#"
        static __attribute__((noinline)) int down(volatile int *n) { if (*n == 0) return 0; *n -= 1; return down(n) + *n; }
        VERDICT int f(struct __sk_buff *skb) { volatile int n = skb->len; return down(&n); }"#,
    );
    assert!(error.contains("calls itself"), "{error}");
}

#[test]
fn a_machine_for_the_other_byte_order_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (c, o) = (folder.path().join("f.c"), folder.path().join("f.o"));
    std::fs::write(&c, "__attribute__((section(\"sk_skb/stream_parser\"))) int f(void *skb) { return 1; }").unwrap();
    let clang =
        std::process::Command::new("clang").args(["-O2", "-target", "bpfeb", "-c"]).arg(&c).arg("-o").arg(&o).status();
    assert!(clang.unwrap().success());
    let error = Object::load(&o, &LoadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("other byte order"), "{error}");
}

/// With all that an object can have.
static SAMPLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let source = r#"
        struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
        const volatile int limit = 3;
        int calls = 5;
        int zeroed;
        static __attribute__((noinline)) int sum(unsigned char *data, unsigned char *end) {
            int total = 0;
            for (int i = 0; i < 16; i++) { if (data + i + 1 > end) break; total += data[i]; }
            return total;
        }
        PARSER int parse(struct __sk_buff *skb) {
            unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
            zeroed++;
            return (unsigned)sum(data, end) % 7u + limit;
        }
        VERDICT int judge(struct __sk_buff *skb) {
            __u32 key = skb->len & 7;
            __u64 *count = bpf_map_lookup_elem(&counts, &key);
            if (count) *count += ++calls;
            return key == 3;
        }"#;
    compile(source)
});

#[test]
fn the_sample_loads_and_runs() {
    let object = Arc::new(Object::from_bytes("sample", &SAMPLE).unwrap());
    let mut parser = object.program("parse", Kind::StreamParser).unwrap();
    assert_eq!(common::run(&mut parser, &[1, 2, 3]), Ok(9));
    let mut verdict = object.program("judge", Kind::StreamVerdict).unwrap();
    assert_eq!(common::run(&mut verdict, &[1, 2, 3]), Ok(1));
}

#[test]
fn every_prefix_of_an_object_is_refused_or_runs() {
    quietly();
    (0..SAMPLE.len()).step_by(7).for_each(|length| try_all(&SAMPLE[..length]));
}

#[test]
fn newer_instruction_sets_are_run_or_refused() {
    let source = "VERDICT int f(struct __sk_buff *skb) { volatile int n = skb->len; return n * 3 == 9; }";
    for flags in [["-mcpu=v1"], ["-mcpu=v2"], ["-mcpu=v3"]] {
        let object = Arc::new(Object::from_bytes("f", &compile_with(source, &flags)).unwrap());
        assert_eq!(common::run(&mut object.program("f", Kind::StreamVerdict).unwrap(), b"123"), Ok(1), "{flags:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..400), elf in any::<bool>()) {
        quietly();
        let mut bytes = bytes;
        if elf && bytes.len() >= 64 {
            bytes[..20].copy_from_slice(&SAMPLE[..20]);
        }
        prop_assert!(Object::from_bytes("random", &bytes).is_err());
    }

    #[test]
    fn a_damaged_object_is_refused_or_runs(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        quietly();
        let mut bytes = SAMPLE.clone();
        for (place, value) in changes {
            let at = place.index(bytes.len());
            bytes[at] = value;
        }
        try_all(&bytes);
    }

    #[test]
    fn damaged_code_is_refused_or_faults(
        changes in prop::collection::vec((0..60_usize, 0..8_usize, any::<u8>()), 1..4),
    ) {
        quietly();
        let mut bytes = SAMPLE.clone();
        // The sections of code come first in clang's files, behind the header of 64 bytes.
        for (instruction, byte, value) in changes {
            bytes[64 + instruction * 8 + byte] = value;
        }
        try_all(&bytes);
    }
}
