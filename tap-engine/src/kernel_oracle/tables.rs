//! What cannot be random: edges, calls, the stack, and what is refused.

use super::*;
use crate::functions::MAX_SLOTS;
use crate::instruction::{CALL, JA, LD_IMM64, PSEUDO_CALL, R10};

/// What a program returns in the kernel and in the engine: the same.
#[track_caller]
fn everywhere(all: &[Instruction], value: u32) {
    let program = linked(all).unwrap_or_else(|refusal| panic!("{refusal:?}"));
    for mode in [CHECKED, COUNTED] {
        assert_eq!(native(&program, mode), Ok(value), "{mode:?}");
    }
    match in_kernel(all) {
        Kernel::Silent => {}
        kernel => {
            assert_eq!(kernel, Kernel::Returns(value));
            assert_eq!(native(&program, VERIFIED), Ok(value));
        }
    }
}

#[test]
fn the_kernel_is_asked_if_we_are_root() {
    match in_kernel(&[i(0xb7, 0, 0, 0, 7), exit()]) {
        Kernel::Silent => {
            assert!(!is_root());
            println!("skipped: needs root");
        }
        kernel => assert_eq!(kernel, Kernel::Returns(7)),
    }
}

/// `code` on registers 1 and 2 leaves `result` in register 1.
#[track_caller]
fn computes(instruction: Instruction, first: u64, second: u64, result: u64) {
    let mut all = Vec::new();
    all.extend(load64(1, first));
    all.extend(load64(2, second));
    all.push(instruction);
    all.extend(load64(3, result));
    all.extend([i(0xb7, 0, 0, 0, 1), i(0x1d, 1, 3, 1, 0), i(0xb7, 0, 0, 0, 0), exit()]);
    everywhere(&all, 1);
}

#[test]
fn arithmetic_at_the_edges() {
    // Operation, register 1, register 2 → result.
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
        computes(i(code, 1, 2, 0, 0), first, second, result);
    }
}

#[test]
fn signed_division_at_the_edges() {
    const LOWEST: u64 = 1 << 63;
    const LOWEST32: u64 = 1 << 31;
    let minus = |number: u64| number.wrapping_neg();
    let (divide, modulo, divide32, modulo32) = (0x3f, 0x9f, 0x3c, 0x9c);
    let table = [
        (divide, minus(7), 2, minus(3)),
        (modulo, minus(7), 2, minus(1)),
        (divide, 7, 0, 0),
        (modulo, minus(7), 0, minus(7)),
        (divide, LOWEST, minus(1), LOWEST),
        (modulo, LOWEST, minus(1), 0),
        (divide32, LOWEST32, minus(1), LOWEST32),
        (modulo32, LOWEST32 | 1 << 40, minus(1), 0),
        (divide32, minus(7), 2, minus(3) & 0xffff_ffff),
        (modulo32, minus(7), 0, minus(7) & 0xffff_ffff),
    ];
    for (code, first, second, result) in table {
        computes(i(code, 1, 2, 1, 0), first, second, result);
    }
    computes(i(0x37, 1, 0, 1, -2), 7, 0, minus(3));
    computes(i(0x94, 1, 0, 1, -2), 7, 0, 1);
}

#[test]
fn signs_are_extended_and_bytes_swapped() {
    computes(i(0xbf, 1, 2, 8, 0), 0, 0x1ff, u64::MAX);
    computes(i(0xbf, 1, 2, 16, 0), 0, 0x1_7fff, 0x7fff);
    computes(i(0xbf, 1, 2, 32, 0), 0, 0x8000_0000, 0xffff_ffff_8000_0000);
    computes(i(0xbc, 1, 2, 8, 0), 0, 0x80, 0xffff_ff80);
    computes(i(0xd7, 1, 0, 0, 16), 0x0102_0304_0506_0708, 0, 0x0807);
    computes(i(0xd7, 1, 0, 0, 32), 0x0102_0304_0506_0708, 0, 0x0807_0605);
    computes(i(0xd7, 1, 0, 0, 64), 0x0102_0304_0506_0708, 0, 0x0807_0605_0403_0201);
    computes(i(0xd4, 1, 0, 0, 16), 0x0102_0304_0506_0708, 0, 0x0708);
    computes(i(0xdc, 1, 0, 0, 32), 0x0102_0304_0506_0708, 0, 0x0807_0605);
    // *(s8 *)(r10 - 8), *(s32 *)(r10 - 8)
    for (code, value, result) in
        [(0x91, 0x180, minus_one(0x7f)), (0x81, 0x8000_0000_u32 as i32, minus_one(0x7fff_ffff))]
    {
        let mut all = vec![i(0x7a, R10, 0, -8, value), i(code, 1, R10, -8, 0)];
        all.extend(load64(3, result));
        all.extend([i(0xb7, 0, 0, 0, 1), i(0x1d, 1, 3, 1, 0), i(0xb7, 0, 0, 0, 0), exit()]);
        everywhere(&all, 1);
    }
}

/// All ones above the bits of `mask`.
fn minus_one(mask: u64) -> u64 {
    !mask
}

#[test]
fn atomic_operations_change_memory_and_fetch() {
    // r2 op= on the word at r10 - 8, which holds 12; then 1000 * memory + r2.
    let table = [
        (0x00, 15_000 + 3),
        (0x01, 15_000 + 12),
        (0x40, 15_000 + 3),
        (0x41, 15_000 + 12),
        (0x50, 3),
        (0x51, 12),
        (0xa0, 15_000 + 3),
        (0xa1, 15_000 + 12),
        (0xe1, 3_000 + 12),
    ];
    for (operation, result) in table {
        for (code, load) in [(0xdb, 0x79), (0xc3, 0x61)] {
            let all = [
                i(0x7a, R10, 0, -8, 12),
                i(0xb7, 2, 0, 0, 3),
                i(code, R10, 2, -8, operation),
                i(load, 0, R10, -8, 0),
                i(0x27, 0, 0, 0, 1000),
                i(0x0f, 0, 2, 0, 0),
                exit(),
            ];
            everywhere(&all, result);
        }
    }
}

#[test]
fn compare_and_exchange() {
    for (expected, result) in [(12, 3_000 + 12), (13, 12_000 + 12)] {
        let all = [
            i(0x7a, R10, 0, -8, 12),
            i(0xb7, 2, 0, 0, 3),
            i(0xb7, 0, 0, 0, expected),
            i(0xdb, R10, 2, -8, 0xf1),
            i(0x79, 1, R10, -8, 0),
            i(0x27, 1, 0, 0, 1000),
            i(0x0f, 0, 1, 0, 0),
            exit(),
        ];
        everywhere(&all, result);
    }
}

#[test]
fn a_misaligned_atomic_operation_is_a_fault() {
    let all = [i(0xb7, 2, 0, 0, 3), i(0xdb, R10, 2, -12, 0), i(0xb7, 0, 0, 0, 0), exit()];
    let program = linked(&all).unwrap();
    assert_eq!(native(&program, CHECKED), Err(ProgramFault::Misaligned { instruction: 1 }));
}

#[test]
fn legacy_packet_access_reads_the_packet_or_ends_the_program() {
    // r6 = r1; r0 = *(u16 *)skb[20]
    everywhere(&[i(0xbf, 6, 1, 0, 0), i(0x28, 0, 0, 0, 20), exit()], u16::from_be_bytes([239, 20]).into());
    // r7 = 3; r0 = *(u8 *)skb[r7 + 1]
    everywhere(&[i(0xbf, 6, 1, 0, 0), i(0xb7, 7, 0, 0, 3), i(0x50, 0, 7, 0, 1), exit()], 159);
    // Beyond the end: what stands behind is not reached.
    everywhere(&[i(0xbf, 6, 1, 0, 0), i(0x20, 0, 0, 0, 61), i(0xb7, 0, 0, 0, 7), exit()], 0);
}

#[test]
fn long_jumps_and_may_goto() {
    // r0 = 1; gotol over; back: exit; over: gotol back
    everywhere(&[i(0xb7, 0, 0, 0, 1), i(0x06, 0, 0, 0, 1), exit(), i(0x06, 0, 0, 0, -2)], 1);
    // r0 = 0; while (may_goto) r0 += 1 until it is 100
    let all = [
        i(0xb7, 0, 0, 0, 0),
        i(0xe5, 0, 0, 3, 0),
        i(0x07, 0, 0, 0, 1),
        i(0x15, 0, 0, 1, 100),
        i(JA, 0, 0, -4, 0),
        exit(),
    ];
    everywhere(&all, 100);
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
    everywhere(&all, 1107);
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
    everywhere(&all, 15);
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
    everywhere(&all, 2211);
}

#[test]
fn programs_that_cannot_be_right_are_refused() {
    let refusal = |all: &[Instruction]| match linked(all) {
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
    assert!(refusal(&vec![exit(); MAX_SLOTS + 1]).contains("are the limit"));
    assert!(refusal(&[]).contains("empty"));
    // Nine functions, each of which calls the next.
    let mut nested: Vec<_> = (0..9).flat_map(|_| [i(CALL, 0, PSEUDO_CALL, 0, 1), exit()]).collect();
    nested.push(exit());
    nested.push(exit());
    assert!(refusal(&nested).contains("deeper than 8"));
}
