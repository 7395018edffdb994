//! Arrays (`kernel/bpf/arraymap.c`): values one after the other, each rounded up to 8 bytes, of each CPU apart. Global data too.

use std::ops::{ControlFlow, Range};

use super::{ElementKey, update};
use crate::machine::{MemoryError, Region};

/// Where the values of an array lie.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArrayLayout {
    /// The address of the first.
    pub(crate) base: u64,
    /// Bytes from one to the next.
    pub(crate) stride: u64,
    /// How many there are.
    pub(crate) entries: u32,
    /// Programs may not write them.
    pub(crate) read_only: bool,
}

/// An array.
#[derive(Debug)]
pub(super) struct Array {
    values: Region,
    value_size: usize,
    stride: usize,
    entries: u32,
    cpus: u32,
    per_cpu: bool,
}

impl Array {
    pub(super) fn new(value_size: u32, entries: u32, cpus: u32, per_cpu: bool) -> Result<Self, MemoryError> {
        let (value_size, stride) = (value_size as usize, (value_size as usize).next_multiple_of(8));
        let values = Region::new(stride * entries as usize * cpus as usize)?;
        Ok(Self { values, value_size, stride, entries, cpus, per_cpu })
    }

    pub(super) fn layout(&self) -> Option<ArrayLayout> {
        let (base, stride) = (self.values.address(), self.stride as u64);
        (!self.per_cpu).then_some(ArrayLayout { base, stride, entries: self.entries, read_only: false })
    }

    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    #[cfg(test)]
    pub(super) fn region(&self) -> &Region {
        &self.values
    }

    pub(super) fn cpus(&self) -> u32 {
        self.cpus
    }

    pub(super) fn addresses(&self) -> Range<u64> {
        self.values.addresses()
    }

    /// The initial bytes of the first values. Constants cannot be written from then on, by nobody.
    pub(super) fn fill(&self, bytes: &[u8], constant: bool) -> Result<(), MemoryError> {
        self.values.copy_in(0, &bytes[..bytes.len().min(self.values.length())]);
        if constant { self.values.protect() } else { Ok(()) }
    }

    fn offset(&self, index: u32, cpu: u32) -> Option<usize> {
        let element = (cpu % self.cpus) as usize * self.entries as usize + index as usize;
        (index < self.entries).then_some(element * self.stride)
    }

    pub(super) fn address(&self, index: u32, cpu: u32) -> Option<u64> {
        self.offset(index, cpu).map(|offset| self.values.address() + offset as u64)
    }

    pub(super) fn update(&self, index: u32, value: &[u8], flags: u64, cpu: u32) -> Result<(), i32> {
        let offset = self.offset(index, cpu).ok_or(libc::E2BIG)?;
        if flags == update::NOEXIST {
            return Err(libc::EEXIST);
        }
        if self.values.is_protected() {
            return Err(libc::EPERM);
        }
        self.values.store(offset, &value[..self.value_size]);
        Ok(())
    }

    pub(super) fn get(&self, index: u32) -> Option<Vec<u8>> {
        let size = if self.per_cpu { self.stride } else { self.value_size };
        let mut all = vec![0; size * self.cpus as usize];
        for (cpu, value) in (0..).zip(all.chunks_exact_mut(size)) {
            self.values.copy_out(self.offset(index, cpu)?, value);
        }
        Some(all)
    }

    pub(super) fn set(&self, index: u32, value: &[u8]) -> Result<(), i32> {
        for cpu in 0..self.cpus {
            self.update(index, value_of(value, cpu, self.value_size), 0, cpu).map_err(|errno| match errno {
                libc::E2BIG => libc::ENOENT,
                errno => errno,
            })?;
        }
        Ok(())
    }

    pub(super) fn for_each<E>(
        &self,
        cpu: u32,
        each: &mut dyn FnMut(ElementKey, u64) -> Result<ControlFlow<()>, E>,
    ) -> Result<u32, E> {
        for index in 0..self.entries {
            let value = self.address(index, cpu).expect("an index of the array");
            if each(ElementKey::Index(index), value)?.is_break() {
                return Ok(index + 1);
            }
        }
        Ok(self.entries)
    }
}

/// The part of `value` for `cpu`: all of it, if it is one for all.
pub(super) fn value_of(value: &[u8], cpu: u32, size: usize) -> &[u8] {
    let start = if value.len() == size { 0 } else { cpu as usize * size.next_multiple_of(8) };
    &value[start..start + size]
}
