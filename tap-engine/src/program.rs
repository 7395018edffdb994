//! One function of an object, ready to run on one thread.
//!
//! This is the only module that knows what runs programs: rbpf's checked interpreter, on bytecode that
//! [`lower`](crate::lower) has made fit for it. Every access of a program is checked: one outside of its stack, its context,
//! its message and its maps is a [`ProgramFault`].

use std::any::Any;
use std::cell::Cell;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use self_cell::self_cell;

use crate::context::{CONTEXT_SIZE, FlowInfo};
use crate::error::LoadError;
use crate::helpers::{self, Environment};
use crate::lower::Bytecode;
use crate::maps::Maps;
use crate::memory::{MessageBuffer, Reach, STACK_SIZE};
use crate::names;
use crate::object::Kind;
use crate::print::PrintLog;

/// What a program did that it must not do. The kernel's verifier refuses such programs; this is what becomes of one that
/// runs unverified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProgramFault {
    /// It read or wrote outside of its memory.
    #[error("{} outside of the program's memory, at instruction {instruction}", if *.write { "a write" } else { "a read" })]
    OutOfBounds {
        /// It wrote.
        write: bool,
        /// The instruction's number in the linked program, from 0.
        instruction: u32,
    },
    /// It gave a helper an address outside of its memory, or something that is no map.
    #[error("a bad argument of {}", names::helper(*.helper))]
    BadArgument {
        /// The kernel's number of the helper.
        helper: u32,
    },
    /// It looped or called its functions a million times.
    #[error("no end after {} jumps backward and calls", helpers::LOOP_LIMIT)]
    LoopLimit,
    /// The engine refused an instruction that had passed the loader's checks.
    #[error("the engine refused an instruction")]
    Engine,
}

/// One function of an [`Object`](crate::Object), instance of the thread that made it: it is not `Send`. Instances share the
/// object's maps and global variables, and nothing else.
pub struct Program {
    kind: Kind,
    environment: Rc<Environment>,
    machine: Machine,
}

type Vm<'a> = rbpf::EbpfVmMbuff<'a>;

self_cell!(
    /// The interpreter and the bytecode that it borrows.
    struct Machine {
        owner: Arc<Bytecode>,
        #[not_covariant]
        dependent: Vm,
    }
);

/// What a program is made of.
pub(crate) struct Parts {
    pub(crate) kind: Kind,
    pub(crate) function: String,
    pub(crate) bytecode: Arc<Bytecode>,
    pub(crate) maps: Arc<Maps>,
    pub(crate) printed: Arc<PrintLog>,
}

impl Program {
    /// An instance for the calling thread. `refused` makes an error of what the interpreter does not like.
    pub(crate) fn new(parts: Parts, refused: impl Fn(String) -> LoadError) -> Result<Self, LoadError> {
        let Parts { kind, function, bytecode, maps, printed } = parts;
        let reach = Reach::new(Arc::clone(maps.regions()), CONTEXT_SIZE)?;
        let machine = Machine::try_new(bytecode, |bytecode| {
            make_vm(bytecode, &maps).map_err(|error| refused(error.to_string()))
        })?;
        let (now_ns, random, fault) = (Cell::new(0), Cell::new(0), Cell::new(None));
        let environment = Rc::new(Environment { maps, reach, printed, function, now_ns, random, fault });
        Ok(Self { kind, environment, machine })
    }

    /// What its section declares.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name.
    pub fn function(&self) -> &str {
        &self.environment.function
    }

    /// From now on `bpf_get_prandom_u32` gives the numbers that follow from `seed`. Before, those of seed 0.
    pub fn seed_random(&mut self, seed: u64) {
        self.environment.random.set(seed);
    }

    /// Runs it on the bytes `range` of `buffer`, which are all that it sees. `now_ns` is what `bpf_ktime_get_ns` returns.
    /// The result is the lower half of register 0, which is all that the kernel looks at too.
    ///
    /// # Errors
    /// What it did that it must not do; whatever it has written until then stays written.
    ///
    /// # Panics
    /// If `range` is not within the buffer.
    pub fn run(
        &mut self,
        flow: &FlowInfo,
        now_ns: u64,
        buffer: &mut MessageBuffer,
        range: Range<usize>,
    ) -> Result<u32, ProgramFault> {
        assert!(range.start <= range.end && range.end <= buffer.capacity(), "a message beyond its buffer");
        let context = flow.context(buffer.address(range.start), range.len() as u32);
        let environment = &self.environment;
        let result = helpers::run(environment, now_ns, || {
            environment.reach.run(&context, buffer, range, |message, context| {
                self.machine.with_dependent(|_, vm| vm.execute_program(message, context))
            })
        });
        match (environment.fault.get(), result) {
            (Some(fault), _) => Err(fault),
            (None, Ok(value)) => Ok(value as u32),
            (None, Err(error)) => Err(self.fault(&error.to_string())),
        }
    }

    /// The interpreter's message as a fault: "Error: out of bounds memory load (insn #7), ...", where 7 is the slot behind.
    fn fault(&self, message: &str) -> ProgramFault {
        let Some(access) = message.split("out of bounds memory ").nth(1) else { return ProgramFault::Engine };
        let slot = access.split("insn #").nth(1).and_then(|rest| rest.split(')').next()?.parse::<usize>().ok());
        let origin = &self.machine.borrow_owner().origin;
        let instruction = slot.and_then(|slot| origin.get(slot.checked_sub(1)?)).copied().unwrap_or(0);
        ProgramFault::OutOfBounds { write: access.starts_with("store"), instruction }
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Program").field("function", &self.function()).field("kind", &self.kind).finish_non_exhaustive()
    }
}

fn make_vm<'a>(bytecode: &'a Bytecode, maps: &Maps) -> Result<Vm<'a>, std::io::Error> {
    let mut vm = rbpf::EbpfVmMbuff::new(Some(&bytecode.bytes))?;
    vm.set_stack_usage_calculator(frame_of, Box::new(bytecode.frame.clone()))?;
    for (number, helper) in helpers::all() {
        vm.register_helper(number, helper)?;
    }
    for map in maps.regions().iter() {
        vm.register_allowed_memory(map.addresses());
    }
    Ok(vm)
}

/// Bytes of stack of the function that `slot` belongs to. `frames` is what `make_vm` gave, in a box, which rbpf lends as it is.
fn frame_of(_: &[u8], slot: usize, frames: &mut dyn Any) -> u16 {
    let boxed = frames.downcast_ref::<Box<dyn Any>>();
    let frames = boxed.and_then(|boxed| boxed.downcast_ref::<Vec<u16>>()).or_else(|| frames.downcast_ref());
    // Beyond the end are only the numbers that rbpf takes for slots where a helper is called: nothing runs there.
    frames.and_then(|frames| frames.get(slot)).copied().unwrap_or(STACK_SIZE as u16)
}
