//! What runs programs: native code, and the memory that it touches. All `unsafe` of this crate is in here.
//!
//! ```text
//!   linked instructions ── compile ──▶ Code: executable pages (never writable), shared by all threads
//!                                        │ Machine: one instance of one program
//!                                        ▼
//!   run(context, message) ──▶ native code ──▶ memory: stack, context, message, values of maps
//!                                  │ ▲
//!                                  ▼ │ helpers (safe code), which reach program memory through `Run`
//! ```
//!
//! Why native code can do no harm. A program is compiled in one of two modes.
//!
//! - *Checked*: an access that is not proved to be good when it is compiled ([`kinds`]: frame pointer or context, and a constant)
//!   is compared with the memory that the program has ([`Run`]) just before it is made. What is beyond is a fault: the code
//!   notes it and returns. Jumps stay in their function and calls lead to functions, which
//!   [`Functions`](crate::functions::Functions) has checked; the depth of calls is bounded by it and by the helpers that call back; each
//!   jump backward and each call pays for the instructions that it can lead to from the run's budget. So a checked program can neither
//!   touch other memory, nor run away, whatever its instructions are.
//! - *Verified*: the kernel's verifier has accepted these very instructions, with maps of the same sizes. It has proved that each
//!   access is within the stack frame, the packet (between `data` and `data_end`), the context's fields, or a map value; that helpers are
//!   given addresses of enough memory; and that the program comes to an end. The memory here has the shapes that it assumes: frames of
//!   512 bytes that do not overlap, `data..data_end` is the message, values stay mapped as long as any instance of
//!   the program, `.rodata` holds what the verifier saw and cannot be written any more. What the verifier leaves to the running kernel is done
//!   here: division by zero, the number of tail calls and of callbacks. Fields whose pointers would lead elsewhere
//!   (`sk`, `flow_keys`) are null, and programs that use kernel functions or kernel variables are refused when they are loaded.
//!
//! Code pages are executable and never writable at the same time (`cranelift-jit` writes them first, then protects them). Native
//! code is called with the addresses of a [`Run`] and of a context that outlive the call, and no Rust reference to memory that it writes exists
//! meanwhile, other than to `Cell`s and what `Machine::run` borrows for it.

#![allow(unsafe_code)]

mod access;
mod arithmetic;
mod code;
mod compile;
mod kinds;
mod memory;
mod run;
mod translate;

pub(crate) use code::{Code, Mode};
pub(crate) use memory::Region;
pub use memory::{MemoryError, MessageBuffer};
pub(crate) use run::{Machine, OutOfReach, Run, STEP_LIMIT, Stop};
