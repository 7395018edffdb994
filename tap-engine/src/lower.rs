//! From a linked program of the kernel's instruction set to bytecode that rbpf's interpreter runs as the kernel would.
//!
//! rbpf 0.4.1 departs from the kernel in places. What can be mended is rewritten here; what cannot is refused
//! ([`instruction::check`](crate::instruction::check)):
//!
//! | rbpf | here |
//! |---|---|
//! | 64-bit compares with a negative constant zero-extend it | the register is complemented, compared with the complement (which is not negative) by the mirrored operation, and complemented back on both ways |
//! | `-x` of the lowest 64-bit number overflows | multiplied by -1 |
//! | a 32-bit remainder by 0 keeps the upper half | the upper half is cleared behind it |
//! | calls backward overflow | functions are laid out in calling order, so all calls go forward |
//! | the frames of nested calls overlap beyond 256 bytes | told each function's true stack use; no more than [`STACK_SIZE`] in any chain of calls |
//! | loops may go on for ever | every jump backward and every call asks the `budget` helper, and returns from the function if it says no |
//! | helpers do not know the stack | a prologue tells it to the `enter` helper, if helpers that take addresses are called |
//! | instruction numbers are computed in 16 bits | no more than [`MAX_SLOTS`] slots |
//!
//! What `budget` returns is in register 0, whose value is meanwhile kept in an extra 8 bytes of the function's frame.

use std::collections::BTreeMap;

use crate::helpers;
use crate::instruction::{
    CALL, Class, EXIT, Instruction, JA, LD_IMM64, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, R10, alu, check, jump,
};
use crate::maps::Maps;
use crate::memory::STACK_SIZE;

/// The longest bytecode that the interpreter's jumps can cross, in slots.
pub(crate) const MAX_SLOTS: usize = i16::MAX as usize;

/// The deepest nesting of calls, the program itself included (kernel: `MAX_CALL_FRAMES`).
const MAX_CALL_FRAMES: usize = 8;

const ADD64_K: u8 = alu::ADD | 0x07;
const MUL64_K: u8 = alu::MUL | 0x07;
const XOR64_K: u8 = alu::XOR | 0x07;
const MOV64_X: u8 = alu::MOV | 0x0f;
const MOD32_X: u8 = alu::MOD | 0x0c;
const MOV32_X: u8 = alu::MOV | 0x0c;
const JNE64_K: u8 = jump::JNE | 0x05;
const LOAD64: u8 = 0x79;
const STORE64: u8 = 0x7b;

/// A program that is ready to run.
#[derive(Debug)]
pub(crate) struct Bytecode {
    /// Instructions, eight bytes each.
    pub(crate) bytes: Vec<u8>,
    /// For each slot of `bytes`: the number of the instruction in the linked program that it stems from.
    pub(crate) origin: Vec<u32>,
    /// For each slot: bytes of stack of the function that it belongs to.
    pub(crate) frame: Vec<u16>,
}

/// Why a program is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An instruction that is not run, and what it is.
    Instruction(usize, String),
    /// A helper that there is not, by number.
    Helper(usize, u32),
    /// Something else.
    Program(String),
}

/// Lowers `program`: a function, followed by all that it calls, calls and maps relocated.
pub(crate) fn lower(program: &[Instruction], maps: &Maps) -> Result<Bytecode, Refusal> {
    let second_slots = check_all(program)?;
    let functions = Functions::find(program, &second_slots)?;
    let order = functions.calling_order(program)?;
    functions.check_stack(program, &order)?;
    Emitter::new(program, maps, &functions).emit(&order)
}

/// Checks each instruction; tells which slots are the second halves of 64-bit loads.
fn check_all(program: &[Instruction]) -> Result<Vec<bool>, Refusal> {
    if program.is_empty() {
        return Err(Refusal::Program("it is empty".into()));
    }
    if program.len() > MAX_SLOTS {
        return Err(Refusal::Program(format!("{} instructions; {MAX_SLOTS} are the limit", program.len())));
    }
    let mut second_slots = vec![false; program.len()];
    let mut at = 0;
    while let Some(&instruction) = program.get(at) {
        check(instruction, program.get(at + 1).copied()).map_err(|what| Refusal::Instruction(at, what))?;
        if instruction.is_helper_call() && !helpers::is_supported(instruction.imm as u32) {
            return Err(Refusal::Helper(at, instruction.imm as u32));
        }
        if instruction.code == LD_IMM64 {
            second_slots[at + 1] = true;
            at += 1;
        }
        at += 1;
    }
    Ok(second_slots)
}

/// A function of a program.
#[derive(Clone, Copy, Debug)]
struct Function {
    start: usize,
    end: usize,
    /// Bytes of stack, with the place for register 0 if it loops.
    frame: usize,
    loops: bool,
}

/// The functions of a program by their first instruction.
struct Functions(BTreeMap<usize, Function>);

impl Functions {
    fn find(program: &[Instruction], second_slots: &[bool]) -> Result<Self, Refusal> {
        let starts_instruction = |at: usize| second_slots.get(at) == Some(&false);
        let mut starts: BTreeMap<usize, ()> = BTreeMap::from([(0, ())]);
        for (at, instruction) in program.iter().enumerate().filter(|(at, _)| !second_slots[*at]) {
            if instruction.is_local_call() {
                let callee =
                    target(at, i64::from(instruction.imm)).filter(|&callee| starts_instruction(callee)).ok_or_else(
                        || Refusal::Program(format!("the call at instruction {at} leads out of the program")),
                    )?;
                starts.insert(callee, ());
            }
        }
        let ends = starts.keys().copied().skip(1).chain([program.len()]);
        let mut functions = BTreeMap::new();
        for (start, end) in starts.keys().copied().zip(ends) {
            functions.insert(start, Function::measure(program, second_slots, start, end)?);
        }
        Ok(Self(functions))
    }

    /// The functions that are called, each before those that it calls.
    fn calling_order(&self, program: &[Instruction]) -> Result<Vec<usize>, Refusal> {
        let mut order = Vec::new();
        let mut chain = Vec::new();
        self.visit(0, program, &mut chain, &mut order)?;
        order.reverse();
        Ok(order)
    }

    /// Depth first; a function enters `order` behind all that it calls.
    fn visit(
        &self,
        start: usize,
        program: &[Instruction],
        chain: &mut Vec<usize>,
        order: &mut Vec<usize>,
    ) -> Result<(), Refusal> {
        if chain.contains(&start) {
            return Err(Refusal::Program(format!("the function at instruction {start} calls itself")));
        }
        if order.contains(&start) {
            return Ok(());
        }
        if chain.len() == MAX_CALL_FRAMES {
            return Err(too_deep());
        }
        chain.push(start);
        for callee in self.callees(start, program) {
            self.visit(callee, program, chain, order)?;
        }
        chain.pop();
        order.push(start);
        Ok(())
    }

    fn callees<'a>(&'a self, start: usize, program: &'a [Instruction]) -> impl Iterator<Item = usize> + 'a {
        let function = self.0[&start];
        let range = function.start..function.end;
        range.filter(|&at| program[at].is_local_call()).filter_map(|at| target(at, i64::from(program[at].imm)))
    }

    /// No chain of calls is too deep, or needs more stack than there is.
    fn check_stack(&self, program: &[Instruction], order: &[usize]) -> Result<(), Refusal> {
        let mut most: BTreeMap<usize, (usize, usize)> = BTreeMap::new();
        for start in order.iter().rev() {
            let below = self.callees(*start, program).filter_map(|callee| most.get(&callee));
            let (stack, depth) = below.fold((0, 0), |worst, other| (worst.0.max(other.0), worst.1.max(other.1)));
            most.insert(*start, (stack + self.0[start].frame, depth + 1));
        }
        let (stack, depth) = most[&0];
        if depth > MAX_CALL_FRAMES {
            return Err(too_deep());
        }
        if stack > STACK_SIZE {
            return Err(Refusal::Program(format!(
                "it needs {stack} bytes of stack; {STACK_SIZE} are the limit, of which each function that loops needs 8 more"
            )));
        }
        Ok(())
    }
}

fn too_deep() -> Refusal {
    Refusal::Program(format!("calls are nested deeper than {MAX_CALL_FRAMES}"))
}

impl Function {
    /// Checks the jumps of the function `start..end`, and finds out how much stack it uses.
    fn measure(program: &[Instruction], second_slots: &[bool], start: usize, end: usize) -> Result<Self, Refusal> {
        let mut loops = false;
        let mut last = start;
        for at in (start..end).filter(|&at| !second_slots[at]) {
            last = at;
            if program[at].is_jump() {
                let to = target(at, i64::from(program[at].off))
                    .filter(|to| (start..end).contains(to) && !second_slots[*to])
                    .ok_or_else(|| {
                        Refusal::Program(format!("the jump at instruction {at} leads out of its function"))
                    })?;
                loops |= to <= at;
            }
        }
        if !matches!(program[last].code, JA | EXIT) {
            return Err(Refusal::Program(format!("instruction {last} runs on beyond the end of its function")));
        }
        let frame = frame_size(&program[start..end]).next_multiple_of(8) + if loops { 8 } else { 0 };
        Ok(Self { start, end, frame, loops })
    }
}

/// The slot that a jump or call at `at` leads to.
fn target(at: usize, distance: i64) -> Option<usize> {
    usize::try_from(at as i64 + 1 + distance).ok()
}

/// Bytes of stack that a function uses: the furthest that it reaches below its frame pointer, by accesses, by addresses that
/// it forms (`r1 = r10; r1 += -16`, as compilers do), and by accesses below such addresses. All that there is, if it does
/// anything else with its frame pointer.
fn frame_size(function: &[Instruction]) -> usize {
    let (mut lowest, mut lowest_address, mut below_address) = (0, 0, 0);
    for (at, instruction) in function.iter().enumerate() {
        let Instruction { dst, src, off, .. } = *instruction;
        let base = match instruction.class() {
            Class::Stx if src == R10 => return STACK_SIZE,
            Class::Ldx => src,
            Class::St | Class::Stx => dst,
            Class::Alu64 if instruction.takes_register() && src == R10 => {
                let moved = instruction.operation() == alu::MOV;
                let add = function[at + 1..].iter().take(8).find(|next| next.dst == dst || next.src == dst);
                match add {
                    Some(next) if moved && next.code == ADD64_K && next.dst == dst => {
                        lowest_address = lowest_address.min(i64::from(next.imm));
                    }
                    _ => return STACK_SIZE,
                }
                continue;
            }
            _ => continue,
        };
        let reached = if base == R10 { &mut lowest } else { &mut below_address };
        *reached = i64::from(off).min(*reached);
    }
    if lowest_address < 0 {
        lowest = lowest.min(lowest_address + below_address);
    }
    usize::try_from(-lowest).unwrap_or(0)
}

/// Writes the lowered program.
struct Emitter<'a> {
    program: &'a [Instruction],
    maps: &'a Maps,
    functions: &'a Functions,
    out: Vec<Instruction>,
    origin: Vec<u32>,
    frame: Vec<u16>,
    /// Where each instruction of the program starts in `out`.
    place: BTreeMap<usize, usize>,
    /// Slots of `out` whose `off` (jumps) or `imm` (calls) is to lead to an instruction of the program.
    open: Vec<(usize, usize)>,
    /// The instruction and the function that is being written.
    at: usize,
    function: Function,
}

impl<'a> Emitter<'a> {
    fn new(program: &'a [Instruction], maps: &'a Maps, functions: &'a Functions) -> Self {
        let function = functions.0[&0];
        let (out, origin, frame) = (Vec::new(), Vec::new(), Vec::new());
        Self { program, maps, functions, out, origin, frame, place: BTreeMap::new(), open: Vec::new(), at: 0, function }
    }

    fn emit(mut self, order: &[usize]) -> Result<Bytecode, Refusal> {
        for start in order {
            self.function = self.functions.0[start];
            self.at = *start;
            self.place.insert(*start, self.out.len());
            if *start == 0 {
                if self.program.iter().any(|call| call.is_helper_call() && helpers::takes_address(call.imm as u32)) {
                    self.prologue();
                }
            } else {
                self.budget();
            }
            while self.at < self.function.end {
                self.instruction()?;
                if self.out.len() > MAX_SLOTS {
                    return Err(Refusal::Program(format!("it is too long: {MAX_SLOTS} instructions are the limit")));
                }
            }
        }
        for (slot, target) in std::mem::take(&mut self.open) {
            let distance = self.place[&target] as i64 - slot as i64 - 1;
            if self.out[slot].is_local_call() {
                self.out[slot].imm = distance as i32;
            } else {
                // Both ends are below MAX_SLOTS.
                self.out[slot].off = distance as i16;
            }
        }
        let bytes = self.out.iter().flat_map(|instruction| instruction.to_bytes()).collect();
        Ok(Bytecode { bytes, origin: self.origin, frame: self.frame })
    }

    fn put(&mut self, code: u8, dst: u8, src: u8, off: i16, imm: i32) {
        self.push(Instruction { code, dst, src, off, imm });
    }

    fn push(&mut self, instruction: Instruction) {
        self.out.push(instruction);
        self.origin.push(self.at as u32);
        self.frame.push(self.function.frame as u16);
    }

    /// A jump or call that will lead to instruction `target` of the program.
    fn push_to(&mut self, instruction: Instruction, target: usize) {
        self.open.push((self.out.len(), target));
        self.push(instruction);
    }

    /// `r2 = r10; enter(context, r2)`: register 1 stays, and no program reads register 2 at its beginning.
    fn prologue(&mut self) {
        self.put(MOV64_X, 2, R10, 0, 0);
        self.put(CALL, 0, 0, 0, helpers::ENTER as i32);
        // A jump to the first instruction does not run the prologue again.
        self.place.insert(self.at, self.out.len());
    }

    /// `if (budget() == 0) return`, where register 0 holds nothing.
    fn budget(&mut self) {
        self.put(CALL, 0, 0, 0, helpers::BUDGET as i32);
        self.put(JNE64_K, 0, 0, 1, 0);
        self.put(EXIT, 0, 0, 0, 0);
    }

    fn instruction(&mut self) -> Result<(), Refusal> {
        let instruction = self.program[self.at];
        if self.at != self.function.start || self.function.start == 0 {
            self.place.insert(self.at, self.out.len());
        }
        let wide = instruction.class() == Class::Alu64;
        let mut width = 1;
        if instruction.code == LD_IMM64 {
            self.load_immediate(instruction)?;
            width = 2;
        } else if instruction.is_jump() {
            self.jump(instruction);
        } else if instruction.is_local_call() {
            let callee = target(self.at, i64::from(instruction.imm)).expect("checked with the functions");
            self.push_to(instruction, callee);
        } else if wide && instruction.operation() == alu::NEG {
            self.put(MUL64_K, instruction.dst, 0, 0, -1);
        } else if instruction.code == MOD32_X {
            self.push(instruction);
            self.put(MOV32_X, instruction.dst, instruction.dst, 0, 0);
        } else {
            self.push(instruction);
        }
        self.at += width;
        Ok(())
    }

    /// A 64-bit constant, a map's handle or the address of a global variable.
    fn load_immediate(&mut self, load: Instruction) -> Result<(), Refusal> {
        let next = self.program[self.at + 1];
        let index = load.imm as u32 as usize;
        let constant = match load.src {
            PSEUDO_MAP_FD => self.maps.handle(index),
            PSEUDO_MAP_VALUE => self.maps.value_address(index, next.imm as u32),
            _ => Some(u64::from(load.imm as u32) | u64::from(next.imm as u32) << 32),
        };
        let constant = constant.ok_or_else(|| Refusal::Instruction(self.at, "a reference to no map".into()))?;
        self.push(Instruction { src: 0, imm: constant as u32 as i32, ..load });
        self.push(Instruction { imm: (constant >> 32) as u32 as i32, ..Instruction::default() });
        Ok(())
    }

    fn jump(&mut self, jump: Instruction) {
        let to = target(self.at, i64::from(jump.off)).expect("checked with the function");
        if to <= self.at {
            let kept = -(self.function.frame as i16);
            debug_assert!(self.function.loops);
            self.put(STORE64, R10, 0, kept, 0);
            self.budget();
            self.put(LOAD64, 0, R10, kept, 0);
        }
        let zero_extended = jump.class() == Class::Jmp64 && !jump.takes_register() && jump.imm < 0;
        match mirrored(jump.operation()).filter(|_| zero_extended) {
            // if (~dst OP' ~imm) goto taken; dst = ~dst; goto next; taken: dst = ~dst; goto to; next:
            Some(operation) => {
                let complement = Instruction { code: XOR64_K, dst: jump.dst, src: 0, off: 0, imm: -1 };
                self.push(complement);
                self.push(Instruction { code: operation | (jump.code & 0x0f), off: 2, imm: !jump.imm, ..jump });
                self.push(complement);
                self.put(JA, 0, 0, 2, 0);
                self.push(complement);
                self.push_to(Instruction { code: JA, ..Instruction::default() }, to);
            }
            None => self.push_to(jump, to),
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
