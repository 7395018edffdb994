//! Programs at random that the kernel's verifier takes, and damages to them.
//!
//! Register 6 holds the packet, 7 the context; all others hold numbers. The first eight words of the stack are filled. At the end all registers,
//! these words and the packet go into the result.

use proptest::prelude::*;

use super::{PACKET, exit, i, load64};
use crate::instruction::{CALL, Instruction, PSEUDO_CALL, R10};

/// Registers that hold numbers.
const NUMBERS: [u8; 8] = [0, 1, 2, 3, 4, 5, 8, 9];
/// Words of the stack that are filled.
const WORDS: i16 = 8;

/// Numbers at which arithmetic goes wrong.
pub(super) fn number() -> impl Strategy<Value = u64> {
    let edges =
        [0, 1, 2, 31, 32, 63, 64, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 32, 1 << 63, (1 << 63) - 1, u64::MAX];
    prop_oneof![
        prop::sample::select(edges.to_vec()),
        prop::sample::select(edges.to_vec()).prop_map(|number| number.wrapping_neg()),
        any::<u64>(),
        any::<i8>().prop_map(|number| number as u64),
    ]
}

fn register() -> impl Strategy<Value = u8> {
    prop::sample::select(NUMBERS.to_vec())
}

/// `BPF_SIZE` bits, and bytes.
fn size() -> impl Strategy<Value = (u8, i16)> {
    prop::sample::select(vec![(0x10, 1), (0x08, 2), (0x00, 4), (0x18, 8)])
}

fn class() -> impl Strategy<Value = u8> {
    prop::sample::select(vec![0x04_u8, 0x07])
}

fn arithmetic() -> impl Strategy<Value = Instruction> {
    let operation =
        || prop::sample::select(vec![0x00_u8, 0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0x90, 0xa0, 0xb0, 0xc0]);
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
    let order = (prop::sample::select(vec![0xd4_u8, 0xdc, 0xd7]), register(), prop::sample::select(vec![16, 32, 64]))
        .prop_map(|(code, dst, bits)| i(code, dst, 0, 0, bits));
    let signed = (prop::sample::select(vec![0x30_u8, 0x90]), class(), register(), register(), any::<bool>(), number())
        .prop_map(|(operation, class, dst, src, by_register, number)| {
            if by_register {
                i(operation | class | 0x08, dst, src, 1, 0)
            } else {
                i(operation | class, dst, 0, 1, if number as i32 == 0 { -1 } else { number as i32 })
            }
        });
    let extension = (class(), register(), register(), prop::sample::select(vec![8_i16, 16, 32])).prop_map(
        |(class, dst, src, bits)| i(0xb8 | class, dst, src, if class == 0x04 { bits.min(16) } else { bits }, 0),
    );
    prop_oneof![3 => by_constant, 3 => by_register, 1 => negation, 1 => order, 1 => signed, 1 => extension]
}

/// Reads and writes of the stack and the packet.
fn access() -> impl Strategy<Value = Instruction> {
    let place = || {
        (any::<bool>(), size(), 0..WORDS * 8).prop_map(|(packet, (code, bytes), at)| {
            // The verifier wants aligned accesses of the stack.
            let at = at / bytes * bytes;
            if packet { (6_u8, code, at) } else { (R10, code, at - WORDS * 8) }
        })
    };
    let load = (place(), register()).prop_map(|((base, size, off), dst)| i(0x61 & 0x67 | size, dst, base, off, 0));
    let signed = (place(), register()).prop_filter_map("no 64-bit one", |((base, size, off), dst)| {
        (size != 0x18).then(|| i(0x81 | size, dst, base, off, 0))
    });
    let store = (place(), register()).prop_map(|((base, size, off), src)| i(0x63 | size, base, src, off, 0));
    let store_number = (place(), number()).prop_map(|((base, size, off), n)| i(0x62 | size, base, 0, off, n as i32));
    let operation = prop::sample::select(vec![0x00, 0x01, 0x40, 0x41, 0x50, 0x51, 0xa0, 0xa1, 0xe1, 0xf1]);
    let atomic = (any::<bool>(), 0..WORDS, register(), operation).prop_map(|(wide, word, src, operation)| {
        i(if wide { 0xdb } else { 0xc3 }, R10, src, -8 * (word + 1), operation)
    });
    let length = register().prop_map(|dst| i(0x61, dst, 7, 0, 0));
    prop_oneof![4 => load, 1 => signed, 3 => store, 2 => store_number, 2 => atomic, 1 => length]
}

/// A jump forward over at most three instructions.
fn jump() -> impl Strategy<Value = Instruction> {
    let comparison = prop::sample::select(vec![0x10_u8, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70, 0xa0, 0xb0, 0xc0, 0xd0]);
    (comparison, prop::sample::select(vec![0x05_u8, 0x06]), register(), register(), prop::bool::ANY, number(), 0..4_i16)
        .prop_map(|(comparison, class, dst, src, by_register, number, off)| {
            if by_register {
                i(comparison | class | 0x08, dst, src, off, 0)
            } else {
                i(comparison | class, dst, 0, off, number as i32)
            }
        })
}

/// Instructions, and where the last jumps lead.
fn body(most: usize) -> impl Strategy<Value = Vec<Instruction>> {
    prop::collection::vec(prop_oneof![4 => arithmetic(), 3 => access(), 2 => jump()], 1..most).prop_map(|mut body| {
        body.extend([i(0xbf, 0, 0, 0, 0); 4]);
        body
    })
}

/// A loop of a few turns, counted on the stack where no instruction of a body writes.
fn turns(body: Vec<Instruction>, count: i32) -> Vec<Instruction> {
    let mut all = vec![i(0x7a, R10, 0, -80, count)];
    let back = -(body.len() as i16) - 5;
    all.extend(body);
    // The counter passes through a register: it is saved meanwhile.
    all.extend([
        i(0x7b, R10, 8, -88, 0),
        i(0x79, 8, R10, -80, 0),
        i(0x07, 8, 0, 0, -1),
        i(0x7b, R10, 8, -80, 0),
        i(0x55, 8, 0, back + 4 - 4, 0),
    ]);
    let last = all.len() - 1;
    all[last].off = -(last as i16);
    all.push(i(0x79, 8, R10, -88, 0));
    all
}

/// A call of a function of its own with numbers, whose result is register 0; `callee` is its body.
fn with_call(main: Vec<Instruction>, callee: Option<Vec<Instruction>>, numbers: &[u64]) -> Vec<Instruction> {
    let Some(callee) = callee else { return [main, ending()].concat() };
    // Behind the call registers 1 to 5 hold nothing.
    let refill: Vec<Instruction> = (1..=5).zip(numbers).flat_map(|(r, n)| load64(r, *n)).collect();
    let tail = [refill, ending()].concat();
    let call = i(CALL, 0, PSEUDO_CALL, 0, tail.len() as i32);
    // Registers 6 to 9 of the callee are its own: it may write them only before it reads them, so it does neither.
    let own = callee.into_iter().map(|instruction| {
        let lower = |register: u8| if (6..10).contains(&register) { register - 6 } else { register };
        let is_memory = instruction.code & 0x07 < 4;
        if is_memory {
            i(0xbf, 0, 0, 0, 0)
        } else {
            Instruction { dst: lower(instruction.dst), src: lower(instruction.src), ..instruction }
        }
    });
    let mut function = vec![i(0xb7, 0, 0, 0, 5)];
    function.extend(own);
    function.push(exit());
    [main, vec![call], tail, function].concat()
}

/// Folds registers, stack and packet into register 0.
fn ending() -> Vec<Instruction> {
    let mut all = Vec::new();
    let mut fold = |register: u8| all.extend([i(0x27, 0, 0, 0, 0x0100_0193), i(0xaf, 0, register, 0, 0)]);
    NUMBERS[1..].iter().for_each(|register| fold(*register));
    for word in 1..=WORDS {
        all.extend([i(0x79, 1, R10, -8 * word, 0), i(0x27, 0, 0, 0, 0x0100_0193), i(0xaf, 0, 1, 0, 0)]);
    }
    for at in (0..PACKET as i16).step_by(8) {
        all.extend([i(0x79, 1, 6, at, 0), i(0x27, 0, 0, 0, 0x0100_0193), i(0xaf, 0, 1, 0, 0)]);
    }
    all.extend([i(0xbf, 1, 0, 0, 0), i(0x77, 1, 0, 0, 32), i(0xaf, 0, 1, 0, 0), exit()]);
    all
}

/// A program.
pub(super) fn program() -> impl Strategy<Value = Vec<Instruction>> {
    let numbers = prop::collection::vec(number(), 8);
    (numbers, body(20), prop::option::weighted(0.3, 1..6_i32), prop::option::weighted(0.3, body(8))).prop_map(
        |(numbers, body, count, callee)| {
            // r6 = data; r2 = r6 + PACKET; if (r2 > data_end) return 1; r7 = context
            let mut all = vec![
                i(0xbf, 7, 1, 0, 0),
                i(0x61, 6, 1, 76, 0),
                i(0x61, 3, 1, 80, 0),
                i(0xbf, 2, 6, 0, 0),
                i(0x07, 2, 0, 0, PACKET as i32),
                i(0xbd, 2, 3, 2, 0),
                i(0xb7, 0, 0, 0, 1),
                exit(),
            ];
            all.extend((1..=WORDS).map(|word| i(0x7a, R10, 0, -8 * word, i32::from(word) * 0x0101_0101)));
            all.extend(NUMBERS.iter().zip(&numbers).flat_map(|(register, number)| load64(*register, *number)));
            all.extend(match count {
                Some(count) => turns(body, count),
                None => body,
            });
            with_call(all, callee, &numbers)
        },
    )
}

/// One change to a program.
#[derive(Clone, Debug)]
pub(super) struct Damage {
    at: usize,
    what: u8,
    value: i32,
}

pub(super) fn damage() -> impl Strategy<Value = Damage> {
    (any::<usize>(), 0..6_u8, prop_oneof![-70..70_i32, any::<i32>()]).prop_map(|(at, what, value)| Damage {
        at,
        what,
        value,
    })
}

impl Damage {
    pub(super) fn apply(&self, program: &mut Vec<Instruction>) {
        let at = self.at % program.len();
        let instruction = &mut program[at];
        match self.what {
            0 => instruction.code = self.value as u8,
            1 => instruction.dst = self.value as u8 % 11,
            2 => instruction.src = self.value as u8 % 11,
            3 => instruction.off = self.value as i16,
            4 => instruction.imm = self.value,
            _ => {
                program.remove(at);
                if program.is_empty() {
                    program.push(exit());
                }
            }
        }
    }
}
