//! The address of a load or store, and in checked mode the comparison before it.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{InstBuilder, Value, types};

use super::kinds::Kind;
use super::run::{STACK_SIZE, fault, may_touch, offset};
use super::translate::Translator;
use crate::context::{CONTEXT_SIZE, is_writable};
use crate::functions::FRAME_SIZE;

impl Translator<'_, '_> {
    /// The address of `size` bytes at `off` from `register`: a value and a displacement. Checked mode: proved to be the program's, or
    /// compared with what it has.
    pub(super) fn access(&mut self, register: u8, off: i16, size: u8, write: bool) -> (Value, i32) {
        let fault = if write { fault::WRITE } else { fault::READ };
        self.access_or(register, off, size, write, (fault, self.at as u32))
    }

    /// The same, with the fault and its detail that a refusal is.
    pub(super) fn access_or(
        &mut self,
        register: u8,
        off: i16,
        size: u8,
        write: bool,
        (fault, detail): (i64, u32),
    ) -> (Value, i32) {
        let base = self.get(register);
        let kind = self.kinds[register as usize];
        self.writes_context |= write && matches!(kind, Kind::Context(_) | Kind::Unknown);
        if !self.surroundings.mode.checked || self.is_proved(register, off, size, write) {
            return (base, off.into());
        }
        let address = self.builder.ins().iadd_imm_s(base, i64::from(off));
        let (start, limit) = match kind {
            Kind::Stack(_) | Kind::SomeStack => {
                (self.load_run(offset::STACK), self.number((STACK_SIZE - size as usize + 1) as i64))
            }
            Kind::Context(_) if !write => {
                (self.load_run(offset::CONTEXT), self.number((CONTEXT_SIZE - size as usize + 1) as i64))
            }
            Kind::Value(map) => self.map_window(map, size, write),
            _ => self.message_window(size),
        };
        let distance = self.builder.ins().isub(address, start);
        let inside = self.builder.ins().icmp(IntCC::UnsignedLessThan, distance, limit);
        let (elsewhere, on) = (self.builder.create_block(), self.builder.create_block());
        self.builder.ins().brif(inside, on, &[], elsewhere, &[]);

        self.builder.set_cold_block(elsewhere);
        self.switch_to(elsewhere);
        let (bytes, writes) = (self.number(size.into()), self.number(write.into()));
        let allowed = self.call_native(may_touch as *const () as usize, &[self.run, address, bytes, writes]);
        let refused = self.builder.ins().icmp_imm_s(IntCC::Equal, allowed, 0);
        self.fault_if(refused, fault, detail);
        self.builder.ins().jump(on, &[]);
        self.switch_to(on);
        (address, 0)
    }

    /// Whether the access is known to be good now: the frame, or the context.
    fn is_proved(&self, register: u8, off: i16, size: u8, write: bool) -> bool {
        let (off, size) = (i64::from(off), i64::from(size));
        match self.kinds[register as usize] {
            Kind::Stack(at) => -(FRAME_SIZE as i64) <= at + off && at + off + size <= 0,
            Kind::Context(at) => {
                let (first, end) = (at + off, at + off + size);
                0 <= first && end <= CONTEXT_SIZE as i64 && (!write || is_writable(first as u64, size as u64))
            }
            _ => false,
        }
    }

    fn message_window(&mut self, size: u8) -> (Value, Value) {
        let (start, _) = self.message.expect("loaded in checked mode");
        (start, self.limits[&size])
    }

    /// The window of a map whose values lie together; of others, the message's, which misses.
    fn map_window(&mut self, map: usize, size: u8, write: bool) -> (Value, Value) {
        match self.surroundings.maps.array(map) {
            Some(array) if !(write && array.read_only) => {
                let bytes = array.stride * u64::from(array.entries);
                let limit = (bytes + 1).saturating_sub(size.into());
                (self.number(array.base as i64), self.builder.ins().iconst(types::I64, limit as i64))
            }
            _ => self.message_window(size),
        }
    }
}
