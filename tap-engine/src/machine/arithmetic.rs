//! Arithmetic of 64 and 32 bits; the latter clears the upper half of its register.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Type, Value, types};

use super::translate::{Translator, int, narrow_immediate};
use crate::instruction::{Class, Instruction, alu};

impl Translator<'_, '_> {
    /// An instruction of one of the arithmetic classes.
    pub(super) fn arithmetic(&mut self, instruction: Instruction) {
        let Instruction { dst, src, off, imm, .. } = instruction;
        let wide = instruction.class() == Class::Alu64;
        let operation = instruction.operation();
        if operation == alu::END {
            return self.byte_order(instruction, wide);
        }
        let ty = if wide { types::I64 } else { types::I32 };
        let left = self.get(dst);
        let left = self.narrow(left, ty);
        let right = if instruction.takes_register() {
            let right = self.get(src);
            self.narrow(right, ty)
        } else {
            self.builder.ins().iconst(ty, narrow_immediate(imm, if wide { 8 } else { 4 }))
        };
        let ins = self.builder.ins();
        let result = match operation {
            alu::ADD => ins.iadd(left, right),
            alu::SUB => ins.isub(left, right),
            alu::MUL => ins.imul(left, right),
            alu::OR => ins.bor(left, right),
            alu::AND => ins.band(left, right),
            alu::XOR => ins.bxor(left, right),
            // The processor's shifts look at the lower bits of the distance only, as the kernel's do.
            alu::LSH => ins.ishl(left, right),
            alu::RSH => ins.ushr(left, right),
            alu::ARSH => ins.sshr(left, right),
            alu::NEG => ins.ineg(left),
            alu::MOV if off == 0 => right,
            alu::MOV => {
                let part = self.narrow(right, int(off as u8 / 8));
                self.builder.ins().sextend(ty, part)
            }
            alu::DIV | alu::MOD => self.division(ty, left, right, operation == alu::MOD, off == 1),
            _ => unreachable!("the loader has checked the operation"),
        };
        let result = self.widen(result, false);
        self.set(dst, result);
    }

    /// Division by zero gives 0, and the remainder is the dividend; the lowest number by -1 gives itself, and no remainder.
    fn division(&mut self, ty: Type, left: Value, right: Value, remainder: bool, signed: bool) -> Value {
        let (zero, one) = (self.builder.ins().iconst(ty, 0), self.builder.ins().iconst(ty, 1));
        let by_zero = self.builder.ins().icmp(IntCC::Equal, right, zero);
        let mut safe = self.builder.ins().select(by_zero, one, right);
        let by_minus_one = signed.then(|| {
            let minus_one = self.builder.ins().iconst(ty, narrow_immediate(-1, ty.bytes() as u8));
            let by_minus_one = self.builder.ins().icmp(IntCC::Equal, right, minus_one);
            safe = self.builder.ins().select(by_minus_one, one, safe);
            by_minus_one
        });
        let ins = self.builder.ins();
        let mut result = match (remainder, signed) {
            (false, false) => ins.udiv(left, safe),
            (false, true) => ins.sdiv(left, safe),
            (true, false) => ins.urem(left, safe),
            (true, true) => ins.srem(left, safe),
        };
        if let (Some(by_minus_one), false) = (by_minus_one, remainder) {
            let negated = self.builder.ins().ineg(left);
            result = self.builder.ins().select(by_minus_one, negated, result);
        }
        let of_zero = if remainder { left } else { zero };
        self.builder.ins().select(by_zero, of_zero, result)
    }

    fn byte_order(&mut self, instruction: Instruction, swap_always: bool) {
        let ty = int((instruction.imm / 8) as u8);
        let value = self.get(instruction.dst);
        let mut value = self.narrow(value, ty);
        let to_big = instruction.takes_register();
        if swap_always || to_big != cfg!(target_endian = "big") {
            value = self.builder.ins().bswap(value);
        }
        let value = self.widen(value, false);
        self.set(instruction.dst, value);
    }
}
