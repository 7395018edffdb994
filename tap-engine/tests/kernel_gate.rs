//! The kernel's verifier is asked, and its word counts. Needs root; says so where it has not.

mod common;

use common::{is_root, load};
use tap_engine::{LoadError, Object};

const GOOD: &str = r#"
    struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
    const volatile int limit = 3;
    int calls;
    static __attribute__((noinline)) int twice(int n) { return n * 2; }
    PARSER int parse(struct __sk_buff *skb) {
        unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
        if (data + 1 > end) return 0;
        return twice(data[0]) + limit;
    }
    VERDICT int judge(struct __sk_buff *skb) {
        __u32 key = 0;
        __u64 *count = bpf_map_lookup_elem(&counts, &key);
        if (count) *count += ++calls;
        return SK_PASS;
    }"#;

#[test]
fn good_programs_are_accepted() {
    if !is_root() {
        return println!("skipped: needs root");
    }
    load(GOOD).unwrap().verify().unwrap();
}

#[test]
fn a_bad_program_is_refused_with_the_end_of_the_log() {
    if !is_root() {
        return println!("skipped: needs root");
    }
    let source = r#"
        PARSER int fine(struct __sk_buff *skb) { return skb->len; }
        PARSER int careless(struct __sk_buff *skb) { unsigned char *data = (void *)(long)skb->data; return data[3]; }"#;
    let error = load(source).unwrap().verify().unwrap_err();
    let LoadError::Refused { function, log, .. } = &error else { panic!("{error}") };
    assert_eq!(function, "careless");
    assert!(log.contains("invalid access to packet"), "{log}");
    assert!((2..=20).contains(&log.lines().count()), "{log}");
    assert!(error.to_string().starts_with("the kernel refuses `careless` in filter.bpf.o: "), "{error}");
}

#[test]
fn without_permission_it_is_another_error() {
    if !is_root() {
        let error = load(GOOD).unwrap().verify().unwrap_err();
        assert!(matches!(error, LoadError::NotPermitted { .. }), "{error}");
        return;
    }
    // One with global data: that is what aya asks the kernel about first.
    let mut object = Object::from_bytes("redis", tap_engine::shipped::REDIS).unwrap();
    // Only this thread gives up its rights: the raw system call, unlike libc's function, changes no other thread.
    let error = std::thread::spawn(move || {
        // SAFETY: setresuid takes three numbers and touches no memory.
        let result = unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) };
        assert_eq!(result, 0);
        object.verify().unwrap_err()
    });
    let error = error.join().unwrap();
    assert!(matches!(error, LoadError::NotPermitted { .. }), "{error}");
    assert!(error.to_string().contains("run as root"), "{error}");
}
