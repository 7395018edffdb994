//! The kernel's helper functions that programs may call.
//!
//! Native code calls each with the program's [`Run`] and registers 1 to 5. A helper reaches program memory through the run only; an address
//! that the program does not have ends it with a fault, where the kernel's verifier has not proved it good before.

mod maps;
mod packet;
mod text;

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::machine::{Run, Stop};
use crate::maps::{MAX_KEY, Maps};
use crate::names;
use crate::print::PrintLog;

/// A helper as native code calls it.
pub(crate) type Helper = extern "C" fn(&Run, u64, u64, u64, u64, u64) -> u64;

/// What `bpf_tail_call` gives to native code if there is nothing to run: it goes on.
pub(crate) const NO_TAIL_CALL: u64 = 0xb9f0_5e7c_0000_0001;

/// What a helper does with its registers. The result goes to register 0.
type Outcome = Result<u64, Stop>;

/// What helpers work on, beside program memory.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) maps: Arc<Maps>,
    pub(crate) printed: Arc<PrintLog>,
    /// The program's name, for what it prints.
    pub(crate) function: String,
    /// `bpf_ktime_get_ns` during this run.
    pub(crate) now_ns: Cell<u64>,
    /// State of `bpf_get_prandom_u32`.
    pub(crate) random: Cell<u64>,
    /// The worker's number, which is the CPU that the program sees.
    pub(crate) cpu: u32,
    /// Copies of keys and values that are given to helpers.
    scratch: RefCell<Scratch>,
    held: RefCell<Held>,
}

/// What the running program has to give back: others wait for it.
#[derive(Debug)]
struct Held {
    /// Addresses of records that it has reserved and not ended.
    records: Vec<u64>,
    /// The address of the lock that it has taken.
    lock: Option<u64>,
}

#[derive(Debug)]
struct Scratch {
    key: [u8; MAX_KEY],
    value: Box<[u8]>,
}

impl Environment {
    /// What a program of the name `function` works on.
    pub(crate) fn new(maps: Arc<Maps>, printed: Arc<PrintLog>, function: String) -> Self {
        let longest = maps.all().iter().map(|map| map.definition().value_size).max().unwrap_or(0);
        let scratch = Scratch { key: [0; MAX_KEY], value: vec![0; longest as usize].into() };
        let (now_ns, random) = (Cell::new(0), Cell::new(0));
        let held = Held { records: Vec::with_capacity(maps::MAX_RECORDS), lock: None };
        let (scratch, held) = (RefCell::new(scratch), RefCell::new(held));
        Self { maps, printed, function, now_ns, random, cpu: 0, scratch, held }
    }
}

/// Gives back what a run has left behind: one that ended with a fault, or that no verifier has seen.
pub(crate) fn give_back(run: &Run) {
    let held = run.environment.held.borrow();
    if held.lock.is_some() || !held.records.is_empty() {
        drop(held);
        maps::give_back(run);
    }
}

pub(crate) const MAP_LOOKUP_ELEM: u32 = 1;
pub(crate) const TAIL_CALL: u32 = 12;
const FOR_EACH_MAP_ELEM: u32 = 164;
const LOOP: u32 = 181;

/// Declares helpers: number, function of the run and registers 1 to 5, and whether it is given addresses.
macro_rules! helpers {
    ($($value:tt: $function:path, $addresses:literal;)*) => {
        /// The kernel's number, the function, and whether it is given addresses, which can be wrong.
        const SUPPORTED: &[(u32, Helper, bool)] = &[$(($value, {
            extern "C" fn enter(run: &Run, first: u64, second: u64, third: u64, fourth: u64, fifth: u64) -> u64 {
                match $function(run, [first, second, third, fourth, fifth]) {
                    Ok(result) => result,
                    Err(stop) => {
                        run.stop($value, stop);
                        0
                    }
                }
            }
            enter
        }, $addresses)),*];
    };
}

helpers! {
    MAP_LOOKUP_ELEM: maps::lookup, true;
    2: maps::update, true;
    3: maps::delete, true;
    5: ktime_get_ns, false;
    6: text::trace_printk, true;
    7: get_prandom_u32, false;
    8: get_smp_processor_id, false;
    9: packet::store_bytes, true;
    TAIL_CALL: maps::tail_call, true;
    26: packet::load_bytes, true;
    28: packet::csum_diff, true;
    39: packet::pull_data, false;
    42: get_numa_node_id, false;
    46: packet::socket_cookie, false;
    52: maps::redirect, true;
    72: maps::redirect, true;
    93: maps::spin_lock, true;
    94: maps::spin_unlock, true;
    105: text::strtol, true;
    106: text::strtoul, true;
    125: ktime_get_ns, false;
    130: maps::ringbuf_output, true;
    131: maps::ringbuf_reserve, true;
    132: maps::ringbuf_submit, true;
    133: maps::ringbuf_discard, true;
    134: maps::ringbuf_query, true;
    160: ktime_get_ns, false;
    FOR_EACH_MAP_ELEM: maps::for_each, true;
    165: text::snprintf, true;
    177: text::trace_vprintk, true;
    LOOP: call_in_loop, true;
    182: text::strncmp, true;
    195: maps::lookup_percpu, true;
}

/// Whether programs may call helper `number`.
pub(crate) fn is_supported(number: u32) -> bool {
    find(number).is_some()
}

/// Whether helper `number` is given addresses or the like, which can be wrong.
pub(crate) fn takes_address(number: u32) -> bool {
    find(number).is_some_and(|(_, _, addresses)| *addresses)
}

/// Whether helper `number` runs functions of the program, which can have faults of their own.
pub(crate) fn calls_back(number: u32) -> bool {
    matches!(number, TAIL_CALL | FOR_EACH_MAP_ELEM | LOOP)
}

/// The native address of helper `number`.
pub(crate) fn address(number: u32) -> Option<usize> {
    find(number).map(|(_, helper, _)| *helper as *const () as usize)
}

fn find(number: u32) -> Option<&'static (u32, Helper, bool)> {
    SUPPORTED.iter().find(|(supported, _, _)| *supported == number)
}

/// The names of all that programs may call.
pub(crate) fn supported_names() -> String {
    SUPPORTED.iter().map(|(number, _, _)| names::helper(*number)).collect::<Vec<_>>().join(", ")
}

/// What the kernel's functions return for an error: `-errno`.
fn error(errno: i32) -> u64 {
    (-i64::from(errno)) as u64
}

/// `u64 bpf_ktime_get_ns()`; with suspended time, or coarser, it is the same here.
fn ktime_get_ns(run: &Run, _: [u64; 5]) -> Outcome {
    Ok(run.environment.now_ns.get())
}

/// `u32 bpf_get_prandom_u32()`: splitmix64 of a seed that the program's owner gives.
fn get_prandom_u32(run: &Run, _: [u64; 5]) -> Outcome {
    let state = run.environment.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
    run.environment.random.set(state);
    let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    Ok(u64::from((mixed ^ mixed >> 31) as u32))
}

/// `u32 bpf_get_smp_processor_id()`: a worker is a CPU.
fn get_smp_processor_id(run: &Run, _: [u64; 5]) -> Outcome {
    Ok(run.environment.cpu.into())
}

/// `long bpf_get_numa_node_id()`: all workers are near.
fn get_numa_node_id(_: &Run, _: [u64; 5]) -> Outcome {
    Ok(0)
}

/// `long bpf_loop(u32 turns, void *callback, void *context, u64 flags)`.
fn call_in_loop(run: &Run, [turns, callback, context, flags, _]: [u64; 5]) -> Outcome {
    const MAX_LOOPS: u32 = 8 << 20;
    let turns = turns as u32;
    if flags != 0 {
        return Ok(error(libc::EINVAL));
    }
    if turns > MAX_LOOPS {
        return Ok(error(libc::E2BIG));
    }
    for turn in 0..turns {
        // 0: go on; 1: enough.
        if run.call_back(callback, [turn.into(), context, 0, 0])? != 0 {
            return Ok(u64::from(turn) + 1);
        }
    }
    Ok(turns.into())
}
