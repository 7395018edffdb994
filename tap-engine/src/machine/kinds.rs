//! What is known of the registers of a function, before each instruction, on every way to it.
//!
//! *Facts* are proofs: accesses that follow from them are not checked at run time. They are few: the frame pointer or the
//! context, plus a constant; a map. *Hints* say only which memory to compare with first.

use std::collections::{BTreeMap, BTreeSet};

use crate::helpers::MAP_LOOKUP_ELEM;
use crate::instruction::{CALL, Class, Instruction, LD_IMM64, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, R10, alu, atomic, mode};

/// What a register holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Anything.
    Unknown,
    /// Fact: the function's frame pointer and this many bytes.
    Stack(i64),
    /// Fact: the address of the context and this many bytes.
    Context(i64),
    /// Fact: what programs hold for the map of this number.
    Map(usize),
    /// Hint: an address in the stack.
    SomeStack,
    /// Hint: an address in the message.
    Message,
    /// Hint: an address of a value of this map.
    Value(usize),
}

/// The kinds of all registers.
pub(super) type Registers = [Kind; 11];

/// Registers at the beginning of each block of a function, by its first slot.
pub(super) struct Kinds(BTreeMap<usize, Registers>);

/// `offsetof(struct __sk_buff, data)`.
const DATA: i64 = 76;

impl Kinds {
    /// Walks the function `start..end` until nothing changes any more. `leaders` are the first slots of its blocks.
    pub(super) fn find(
        program: &[Instruction],
        second_slots: &[bool],
        (start, end): (usize, usize),
        leaders: &BTreeSet<usize>,
    ) -> Self {
        let mut entry = [Kind::Unknown; 11];
        entry[R10 as usize] = Kind::Stack(0);
        if start == 0 {
            entry[1] = Kind::Context(0);
        }
        let mut kinds = Self(BTreeMap::from([(start, entry)]));
        let mut open = BTreeSet::from([start]);
        while let Some(leader) = open.pop_first() {
            let mut registers = kinds.0[&leader];
            let block_end = leaders.range(leader + 1..).next().copied().unwrap_or(end);
            let mut falls_through = true;
            for at in (leader..block_end).filter(|&at| !second_slots[at]) {
                let instruction = program[at];
                step(&mut registers, instruction);
                if instruction.is_jump()
                    && let Some(target) = instruction.target(at)
                    && kinds.join(target, &registers)
                {
                    open.insert(target);
                }
                falls_through = !ends_block(instruction);
                if !falls_through {
                    break;
                }
            }
            if falls_through && block_end < end && kinds.join(block_end, &registers) {
                open.insert(block_end);
            }
        }
        kinds
    }

    /// The registers at the beginning of the block at `leader`; `None`: no way leads there.
    pub(super) fn at(&self, leader: usize) -> Option<Registers> {
        self.0.get(&leader).copied()
    }

    /// One more way leads to `leader`; true: that changes what is known there.
    fn join(&mut self, leader: usize, registers: &Registers) -> bool {
        let Some(known) = self.0.get_mut(&leader) else {
            self.0.insert(leader, *registers);
            return true;
        };
        let before = *known;
        for (known, other) in known.iter_mut().zip(registers) {
            *known = match (*known, *other) {
                (one, other) if one == other => one,
                (Kind::Stack(_) | Kind::SomeStack, Kind::Stack(_) | Kind::SomeStack) => Kind::SomeStack,
                _ => Kind::Unknown,
            };
        }
        before != *known
    }
}

/// Whether nothing runs on behind `instruction`.
pub(super) fn ends_block(instruction: Instruction) -> bool {
    use crate::instruction::{EXIT, JA, JA32};
    matches!(instruction.code, EXIT | JA | JA32)
}

/// What `instruction` does to the registers.
pub(super) fn step(registers: &mut Registers, instruction: Instruction) {
    let Instruction { dst, src, imm, .. } = instruction;
    let (dst, src) = (dst as usize, src as usize);
    match instruction.class() {
        Class::Ld if instruction.code == LD_IMM64 => {
            registers[dst] = match instruction.src {
                PSEUDO_MAP_FD => Kind::Map(imm as usize),
                PSEUDO_MAP_VALUE => Kind::Value(imm as usize),
                _ => Kind::Unknown,
            };
        }
        Class::Ld => clobber(registers),
        Class::Ldx => {
            let is_data = registers[src] == Kind::Context(DATA - i64::from(instruction.off))
                && instruction.mode() == mode::MEM
                && instruction.size() == 4;
            registers[dst] = if is_data { Kind::Message } else { Kind::Unknown };
        }
        Class::Stx if instruction.mode() == mode::ATOMIC => match imm {
            atomic::CMPXCHG => registers[0] = Kind::Unknown,
            atomic::LOAD_ACQUIRE => registers[dst] = Kind::Unknown,
            atomic::STORE_RELEASE => {}
            _ if imm & atomic::FETCH != 0 => registers[src] = Kind::Unknown,
            _ => {}
        },
        Class::St | Class::Stx => {}
        Class::Alu64 => registers[dst] = arithmetic(registers, instruction),
        Class::Alu32 => registers[dst] = Kind::Unknown,
        Class::Jmp64 if instruction.code == CALL => {
            let result = match (instruction.is_helper_call(), registers[1]) {
                (true, Kind::Map(map)) if imm as u32 == MAP_LOOKUP_ELEM => Kind::Value(map),
                _ => Kind::Unknown,
            };
            clobber(registers);
            registers[0] = result;
        }
        Class::Jmp64 | Class::Jmp32 => {}
    }
}

/// Registers 0 to 5 hold something else behind a call.
fn clobber(registers: &mut Registers) {
    registers[..6].fill(Kind::Unknown);
}

/// What a 64-bit operation leaves in its destination.
fn arithmetic(registers: &Registers, instruction: Instruction) -> Kind {
    let old = registers[instruction.dst as usize];
    let other = registers[instruction.src as usize];
    let by_register = instruction.takes_register();
    match instruction.operation() {
        alu::MOV if by_register && instruction.off == 0 => other,
        alu::ADD if by_register => match (old, other) {
            (Kind::Message | Kind::Value(_), _) => old,
            (_, Kind::Message | Kind::Value(_)) => other,
            (Kind::Stack(_) | Kind::SomeStack, _) | (_, Kind::Stack(_) | Kind::SomeStack) => Kind::SomeStack,
            _ => Kind::Unknown,
        },
        alu::ADD | alu::SUB if !by_register => {
            let imm = i64::from(instruction.imm);
            let by = if instruction.operation() == alu::ADD { imm } else { -imm };
            // Far beyond any frame or context nothing is proved any more; so sums stay small, and the walk comes to an end.
            let near = |sum: i64| sum.abs() <= 1 << 16;
            match old {
                Kind::Stack(at) if near(at + by) => Kind::Stack(at + by),
                Kind::Context(at) if near(at + by) => Kind::Context(at + by),
                Kind::Message | Kind::Value(_) | Kind::SomeStack => old,
                _ => Kind::Unknown,
            }
        }
        alu::SUB => match old {
            Kind::Message | Kind::Value(_) | Kind::SomeStack => old,
            Kind::Stack(_) => Kind::SomeStack,
            _ => Kind::Unknown,
        },
        _ => Kind::Unknown,
    }
}
