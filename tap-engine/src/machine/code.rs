//! Executable code: all programs of an object, compiled once, for all threads.

use std::sync::Mutex;

use cranelift_jit::JITModule;

use super::compile;
use super::run::Run;
use crate::functions::Linked;
use crate::maps::Maps;
use crate::object::chain;

/// A program as it is called: with its run and the address of its context.
pub(super) type Entry = unsafe extern "C" fn(&Run, u64) -> u64;

/// A function that a program gives to a helper: with its run, registers 1 to 5, and its frame pointer.
pub(super) type FunctionPointer = unsafe extern "C" fn(&Run, u64, u64, u64, u64, u64, u64) -> u64;

/// Upper half of what a program holds for one of its functions: an address that no memory has.
pub(super) const CALLBACK: u64 = 0xb9f0_5e7b << 32;

/// How programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Mode {
    /// With run-time checks: no verifier has looked at them.
    pub(crate) checked: bool,
    /// Instructions are counted.
    pub(crate) counted: bool,
}

/// The code generator failed: the program is too large for it, or the processor is none that it knows.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be compiled: {0}")]
pub(crate) struct CompileError(String);

/// One program.
pub(super) struct Compiled {
    pub(super) entry: Entry,
    /// Bytes of stack that its first function is seen to use.
    pub(super) frame_size: usize,
    /// It may write to its context.
    pub(super) writes_context: bool,
}

/// The native code of the programs of an object.
pub(crate) struct Code {
    mode: Mode,
    pub(super) programs: Vec<Compiled>,
    /// The functions that programs give to helpers, and how many instructions each has.
    pub(super) callbacks: Vec<(FunctionPointer, i64)>,
    /// Owns the pages; looked at again only when they are freed.
    pub(super) module: Mutex<Option<JITModule>>,
}

impl Code {
    /// Compiles `programs`, which work on `maps`.
    ///
    /// # Errors
    /// The code generator does not take one.
    pub(crate) fn compile(programs: &[&Linked], maps: &Maps, mode: Mode) -> Result<Self, CompileError> {
        compile::compile(programs, maps, mode).map_err(|error| CompileError(chain(&*error)))
    }

    pub(super) fn new(mode: Mode, module: JITModule) -> Self {
        Self { mode, programs: Vec::new(), callbacks: Vec::new(), module: Mutex::new(Some(module)) }
    }

    /// How it was compiled.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// The code of program `index`.
    pub(super) fn entry(&self, index: usize) -> Option<Entry> {
        self.programs.get(index).map(|program| program.entry)
    }

    /// Bytes of stack that the first function of program `index` is seen to use.
    pub(super) fn frame_size(&self, index: usize) -> usize {
        self.programs[index].frame_size
    }

    /// Whether program `index` may write to its context.
    pub(crate) fn writes_context(&self, index: usize) -> bool {
        self.programs[index].writes_context
    }

    /// The function behind what a program gave to a helper, and the instructions that a call of it can lead to.
    pub(super) fn callback(&self, handle: u64) -> Option<(FunctionPointer, i64)> {
        self.callbacks.get(usize::try_from(handle ^ CALLBACK).ok()?).copied()
    }
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Code").field("mode", &self.mode).field("programs", &self.programs.len()).finish_non_exhaustive()
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        let module = self.module.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(module) = module {
            // SAFETY: the pointers into the pages are in `self`, which ends here, and in `Machine`s, each of which holds an `Arc` of it
            // (through its `Run`).
            unsafe { module.free_memory() };
        }
    }
}
