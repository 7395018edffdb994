//! Global variables get the values that the user sets, before the verifier and before the program.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use common::{compile, function_f, is_root, run};
use tap_engine::{LoadError, LoadOptions, Object, Setting};

const FILTER: &str = r#"
enum mode { OFF, ON, AUTO };
const volatile unsigned char tiny = 1;
const volatile short small = -2;
const volatile unsigned int number = 3;
const volatile long long wide = 4;
const volatile _Bool flag = 0;
const volatile enum mode mode = OFF;
const volatile char prefix[8] = "/admin";
const volatile unsigned short ports[3] = { 1, 2 };
const volatile char words[2][4] = { "a", "b" };
const volatile struct { int a; } pair;
int counter = 7;
int zero;
VERDICT int f(struct __sk_buff *skb) {
    unsigned long long sum = tiny + small + number + wide + flag + mode + ports[0] + ports[1] + ports[2] + counter + zero;
    for (int i = 0; i < 8; i++) sum += prefix[i];
    for (int i = 0; i < 4; i++) sum += words[0][i] + words[1][i];
    return sum + pair.a;
}
"#;

fn load(settings: &[(&str, Setting)]) -> Result<Object, LoadError> {
    let set: BTreeMap<String, Setting> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    Object::from_bytes_with("filter.bpf.o", &compile(FILTER), &LoadOptions { set, ..LoadOptions::default() })
}

fn text(text: &str) -> Setting {
    Setting::Text(text.to_owned())
}

#[test]
fn each_kind_of_variable_can_be_set() {
    let numbers = |numbers: &[i64]| Setting::List(numbers.iter().map(|number| Setting::Integer(*number)).collect());
    let mut object = load(&[
        ("tiny", Setting::Integer(255)),
        ("small", Setting::Integer(-32768)),
        ("number", Setting::Integer(0xffff_ffff)),
        ("wide", Setting::Integer(-1 << 40)),
        ("flag", Setting::Boolean(true)),
        ("mode", Setting::Integer(2)),
        ("prefix", text("1234567")),
        ("ports", numbers(&[80, 443])),
        ("words", Setting::List(vec![text("xyz"), text("")])),
        ("counter", Setting::Integer(-5)),
        ("zero", Setting::Integer(9)),
    ])
    .unwrap();
    let bytes = |text: &[u8]| text.iter().map(|byte| i64::from(*byte)).sum::<i64>();
    let sum = 255 - 32768 + 0xffff_ffff - (1 << 40) + 1 + 2 + bytes(b"1234567") + 80 + 443 + bytes(b"xyz") - 5 + 9;
    assert_eq!(run(&mut function_f(&Arc::new(load(&[]).unwrap())), b""), Ok(common_sum()));
    if is_root() {
        object.verify().unwrap();
    }
    assert_eq!(run(&mut function_f(&Arc::new(object)), b""), Ok(sum as u32));
}

/// What the filter returns with the values of its source.
fn common_sum() -> u32 {
    let bytes = |text: &[u8]| text.iter().map(|byte| u32::from(*byte)).sum::<u32>();
    // tiny + small + number + wide + ports + counter
    1 + 3 - 2 + 4 + 1 + 2 + 7 + bytes(b"/admin") + bytes(b"a") + bytes(b"b")
}

#[test]
fn what_cannot_be_set_is_told() {
    let table = [
        ("tiny", Setting::Integer(256), "256 is not within the range of u8"),
        ("tiny", Setting::Integer(-1), "-1 is not within the range of u8"),
        ("small", Setting::Integer(40_000), "not within the range of s16"),
        ("number", Setting::Integer(1 << 32), "not within the range of u32"),
        ("number", text("3"), "it is u32, not text"),
        ("prefix", text("12345678"), "the text has 8 bytes, and there is room for 7"),
        ("prefix", text("a\0b"), "the text has a NUL in it"),
        ("prefix", Setting::Integer(3), "it is char[8], not a number"),
        ("ports", Setting::List(vec![Setting::Integer(1); 4]), "the list has 4 values, and there is room for 3"),
        ("ports", Setting::List(vec![Setting::Integer(70_000)]), "not within the range of u16"),
        ("words", Setting::List(vec![text("abcd")]), "the text has 4 bytes"),
        ("pair", Setting::Integer(3), "a type that cannot be set"),
        ("numbr", Setting::Integer(3), "do you mean `number`?"),
        ("nothing_like_it", Setting::Integer(3), "it has flag (u8), mode (u32), number (u32), ports (u16[3])"),
    ];
    for (name, value, expected) in table {
        let error = load(&[(name, value)]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("`{name}` of filter.bpf.o cannot be set: ")), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn constants_cannot_be_written_later() {
    let object = load(&[]).unwrap();
    let key = 0_u32.to_ne_bytes();
    let constants = object.map(".rodata").unwrap();
    let bytes = constants.get(&key).unwrap();
    assert_eq!(constants.set(&key, &bytes), Err(tap_engine::MapError::ReadOnly));
    let data = object.map(".data").unwrap();
    let bytes = data.get(&key).unwrap();
    assert_eq!(data.set(&key, &bytes), Ok(()));
}

#[test]
fn the_verifier_sees_what_is_set() {
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    // With the value of the source it reads beyond.
    let filter = r#"
        int table[4];
        const volatile unsigned long place = 1000;
        VERDICT int f(struct __sk_buff *skb) { return *(volatile int *)((char *)table + place); }"#;
    let bytes = compile(filter);
    let verify = |set: BTreeMap<String, Setting>| {
        let options = LoadOptions { set, ..LoadOptions::default() };
        Object::from_bytes_with("loop.bpf.o", &bytes, &options).unwrap().verify()
    };
    assert!(matches!(verify(BTreeMap::new()), Err(LoadError::Refused { .. })));
    verify(BTreeMap::from([("place".to_owned(), Setting::Integer(4))])).unwrap();
}
