//! Tests: the engine computes what the kernel computes.
//!
//! Programs of instructions at random run in both: in the kernel as `BPF_PROG_TYPE_SCHED_CLS` under `BPF_PROG_TEST_RUN`, which
//! the `sk_skb` type does not offer. Tables for what cannot be random.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use proptest::prelude::*;

use crate::context::FlowInfo;
use crate::instruction::{CALL, EXIT, Instruction, JA, LD_IMM64, PSEUDO_CALL, R10};
use crate::lower::{MAX_SLOTS, Refusal, lower};
use crate::maps::Maps;
use crate::memory::MessageBuffer;
use crate::object::Kind;
use crate::program::{Parts, Program, ProgramFault};

const fn i(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Instruction {
    Instruction { code, dst, src, off, imm }
}

const fn exit() -> Instruction {
    i(EXIT, 0, 0, 0, 0)
}

fn load64(dst: u8, value: u64) -> [Instruction; 2] {
    [i(LD_IMM64, dst, 0, 0, value as u32 as i32), i(0, 0, 0, 0, (value >> 32) as u32 as i32)]
}

fn program(instructions: &[Instruction]) -> Result<Program, Refusal> {
    let maps = Arc::new(Maps::new("test", std::iter::empty()).unwrap());
    let bytecode = Arc::new(lower(instructions, &maps)?);
    let parts = Parts { kind: Kind::StreamVerdict, function: "f".into(), bytecode, maps, printed: Arc::default() };
    Ok(Program::new(parts, |reason| panic!("rbpf refuses what was lowered: {reason}")).unwrap())
}

fn in_engine(instructions: &[Instruction]) -> Result<u32, ProgramFault> {
    let flow = FlowInfo::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    let mut buffer = MessageBuffer::new(16).unwrap();
    program(instructions).unwrap().run(&flow, 0, &mut buffer, 0..16)
}

/// `None`: we may not ask.
fn in_kernel(instructions: &[Instruction]) -> Option<u32> {
    const BPF_PROG_LOAD: u32 = 5;
    const BPF_PROG_TEST_RUN: u32 = 10;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let bytes: Vec<u8> = instructions.iter().flat_map(|instruction| instruction.to_bytes()).collect();
    let mut log = vec![0_u8; 1 << 16];
    let mut load = [0_u8; 128];
    load[0..4].copy_from_slice(&BPF_PROG_TYPE_SCHED_CLS.to_ne_bytes());
    load[4..8].copy_from_slice(&(instructions.len() as u32).to_ne_bytes());
    load[8..16].copy_from_slice(&(bytes.as_ptr() as u64).to_ne_bytes());
    load[16..24].copy_from_slice(&(c"GPL".as_ptr() as u64).to_ne_bytes());
    load[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    load[28..32].copy_from_slice(&(log.len() as u32).to_ne_bytes());
    load[32..40].copy_from_slice(&(log.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the attributes name `bytes`, a C string and `log`, all of which outlive the call, with their true lengths.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, load.as_mut_ptr(), load.len()) };
    if descriptor < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EPERM) {
            return None;
        }
        panic!("{error}: {}", String::from_utf8_lossy(&log));
    }
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let packet = [0_u8; 64];
    let mut run = [0_u8; 128];
    run[0..4].copy_from_slice(&descriptor.as_raw_fd().to_ne_bytes());
    run[8..12].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
    run[16..24].copy_from_slice(&(packet.as_ptr() as u64).to_ne_bytes());
    // SAFETY: the attributes name `packet` with its true length; nothing is written but the attributes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, run.as_mut_ptr(), 80) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    Some(u32::from_ne_bytes(run[4..8].try_into().unwrap()))
}

/// Numbers at which arithmetic goes wrong.
fn number() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 2, 31, 32, 63, 64, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 1 << 63, (1 << 63) - 1, u64::MAX];
    prop_oneof![
        prop::sample::select(edges.to_vec()),
        prop::sample::select(edges.to_vec()).prop_map(|number| number.wrapping_neg()),
        any::<u64>(),
        any::<i8>().prop_map(|number| number as u64),
    ]
}

/// An instruction that works on registers 0 to 9, all of which hold numbers.
fn instruction() -> impl Strategy<Value = Instruction> {
    let operation =
        || prop::sample::select(vec![0x00_u8, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xa0, 0xb0, 0xc0]);
    let class = || prop::sample::select(vec![0x04_u8, 0x07]);
    let comparison = prop::sample::select(vec![0x10_u8, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0]);
    let register = || 0..10_u8;
    let by_constant = (operation(), class(), register(), number()).prop_map(|(operation, class, dst, number)| {
        let bits = if class == 0x07 { 63 } else { 31 };
        let imm = match (operation, number as i32) {
            (0x60 | 0x70 | 0xc0, number) => number & bits,
            (0x30 | 0x90, 0) => 1,
            (_, number) => number,
        };
        i(operation | class, dst, 0, 0, imm)
    });
    let by_register = (operation(), class(), register(), register())
        .prop_map(|(operation, class, dst, src)| i(operation | class | 0x08, dst, src, 0, 0));
    let negation = (class(), register()).prop_map(|(class, dst)| i(0x80 | class, dst, 0, 0, 0));
    let order = (prop::bool::ANY, register(), prop::sample::select(vec![16, 32, 64]))
        .prop_map(|(big, dst, bits)| i(if big { 0xdc } else { 0xd4 }, dst, 0, 0, bits));
    let jump = (
        comparison,
        prop::sample::select(vec![0x05_u8, 0x06]),
        register(),
        register(),
        prop::bool::ANY,
        number(),
        0..4_i16,
    )
        .prop_map(|(comparison, class, dst, src, by_register, number, off)| {
            if by_register {
                i(comparison | class | 0x08, dst, src, off, 0)
            } else {
                i(comparison | class, dst, 0, off, number as i32)
            }
        });
    prop_oneof![3 => by_constant, 3 => by_register, 1 => negation, 1 => order, 3 => jump]
}

/// Loads the registers, runs `body`, and returns a number in which every bit of every register counts.
fn around(registers: &[u64], body: &[Instruction]) -> Vec<Instruction> {
    let mut all: Vec<Instruction> =
        (0..).zip(registers).flat_map(|(register, value)| load64(register, *value)).collect();
    all.extend(body);
    // Where the last jumps lead to.
    all.extend([i(0xbf, 0, 0, 0, 0); 4]);
    for register in 1..10 {
        all.extend([i(0x27, 0, 0, 0, 0x0100_0193), i(0xaf, 0, register, 0, 0)]);
    }
    all.extend([i(0xbf, 1, 0, 0, 0), i(0x77, 1, 0, 0, 32), i(0xaf, 0, 1, 0, 0), exit()]);
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arithmetic_and_jumps_are_those_of_the_kernel(
        registers in prop::collection::vec(number(), 10),
        body in prop::collection::vec(instruction(), 1..24),
    ) {
        let all = around(&registers, &body);
        if let Some(expected) = in_kernel(&all) {
            prop_assert_eq!(in_engine(&all), Ok(expected));
        }
    }

    #[test]
    fn any_instructions_are_refused_or_run(
        body in prop::collection::vec((any::<u8>(), 0..12_u8, 0..12_u8, -4..4_i16, -4..40_i32), 1..12),
    ) {
        let mut all: Vec<_> = body.into_iter().map(|(code, dst, src, off, imm)| i(code, dst, src, off, imm)).collect();
        all.push(exit());
        if lower(&all, &Maps::new("test", std::iter::empty()).unwrap()).is_ok() {
            let _ = in_engine(&all);
        }
    }
}

#[test]
fn the_kernel_is_asked_if_we_are_root() {
    let known = in_kernel(&[i(0xb7, 0, 0, 0, 7), exit()]);
    // SAFETY: geteuid takes nothing and cannot fail.
    let is_root = unsafe { libc::geteuid() } == 0;
    match known {
        Some(value) => assert_eq!(value, 7),
        None => {
            assert!(!is_root);
            println!("skipped: needs root");
        }
    }
}

#[test]
fn arithmetic_at_the_edges() {
    // Operation, register 1, register 2 or constant → result.
    let (divide, modulo, divide32, modulo32) = (0x3f, 0x9f, 0x3c, 0x9c);
    let table = [
        (divide, 9, 0, 0),
        (modulo, 9, 0, 9),
        (divide32, 9, 1 << 32, 0),
        (modulo32, 9 | 1 << 40, 1 << 32, 9),
        (divide, u64::MAX, 2, u64::MAX / 2),
        (0x6f, 1, 65, 2),
        (0x6c, 1, 33, 2),
        (0xcf, 1 << 63, 63, u64::MAX),
        (0xcc, 1 << 31, 31, 0xffff_ffff),
        (0x0c, u64::MAX, 1, 0),
        (0xbc, 0, u64::MAX, 0xffff_ffff),
    ];
    for (code, first, second, result) in table {
        let mut all = Vec::new();
        all.extend(load64(1, first));
        all.extend(load64(2, second));
        all.push(i(code, 1, 2, 0, 0));
        all.extend(load64(3, result));
        all.extend([i(0xb7, 0, 0, 0, 1), i(0x1d, 1, 3, 1, 0), i(0xb7, 0, 0, 0, 0), exit()]);
        assert_eq!(in_engine(&all), Ok(1), "{code:#x} of {first:#x} and {second:#x}");
        assert_eq!(in_kernel(&all).unwrap_or(1), 1, "{code:#x} of {first:#x} and {second:#x}");
    }
}

#[test]
fn functions_may_call_forward_and_backward() {
    // f: r0 = one(); one at 5 calls two at 3.
    let all = [
        i(CALL, 0, PSEUDO_CALL, 0, 4),
        i(0x07, 0, 0, 0, 1000),
        exit(),
        i(0xb7, 0, 0, 0, 7),
        exit(),
        i(CALL, 0, PSEUDO_CALL, 0, -3),
        i(0x07, 0, 0, 0, 100),
        exit(),
    ];
    assert_eq!(in_engine(&all), Ok(1107));
    assert_eq!(in_kernel(&all).unwrap_or(1107), 1107);
}

#[test]
fn the_register_that_holds_the_result_survives_a_loop() {
    // r0 = 0; r6 = 5; do { r0 += 3; r6 -= 1 } while (r6 != 0)
    let all = [
        i(0xb7, 0, 0, 0, 0),
        i(0xb7, 6, 0, 0, 5),
        i(0x07, 0, 0, 0, 3),
        i(0x07, 6, 0, 0, -1),
        i(0x55, 6, 0, -3, 0),
        exit(),
    ];
    assert_eq!(in_engine(&all), Ok(15));
    assert_eq!(in_kernel(&all).unwrap_or(15), 15);
}

#[test]
fn the_stack_keeps_what_a_loop_puts_there() {
    // The highest and the lowest word of all that a looping program may have.
    let all = [
        i(0x7a, R10, 0, -8, 11),
        i(0x7a, R10, 0, -504, 22),
        i(0xb7, 6, 0, 0, 3),
        i(0x07, 6, 0, 0, -1),
        i(0x55, 6, 0, -2, 0),
        i(0x79, 0, R10, -8, 0),
        i(0x79, 1, R10, -504, 0),
        i(0x27, 1, 0, 0, 100),
        i(0x0f, 0, 1, 0, 0),
        exit(),
    ];
    assert_eq!(in_engine(&all), Ok(2211));
}

#[test]
fn programs_that_cannot_be_right_are_refused() {
    let refusal = |all: &[Instruction]| match program(all) {
        Err(Refusal::Program(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let table: [(&[Instruction], &str); 8] = [
        (&[i(JA, 0, 0, 5, 0), exit()], "leads out of its function"),
        (&[i(JA, 0, 0, -3, 0), exit()], "leads out of its function"),
        (&[i(CALL, 0, PSEUDO_CALL, 0, 7), exit()], "leads out of the program"),
        (&[i(CALL, 0, PSEUDO_CALL, 0, -1), exit()], "calls itself"),
        (&[i(0xb7, 0, 0, 0, 1)], "runs on beyond the end"),
        (
            &[i(CALL, 0, PSEUDO_CALL, 0, 1), exit(), i(0xb7, 0, 0, 0, 1), i(JA, 0, 0, -3, 0)],
            "leads out of its function",
        ),
        (&[i(0x7a, R10, 0, -520, 0), exit()], "520 bytes of stack"),
        (&[i(JA, 0, 0, 1, 0), i(LD_IMM64, 1, 0, 0, 0), i(0, 0, 0, 0, 0), exit()], "leads out of its function"),
    ];
    for (all, word) in table {
        let reason = refusal(all);
        assert!(reason.contains(word), "{reason} instead of {word}");
    }
    assert!(refusal(&vec![exit(); MAX_SLOTS + 1]).contains("32767 are the limit"));
    // Each of these becomes several.
    let mut growing = vec![i(0x15, 1, 0, 0, -1); MAX_SLOTS - 1];
    growing.push(exit());
    assert!(refusal(&growing).contains("too long"));
    assert!(refusal(&[]).contains("empty"));
    // Nine functions, each of which calls the next.
    let mut nested: Vec<_> = (0..9).flat_map(|_| [i(CALL, 0, PSEUDO_CALL, 0, 1), exit()]).collect();
    nested.push(exit());
    nested.push(exit());
    assert!(refusal(&nested).contains("deeper than 8"));
}
