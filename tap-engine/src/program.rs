//! One function of an object, ready to run on one thread.

use std::ops::Range;
use std::sync::Arc;

use crate::context::FlowInfo;
use crate::helpers::Environment;
use crate::machine::{Code, Machine, MemoryError, MessageBuffer, STEP_LIMIT};
use crate::names;
use crate::object::Kind;

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
    /// An atomic operation on an address that is no multiple of its size.
    #[error("an atomic operation on a misaligned address, at instruction {instruction}")]
    Misaligned {
        /// The instruction's number in the linked program, from 0.
        instruction: u32,
    },
    /// It gave a helper an address outside of its memory, or something that is no map.
    #[error("a bad argument of {}", names::helper(*.helper))]
    BadArgument {
        /// The kernel's number of the helper.
        helper: u32,
    },
    /// It, or the functions that it had helpers call, did not come to an end.
    #[error("no end after {STEP_LIMIT} instructions")]
    StepLimit,
    /// Callbacks or tail calls within callbacks were nested too deep.
    #[error("calls are nested too deep")]
    TooDeep,
}

/// One function of an [`Object`](crate::Object), for one thread at a time. Instances share the object's maps, global variables and code,
/// and nothing else.
#[derive(Debug)]
pub struct Program {
    kind: Kind,
    machine: Machine,
    writes_context: bool,
}

impl Program {
    /// An instance of program `index` of `code`.
    pub(crate) fn new(
        kind: Kind,
        code: &Arc<Code>,
        index: usize,
        environment: Environment,
    ) -> Result<Self, MemoryError> {
        let writes_context = code.writes_context(index);
        Ok(Self { kind, machine: Machine::new(code, index, environment)?, writes_context })
    }

    /// What it was made for.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its name.
    pub fn function(&self) -> &str {
        &self.machine.environment().function
    }

    /// From now on `bpf_get_prandom_u32` gives the numbers that follow from `seed`. Before, those of seed 0.
    pub fn seed_random(&mut self, seed: u64) {
        self.machine.environment_mut().random.set(seed);
    }

    /// From now on it runs on CPU `cpu`, which is a worker: it chooses the values of per-CPU maps. Before, on CPU 0.
    pub fn on_cpu(&mut self, cpu: u32) {
        self.machine.environment_mut().cpu = cpu;
    }

    /// Whether it may write to its context.
    pub(crate) fn writes_context(&self) -> bool {
        self.writes_context
    }

    /// Instructions of the last run, if the object counts them; else 0.
    pub fn steps(&self) -> u64 {
        self.machine.steps()
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
        flow: &mut FlowInfo,
        now_ns: u64,
        buffer: &mut MessageBuffer,
        range: Range<usize>,
    ) -> Result<u32, ProgramFault> {
        assert!(range.start <= range.end && range.end <= buffer.capacity(), "a message beyond its buffer");
        flow.show(buffer.address(range.start), range.len() as u32);
        self.machine.environment().now_ns.set(now_ns);
        self.machine.run(flow.image_mut(), buffer, range).map(|result| result as u32)
    }
}
