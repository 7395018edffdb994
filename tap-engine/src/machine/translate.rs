//! One BPF function as a Cranelift function, instruction by instruction.
//!
//! Registers are variables of 64 bits; blocks begin where jumps lead. Semantics: RFC 9669, and `kernel/bpf/core.c` where it is silent.

use std::collections::{BTreeMap, BTreeSet};

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::immediates::Imm64;
use cranelift_codegen::ir::{
    self, AtomicRmwOp, Block, BlockArg, InstBuilder, MemFlagsData, SigRef, Type, Value, types,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext, Variable};
use cranelift_jit::JITModule;
use cranelift_module::{FuncId, Module};

use super::code::{CALLBACK, Mode};
use super::compile::Signatures;
use super::kinds::{self, Kind, Kinds, Registers};
use super::run::{fault, load_packet, offset};
use crate::functions::{FRAME_SIZE, Function, Linked};
use crate::helpers;
use crate::instruction::{
    CALL, Class, EXIT, Instruction, LD_IMM64, PSEUDO_FUNC, PSEUDO_MAP_FD, PSEUDO_MAP_VALUE, R10, atomic, jump, mode,
};
use crate::maps::Maps;

/// Turns of a loop that `may_goto` allows (kernel: `BPF_MAX_LOOPS`).
const MAX_LOOPS: i64 = 8 << 20;

/// What a function is translated in.
pub(super) struct Surroundings<'a> {
    pub(super) program: &'a Linked,
    pub(super) maps: &'a Maps,
    pub(super) mode: Mode,
    /// The program's functions by their first slot.
    pub(super) ids: &'a BTreeMap<usize, FuncId>,
    /// The numbers of functions that are given to helpers, by their first slot.
    pub(super) handles: &'a BTreeMap<usize, usize>,
    pub(super) signatures: &'a Signatures,
}

/// Translates `function` into `out`, whose signature is set. True: it may write to the context.
pub(super) fn function(
    surroundings: &Surroundings<'_>,
    function: &Function,
    module: &mut JITModule,
    out: &mut ir::Function,
    scratch: &mut FunctionBuilderContext,
) -> bool {
    let mut builder = FunctionBuilder::new(out, scratch);
    let leaders = leaders(surroundings.program, function);
    let program = surroundings.program;
    let range = (function.start, function.end);
    let kinds = Kinds::find(&program.instructions, &program.functions.second_slots, range, &leaders);
    let registers = std::array::from_fn(|_| builder.declare_var(types::I64));
    let (budget, turns) = (builder.declare_var(types::I64), builder.declare_var(types::I64));
    let blocks = leaders.iter().map(|&leader| (leader, builder.create_block())).collect();
    let fault_block = builder.create_block();
    let run = Value::from_u32(0);
    let stops = surroundings.mode.checked || program.instructions.iter().copied().any(may_stop);
    let signatures = [None; 7];
    let (message, limits) = (None, BTreeMap::new());
    let mut translator = Translator {
        surroundings,
        module,
        builder,
        function,
        registers,
        kinds: [Kind::Unknown; 11],
        run,
        budget,
        turns,
        blocks,
        fault_block,
        stops,
        signatures,
        message,
        limits,
        writes_context: false,
        at: function.start,
    };
    translator.enter();
    translator.body(&leaders, &kinds);
    translator.finish()
}

/// Whether a verified program can be ended by `instruction`: so it has to look for that behind calls.
fn may_stop(instruction: Instruction) -> bool {
    instruction.is_helper_call() && helpers::calls_back(instruction.imm as u32)
        || instruction.class() == Class::Stx && instruction.mode() == mode::ATOMIC
}

/// The first slots of the blocks of a function.
fn leaders(program: &Linked, function: &Function) -> BTreeSet<usize> {
    let mut leaders = BTreeSet::from([function.start]);
    for at in (function.start..function.end).filter(|&at| !program.functions.second_slots[at]) {
        let instruction = program.instructions[at];
        if instruction.is_jump() {
            leaders.extend(instruction.target(at));
        }
        if instruction.is_jump() || kinds::ends_block(instruction) {
            leaders.insert(at + 1);
        }
    }
    leaders.retain(|leader| (function.start..function.end).contains(leader));
    leaders
}

/// The translation of one function, at one instruction.
pub(super) struct Translator<'a, 'f> {
    pub(super) surroundings: &'a Surroundings<'a>,
    module: &'a mut JITModule,
    pub(super) builder: FunctionBuilder<'f>,
    function: &'a Function,
    registers: [Variable; 11],
    /// What is known of the registers before the instruction.
    pub(super) kinds: Registers,
    /// The address of the `Run`.
    pub(super) run: Value,
    /// What is left of the run's budget, while this function runs (checked).
    budget: Variable,
    /// Turns that `may_goto` still allows.
    turns: Variable,
    blocks: BTreeMap<usize, Block>,
    /// Notes a fault, whose number and detail are its parameters, and returns.
    fault_block: Block,
    /// A call can end with a fault.
    stops: bool,
    /// Signatures of functions of numbers that were imported, by how many there are.
    signatures: [Option<SigRef>; 7],
    /// The message's first address and length, loaded at the function's beginning (checked).
    pub(super) message: Option<(Value, Value)>,
    /// How far into the message an access of so many bytes may begin: one more than the last offset (checked).
    pub(super) limits: BTreeMap<u8, Value>,
    /// A store was seen that may lead to the context.
    pub(super) writes_context: bool,
    /// The instruction's number in the linked program.
    pub(super) at: usize,
}

impl Translator<'_, '_> {
    /// The function's beginning: its arguments become registers.
    fn enter(&mut self) {
        let first = self.builder.create_block();
        self.builder.append_block_params_for_function_params(first);
        self.switch_to(first);
        let parameters = self.builder.block_params(first).to_vec();
        self.run = parameters[0];
        let zero = self.number(0);
        for register in 0..R10 {
            let argument = parameters.get(register as usize).filter(|_| (1..=5).contains(&register));
            self.set(register, argument.copied().unwrap_or(zero));
        }
        let frame = if self.function.start == 0 { self.load_run(offset::FRAME) } else { parameters[6] };
        self.set(R10, frame);
        let turns = self.number(MAX_LOOPS);
        self.builder.def_var(self.turns, turns);
        if self.surroundings.mode.checked {
            let (start, length) = (self.load_run(offset::MESSAGE_START), self.load_run(offset::MESSAGE_LENGTH));
            self.message = Some((start, length));
            for size in [1, 2, 4, 8] {
                // Beginning before this offset, an access of `size` bytes ends within the message.
                let less = self.number(i64::from(size) - 1);
                let most = self.builder.ins().umax(length, less);
                let limit = self.builder.ins().isub(most, less);
                self.limits.insert(size, limit);
            }
            let left = self.load_run(offset::BUDGET);
            self.builder.def_var(self.budget, left);
            self.pay((self.function.end - self.function.start) as i64);
        }
        let body = self.blocks[&self.function.start];
        self.builder.ins().jump(body, &[]);
    }

    fn body(&mut self, leaders: &BTreeSet<usize>, kinds: &Kinds) {
        let loops = self.loops();
        for &leader in leaders {
            let end = leaders.range(leader + 1..).next().copied().unwrap_or(self.function.end);
            // A block that no way leads to: nothing of it is translated but its end, which every block must have.
            let block = self.blocks[&leader];
            // All ways to a block are known now, but those that come back to it.
            if loops.contains(&leader) {
                self.builder.switch_to_block(block)
            } else {
                self.switch_to(block)
            }
            let Some(registers) = kinds.at(leader) else {
                self.leave();
                continue;
            };
            self.kinds = registers;
            let slots = (leader..end).filter(|&at| !self.surroundings.program.functions.second_slots[at]);
            let slots: Vec<usize> = slots.collect();
            if self.surroundings.mode.counted {
                let steps = self.load_run(offset::STEPS);
                let steps = self.builder.ins().iadd_imm_s(steps, slots.len() as i64);
                self.store_run(steps, offset::STEPS);
            }
            let mut open = true;
            for at in slots {
                self.at = at;
                let instruction = self.surroundings.program.instructions[at];
                open = self.instruction(instruction);
                kinds::step(&mut self.kinds, instruction);
            }
            if open {
                let next = self.blocks[&end];
                self.builder.ins().jump(next, &[]);
            }
        }
    }

    /// Where jumps backward lead.
    fn loops(&self) -> BTreeSet<usize> {
        let program = self.surroundings.program;
        let slots = (self.function.start..self.function.end).filter(|&at| !program.functions.second_slots[at]);
        let jumps = slots.filter(|&at| program.instructions[at].is_jump());
        jumps.filter_map(|at| program.instructions[at].target(at).filter(|target| *target <= at)).collect()
    }

    /// Goes on in `block`, which no further way leads to than those that are there: so its registers are known at once, and a long
    /// program does not take long.
    pub(super) fn switch_to(&mut self, block: Block) {
        self.builder.switch_to_block(block);
        self.builder.seal_block(block);
    }

    fn finish(mut self) -> bool {
        let fault = self.builder.append_block_param(self.fault_block, types::I32);
        let detail = self.builder.append_block_param(self.fault_block, types::I32);
        self.builder.set_cold_block(self.fault_block);
        self.builder.switch_to_block(self.fault_block);
        self.builder.ins().store(trusted(), fault, self.run, offset::FAULT);
        self.builder.ins().store(trusted(), detail, self.run, offset::DETAIL);
        self.leave();
        self.builder.seal_all_blocks();
        self.builder.finalize(self.module.target_config());
        self.writes_context
    }

    /// Translates one instruction; false: nothing runs on behind it.
    fn instruction(&mut self, instruction: Instruction) -> bool {
        let Instruction { code, dst, src, off, imm } = instruction;
        match instruction.class() {
            Class::Ld if code == LD_IMM64 => {
                let value = self.immediate(instruction);
                self.set(dst, value);
            }
            Class::Ld => self.packet_load(instruction),
            Class::Ldx => {
                let address = self.access(src, off, instruction.size(), false);
                let narrow = self.builder.ins().load(int(instruction.size()), memory(), address.0, address.1);
                let signed = instruction.mode() == mode::MEMSX;
                let value = self.widen(narrow, signed);
                self.set(dst, value);
            }
            Class::St => {
                let value =
                    self.builder.ins().iconst(int(instruction.size()), narrow_immediate(imm, instruction.size()));
                let address = self.access(dst, off, instruction.size(), true);
                self.builder.ins().store(memory(), value, address.0, address.1);
            }
            Class::Stx if instruction.mode() == mode::ATOMIC => self.atomic(instruction),
            Class::Stx => {
                let value = self.get(src);
                let value = self.narrow(value, int(instruction.size()));
                let address = self.access(dst, off, instruction.size(), true);
                self.builder.ins().store(memory(), value, address.0, address.1);
            }
            Class::Alu32 | Class::Alu64 => self.arithmetic(instruction),
            Class::Jmp64 if code == CALL => return self.call(instruction),
            Class::Jmp64 if code == EXIT => {
                self.exit();
                return false;
            }
            Class::Jmp64 | Class::Jmp32 => {
                self.jump(instruction);
                return false;
            }
        }
        true
    }

    /// What a 64-bit load puts into its register.
    fn immediate(&mut self, instruction: Instruction) -> Value {
        let upper = self.surroundings.program.instructions[self.at + 1].imm;
        let maps = self.surroundings.maps;
        let value = match instruction.src {
            PSEUDO_MAP_FD => usize::try_from(instruction.imm).ok().and_then(|map| maps.handle(map)),
            PSEUDO_MAP_VALUE => {
                usize::try_from(instruction.imm).ok().and_then(|map| maps.value_address(map, upper as u32))
            }
            PSEUDO_FUNC => {
                let target = instruction.target(self.at).expect("checked: it leads to a function");
                Some(CALLBACK | self.surroundings.handles[&target] as u64)
            }
            _ => Some(u64::from(instruction.imm as u32) | u64::from(upper as u32) << 32),
        };
        // The loader has checked that maps and values are there.
        self.number(value.unwrap_or(0) as i64)
    }

    fn atomic(&mut self, instruction: Instruction) {
        let Instruction { dst, src, off, imm, .. } = instruction;
        let ty = int(instruction.size());
        let loads = imm == atomic::LOAD_ACQUIRE;
        let (address, displacement) = self.access(if loads { src } else { dst }, off, instruction.size(), !loads);
        let address = self.builder.ins().iadd_imm_s(address, i64::from(displacement));
        let odd = self.builder.ins().band_imm_u(address, i64::from(instruction.size()) - 1);
        self.fault_if(odd, fault::MISALIGNED, self.at as u32);
        let operand = self.get(src);
        let operand = self.narrow(operand, ty);
        let flags = MemFlagsData::trusted();
        let operation = match imm & !atomic::FETCH {
            _ if loads => {
                let value = self.builder.ins().atomic_load(ty, flags, address);
                let value = self.widen(value, false);
                return self.set(dst, value);
            }
            atomic::STORE_RELEASE => {
                self.builder.ins().atomic_store(flags, operand, address);
                return;
            }
            _ if imm == atomic::CMPXCHG => {
                let expected = self.get(0);
                let expected = self.narrow(expected, ty);
                let found = self.builder.ins().atomic_cas(flags, address, expected, operand);
                let found = self.widen(found, false);
                return self.set(0, found);
            }
            atomic::ADD => AtomicRmwOp::Add,
            atomic::OR => AtomicRmwOp::Or,
            atomic::AND => AtomicRmwOp::And,
            atomic::XOR => AtomicRmwOp::Xor,
            _ => AtomicRmwOp::Xchg,
        };
        let old = self.builder.ins().atomic_rmw(ty, flags, operation, address, operand);
        if imm & atomic::FETCH != 0 {
            let old = self.widen(old, false);
            self.set(src, old);
        }
    }

    /// Legacy packet access. What is not there ends the program with 0.
    fn packet_load(&mut self, instruction: Instruction) {
        let mut offset = self.number(i64::from(instruction.imm));
        if instruction.mode() == mode::IND {
            let index = self.get(instruction.src);
            offset = self.builder.ins().iadd(offset, index);
        }
        let size = self.number(i64::from(instruction.size()));
        let value = self.call_native(load_packet as *const () as usize, &[self.run, offset, size]);
        let good = self.builder.create_block();
        let missing = self.builder.create_block();
        let negative = self.builder.ins().icmp_imm_s(IntCC::SignedLessThan, value, 0);
        self.builder.ins().brif(negative, missing, &[], good, &[]);
        self.switch_to(missing);
        self.leave();
        self.switch_to(good);
        self.set(0, value);
    }

    fn jump(&mut self, instruction: Instruction) {
        let target = instruction.target(self.at).expect("checked: it leads to an instruction");
        if instruction.code == crate::instruction::JA || instruction.code == crate::instruction::JA32 {
            self.pay_for_loop(target);
            let block = self.blocks[&target];
            self.builder.ins().jump(block, &[]);
            return;
        }
        let condition = self.condition(instruction);
        let next = self.blocks[&(self.at + 1)];
        if !self.surroundings.mode.checked || target > self.at {
            let block = self.blocks[&target];
            self.builder.ins().brif(condition, block, &[], next, &[]);
            return;
        }
        let back = self.builder.create_block();
        self.builder.ins().brif(condition, back, &[], next, &[]);
        self.switch_to(back);
        self.pay_for_loop(target);
        let block = self.blocks[&target];
        self.builder.ins().jump(block, &[]);
    }

    fn condition(&mut self, instruction: Instruction) -> Value {
        if instruction.operation() == jump::JCOND {
            let left = self.builder.use_var(self.turns);
            let left = self.builder.ins().iadd_imm_s(left, -1);
            self.builder.def_var(self.turns, left);
            return self.builder.ins().icmp_imm_s(IntCC::SignedLessThan, left, 0);
        }
        let wide = instruction.class() == Class::Jmp64;
        let ty = if wide { types::I64 } else { types::I32 };
        let left = self.get(instruction.dst);
        let left = self.narrow(left, ty);
        let right = if instruction.takes_register() {
            let right = self.get(instruction.src);
            self.narrow(right, ty)
        } else {
            self.builder.ins().iconst(ty, narrow_immediate(instruction.imm, if wide { 8 } else { 4 }))
        };
        let comparison = match instruction.operation() {
            jump::JEQ => IntCC::Equal,
            jump::JNE => IntCC::NotEqual,
            jump::JGT => IntCC::UnsignedGreaterThan,
            jump::JGE => IntCC::UnsignedGreaterThanOrEqual,
            jump::JLT => IntCC::UnsignedLessThan,
            jump::JLE => IntCC::UnsignedLessThanOrEqual,
            jump::JSGT => IntCC::SignedGreaterThan,
            jump::JSGE => IntCC::SignedGreaterThanOrEqual,
            jump::JSLT => IntCC::SignedLessThan,
            jump::JSLE => IntCC::SignedLessThanOrEqual,
            jump::JSET => {
                let common = self.builder.ins().band(left, right);
                return self.builder.ins().icmp_imm_s(IntCC::NotEqual, common, 0);
            }
            _ => unreachable!("the loader has checked the operation"),
        };
        self.builder.ins().icmp(comparison, left, right)
    }

    /// A call of a function of the program or of a helper; false: nothing runs on behind it.
    fn call(&mut self, instruction: Instruction) -> bool {
        if instruction.is_local_call() {
            let target = instruction.target(self.at).expect("checked: it leads to a function");
            let id = self.surroundings.ids[&target];
            let callee = self.module.declare_func_in_func(id, self.builder.func);
            let frame = self.get(R10);
            let below = self.builder.ins().iadd_imm_s(frame, -(FRAME_SIZE as i64));
            let mut arguments = vec![self.run];
            arguments.extend((1..=5).map(|register| self.get(register)));
            arguments.push(below);
            self.save_budget();
            let call = self.builder.ins().call(callee, &arguments);
            let result = self.builder.inst_results(call)[0];
            self.set(0, result);
            self.behind_call(self.stops);
            return true;
        }
        let number = instruction.imm as u32;
        if number == helpers::MAP_LOOKUP_ELEM
            && let Kind::Map(map) = self.kinds[1]
            && let Some(array) = self.surroundings.maps.array(map)
        {
            self.array_lookup(array);
            return true;
        }
        let calls_back = helpers::calls_back(number);
        if calls_back {
            let frame = self.get(R10);
            self.store_run(frame, offset::FRAME);
            self.save_budget();
        }
        let mut arguments = vec![self.run];
        arguments.extend((1..=5).map(|register| self.get(register)));
        let address = helpers::address(number).expect("checked: there is such a helper");
        let result = self.call_native(address, &arguments);
        self.set(0, result);
        if calls_back {
            self.behind_call(true);
        } else if self.surroundings.mode.checked && helpers::takes_address(number) {
            self.leave_if_fault();
        }
        if number == helpers::TAIL_CALL {
            // The helper has run the other program, or gives `NO_TAIL_CALL`.
            let failed = self.builder.ins().icmp_imm_s(IntCC::Equal, result, helpers::NO_TAIL_CALL as i64);
            let (done, on) = (self.builder.create_block(), self.builder.create_block());
            self.builder.ins().brif(failed, on, &[], done, &[]);
            self.switch_to(done);
            self.exit();
            self.switch_to(on);
        }
        true
    }

    /// `bpf_map_lookup_elem` on an array: as in `array_map_gen_lookup`, a comparison and an address.
    fn array_lookup(&mut self, array: crate::maps::ArrayLayout) {
        let refusal = (fault::ARGUMENT, helpers::MAP_LOOKUP_ELEM);
        let (address, displacement) = self.access_or(2, 0, 4, false, refusal);
        let key = self.builder.ins().load(types::I32, memory(), address, displacement);
        let index = self.widen(key, false);
        let inside = self.builder.ins().icmp_imm_u(IntCC::UnsignedLessThan, index, i64::from(array.entries));
        let distance = self.builder.ins().imul_imm_s(index, array.stride as i64);
        let value = self.builder.ins().iadd_imm_s(distance, array.base as i64);
        let null = self.number(0);
        let value = self.builder.ins().select(inside, value, null);
        self.set(0, value);
    }

    /// Behind a call that may have changed the budget, and may have ended with a fault.
    fn behind_call(&mut self, stops: bool) {
        if self.surroundings.mode.checked {
            let left = self.load_run(offset::BUDGET);
            self.builder.def_var(self.budget, left);
        }
        if stops {
            self.leave_if_fault();
        }
    }

    fn leave_if_fault(&mut self) {
        let fault = self.builder.ins().load(types::I32, trusted(), self.run, offset::FAULT);
        let (leave, on) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(fault, leave, &[], on, &[]);
        self.builder.set_cold_block(leave);
        self.switch_to(leave);
        self.leave();
        self.switch_to(on);
    }

    /// Goes to the fault `number` if `condition` is not 0.
    pub(super) fn fault_if(&mut self, condition: Value, number: i64, detail: u32) {
        let on = self.builder.create_block();
        let fault = self.builder.ins().iconst(types::I32, number);
        let detail = self.builder.ins().iconst(types::I32, i64::from(detail));
        let arguments = [BlockArg::Value(fault), BlockArg::Value(detail)];
        self.builder.ins().brif(condition, self.fault_block, &arguments, on, &[]);
        self.switch_to(on);
    }

    /// Takes `steps` from the budget; a fault if it is used up.
    fn pay(&mut self, steps: i64) {
        let left = self.builder.use_var(self.budget);
        let left = self.builder.ins().iadd_imm_s(left, -steps);
        self.builder.def_var(self.budget, left);
        let used_up = self.builder.ins().icmp_imm_s(IntCC::SignedLessThan, left, 0);
        self.fault_if(used_up, fault::STEPS, self.at as u32);
    }

    /// A checked program pays for what lies between the target of a jump backward and the jump.
    fn pay_for_loop(&mut self, target: usize) {
        if self.surroundings.mode.checked && target <= self.at {
            self.pay((self.at - target + 1) as i64);
        }
    }

    fn save_budget(&mut self) {
        if self.surroundings.mode.checked {
            let left = self.builder.use_var(self.budget);
            self.store_run(left, offset::BUDGET);
        }
    }

    /// Returns register 0.
    fn exit(&mut self) {
        self.save_budget();
        let result = self.get(0);
        self.builder.ins().return_(&[result]);
    }

    /// Returns 0.
    fn leave(&mut self) {
        let zero = self.number(0);
        self.builder.ins().return_(&[zero]);
    }

    /// Calls a native function of numbers.
    pub(super) fn call_native(&mut self, address: usize, arguments: &[Value]) -> Value {
        let signature = match self.signatures[arguments.len()] {
            Some(signature) => signature,
            None => {
                let signature = self.surroundings.signatures.numbers[arguments.len()].clone();
                let signature = self.builder.import_signature(signature);
                self.signatures[arguments.len()] = Some(signature);
                signature
            }
        };
        let callee = self.number(address as i64);
        let call = self.builder.ins().call_indirect(signature, callee, arguments);
        self.builder.inst_results(call)[0]
    }

    pub(super) fn get(&mut self, register: u8) -> Value {
        self.builder.use_var(self.registers[register as usize])
    }

    pub(super) fn set(&mut self, register: u8, value: Value) {
        self.builder.def_var(self.registers[register as usize], value);
    }

    pub(super) fn number(&mut self, value: i64) -> Value {
        self.builder.ins().iconst(types::I64, Imm64::new(value))
    }

    /// The lower bits of `value`.
    pub(super) fn narrow(&mut self, value: Value, ty: Type) -> Value {
        if self.builder.func.dfg.value_type(value) == ty { value } else { self.builder.ins().ireduce(ty, value) }
    }

    /// `value` as 64 bits.
    pub(super) fn widen(&mut self, value: Value, signed: bool) -> Value {
        if self.builder.func.dfg.value_type(value) == types::I64 {
            value
        } else if signed {
            self.builder.ins().sextend(types::I64, value)
        } else {
            self.builder.ins().uextend(types::I64, value)
        }
    }

    pub(super) fn load_run(&mut self, offset: i32) -> Value {
        self.builder.ins().load(types::I64, trusted(), self.run, offset)
    }

    fn store_run(&mut self, value: Value, offset: i32) {
        self.builder.ins().store(trusted(), value, self.run, offset);
    }
}

/// An integer of so many bytes.
pub(super) fn int(size: u8) -> Type {
    match size {
        1 => types::I8,
        2 => types::I16,
        4 => types::I32,
        _ => types::I64,
    }
}

/// `imm`, sign-extended, as a constant of so many bytes: Cranelift wants the bits above to be 0.
pub(super) fn narrow_immediate(imm: i32, size: u8) -> i64 {
    if size == 8 { i64::from(imm) } else { i64::from(imm) & ((1 << (8 * size)) - 1) }
}

/// Fields of `Run`.
fn trusted() -> MemFlagsData {
    MemFlagsData::trusted()
}

/// Program memory: checked or proved, so no access traps, but maybe unaligned.
fn memory() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}
