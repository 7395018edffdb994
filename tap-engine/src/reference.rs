//! Tests: rbpf's interpreter, the reference that native code is compared with.
//!
//! It knows neither maps nor helpers here, no atomics and nothing of cpu v4. rbpf 0.4.1 departs from the kernel in places, which
//! [`lower`] mends where it can:
//!
//! | rbpf | here |
//! |---|---|
//! | 64-bit compares with a negative constant zero-extend it | the register is complemented, compared with the complement (which is not negative) by the mirrored operation, and complemented back on both ways |
//! | `-x` of the lowest 64-bit number overflows | multiplied by -1 |
//! | a 32-bit remainder by 0 keeps the upper half | the upper half is cleared behind it |
//! | calls backward overflow | functions are laid out in calling order, so all calls go forward |
//! | the frames of nested calls overlap beyond 256 bytes | told that each function has 512; so at most one frame fits, and programs with calls must not use the stack of more than one |
//! | loops may go on for ever | every jump backward asks the `budget` helper, and returns if it says no |

use std::any::Any;
use std::cell::Cell;
use std::collections::BTreeMap;

use crate::functions::Linked;
use crate::instruction::{CALL, Class, EXIT, Instruction, JA, LD_IMM64, PSEUDO_CALL, R10, alu, atomic, jump, mode};

/// Number of the helper that lowered programs call before each jump backward.
const BUDGET: u32 = 0x7374_6102;
/// Jumps backward of one run.
const LOOP_LIMIT: u32 = 10_000;
/// Where register 0 is kept meanwhile: programs that loop may use less of their stack.
const KEPT: i16 = -512;

const MUL64_K: u8 = alu::MUL | 0x07;
const XOR64_K: u8 = alu::XOR | 0x07;
const MOD32_X: u8 = alu::MOD | 0x0c;
const MOV32_X: u8 = alu::MOV | 0x0c;
const JNE64_K: u8 = jump::JNE | 0x05;
const LOAD64: u8 = 0x79;
const STORE64: u8 = 0x7b;

thread_local! {
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

/// What became of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It returned register 0.
    Returned(u64),
    /// It read or wrote outside of its memory.
    OutOfBounds,
    /// It looped too often.
    Looped,
}

/// Runs `program` on `context` and `message`; `None`: the interpreter cannot run it.
pub(crate) fn run(program: &Linked, context: &[u8], message: &[u8]) -> Option<Ended> {
    if !program.instructions.iter().enumerate().all(|(at, i)| program.functions.second_slots[at] || is_known(*i)) {
        return None;
    }
    let bytecode = lower(program);
    let mut vm = rbpf::EbpfVmMbuff::new(Some(&bytecode)).ok()?;
    vm.set_stack_usage_calculator(frame, Box::new(())).ok()?;
    vm.register_helper(BUDGET, budget).ok()?;
    LEFT.set(LOOP_LIMIT);
    let result = vm.execute_program(message, context);
    match result {
        _ if LEFT.get() == 0 => Some(Ended::Looped),
        Ok(value) => Some(Ended::Returned(value)),
        Err(error) if error.to_string().contains("out of bounds memory") => Some(Ended::OutOfBounds),
        Err(_) => None,
    }
}

fn frame(_: &[u8], _: usize, _: &mut dyn Any) -> u16 {
    512
}

/// 1 = go on, 0 = return.
fn budget(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    LEFT.set(LEFT.get().saturating_sub(1));
    u64::from(LEFT.get() > 0)
}

/// Whether rbpf runs `instruction` as the kernel does, once it is lowered.
fn is_known(instruction: Instruction) -> bool {
    let Instruction { off, .. } = instruction;
    match instruction.class() {
        Class::Ld => instruction.code == LD_IMM64 && instruction.src == 0,
        Class::Ldx | Class::St => instruction.mode() == mode::MEM,
        Class::Stx => instruction.mode() == mode::MEM && instruction.imm & atomic::FETCH == 0,
        Class::Alu32 | Class::Alu64 if instruction.operation() == alu::END => instruction.class() == Class::Alu32,
        Class::Alu32 | Class::Alu64 => off == 0,
        Class::Jmp64 => !instruction.is_helper_call() && instruction.operation() != jump::JCOND,
        Class::Jmp32 => instruction.operation() != jump::JA,
    }
}

fn lower(program: &Linked) -> Vec<u8> {
    let mut lowering =
        Lowering { program: &program.instructions, out: Vec::new(), place: BTreeMap::new(), open: Vec::new(), at: 0 };
    for start in calling_order(program) {
        lowering.at = start;
        while lowering.at < program.functions.by_start[&start].end {
            lowering.instruction();
        }
    }
    for (slot, target) in std::mem::take(&mut lowering.open) {
        let distance = lowering.place[&target] as i64 - slot as i64 - 1;
        let instruction = &mut lowering.out[slot];
        if instruction.is_local_call() {
            instruction.imm = distance as i32;
        } else {
            instruction.off = distance as i16;
        }
    }
    lowering.out.iter().flat_map(|instruction| instruction.to_bytes()).collect()
}

/// The functions, each before those that it calls.
fn calling_order(program: &Linked) -> Vec<usize> {
    fn visit(program: &Linked, start: usize, order: &mut Vec<usize>) {
        for &callee in &program.functions.by_start[&start].callees {
            visit(program, callee, order);
        }
        if !order.contains(&start) {
            order.push(start);
        }
    }
    let mut order = Vec::new();
    visit(program, 0, &mut order);
    order.reverse();
    order
}

struct Lowering<'a> {
    program: &'a [Instruction],
    out: Vec<Instruction>,
    /// Where each instruction of the program starts in `out`.
    place: BTreeMap<usize, usize>,
    /// Slots of `out` whose `off` (jumps) or `imm` (calls) is to lead to an instruction of the program.
    open: Vec<(usize, usize)>,
    at: usize,
}

impl Lowering<'_> {
    fn put(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.out.push(Instruction { code, dst, src, off, imm });
    }

    fn put_to(&mut self, instruction: Instruction, target: usize) {
        self.open.push((self.out.len(), target));
        self.out.push(instruction);
    }

    fn instruction(&mut self) {
        let instruction = self.program[self.at];
        self.place.insert(self.at, self.out.len());
        let mut width = 1;
        if instruction.code == LD_IMM64 {
            self.out.extend([instruction, self.program[self.at + 1]]);
            width = 2;
        } else if instruction.is_jump() {
            self.jump(instruction);
        } else if instruction.code == CALL && instruction.src == PSEUDO_CALL {
            let callee = instruction.target(self.at).expect("checked");
            self.put_to(instruction, callee);
        } else if instruction.class() == Class::Alu64 && instruction.operation() == alu::NEG {
            self.put(MUL64_K, instruction.dst, 0, 0, -1);
        } else if instruction.code == MOD32_X {
            self.out.push(instruction);
            self.put(MOV32_X, instruction.dst, instruction.dst, 0, 0);
        } else {
            self.out.push(instruction);
        }
        self.at += width;
    }

    fn jump(&mut self, jump: Instruction) {
        let to = jump.target(self.at).expect("checked");
        if to <= self.at {
            self.put(STORE64, R10, 0, KEPT, 0);
            self.put(CALL, 0, 0, 0, BUDGET as i32);
            self.put(JNE64_K, 0, 0, 1, 0);
            self.put(EXIT, 0, 0, 0, 0);
            self.put(LOAD64, 0, R10, KEPT, 0);
        }
        let zero_extended = jump.class() == Class::Jmp64 && !jump.takes_register() && jump.imm < 0;
        match mirrored(jump.operation()).filter(|_| zero_extended) {
            // if (~dst OP' ~imm) goto taken; dst = ~dst; goto next; taken: dst = ~dst; goto to; next:
            Some(operation) => {
                let complement = Instruction { code: XOR64_K, dst: jump.dst, src: 0, off: 0, imm: -1 };
                self.out.push(complement);
                self.out.push(Instruction { code: operation | (jump.code & 0x0f), off: 2, imm: !jump.imm, ..jump });
                self.out.push(complement);
                self.put(JA, 0, 0, 2, 0);
                self.out.push(complement);
                self.put_to(Instruction { code: JA, ..Instruction::default() }, to);
            }
            None => self.put_to(jump, to),
        }
    }
}

/// The comparison that holds for the complements of two unsigned numbers when `operation` holds for the numbers; `None`
/// for those in which rbpf extends a constant as the kernel does.
fn mirrored(operation: u8) -> Option<u8> {
    match operation {
        jump::JEQ | jump::JNE => Some(operation),
        jump::JGT => Some(jump::JLT),
        jump::JGE => Some(jump::JLE),
        jump::JLT => Some(jump::JGT),
        jump::JLE => Some(jump::JGE),
        _ => None,
    }
}
