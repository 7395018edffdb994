//! One instance of a program, and what it may touch while it runs.

use std::cell::Cell;
use std::mem::offset_of;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::code::{Code, Entry};
use super::memory::{MemoryError, MessageBuffer, Region};
use crate::context::{CONTEXT_SIZE, ContextImage};
use crate::functions::{FRAME_SIZE, MAX_CALL_FRAMES};
use crate::helpers::Environment;
use crate::program::ProgramFault;

/// Instructions that a checked program may spend in one run, by a count that is never too low; and those that callbacks of
/// any program may spend. The kernel's verifier follows a million. Some hundredths of a second.
pub(crate) const STEP_LIMIT: i64 = 1 << 24;

/// Call frames of one run: as many again as there may be in a program, for callbacks and tail calls.
const FRAMES: usize = 4 * MAX_CALL_FRAMES;

/// Tail calls of one run (kernel: `MAX_TAIL_CALL_CNT`).
const MAX_TAIL_CALLS: u32 = 33;

/// Where native code finds the fields of [`Run`].
pub(super) mod offset {
    use super::{Run, offset_of};

    pub(in super::super) const MESSAGE_START: i32 = offset_of!(Run, message_start) as i32;
    pub(in super::super) const MESSAGE_LENGTH: i32 = offset_of!(Run, message_length) as i32;
    pub(in super::super) const STACK: i32 = offset_of!(Run, stack_start) as i32;
    pub(in super::super) const CONTEXT: i32 = offset_of!(Run, context) as i32;
    pub(in super::super) const FRAME: i32 = offset_of!(Run, frame) as i32;
    pub(in super::super) const BUDGET: i32 = offset_of!(Run, budget) as i32;
    pub(in super::super) const STEPS: i32 = offset_of!(Run, steps) as i32;
    pub(in super::super) const FAULT: i32 = offset_of!(Run, fault) as i32;
    pub(in super::super) const DETAIL: i32 = offset_of!(Run, detail) as i32;
}

/// Bytes of the stack of a run.
pub(super) const STACK_SIZE: usize = FRAMES * FRAME_SIZE;

/// Faults as native code notes them.
pub(super) mod fault {
    pub(in super::super) const READ: i64 = 1;
    pub(in super::super) const WRITE: i64 = 2;
    pub(in super::super) const MISALIGNED: i64 = 3;
    pub(in super::super) const STEPS: i64 = 4;
    pub(in super::super) const ARGUMENT: i64 = 5;
    pub(in super::super) const DEPTH: i64 = 6;
}

/// The state of a running program: native code reads and writes the first fields, helpers get it as their first argument.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Run {
    message_start: Cell<u64>,
    message_length: Cell<u64>,
    /// The lowest address of the stack, of [`STACK_SIZE`] bytes.
    stack_start: u64,
    context: Cell<u64>,
    /// Register 10 of the program that is entered next, or of the function that calls a helper which calls back.
    frame: Cell<u64>,
    /// What is left of [`STEP_LIMIT`].
    budget: Cell<i64>,
    /// Instructions of this run, where they are counted.
    steps: Cell<u64>,
    /// 0, or one of [`fault`].
    fault: Cell<u32>,
    /// The instruction, or the helper.
    detail: Cell<u32>,
    tail_calls: Cell<u32>,
    checked: bool,
    /// Owns `stack_start`.
    _stack: Region,
    /// Bytes of stack that the entry is seen to use.
    frame_size: usize,
    /// Memory of maps, and whether it can be written.
    windows: Vec<(Range<u64>, bool)>,
    code: Arc<Code>,
    /// What helpers work on.
    pub(crate) environment: Environment,
}

/// An address that the running program may not touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OutOfReach;

/// Why a helper ends the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// It was given an address or a map that the program does not have.
    Argument,
    /// Callbacks or calls are nested too deep.
    Depth,
    /// Its callbacks have taken too many steps.
    Steps,
    /// A callback has ended with a fault, which is noted.
    Noted,
}

impl From<OutOfReach> for Stop {
    fn from(_: OutOfReach) -> Self {
        Self::Argument
    }
}

impl Run {
    /// Notes why helper `number` ends the program; native code looks at it behind each call of a helper.
    pub(crate) fn stop(&self, number: u32, stop: Stop) {
        match stop {
            Stop::Argument => self.note(fault::ARGUMENT, number),
            Stop::Depth => self.note(fault::DEPTH, number),
            Stop::Steps => self.note(fault::STEPS, number),
            Stop::Noted => debug_assert!(self.fault.get() != 0),
        }
    }

    fn note(&self, fault: i64, detail: u32) {
        if self.fault.get() == 0 {
            self.fault.set(fault as u32);
            self.detail.set(detail);
        }
    }

    /// Address and length of the bytes that the program runs on.
    pub(crate) fn message(&self) -> (u64, u64) {
        (self.message_start.get(), self.message_length.get())
    }

    /// A number that is the flow's own, as far as its context tells.
    pub(crate) fn cookie(&self) -> u64 {
        // `family` to `local_port`, and when it began.
        const WORDS: [u64; 8] = [88, 96, 104, 112, 120, 128, 136, 184];
        WORDS.iter().fold(0xcbf2_9ce4_8422_2325, |hash, word| {
            let mut bytes = [0; 8];
            // A context has these words.
            let _ = self.read(self.context.get() + word, &mut bytes);
            (hash ^ u64::from_ne_bytes(bytes)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23)
        })
    }

    /// Whether the program may touch `length` bytes at `address`.
    pub(crate) fn holds(&self, address: u64, length: u64, write: bool) -> bool {
        let inside = |start: u64, size: u64| {
            let offset = address.wrapping_sub(start);
            offset <= size && size - offset >= length
        };
        let context = || {
            inside(self.context.get(), CONTEXT_SIZE as u64)
                && (!write || crate::context::is_writable(address - self.context.get(), length))
        };
        inside(self.stack_start, STACK_SIZE as u64)
            || inside(self.message_start.get(), self.message_length.get())
            || context()
            || self
                .windows
                .iter()
                .any(|(window, writable)| (*writable || !write) && inside(window.start, window.end - window.start))
    }

    /// An argument that the verifier has proved, or that is checked here.
    fn argument(&self, address: u64, length: usize, write: bool) -> Result<(), OutOfReach> {
        if !self.checked || length == 0 || self.holds(address, length as u64, write) { Ok(()) } else { Err(OutOfReach) }
    }

    /// Copies program memory from `address`, an argument of a helper, into `out`.
    pub(crate) fn read(&self, address: u64, out: &mut [u8]) -> Result<(), OutOfReach> {
        self.argument(address, out.len(), false)?;
        // SAFETY: the program owns the source (`argument`; else the verifier has proved it: see the module). It is mapped and initialised
        // (zeroed at first), and no part of `out`, which is a Rust slice.
        unsafe { out.as_mut_ptr().copy_from(std::ptr::with_exposed_provenance(address as usize), out.len()) };
        Ok(())
    }

    /// As [`read`](Self::read), where the verifier has proved nothing (`%s` of `bpf_trace_printk`): looked up in either mode.
    pub(crate) fn read_unproved(&self, address: u64, out: &mut [u8]) -> Result<(), OutOfReach> {
        if !self.holds(address, out.len() as u64, false) {
            return Err(OutOfReach);
        }
        self.read(address, out)
    }

    /// Copies `bytes` to program memory at `address`, an argument of a helper.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), OutOfReach> {
        self.argument(address, bytes.len(), true)?;
        let destination = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
        // SAFETY: as in `read`, the other way round.
        unsafe { destination.copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Copies `length` bytes from one place of program memory to another, both arguments of a helper; the two may overlap.
    pub(crate) fn copy(&self, from: u64, to: u64, length: usize) -> Result<(), OutOfReach> {
        self.argument(from, length, false)?;
        self.argument(to, length, true)?;
        let source = std::ptr::with_exposed_provenance::<u8>(from as usize);
        let destination = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
        // SAFETY: both ranges belong to the program, as in `read`; `copy_to` allows them to overlap.
        unsafe { source.copy_to(destination, length) };
        Ok(())
    }

    /// Puts `value` into the 32-bit word at `address`, an argument of a helper; what was there before.
    pub(crate) fn exchange(&self, address: u64, value: u32) -> Result<u32, OutOfReach> {
        self.argument(address, 4, true)?;
        if !address.is_multiple_of(4) {
            return Err(OutOfReach);
        }
        // SAFETY: the word belongs to the program, as in `read`, and is aligned; others that touch it meanwhile do so from programs.
        let word = unsafe { AtomicU32::from_ptr(std::ptr::with_exposed_provenance_mut(address as usize)) };
        Ok(word.swap(value, Ordering::SeqCst))
    }

    /// An address at which the program can read `index`, until it is shown another one of the same frame.
    pub(crate) fn show_index(&self, index: u32) -> u64 {
        let depth = (self.stack_start + STACK_SIZE as u64 - self.frame.get()) / FRAME_SIZE as u64;
        let address = self.stack_start + 8 * depth;
        // SAFETY: a word of the lowest frame of the run's stack, which no function gets: calls need room for more frames above it.
        unsafe { std::ptr::with_exposed_provenance_mut::<u32>(address as usize).write(index) };
        address
    }

    /// Calls the function that the program gave as `callback`, with registers 1 to 4, in a frame of its own. Pays for it from the budget.
    pub(crate) fn call_back(&self, callback: u64, arguments: [u64; 4]) -> Result<u64, Stop> {
        let (function, steps) = self.code.callback(callback).ok_or(Stop::Argument)?;
        let frame = self.frame.get();
        let below = frame - FRAME_SIZE as u64;
        if below < self.stack_start + (MAX_CALL_FRAMES * FRAME_SIZE) as u64 {
            return Err(Stop::Depth);
        }
        let left = self.budget.get() - steps;
        self.budget.set(left);
        if left < 0 {
            return Err(Stop::Steps);
        }
        let [first, second, third, fourth] = arguments;
        // SAFETY: the function is native code of this program, called with its `Run` and a frame that is on the run's stack with room for
        // `MAX_CALL_FRAMES` below it. What it touches is argued in the module.
        let result = unsafe { function(self, first, second, third, fourth, 0, below) };
        self.frame.set(frame);
        if self.fault.get() == 0 { Ok(result) } else { Err(Stop::Noted) }
    }

    /// Runs program `index` of the same object in place of the function that calls the helper (`bpf_tail_call`); none: there is no such
    /// program, or there were too many tail calls.
    pub(crate) fn tail_call(&self, index: u32) -> Result<Option<u64>, Stop> {
        let Some(entry) = self.code.entry(index as usize) else { return Ok(None) };
        if self.tail_calls.get() == MAX_TAIL_CALLS {
            return Ok(None);
        }
        self.tail_calls.set(self.tail_calls.get() + 1);
        if self.frame.get() < self.stack_start + (MAX_CALL_FRAMES * FRAME_SIZE) as u64 {
            return Err(Stop::Depth);
        }
        // SAFETY: as for the entry in `Machine::run`: the context of this run, and a frame with room below it.
        let result = unsafe { entry(self, self.context.get()) };
        if self.fault.get() == 0 { Ok(Some(result)) } else { Err(Stop::Noted) }
    }
}

/// One instance of one program, for one thread at a time.
#[derive(Debug)]
pub(crate) struct Machine {
    run: Box<Run>,
    entry: Entry,
}

impl Machine {
    /// Program `index` of `code`.
    pub(crate) fn new(code: &Arc<Code>, index: usize, environment: Environment) -> Result<Self, MemoryError> {
        let entry = code.entry(index).expect("a program of this code");
        let stack = Region::new(STACK_SIZE)?;
        let windows = environment.maps.windows().collect();
        let run = Run {
            message_start: Cell::new(0),
            message_length: Cell::new(0),
            stack_start: stack.address(),
            context: Cell::new(0),
            frame: Cell::new(0),
            budget: Cell::new(0),
            steps: Cell::new(0),
            fault: Cell::new(0),
            detail: Cell::new(0),
            tail_calls: Cell::new(0),
            checked: code.mode().checked,
            _stack: stack,
            frame_size: code.frame_size(index),
            windows,
            code: Arc::clone(code),
            environment,
        };
        Ok(Self { run: Box::new(run), entry })
    }

    /// What helpers work on.
    pub(crate) fn environment(&self) -> &Environment {
        &self.run.environment
    }

    /// The same, to be changed between runs.
    pub(crate) fn environment_mut(&mut self) -> &mut Environment {
        &mut self.run.environment
    }

    /// Instructions of the last run, if the code counts them.
    pub(crate) fn steps(&self) -> u64 {
        self.run.steps.get()
    }

    /// Runs the program on the bytes `range` of `buffer`, which `context` shows. The result is register 0.
    pub(crate) fn run(
        &mut self,
        context: &mut ContextImage,
        buffer: &mut MessageBuffer,
        range: Range<usize>,
    ) -> Result<u64, ProgramFault> {
        assert!(range.start <= range.end && range.end <= buffer.capacity(), "a message beyond its buffer");
        let run = &*self.run;
        let top = run.stack_start + STACK_SIZE as u64;
        run.message_start.set(u64::from(buffer.address(range.start)));
        run.message_length.set(range.len() as u64);
        let context = (&raw mut *context).expose_provenance() as u64;
        run.context.set(context);
        run.frame.set(top);
        run.budget.set(STEP_LIMIT);
        run.fault.set(0);
        run.tail_calls.set(0);
        run.steps.set(0);
        if run.checked && run.frame_size > 0 {
            let first = top as usize - run.frame_size;
            // SAFETY: the upper end of the run's stack, which nothing refers to between runs.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(first).write_bytes(0, run.frame_size) };
        }
        // SAFETY: `entry` is native code of `run.code`, which lives as long as `run`. `context` and `buffer` are borrowed for the call and
        // nobody else refers to them; what else it touches belongs to `run` and its maps. See the module for why it stays within these.
        let result = unsafe { (self.entry)(run, context) };
        crate::helpers::give_back(run);
        run.message_length.set(0);
        match run.fault.get() {
            0 => Ok(result),
            fault => Err(self.fault(fault.into())),
        }
    }

    fn fault(&self, fault: i64) -> ProgramFault {
        let detail = self.run.detail.get();
        match fault {
            fault::READ => ProgramFault::OutOfBounds { write: false, instruction: detail },
            fault::WRITE => ProgramFault::OutOfBounds { write: true, instruction: detail },
            fault::MISALIGNED => ProgramFault::Misaligned { instruction: detail },
            fault::ARGUMENT => ProgramFault::BadArgument { helper: detail },
            fault::DEPTH => ProgramFault::TooDeep,
            _ => ProgramFault::StepLimit,
        }
    }
}

/// Whether the running program may touch `size` bytes at `address`: 1 or 0. Native code asks when its own comparison has failed.
pub(super) extern "C" fn may_touch(run: &Run, address: u64, size: u64, write: u64) -> u64 {
    u64::from(run.holds(address, size, write != 0))
}

/// Legacy packet access (`BPF_ABS`, `BPF_IND`): `size` bytes of the message at `offset`, in network byte order, as a number; -1 if they are
/// not there.
pub(super) extern "C" fn load_packet(run: &Run, offset: u64, size: u64) -> u64 {
    let (start, length) = run.message();
    // The kernel takes the sum as a signed 32-bit number; negative ones mean headers, which a message does not have.
    let offset = u64::from(offset as u32);
    if offset > i32::MAX as u64 || offset + size > length {
        return u64::MAX;
    }
    let mut bytes = [0; 8];
    match run.read(start + offset, &mut bytes[8 - size as usize..]) {
        Ok(()) => u64::from_be_bytes(bytes),
        Err(OutOfReach) => u64::MAX,
    }
}
