//! What a call of a program costs, natively in both modes and in rbpf's interpreter and JIT: `cargo bench -p benches --bench engine`.
//!
//! Two programs: a parser of 10 instructions (a 4-byte length), and a verdict of 320 without loops. rbpf's JIT has no bounds checks and no
//! budget; its interpreter has bounds checks only.
#![allow(missing_docs, reason = "a benchmark program has no users but its reader")]

use std::hint::black_box;
use std::process::Command;

use divan::Bencher;
use object::{Object as _, ObjectSection as _};
use tap_engine::{FlowInfo, Kind, MessageBuffer, Object, Program};

const PARSER: &str = r#"
SEC("sk_skb/stream_parser") int f(struct __sk_buff *skb) {
    unsigned char *data = (void *)(long)skb->data;
    if (data + 4 > (unsigned char *)(long)skb->data_end) return 0;
    return *(unsigned short *)(data + 2) + 4;
}"#;

/// 104 bytes are compared with a pattern and counted together: a load and two operations each, and what comes before and behind.
const VERDICT: &str = r#"
SEC("sk_skb/stream_verdict") int f(struct __sk_buff *skb) {
    unsigned char *data = (void *)(long)skb->data;
    unsigned long differs = 0, sum = 0;
    if (data + 104 > (unsigned char *)(long)skb->data_end) return 0;
    #pragma unroll
    for (int i = 0; i < 104; i += 2) { differs |= data[i] ^ (i + 1); sum += data[i + 1] & 0x5f; }
    return differs == 0 || sum == 7 ? SK_DROP : SK_PASS;
}"#;

fn main() {
    for (name, source) in [("parser", PARSER), ("verdict", VERDICT)] {
        println!("{name}: {} instructions", bytecode(&compile(source)).len() / 8);
    }
    divan::main();
}

fn compile(source: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let (c, o) = (folder.path().join("f.c"), folder.path().join("f.o"));
    let prelude = "#include <linux/bpf.h>\n#include <bpf/bpf_helpers.h>\nchar LICENSE[] SEC(\"license\") = \"GPL\";\n";
    std::fs::write(&c, format!("{prelude}{source}")).expect("a file");
    let include = format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH);
    let status =
        Command::new("clang").args(["-O2", "-g", "-target", "bpf", &include, "-c"]).arg(&c).arg("-o").arg(&o).status();
    assert!(status.expect("clang is needed").success());
    std::fs::read(o).expect("the object")
}

/// The instructions of the only program, which refers to nothing else.
fn bytecode(bytes: &[u8]) -> Vec<u8> {
    let file = object::File::parse(bytes).expect("an ELF file");
    let mut sections = file.sections().filter(|section| section.name().is_ok_and(|name| name.starts_with("sk_skb/")));
    sections.next().expect("a program").data().expect("its instructions").to_vec()
}

fn message() -> MessageBuffer {
    let mut buffer = MessageBuffer::new(128).expect("memory");
    buffer.as_mut_slice().fill(1);
    buffer
}

fn native(bencher: Bencher, source: &str, verified: bool) {
    let mut object = Object::from_bytes("f.o", &compile(source)).expect("an object");
    if verified {
        object.verify().expect("the kernel's verifier takes it (needs root)");
    }
    let kind = object.functions().next().and_then(|(_, kind)| kind).unwrap_or(Kind::StreamVerdict);
    let mut program: Program = object.program("f", kind).expect("a function");
    let mut flow = FlowInfo::new(([10, 0, 0, 2], 80).into(), ([10, 0, 0, 1], 40_000).into());
    let mut buffer = message();
    bencher.bench_local(|| program.run(black_box(&mut flow), 0, black_box(&mut buffer), 0..128));
}

/// The context as rbpf's programs see it: the message lies in the lower 4 GiB.
fn context(buffer: &MessageBuffer) -> [u8; 192] {
    let mut context = [0; 192];
    let address = buffer.as_slice().as_ptr().expose_provenance() as u32;
    context[76..80].copy_from_slice(&address.to_ne_bytes());
    context[80..84].copy_from_slice(&(address + 128).to_ne_bytes());
    context
}

fn interpreted(bencher: Bencher, source: &str) {
    let code = bytecode(&compile(source));
    let vm = rbpf::EbpfVmMbuff::new(Some(&code)).expect("a program");
    let buffer = message();
    let context = context(&buffer);
    bencher.bench_local(|| vm.execute_program(black_box(buffer.as_slice()), black_box(&context)));
}

#[expect(unsafe_code, reason = "rbpf's JIT checks nothing")]
fn jit(bencher: Bencher, source: &str) {
    let code = bytecode(&compile(source));
    let mut vm = rbpf::EbpfVmMbuff::new(Some(&code)).expect("a program");
    vm.jit_compile().expect("it is short enough");
    let mut buffer = message();
    let mut context = context(&buffer);
    bencher.bench_local(|| {
        // SAFETY: the programs above stay within the message, which their own comparison proves.
        unsafe { vm.execute_program_jit(black_box(buffer.as_mut_slice()), black_box(&mut context)) }
    });
}

#[divan::bench_group(sample_count = 200)]
mod parser_of_10 {
    use super::*;

    #[divan::bench]
    fn native_verified(bencher: Bencher) {
        native(bencher, PARSER, true);
    }
    #[divan::bench]
    fn native_checked(bencher: Bencher) {
        native(bencher, PARSER, false);
    }
    #[divan::bench]
    fn rbpf_interpreter(bencher: Bencher) {
        interpreted(bencher, PARSER);
    }
    #[divan::bench]
    fn rbpf_jit_unchecked(bencher: Bencher) {
        jit(bencher, PARSER);
    }
}

#[divan::bench_group(sample_count = 200)]
mod verdict_of_320 {
    use super::*;

    #[divan::bench]
    fn native_verified(bencher: Bencher) {
        native(bencher, VERDICT, true);
    }
    #[divan::bench]
    fn native_checked(bencher: Bencher) {
        native(bencher, VERDICT, false);
    }
    #[divan::bench]
    fn rbpf_interpreter(bencher: Bencher) {
        interpreted(bencher, VERDICT);
    }
    #[divan::bench]
    fn rbpf_jit_unchecked(bencher: Bencher) {
        jit(bencher, VERDICT);
    }
}
