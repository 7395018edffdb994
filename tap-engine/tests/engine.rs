//! Programs in C do in the engine what they do in the kernel.

mod common;

use common::{function_f, object, returned, run, unverified, value};
use tap_engine::{FlowInfo, Kind, MapError, MessageBuffer, ProgramFault};

#[test]
fn a_program_sees_its_message_and_no_more() {
    let object = object(
        r#"
        VERDICT int f(struct __sk_buff *skb) {
            unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
            if (end - data != skb->len || data + 2 > end) return 1000;
            return data[0] + data[1];
        }"#,
    );
    let mut program = function_f(&object);
    let mut buffer = MessageBuffer::new(10).unwrap();
    buffer.as_mut_slice().copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    let mut flow = common::flow();
    assert_eq!(program.run(&mut flow, 0, &mut buffer, 3..5), Ok(9));
    assert_eq!(program.run(&mut flow, 0, &mut buffer, 8..10), Ok(19));
    assert_eq!(program.run(&mut flow, 0, &mut buffer, 9..10), Ok(1000));
    assert_eq!(program.run(&mut flow, 0, &mut buffer, 4..4), Ok(1000));
}

#[test]
fn a_program_sees_the_flow() {
    let object = object(
        r#"
        VERDICT int f(struct __sk_buff *skb) {
            __u32 family = skb->family, local = skb->local_port, remote = skb->remote_port;
            __u32 local_ip4 = skb->local_ip4, remote_ip4 = skb->remote_ip4;
            __u32 local_ip6 = skb->local_ip6[3], remote_ip6 = skb->remote_ip6[3], prefix = skb->local_ip6[0];
            if (family == 2)
                return local == 6379 && bpf_ntohl(remote) == 40000 && remote_ip4 == bpf_htonl(0x0a000002)
                    && local_ip4 == bpf_htonl(0x0a000001) && !local_ip6;
            return family == 10 && local_ip6 == bpf_htonl(1) && remote_ip6 == bpf_htonl(2)
                && prefix == bpf_htonl(0xfd000000) && local == 80 && !remote_ip4;
        }"#,
    );
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, b""), Ok(1));
    let mut flow = FlowInfo::new("[fd00::1]:80".parse().unwrap(), "[fd00::2]:81".parse().unwrap());
    assert_eq!(program.run(&mut flow, 0, &mut MessageBuffer::new(0).unwrap(), 0..0), Ok(1));
}

#[test]
fn global_variables_are_there_and_shared() {
    let object = object(
        r#"
        const volatile int limit = 3;
        int calls = 100;
        unsigned long long zeroed[4];
        static const char text[] = "abc";
        VERDICT int f(struct __sk_buff *skb) {
            calls++;
            zeroed[2] += limit;
            unsigned index = skb->len & 3;
            return text[index] + calls;
        }"#,
    );
    let (mut one, mut other) = (function_f(&object), function_f(&object));
    assert_eq!(run(&mut one, b"1"), Ok(u32::from(b'b') + 101));
    assert_eq!(run(&mut other, b"12"), Ok(u32::from(b'c') + 102));
    assert_eq!(value(&object, ".data", 0)[..4], 102_i32.to_ne_bytes());
    assert_eq!(value(&object, ".bss", 0)[16..24], 6_u64.to_ne_bytes());
    assert_eq!(object.map(".bss").unwrap().get(&1_u32.to_ne_bytes()), Err(MapError::NoSuchKey));
    assert!(object.map("none").is_none());
}

const COUNTING: &str = r#"
    struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 4); __type(key, __u32); __type(value, __u64); } counts SEC(".maps");
    VERDICT int f(struct __sk_buff *skb) {
        __u32 key = skb->len;
        __u64 *count = bpf_map_lookup_elem(&counts, &key);
        if (!count) return 99;
        *count += 1;
        __u32 last = 3;
        __u64 value = 7;
        if (bpf_map_update_elem(&counts, &last, &value, BPF_ANY)) return 98;
        last = 4;
        if (bpf_map_update_elem(&counts, &last, &value, BPF_ANY) != -7 /* E2BIG */) return 97;
        last = 0;
        if (bpf_map_update_elem(&counts, &last, &value, BPF_NOEXIST) != -17 /* EEXIST */) return 96;
        if (bpf_map_update_elem(&counts, &last, &value, 3) != -22 /* EINVAL */) return 95;
        return *count;
    }"#;

#[test]
fn array_maps_are_looked_up_and_updated() {
    let object = object(COUNTING);
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, b"1"), Ok(1));
    assert_eq!(run(&mut program, b"1"), Ok(2));
    assert_eq!(run(&mut function_f(&object), b"1"), Ok(3));
    assert_eq!(run(&mut program, b"four"), Ok(99), "no such value");
    assert_eq!(value(&object, "counts", 1), 3_u64.to_ne_bytes());
    assert_eq!(value(&object, "counts", 3), 7_u64.to_ne_bytes());
    object.map("counts").unwrap().set(&1_u32.to_ne_bytes(), &9_u64.to_ne_bytes()).unwrap();
    assert_eq!(run(&mut program, b"1"), Ok(10));
}

#[test]
fn threads_share_maps() {
    let object = object(COUNTING);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut program = function_f(&object);
                (0..1000).for_each(|_| assert!(run(&mut program, b"12").is_ok()));
            });
        }
    });
    let count = u64::from_ne_bytes(value(&object, "counts", 2).try_into().unwrap());
    assert!((1000..=4000).contains(&count), "{count}: increments are not atomic, but none runs backward");
}

#[test]
fn time_and_random_numbers_are_given_from_outside() {
    let object = object(
        r#"
        VERDICT int f(struct __sk_buff *skb) {
            return skb->len ? (int)bpf_ktime_get_ns() : (int)bpf_get_prandom_u32();
        }"#,
    );
    let (mut one, mut other) = (function_f(&object), function_f(&object));
    assert_eq!(run(&mut one, b"x"), Ok(42));
    one.seed_random(5);
    other.seed_random(5);
    let numbers =
        |program: &mut _| [run(program, b"").unwrap(), run(program, b"").unwrap(), run(program, b"").unwrap()];
    let (of_one, of_other) = (numbers(&mut one), numbers(&mut other));
    assert_eq!(of_one, of_other);
    assert!(of_one[0] != of_one[1] && of_one[1] != of_one[2]);
    other.seed_random(6);
    assert_ne!(numbers(&mut other), of_one);
}

#[test]
fn what_programs_print_is_kept() {
    let object = object(
        r#"
        VERDICT int f(struct __sk_buff *skb) {
            static const char format[] = "%d bytes to port %u\n";
            return bpf_trace_printk(format, sizeof format, skb->len, skb->local_port);
        }"#,
    );
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, b"123"), Ok("3 bytes to port 6379\n".len() as u32));
    assert_eq!(object.take_printed(), ["f: 3 bytes to port 6379"]);
    assert!(object.take_printed().is_empty());
}

#[test]
fn message_bytes_are_loaded_by_helper() {
    let object = object(
        r#"
        VERDICT int f(struct __sk_buff *skb) {
            unsigned char bytes[4] = {9, 9, 9, 9};
            if (bpf_skb_pull_data(skb, 6)) return 500;
            if (bpf_skb_load_bytes(skb, 2, bytes, 4)) return 400 + bytes[0];
            return bytes[0] * 100 + bytes[3];
        }"#,
    );
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, &[0, 1, 2, 3, 4, 5]), Ok(205));
    assert_eq!(run(&mut program, &[0, 1, 2, 3, 4]), Ok(500));
    let object = common::object(
        r#"
        VERDICT int f(struct __sk_buff *skb) {
            unsigned char bytes[4] = {9, 9, 9, 9};
            if (bpf_skb_load_bytes(skb, 3, bytes, 4)) return 400 + bytes[0] + bytes[3];
            return 0;
        }"#,
    );
    assert_eq!(run(&mut function_f(&object), &[0; 6]), Ok(400), "cleared when there are too few");
}

#[test]
fn functions_call_functions() {
    let object = object(
        r#"
        static __attribute__((noinline)) int fold(unsigned char *bytes, int base) {
            unsigned char own[64];
            int sum = base;
            for (int i = 0; i < 64; i++) { own[i] = bytes[i] ^ i; __asm__ volatile("" ::: "memory"); }
            for (int i = 0; i < 64; i++) sum = sum * 31 + *(volatile unsigned char *)&own[i];
            return sum;
        }
        static __attribute__((noinline)) int middle(unsigned char *bytes, int base) {
            unsigned char own[64];
            for (int i = 0; i < 64; i++) { own[i] = bytes[i] + 1; __asm__ volatile("" ::: "memory"); }
            int sum = fold(bytes, base) + fold(own, base + 1);
            for (int i = 0; i < 64; i++) if (*(volatile unsigned char *)&own[i] != (unsigned char)(bytes[i] + 1)) return -1;
            return sum;
        }
        VERDICT int f(struct __sk_buff *skb) {
            unsigned char own[64];
            for (int i = 0; i < 64; i++) { own[i] = i + skb->len; __asm__ volatile("" ::: "memory"); }
            int sum = middle(own, 7);
            for (int i = 0; i < 64; i++) if (*(volatile unsigned char *)&own[i] != (unsigned char)(i + skb->len)) return -2;
            return sum;
        }"#,
    );
    let fold = |bytes: &[u8; 64], base: i32| {
        let steps = bytes.iter().enumerate();
        steps.fold(base, |sum, (index, byte)| sum.wrapping_mul(31).wrapping_add(i32::from(byte ^ index as u8)))
    };
    let own: [u8; 64] = std::array::from_fn(|index| index as u8 + 3);
    let expected = fold(&own, 7).wrapping_add(fold(&own.map(|byte| byte + 1), 8));
    assert_eq!(run(&mut function_f(&object), b"123"), Ok(expected as u32));
}

#[test]
fn large_frames_do_not_overlap() {
    // More than the 256 bytes that the interpreter supposes for a frame.
    let object = object(
        r#"
        static __attribute__((noinline)) int clear(int n) {
            volatile unsigned char own[100];
            for (int i = 0; i < 100; i++) own[i] = n;
            return own[n & 63];
        }
        VERDICT int f(struct __sk_buff *skb) {
            volatile unsigned char own[360];
            for (int i = 0; i < 360; i++) own[i] = 5;
            int sum = clear(1);
            for (int i = 0; i < 360; i++) sum += own[i];
            return sum;
        }"#,
    );
    assert_eq!(run(&mut function_f(&object), b""), Ok(1 + 360 * 5));
}

#[test]
fn loops_end_as_they_should() {
    let object = object(
        r#"
        PARSER int f(struct __sk_buff *skb) {
            unsigned char *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
            for (int i = 0; i < 1000; i++) {
                if (data + i + 1 > end) return 0;
                if (data[i] == '\n') return i + 1;
            }
            return -1;
        }"#,
    );
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, b"hello\nworld\n"), Ok(6));
    assert_eq!(run(&mut program, b"hello"), Ok(0));
    assert_eq!(run(&mut program, &[b'x'; 999]), Ok(0));
    assert_eq!(run(&mut program, &[b'x'; 1000]), Ok(-1_i32 as u32));
}

#[test]
fn comparisons_with_negative_constants_are_those_of_the_kernel() {
    let source = r#"
        VERDICT int f(struct __sk_buff *skb) {
            volatile long long minus = -5, other = 5;
            volatile unsigned long long huge = -5ULL, four_billion = 0xfffffffbULL;
            int result = 0;
            if (minus == -5) result |= 1;
            if (other != -5) result |= 2;
            if (huge > -6ULL) result |= 4;
            if (huge >= -5ULL) result |= 8;
            if (four_billion < -5ULL) result |= 16;
            if (four_billion <= -5ULL) result |= 32;
            if (four_billion == -5ULL) result |= 64;
            if (minus < -4) result |= 128;
            return result;
        }"#;
    for flags in [["-mcpu=v2"], ["-mcpu=v3"]] {
        let object = tap_engine::Object::from_bytes("f", &common::compile_with(source, &flags)).unwrap();
        assert_eq!(run(&mut function_f(&object.into()), b""), Ok(1 | 2 | 4 | 8 | 16 | 32 | 128), "{flags:?}");
    }
}

#[test]
fn the_upper_half_of_the_result_does_not_count() {
    let body = "return skb->len;";
    assert_eq!(returned(body, b"1"), Ok(1));
    let object = unverified("VERDICT long long f(struct __sk_buff *skb) { return 0x700000001LL; }");
    assert_eq!(run(&mut function_f(&object), b""), Ok(1));
}

#[test]
fn a_read_outside_is_a_fault() {
    let cases = [
        ("unsigned char *data = (void *)(long)skb->data; return data[4];", "behind the message"),
        ("unsigned char *data = (void *)(long)skb->data; return data[-1];", "before the message"),
        ("unsigned *data = (void *)(long)skb->data; return data[1];", "half outside"),
        ("return *(volatile int *)0;", "null"),
        ("return *(volatile int *)(long)skb->len;", "a small address"),
        ("return *(volatile long *)-1L;", "the highest address"),
        (
            "long own = 1, at = (long)&own; __asm__ volatile(\"\" : \"+r\"(at)); return *(volatile long *)(at + 4096);",
            "above the stack",
        ),
        (
            "long own = 1, at = (long)&own; __asm__ volatile(\"\" : \"+r\"(at)); return *(volatile long *)(at - 10000L * skb->len);",
            "below the stack",
        ),
    ];
    for (body, what) in cases {
        let length = if what == "half outside" { 7 } else { 4 };
        let fault = returned(body, &[1; 8][..length]).unwrap_err();
        assert!(matches!(fault, ProgramFault::OutOfBounds { write: false, .. }), "{what}: {fault:?}");
    }
}

#[test]
fn a_write_outside_is_a_fault_and_says_where() {
    let fault = returned("*(volatile int *)8 = 7; return 0;", b"").unwrap_err();
    assert!(matches!(fault, ProgramFault::OutOfBounds { write: true, .. }), "{fault:?}");
    let text = fault.to_string();
    assert!(text.starts_with("a write outside of the program's memory, at instruction "), "{text}");
}

#[test]
fn helpers_refuse_wrong_addresses() {
    let map = r#"struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, __u64); } m SEC(".maps");"#;
    let cases = [
        "return bpf_map_lookup_elem(&m, (void *)16) != 0;",
        "return bpf_map_lookup_elem((void *)(long)skb->len, &key) != 0;",
        "return bpf_map_update_elem(&m, &key, (void *)-4L, 0);",
        "return bpf_skb_load_bytes(skb, 0, (void *)64, 1);",
        "return bpf_skb_load_bytes(skb, 0, (void *)64, 1000);",
        "return bpf_trace_printk((void *)64, 8);",
        "return *(int *)&m;",
    ];
    for body in cases {
        let source = format!("{map} VERDICT int f(struct __sk_buff *skb) {{ __u32 key = 0; (void)key; {body} }}");
        let fault = run(&mut function_f(&unverified(&source)), b"12").unwrap_err();
        let expected = matches!(fault, ProgramFault::BadArgument { .. }) || body.contains("*(int *)");
        assert!(expected, "{body}: {fault:?}");
    }
}

#[test]
fn an_access_across_the_end_of_a_map_is_a_fault() {
    // A map of exactly one page.
    let object = unverified(
        r#"
        struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 512); __type(key, __u32); __type(value, __u64); } page SEC(".maps");
        VERDICT int f(struct __sk_buff *skb) {
            __u32 key = 511;
            char *value = bpf_map_lookup_elem(&page, &key);
            return value ? *(volatile __u64 *)(value + skb->len) : 99;
        }"#,
    );
    object.map("page").unwrap().set(&511_u32.to_ne_bytes(), &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, b""), Ok(0x0403_0201));
    assert!(matches!(run(&mut program, &[0; 1]), Err(ProgramFault::OutOfBounds { write: false, .. })));
}

#[test]
fn a_program_without_end_is_ended() {
    let cases = [
        "for (;;) { int on = 1; __asm__ volatile(\"\" : \"+r\"(on)); if (!on) return 3; }",
        "volatile int n = 0; while (n < 1) { n = 0; } return 1;",
        "volatile long n = 0; do { n++; } while (n != -1); return 1;",
    ];
    for body in cases {
        assert_eq!(returned(body, b""), Err(ProgramFault::StepLimit), "{body}");
    }
    let nested = unverified(
        r#"
        static __attribute__((noinline)) int inner(int n) { volatile int sum = n; while (sum) sum = 1; return sum; }
        static __attribute__((noinline)) int outer(int n) { volatile int sum = 0; while (sum != -1) sum = inner(n); return sum; }
        VERDICT int f(struct __sk_buff *skb) { return outer(skb->len); }"#,
    );
    let mut program = function_f(&nested);
    assert_eq!(run(&mut program, b"1"), Err(ProgramFault::StepLimit));
    assert_eq!(run(&mut program, b""), Err(ProgramFault::StepLimit));
}

#[test]
fn a_fault_leaves_nothing_behind() {
    let object = unverified(r#"VERDICT int f(struct __sk_buff *skb) { return skb->len ? *(volatile int *)0 : 1; }"#);
    let mut program = function_f(&object);
    for _ in 0..3 {
        assert!(run(&mut program, b"1").is_err());
        assert_eq!(run(&mut program, b""), Ok(1));
    }
}

#[test]
fn what_a_program_writes_to_its_context_is_forgotten() {
    let object = unverified(
        "VERDICT int f(struct __sk_buff *skb) { int was = skb->cb[0]; ((volatile struct __sk_buff *)skb)->cb[0] = 5; return was; }",
    );
    let mut program = function_f(&object);
    assert_eq!(run(&mut program, b""), Ok(0));
    assert_eq!(run(&mut program, b""), Ok(0));
}

#[test]
fn several_functions_share_a_section_and_a_suffix_is_allowed() {
    let object = object(
        r#"
        PARSER int parse_one(struct __sk_buff *skb) { return 1; }
        PARSER int parse_two(struct __sk_buff *skb) { return 2; }
        SEC("sk_skb/stream_verdict/third") int third(struct __sk_buff *skb) { return SK_PASS; }"#,
    );
    let functions: Vec<_> = object.functions().collect();
    assert_eq!(
        functions,
        [
            ("parse_one", Some(Kind::StreamParser)),
            ("parse_two", Some(Kind::StreamParser)),
            ("third", Some(Kind::StreamVerdict))
        ]
    );
    assert_eq!(run(&mut object.program("parse_two", Kind::StreamParser).unwrap(), b""), Ok(2));
    assert_eq!(run(&mut object.program("parse_one", Kind::StreamParser).unwrap(), b""), Ok(1));
}
