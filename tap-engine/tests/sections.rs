//! Programs under all names that their sections have had, socket filters among them, and what links them: callbacks, tail calls.

mod common;

use std::sync::Arc;

use common::{compile, is_root, load, run};
use tap_engine::{Kind, LoadError, Object};

/// The object, taken by the kernel if we may ask.
fn verified(source: &str) -> Arc<Object> {
    let mut object = load(source).unwrap_or_else(|error| panic!("{error}"));
    if is_root() {
        object.verify().unwrap_or_else(|error| panic!("{error}"));
    }
    Arc::new(object)
}

#[test]
fn older_names_of_sections_fit_both_kinds() {
    for section in ["sk_skb1", "sk_skb2", "sk_skb", "sk_skb/skb1"] {
        let source = format!("SEC(\"{section}\") int f(struct __sk_buff *skb) {{ return skb->len; }}");
        let object = verified(&source);
        assert_eq!(object.functions().collect::<Vec<_>>(), [("f", None)], "{section}");
        for kind in [Kind::StreamParser, Kind::StreamVerdict] {
            assert_eq!(run(&mut object.program("f", kind).unwrap(), b"123"), Ok(3), "{section}");
        }
    }
    let object = verified("SEC(\"sk_skb/verdict\") int f(struct __sk_buff *skb) { return 1; }");
    assert!(matches!(object.program("f", Kind::StreamParser), Err(LoadError::WrongKind { .. })));
}

#[test]
fn socket_filters_parse_as_for_kcm() {
    let object = verified(
        r#"
        unsigned long long load_half(void *skb, unsigned long long off) asm("llvm.bpf.load.half");
        unsigned long long load_byte(void *skb, unsigned long long off) asm("llvm.bpf.load.byte");
        SEC("socket_filter") int other(struct __sk_buff *skb) { return 0; }
        SEC("socket") int f(struct __sk_buff *skb) { return load_half(skb, 0) + 2 + 256 * load_byte(skb, 2); }"#,
    );
    assert_eq!(object.functions().collect::<Vec<_>>(), [("f", None)]);
    let mut program = object.program("f", Kind::StreamParser).unwrap();
    assert_eq!(run(&mut program, &[1, 3, 0, 0]), Ok(0x105));
    assert_eq!(run(&mut program, &[0, 3, 2]), Ok(0x205));
    // What is not there yet ends the program with 0: more is needed.
    assert_eq!((run(&mut program, &[1]), run(&mut program, &[0, 3])), (Ok(0), Ok(0)));
}

#[test]
fn programs_of_other_types_are_passed_over() {
    let object = load(
        r#"
        SEC("sk_msg") int message(struct sk_msg_md *msg) { return 1; }
        SEC("sockops") int operation(struct bpf_sock_ops *ops) { return 1; }
        SEC("something_new/else") int unknown(void *c) { return 1; }
        VERDICT int f(struct __sk_buff *skb) { return 5; }"#,
    )
    .unwrap();
    assert_eq!(object.functions().count(), 1);
    assert_eq!(run(&mut object.program("f", Kind::StreamVerdict).unwrap(), b""), Ok(5));
}

#[test]
fn programs_go_on_in_others() {
    let source = r#"
        int by_length(struct __sk_buff *skb); int endless(struct __sk_buff *skb);
        struct {
            __uint(type, BPF_MAP_TYPE_PROG_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, __u32);
            __array(values, int (void *));
        } next SEC(".maps") = { .values = { [1] = (void *)&by_length, [3] = (void *)&endless } };
        int turns;
        VERDICT int by_length(struct __sk_buff *skb) { return 100 + skb->len; }
        VERDICT int endless(struct __sk_buff *skb) { turns++; bpf_tail_call(skb, &next, 3); return turns; }
        VERDICT int f(struct __sk_buff *skb) { turns = 0; bpf_tail_call(skb, &next, skb->len); return 7; }"#;
    let mut object = load(source).unwrap();
    for mode in 0..2 {
        if mode == 1 {
            if !is_root() {
                break;
            }
            object.verify().unwrap_or_else(|error| panic!("{error}"));
        }
        let mut program = object.program("f", Kind::StreamVerdict).unwrap();
        assert_eq!(run(&mut program, b"1"), Ok(101));
        // Nothing there, and beyond the end.
        assert_eq!((run(&mut program, b"12"), run(&mut program, b"12345")), (Ok(7), Ok(7)));
        // The kernel allows 33 calls, of which the first leads into the function that counts.
        assert_eq!(run(&mut program, b"123"), Ok(33));
    }
}

#[test]
fn a_refusal_tells_the_line_of_the_source() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let source =
        "VERDICT int f(struct __sk_buff *skb) {\n    char *data = (char *)(long)skb->data;\n    return data[9];\n}";
    let error = Object::from_bytes("filter.bpf.o", &compile(source)).unwrap().verify().unwrap_err().to_string();
    assert!(error.contains("filter.bpf.c:10: return data[9];"), "{error}");
}

#[test]
fn functions_keep_their_types_whatever_their_section_is_called() {
    // The kernel wants the types of callbacks, and of all functions of a program or of none; clang tells them by section.
    let source = r#"
        struct state { int sum; };
        static long add(unsigned index, struct state *state) { state->sum += index; return 0; }
        static __attribute__((noinline)) int total(int count) {
            struct state state = {};
            bpf_loop(count & 7, add, &state, 0);
            return state.sum;
        }
        SEC("sk_skb1") int first(struct __sk_buff *skb) { return total(skb->len); }
        SEC("sk_skb2") int second(struct __sk_buff *skb) { return total(skb->len) * 2; }
        SEC("sk_skb/stream_verdict/suffix") int third(struct __sk_buff *skb) { return total(3) + 10; }"#;
    let object = verified(source);
    for (function, expected) in [("first", 10), ("second", 20), ("third", 13)] {
        let mut program = object.program(function, Kind::StreamVerdict).unwrap();
        assert_eq!(run(&mut program, b"12345"), Ok(expected), "{function}");
    }
}

#[test]
fn functions_may_be_in_a_section_of_their_own() {
    let source = r#"
        __attribute__((noinline, section("of_its_own"))) int twice(struct __sk_buff *skb) { return skb->len * 2; }
        SEC("sk_skb1") int first(struct __sk_buff *skb) { return twice(skb); }
        SEC("sk_skb2") int second(struct __sk_buff *skb) { return twice(skb) + 1; }"#;
    let object = verified(source);
    for (function, expected) in [("first", 10), ("second", 11)] {
        assert_eq!(run(&mut object.program(function, Kind::StreamVerdict).unwrap(), b"12345"), Ok(expected));
    }
    // aya-obj would take the one for the other.
    let two = format!(
        "{source} static __attribute__((noinline)) int thrice(int n) {{ volatile int m = n; return m * 3; }}
        SEC(\"sk_skb3\") int third(struct __sk_buff *skb) {{ return twice(skb) + thrice(skb->len); }}"
    );
    let error = load(&two).unwrap_err().to_string();
    assert!(error.contains("put all into one section"), "{error}");
}
