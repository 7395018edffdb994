//! The functions of a linked program: where each begins and ends, what it calls, how much stack it has.
//!
//! A linked program is a function, followed by all that it calls. The checks here are those that the engine relies on: jumps stay
//! in their function and lead to instructions, calls lead to functions and never in a circle, no frame is too large.

use std::collections::{BTreeMap, BTreeSet};

use crate::helpers;
use crate::instruction::{
    Class, EXIT, Instruction, JA, JA32, LD_IMM64, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, R10, alu, check,
};
use crate::maps::Maps;

/// The longest linked program, in slots. What the code generator needs for a function grows with the square of its blocks: one of this length
/// can take it seconds.
pub(crate) const MAX_SLOTS: usize = 1 << 15;

/// The deepest nesting of calls, the program itself included (kernel: `MAX_CALL_FRAMES`).
pub(crate) const MAX_CALL_FRAMES: usize = 8;

/// Bytes of stack of one call frame (kernel: `MAX_BPF_STACK`).
pub(crate) const FRAME_SIZE: usize = 512;

const ADD64_K: u8 = alu::ADD | 0x07;

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

/// A linked program that has passed the checks.
#[derive(Clone, Debug)]
pub(crate) struct Linked {
    pub(crate) instructions: Vec<Instruction>,
    pub(crate) functions: Functions,
}

impl Linked {
    /// Checks a program: a function, followed by all that it calls, calls and references to `maps` relocated.
    pub(crate) fn check(instructions: Vec<Instruction>, maps: &Maps) -> Result<Self, Refusal> {
        let functions = Functions::find(&instructions)?;
        for (at, pair) in instructions.windows(2).enumerate().filter(|(at, _)| !functions.second_slots[*at]) {
            let (load, index) = (pair[0], pair[0].imm as u32 as usize);
            let found = match (load.code, load.src) {
                (LD_IMM64, PSEUDO_MAP_FD) => maps.handle(index).is_some(),
                (LD_IMM64, PSEUDO_MAP_VALUE) => maps.value_address(index, pair[1].imm as u32).is_some(),
                _ => true,
            };
            if !found {
                return Err(Refusal::Instruction(at, "a reference to no map".into()));
            }
        }
        Ok(Self { instructions, functions })
    }
}

/// A function of a program.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// Its first slot.
    pub(crate) start: usize,
    /// The slot behind its last.
    pub(crate) end: usize,
    /// Bytes of stack that it is seen to use; at most [`FRAME_SIZE`].
    pub(crate) frame: usize,
    /// The functions that it calls, or whose addresses it gives to helpers.
    pub(crate) callees: BTreeSet<usize>,
}

/// The functions of a program by their first slot; the program itself is at 0.
#[derive(Clone, Debug)]
pub(crate) struct Functions {
    pub(crate) by_start: BTreeMap<usize, Function>,
    /// Which slots are the second halves of 64-bit loads.
    pub(crate) second_slots: Vec<bool>,
}

impl Functions {
    /// Finds and checks the functions of `program`.
    pub(crate) fn find(program: &[Instruction]) -> Result<Self, Refusal> {
        let second_slots = check_all(program)?;
        let starts_instruction = |at: usize| second_slots.get(at) == Some(&false);
        let mut callees: BTreeMap<usize, usize> = BTreeMap::new();
        for (at, instruction) in program.iter().enumerate().filter(|(at, _)| !second_slots[*at]) {
            if instruction.is_local_call() || instruction.is_callback() {
                let callee = instruction.target(at).filter(|&callee| starts_instruction(callee)).ok_or_else(|| {
                    Refusal::Program(format!("the call at instruction {at} leads out of the program"))
                })?;
                callees.insert(at, callee);
            }
        }
        let starts: BTreeSet<usize> = callees.values().copied().chain([0]).collect();
        let ends = starts.iter().copied().skip(1).chain([program.len()]);
        let mut by_start = BTreeMap::new();
        for (&start, end) in starts.iter().zip(ends) {
            let mut function = Function::measure(program, &second_slots, start, end)?;
            function.callees = callees.range(start..end).map(|(_, callee)| *callee).collect();
            by_start.insert(start, function);
        }
        let functions = Self { by_start, second_slots };
        functions.check_depth()?;
        Ok(functions)
    }

    /// No function calls itself, and no chain of calls is too deep.
    fn check_depth(&self) -> Result<(), Refusal> {
        let mut depths = BTreeMap::new();
        for &start in self.by_start.keys() {
            self.depth(start, &mut Vec::new(), &mut depths)?;
        }
        Ok(())
    }

    /// Call frames that the function at `start` needs. The recursion ends at the first chain that is too long.
    fn depth(
        &self,
        start: usize,
        chain: &mut Vec<usize>,
        known: &mut BTreeMap<usize, usize>,
    ) -> Result<usize, Refusal> {
        if let Some(depth) = known.get(&start) {
            return Ok(*depth);
        }
        if chain.contains(&start) {
            return Err(Refusal::Program(format!("the function at instruction {start} calls itself")));
        }
        let too_deep = || Refusal::Program(format!("calls are nested deeper than {MAX_CALL_FRAMES}"));
        if chain.len() == MAX_CALL_FRAMES {
            return Err(too_deep());
        }
        chain.push(start);
        let mut deepest = 0;
        for &callee in &self.by_start[&start].callees {
            deepest = deepest.max(self.depth(callee, chain, known)?);
        }
        chain.pop();
        if deepest == MAX_CALL_FRAMES {
            return Err(too_deep());
        }
        known.insert(start, deepest + 1);
        Ok(deepest + 1)
    }
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

impl Function {
    /// Checks the jumps of the function `start..end`, and finds out how much stack it uses.
    fn measure(program: &[Instruction], second_slots: &[bool], start: usize, end: usize) -> Result<Self, Refusal> {
        let mut last = start;
        for at in (start..end).filter(|&at| !second_slots[at]) {
            last = at;
            if program[at].is_jump() {
                program[at].target(at).filter(|to| (start..end).contains(to) && !second_slots[*to]).ok_or_else(
                    || Refusal::Program(format!("the jump at instruction {at} leads out of its function")),
                )?;
            }
        }
        if !matches!(program[last].code, JA | JA32 | EXIT) {
            return Err(Refusal::Program(format!("instruction {last} runs on beyond the end of its function")));
        }
        let (direct, frame) = frame_size(&program[start..end]);
        if direct > FRAME_SIZE {
            return Err(Refusal::Program(format!("it needs {direct} bytes of stack; {FRAME_SIZE} are the limit")));
        }
        Ok(Self { start, end, frame: frame.next_multiple_of(8).min(FRAME_SIZE), callees: BTreeSet::new() })
    }
}

/// Bytes of stack that a function uses: the furthest that it reaches below its frame pointer directly; and with what it reaches by
/// addresses that it forms (`r1 = r10; r1 += -16`, as compilers do), and by accesses below such addresses. All that there is, if
/// it does anything else with its frame pointer.
fn frame_size(function: &[Instruction]) -> (usize, usize) {
    let (mut direct, mut lowest_address, mut below_address, mut any) = (0, 0, 0, false);
    for (at, instruction) in function.iter().enumerate() {
        let Instruction { dst, src, off, .. } = *instruction;
        any |= instruction.class() == Class::Stx && src == R10;
        let base = match instruction.class() {
            Class::Ldx => src,
            Class::St | Class::Stx => dst,
            Class::Alu64 if instruction.takes_register() && src == R10 => {
                let moved = instruction.operation() == alu::MOV;
                let add = function[at + 1..].iter().take(8).find(|next| next.dst == dst || next.src == dst);
                match add {
                    Some(next) if moved && next.code == ADD64_K && next.dst == dst => {
                        lowest_address = lowest_address.min(i64::from(next.imm));
                    }
                    _ => any = true,
                }
                continue;
            }
            _ => continue,
        };
        let reached = if base == R10 { &mut direct } else { &mut below_address };
        *reached = i64::from(off).min(*reached);
    }
    let bytes = |lowest: i64| usize::try_from(-lowest).unwrap_or(0);
    let lowest = if lowest_address < 0 { direct.min(lowest_address + below_address) } else { direct };
    (bytes(direct), if any { FRAME_SIZE } else { bytes(lowest) })
}
