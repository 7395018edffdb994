//! Small filters in C, compiled as a user would.
#![allow(dead_code, reason = "each test file uses a part")]

use std::net::SocketAddr;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use tap_engine::{FlowInfo, Kind, LoadError, MessageBuffer, Object, Program, ProgramFault};

const PRELUDE: &str = r#"
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_endian.h>
#define PARSER SEC("sk_skb/stream_parser")
#define VERDICT SEC("sk_skb/stream_verdict")
char LICENSE[] SEC("license") = "GPL";
"#;

/// The object file of a filter; `flags` are further ones for clang.
pub fn compile_with(source: &str, flags: &[&str]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let (c, o) = (folder.path().join("filter.bpf.c"), folder.path().join("filter.bpf.o"));
    std::fs::write(&c, format!("{PRELUDE}{source}")).unwrap();
    let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let clang = Command::new("clang")
        .args(["-O2", "-g", "-target", "bpf", "-Wall", &include, "-c"])
        .arg(&c)
        .arg("-o")
        .arg(&o)
        .args(flags)
        .output()
        .expect("clang is needed");
    assert!(clang.status.success(), "{}", String::from_utf8_lossy(&clang.stderr));
    std::fs::read(o).unwrap()
}

/// As `compile_with`, with clang's usual instruction set.
pub fn compile(source: &str) -> Vec<u8> {
    compile_with(source, &[])
}

/// Loads a filter.
pub fn load(source: &str) -> Result<Object, LoadError> {
    Object::from_bytes("filter.bpf.o", &compile(source))
}

/// A filter that loads, accepted by the kernel too where we may ask.
pub fn object(source: &str) -> Arc<Object> {
    let mut object = load(source).unwrap_or_else(|error| panic!("{error}"));
    match object.verify() {
        Ok(()) | Err(LoadError::NotPermitted { .. }) => Arc::new(object),
        Err(error) => panic!("{error}"),
    }
}

/// A filter that loads, and that the kernel might refuse.
pub fn unverified(source: &str) -> Arc<Object> {
    Arc::new(load(source).unwrap_or_else(|error| panic!("{error}")))
}

/// Its function `f`, of either kind.
pub fn function_f(object: &Arc<Object>) -> Program {
    let (_, kind) = object.functions().find(|(name, _)| *name == "f").unwrap();
    object.program("f", kind.unwrap_or(Kind::StreamVerdict)).unwrap()
}

pub fn flow() -> FlowInfo {
    let address = |text: &str| text.parse::<SocketAddr>().unwrap();
    FlowInfo::new(address("10.0.0.1:6379"), address("10.0.0.2:40000"))
}

/// Runs a program on `bytes`, at time 42.
pub fn run(program: &mut Program, bytes: &[u8]) -> Result<u32, ProgramFault> {
    let mut buffer = MessageBuffer::new(bytes.len()).unwrap();
    buffer.as_mut_slice().copy_from_slice(bytes);
    program.run(&mut flow(), 42, &mut buffer, 0..bytes.len())
}

/// What the body of a verdict returns for `bytes`.
pub fn returned(body: &str, bytes: &[u8]) -> Result<u32, ProgramFault> {
    let source = format!("VERDICT int f(struct __sk_buff *skb) {{ {body} }}");
    run(&mut function_f(&unverified(&source)), bytes)
}

/// A parser and a verdict of an object, by name.
pub fn filter(object: &Arc<Object>, parser: &str, verdict: Option<&str>, max: usize) -> tap_engine::Filter {
    let verdict = verdict.map(|name| object.program(name, Kind::StreamVerdict).unwrap());
    tap_engine::Filter::new(object.program(parser, Kind::StreamParser).unwrap(), verdict, max)
}

/// Value `index` of an array or of global data.
pub fn value(object: &Object, map: &str, index: u32) -> Vec<u8> {
    object.map(map).unwrap().get(&index.to_ne_bytes()).unwrap()
}

/// We are root, and so may load programs.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// Loads, and runs all that could be loaded.
pub fn try_all(bytes: &[u8]) {
    let Ok(object) = Object::from_bytes("mutated", bytes) else { return };
    let object = Arc::new(object);
    let mut flow = flow();
    let mut buffer = MessageBuffer::new(64).unwrap();
    for (name, kind) in object.functions() {
        if let Ok(mut program) = object.program(name, kind.unwrap_or(Kind::StreamVerdict)) {
            let _ = program.run(&mut flow, 0, &mut buffer, 0..64);
        }
    }
}

/// Panics inside the ELF reader are caught; their reports are of no use here.
pub fn quietly() {
    static QUIET: LazyLock<()> = LazyLock::new(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !info
                .location()
                .is_some_and(|place| place.file().contains("aya-obj") || place.file().contains("/object-"))
            {
                usual(info);
            }
        }));
    });
    *QUIET
}
