//! BPF instructions, and which of them the engine runs.
//!
//! Checked one by one when an object is loaded, with the kernel's rules (`kernel/bpf/verifier.c`, "BPF instruction set" RFC
//! 9669): what the interpreter would do wrong, or does not know, is refused by name.

use aya_obj::generated::bpf_insn;

pub(crate) const LD_IMM64: u8 = 0x18;
pub(crate) const JA: u8 = 0x05;
pub(crate) const CALL: u8 = 0x85;
pub(crate) const EXIT: u8 = 0x95;

/// `src` of a [`LD_IMM64`] that names a map (`BPF_PSEUDO_MAP_FD`).
pub(crate) const PSEUDO_MAP_FD: u8 = 1;
/// `src` of a [`LD_IMM64`] that names a byte of a map's first value (`BPF_PSEUDO_MAP_VALUE`).
pub(crate) const PSEUDO_MAP_VALUE: u8 = 2;
/// `src` of a [`CALL`] of a function of the program itself (`BPF_PSEUDO_CALL`).
pub(crate) const PSEUDO_CALL: u8 = 1;

/// `src` of a [`LD_IMM64`] that names a function of the program itself, for helpers that call back (`BPF_PSEUDO_FUNC`).
pub(crate) const PSEUDO_FUNC: u8 = 4;
/// A jump with a 32-bit distance in `imm` (`gotol`, cpu v4).
pub(crate) const JA32: u8 = 0x06;

/// The frame pointer.
pub(crate) const R10: u8 = 10;

/// One slot of bytecode. An [`LD_IMM64`] takes two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    pub(crate) dst: u8,
    pub(crate) src: u8,
    pub(crate) off: i16,
    pub(crate) imm: i32,
}

impl From<&bpf_insn> for Instruction {
    fn from(raw: &bpf_insn) -> Self {
        Self { code: raw.code, dst: raw.dst_reg(), src: raw.src_reg(), off: raw.off, imm: raw.imm }
    }
}

impl Instruction {
    /// Its eight bytes, as little-endian hosts have them.
    pub(crate) fn to_bytes(self) -> [u8; 8] {
        let mut bytes = [self.code, self.src << 4 | self.dst, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&self.off.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.imm.to_le_bytes());
        bytes
    }

    pub(crate) fn class(self) -> Class {
        match self.code & 0x07 {
            0 => Class::Ld,
            1 => Class::Ldx,
            2 => Class::St,
            3 => Class::Stx,
            4 => Class::Alu32,
            5 => Class::Jmp64,
            6 => Class::Jmp32,
            _ => Class::Alu64,
        }
    }

    /// The operation of an arithmetic or jump instruction (`BPF_OP`).
    pub(crate) fn operation(self) -> u8 {
        self.code & 0xf0
    }

    /// The second operand is a register (`BPF_X`), not `imm` (`BPF_K`).
    pub(crate) fn takes_register(self) -> bool {
        self.code & 0x08 != 0
    }

    /// A jump, conditional or not, but neither call nor exit.
    pub(crate) fn is_jump(self) -> bool {
        matches!(self.class(), Class::Jmp64 | Class::Jmp32) && !matches!(self.code, CALL | EXIT)
    }

    /// How many slots a jump goes beyond the next one.
    pub(crate) fn distance(self) -> i64 {
        if self.code == JA32 { self.imm.into() } else { self.off.into() }
    }

    /// A load or store of packet, map, stack or context memory: its `BPF_MODE`.
    pub(crate) fn mode(self) -> u8 {
        self.code & 0xe0
    }

    /// Bytes that a load or store touches (`BPF_SIZE`).
    pub(crate) fn size(self) -> u8 {
        match self.code & 0x18 {
            0x00 => 4,
            0x08 => 2,
            0x10 => 1,
            _ => 8,
        }
    }

    /// The slot that it jumps to or calls, if it is at `at` and does so: for a load of a function's address, that function.
    pub(crate) fn target(self, at: usize) -> Option<usize> {
        let distance = match self.code {
            CALL | LD_IMM64 => self.imm.into(),
            _ => self.distance(),
        };
        usize::try_from(at as i64 + 1 + distance).ok()
    }

    /// A load of the address of a function of the program itself.
    pub(crate) fn is_callback(self) -> bool {
        self.code == LD_IMM64 && self.src == PSEUDO_FUNC
    }

    /// A call of a function of the program itself.
    pub(crate) fn is_local_call(self) -> bool {
        self.code == CALL && self.src == PSEUDO_CALL
    }

    /// A call of a helper.
    pub(crate) fn is_helper_call(self) -> bool {
        self.code == CALL && self.src == 0
    }
}

/// `BPF_CLASS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Ld,
    Ldx,
    St,
    Stx,
    Alu32,
    Jmp64,
    Jmp32,
    Alu64,
}

/// Operations of arithmetic instructions.
pub(crate) mod alu {
    pub(crate) const ADD: u8 = 0x00;
    pub(crate) const SUB: u8 = 0x10;
    pub(crate) const MUL: u8 = 0x20;
    pub(crate) const DIV: u8 = 0x30;
    pub(crate) const OR: u8 = 0x40;
    pub(crate) const AND: u8 = 0x50;
    pub(crate) const LSH: u8 = 0x60;
    pub(crate) const RSH: u8 = 0x70;
    pub(crate) const NEG: u8 = 0x80;
    pub(crate) const MOD: u8 = 0x90;
    pub(crate) const XOR: u8 = 0xa0;
    pub(crate) const MOV: u8 = 0xb0;
    pub(crate) const ARSH: u8 = 0xc0;
    pub(crate) const END: u8 = 0xd0;
}

/// Operations of jumps.
pub(crate) mod jump {
    pub(crate) const JA: u8 = 0x00;
    pub(crate) const JEQ: u8 = 0x10;
    pub(crate) const JGT: u8 = 0x20;
    pub(crate) const JGE: u8 = 0x30;
    pub(crate) const JSET: u8 = 0x40;
    pub(crate) const JNE: u8 = 0x50;
    pub(crate) const JSGT: u8 = 0x60;
    pub(crate) const JSGE: u8 = 0x70;
    pub(crate) const CALL: u8 = 0x80;
    pub(crate) const EXIT: u8 = 0x90;
    pub(crate) const JLT: u8 = 0xa0;
    pub(crate) const JLE: u8 = 0xb0;
    pub(crate) const JSLT: u8 = 0xc0;
    pub(crate) const JSLE: u8 = 0xd0;
    pub(crate) const JCOND: u8 = 0xe0;
}

/// `BPF_MODE` of loads and stores.
pub(crate) mod mode {
    pub(crate) const ABS: u8 = 0x20;
    pub(crate) const IND: u8 = 0x40;
    pub(crate) const MEM: u8 = 0x60;
    pub(crate) const MEMSX: u8 = 0x80;
    pub(crate) const ATOMIC: u8 = 0xc0;
}

/// `imm` of atomic instructions.
pub(crate) mod atomic {
    pub(crate) const FETCH: i32 = 0x01;
    pub(crate) const ADD: i32 = 0x00;
    pub(crate) const OR: i32 = 0x40;
    pub(crate) const AND: i32 = 0x50;
    pub(crate) const XOR: i32 = 0xa0;
    pub(crate) const XCHG: i32 = 0xe1;
    pub(crate) const CMPXCHG: i32 = 0xf1;
    pub(crate) const LOAD_ACQUIRE: i32 = 0x100;
    pub(crate) const STORE_RELEASE: i32 = 0x110;
}

/// Whether the engine runs `instruction`; `next` is the slot behind it. The error names what it does not run.
pub(crate) fn check(instruction: Instruction, next: Option<Instruction>) -> Result<(), String> {
    let Instruction { code, dst, src, off, imm } = instruction;
    if dst > R10 || src > R10 {
        return Err(format!("register {}", dst.max(src)));
    }
    let unknown = || Err(format!("the unknown instruction {:02x?}", instruction.to_bytes()));
    match instruction.class() {
        Class::Ld if code == LD_IMM64 => check_load_immediate(instruction, next)?,
        Class::Ld => match instruction.mode() {
            mode::ABS if instruction.size() < 8 && dst == 0 && src == 0 => {}
            mode::IND if instruction.size() < 8 && dst == 0 => {}
            _ => return unknown(),
        },
        Class::Ldx => match instruction.mode() {
            mode::MEM if imm == 0 => {}
            mode::MEMSX if imm == 0 && instruction.size() < 8 => {}
            _ => return unknown(),
        },
        Class::St if instruction.mode() == mode::MEM && src == 0 => {}
        Class::Stx => match instruction.mode() {
            mode::MEM if imm == 0 => {}
            mode::ATOMIC => check_atomic(instruction)?,
            _ => return unknown(),
        },
        Class::St => return unknown(),
        Class::Alu32 | Class::Alu64 => check_arithmetic(instruction)?,
        Class::Jmp64 | Class::Jmp32 => check_jump(instruction)?,
    }
    let written = match instruction.class() {
        // Legacy packet access writes register 0.
        Class::Ld if code != LD_IMM64 => 0,
        Class::Ld | Class::Ldx | Class::Alu32 | Class::Alu64 => dst,
        Class::Stx if instruction.mode() == mode::ATOMIC => match imm {
            atomic::CMPXCHG => 0,
            atomic::LOAD_ACQUIRE => dst,
            _ if imm & atomic::FETCH != 0 => src,
            _ => 0,
        },
        _ => 0,
    };
    if written == R10 {
        return Err("a write to the frame pointer".into());
    }
    if instruction.class() == Class::Ld && off != 0 { unknown() } else { Ok(()) }
}

fn check_atomic(instruction: Instruction) -> Result<(), String> {
    match (instruction.size(), instruction.imm & !atomic::FETCH, instruction.imm) {
        (4 | 8, atomic::ADD | atomic::OR | atomic::AND | atomic::XOR, _) => Ok(()),
        (4 | 8, _, atomic::XCHG | atomic::CMPXCHG) => Ok(()),
        (_, _, atomic::LOAD_ACQUIRE | atomic::STORE_RELEASE) => Ok(()),
        _ => Err(format!("the unknown atomic operation {:#x}", instruction.imm)),
    }
}

fn check_load_immediate(instruction: Instruction, next: Option<Instruction>) -> Result<(), String> {
    match next {
        Some(Instruction { code: 0, dst: 0, src: 0, off: 0, .. }) => {}
        _ => return Err("half a 64-bit load".into()),
    }
    match instruction.src {
        0 | PSEUDO_MAP_FD | PSEUDO_MAP_VALUE | PSEUDO_FUNC => Ok(()),
        3 => Err("a reference to a kernel variable (ksym)".into()),
        other => Err(format!("a 64-bit load of kind {other}")),
    }
}

fn check_arithmetic(instruction: Instruction) -> Result<(), String> {
    let Instruction { src, off, imm, .. } = instruction;
    let wide = instruction.class() == Class::Alu64;
    let by_register = instruction.takes_register();
    let unknown = || Err(format!("the unknown instruction {:02x?}", instruction.to_bytes()));
    match instruction.operation() {
        alu::END if off == 0 && src == 0 && matches!(imm, 16 | 32 | 64) && !(wide && by_register) => Ok(()),
        alu::NEG if !by_register && src == 0 && imm == 0 && off == 0 => Ok(()),
        alu::END | alu::NEG | 0xe0.. => unknown(),
        operation if off != 0 => match (operation, off) {
            // Sign-extending moves and signed divisions (cpu v4).
            (alu::MOV, 8 | 16) if by_register && imm == 0 => Ok(()),
            (alu::MOV, 32) if by_register && imm == 0 && wide => Ok(()),
            (alu::DIV | alu::MOD, 1) if by_register && imm == 0 || !by_register && src == 0 && imm != 0 => Ok(()),
            _ => unknown(),
        },
        _ if by_register => {
            if imm == 0 {
                Ok(())
            } else {
                unknown()
            }
        }
        _ if src != 0 => unknown(),
        alu::DIV | alu::MOD if imm == 0 => Err("a division by the constant 0".into()),
        alu::LSH | alu::RSH | alu::ARSH if !(0..if wide { 64 } else { 32 }).contains(&imm) => {
            Err(format!("a shift by {imm}"))
        }
        _ => Ok(()),
    }
}

fn check_jump(instruction: Instruction) -> Result<(), String> {
    let Instruction { code, dst, src, off, imm } = instruction;
    let unknown = || Err(format!("the unknown instruction {:02x?}", instruction.to_bytes()));
    let wide = instruction.class() == Class::Jmp64;
    match instruction.operation() {
        // may_goto: a jump that is taken when the program has looped often enough.
        jump::JCOND if wide && !instruction.takes_register() && dst == 0 && src == 0 && imm == 0 => Ok(()),
        jump::CALL => match (code, src) {
            (CALL, 0 | PSEUDO_CALL) if dst == 0 && off == 0 => Ok(()),
            (CALL, 2) => Err("a call of a kernel function (kfunc)".into()),
            (0x8d, _) => Err("an indirect call (callx)".into()),
            _ => unknown(),
        },
        // The kernel does not look at its offset.
        jump::EXIT if code == EXIT && dst == 0 && src == 0 && imm == 0 => Ok(()),
        jump::JA if code == JA && dst == 0 && src == 0 && imm == 0 => Ok(()),
        jump::JA if code == JA32 && dst == 0 && src == 0 && off == 0 => Ok(()),
        jump::JEQ..=jump::JSLE => {
            if instruction.takes_register() && imm == 0 || !instruction.takes_register() && src == 0 {
                if instruction.operation() == jump::EXIT { unknown() } else { Ok(()) }
            } else {
                unknown()
            }
        }
        _ => unknown(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Option<String> {
        check(Instruction { code, dst, src, off, imm }, Some(Instruction::default())).err()
    }

    #[test]
    fn what_is_not_run_is_named() {
        let table = [
            ((0xdb, 1, 2, 0, 0x77), "atomic"),
            ((0xd3, 1, 2, 0, 0), "atomic"),
            ((0xdb, 1, 10, 0, 1), "frame pointer"),
            ((0x99, 1, 2, 0, 0), "unknown"),
            ((0xbf, 1, 2, 7, 0), "unknown"),
            ((0xbc, 1, 2, 32, 0), "unknown"),
            ((0xb7, 1, 0, 8, 0), "unknown"),
            ((0x37, 1, 0, 1, 0), "unknown"),
            ((0xdf, 1, 0, 0, 64), "unknown"),
            ((0x85, 0, 2, 0, 5), "kfunc"),
            ((0x8d, 1, 0, 0, 0), "callx"),
            ((0xe5, 1, 0, 1, 0), "unknown"),
            ((0x38, 0, 0, 0, 0), "unknown"),
            ((0x18, 1, 3, 0, 0), "ksym"),
            ((0x18, 10, 0, 0, 0), "frame pointer"),
            ((0xb7, 10, 0, 0, 0), "frame pointer"),
            ((0xb7, 11, 0, 0, 0), "register 11"),
            ((0x37, 1, 0, 0, 0), "constant 0"),
            ((0x94, 1, 0, 0, 0), "constant 0"),
            ((0x67, 1, 0, 0, 64), "shift by 64"),
            ((0x64, 1, 0, 0, 32), "shift by 32"),
            ((0x74, 1, 0, 0, -1), "shift by -1"),
            ((0xdc, 1, 0, 0, 24), "unknown"),
            ((0xff, 1, 0, 0, 0), "unknown"),
            ((0x96, 0, 0, 0, 0), "unknown"),
            ((0x9d, 0, 0, 0, 0), "unknown"),
            ((0x8f, 1, 0, 0, 0), "unknown"),
            ((0x07, 1, 0, 7, 0), "unknown"),
        ];
        for ((code, dst, src, off, imm), word) in table {
            let refusal = refusal(code, dst, src, off, imm).unwrap_or_else(|| panic!("{code:#x} was accepted"));
            assert!(refusal.contains(word), "{code:#x}: {refusal}");
        }
    }

    #[test]
    fn ordinary_instructions_are_accepted() {
        for (code, dst, src, off, imm) in [
            (0x61, 1, 2, -4, 0),
            (0x7a, 10, 0, -8, -1),
            (0x7b, 10, 1, -8, 0),
            (0x67, 1, 0, 0, 63),
            (0x87, 1, 0, 0, 0),
            (0xdc, 1, 0, 0, 32),
            (0x05, 0, 0, 9, 0),
            (0x16, 1, 0, 9, -1),
            (0xd5, 1, 0, 9, -1),
            (0xdd, 1, 2, 9, 0),
            (0x85, 0, 0, 0, 1),
            (0x95, 0, 0, 0, 0),
            (0x95, 0, 0, 1, 0),
            (0x18, 1, 2, 0, 0),
            (0x18, 1, 4, 0, 0),
            (0xdb, 1, 2, 0, 0),
            (0xc3, 1, 2, 0, 0xf1),
            (0xd3, 1, 2, 0, 0x100),
            (0x81, 1, 2, 0, 0),
            (0xbf, 1, 2, 8, 0),
            (0xbc, 1, 2, 16, 0),
            (0x3f, 1, 2, 1, 0),
            (0x37, 1, 0, 1, -1),
            (0xd7, 1, 0, 0, 64),
            (0x06, 0, 0, 0, 5),
            (0xe5, 0, 0, 1, 0),
            (0x20, 0, 0, 0, 0),
            (0x48, 0, 3, 0, 0),
        ] {
            assert_eq!(refusal(code, dst, src, off, imm), None, "{code:#x}");
        }
    }

    #[test]
    fn half_a_load_is_refused() {
        let load = Instruction { code: LD_IMM64, dst: 1, ..Instruction::default() };
        assert!(check(load, None).is_err());
        assert!(check(load, Some(Instruction { code: EXIT, ..Instruction::default() })).is_err());
    }
}
