//! The kernel's helper functions that programs may call.
//!
//! rbpf's helpers are plain functions of five numbers. What they work on is the [`Environment`] of the program that runs on
//! this thread. A helper trusts no argument: every address is looked up in the program's [`Reach`], and a wrong one ends the
//! program with a fault, as the kernel's verifier would have refused it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use crate::maps::Maps;
use crate::memory::{OutOfReach, Reach};
use crate::names;
use crate::print::{PrintLog, format_printk};
use crate::program::ProgramFault;

/// Number of the helper that lowered programs call at their beginning, to tell their stack; no program may call it itself.
pub(crate) const ENTER: u32 = 0x7374_6101;
/// Number of the helper that lowered programs call before each jump backward and in each function; nor this.
pub(crate) const BUDGET: u32 = 0x7374_6102;

/// Jumps backward and calls of its own functions that a program may make in one run. The kernel's verifier walks each path
/// of a program to its end, in at most this many instructions, so a verified program does not get there.
pub(crate) const LOOP_LIMIT: u32 = 1_000_000;

type Helper = fn(u64, u64, u64, u64, u64) -> u64;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const KTIME_GET_NS: u32 = 5;
const TRACE_PRINTK: u32 = 6;
const GET_PRANDOM_U32: u32 = 7;
const SKB_LOAD_BYTES: u32 = 26;
const SKB_PULL_DATA: u32 = 39;

/// Those that programs may call, by the kernel's numbers.
const SUPPORTED: [(u32, Helper); 7] = [
    (MAP_LOOKUP_ELEM, map_lookup_elem),
    (MAP_UPDATE_ELEM, map_update_elem),
    (KTIME_GET_NS, ktime_get_ns),
    (TRACE_PRINTK, trace_printk),
    (GET_PRANDOM_U32, get_prandom_u32),
    (SKB_LOAD_BYTES, skb_load_bytes),
    (SKB_PULL_DATA, skb_pull_data),
];

/// Whether programs may call helper `number`.
pub(crate) fn is_supported(number: u32) -> bool {
    SUPPORTED.iter().any(|(supported, _)| *supported == number)
}

/// Whether helper `number` is given addresses, which can be on the stack.
pub(crate) fn takes_address(number: u32) -> bool {
    !matches!(number, KTIME_GET_NS | GET_PRANDOM_U32 | SKB_PULL_DATA)
}

/// The names of all that programs may call.
pub(crate) fn supported_names() -> String {
    SUPPORTED.map(|(number, _)| names::helper(number)).join(", ")
}

/// All that lowered bytecode calls.
pub(crate) fn all() -> impl Iterator<Item = (u32, Helper)> {
    SUPPORTED.into_iter().chain([(ENTER, enter as Helper), (BUDGET, budget)])
}

/// What the helpers of one program instance work on.
#[derive(Debug)]
pub(crate) struct Environment {
    pub(crate) maps: Arc<Maps>,
    pub(crate) reach: Reach,
    pub(crate) printed: Arc<PrintLog>,
    /// The program's name, for what it prints.
    pub(crate) function: String,
    /// `bpf_ktime_get_ns` during this run.
    pub(crate) now_ns: Cell<u64>,
    /// State of `bpf_get_prandom_u32`.
    pub(crate) random: Cell<u64>,
    /// The first fault that a helper found in this run.
    pub(crate) fault: Cell<Option<ProgramFault>>,
}

thread_local! {
    /// The program that runs on this thread.
    static RUNNING: RefCell<Option<Rc<Environment>>> = const { RefCell::new(None) };
    /// What is left of its [`LOOP_LIMIT`]; apart, because it is asked in every turn of every loop.
    static LEFT: Cell<u32> = const { Cell::new(0) };
}

/// Runs `execute` with `environment` as that of this thread's running program.
pub(crate) fn run<R>(environment: &Rc<Environment>, now_ns: u64, execute: impl FnOnce() -> R) -> R {
    /// Ends the run, however `execute` ends.
    struct Close;
    impl Drop for Close {
        fn drop(&mut self) {
            RUNNING.with_borrow_mut(|running| *running = None);
        }
    }
    environment.now_ns.set(now_ns);
    environment.fault.set(None);
    LEFT.set(LOOP_LIMIT);
    RUNNING.with_borrow_mut(|running| *running = Some(Rc::clone(environment)));
    let _close = Close;
    execute()
}

/// Works with the running program's environment. A wrong address becomes its fault, and the program comes to its end soon.
fn with_running(helper: u32, work: impl FnOnce(&Environment) -> Result<i64, OutOfReach>) -> u64 {
    RUNNING.with_borrow(|running| {
        let Some(environment) = running else { return 0 };
        work(environment).unwrap_or_else(|OutOfReach| {
            stop(environment, ProgramFault::BadArgument { helper });
            0
        }) as u64
    })
}

fn stop(environment: &Environment, fault: ProgramFault) {
    environment.fault.set(environment.fault.get().or(Some(fault)));
    LEFT.set(0);
}

fn enter(_context: u64, register_10: u64, _: u64, _: u64, _: u64) -> u64 {
    with_running(ENTER, |environment| {
        environment.reach.open_stack(register_10);
        Ok(0)
    })
}

/// 1 = go on, 0 = return.
fn budget(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    match LEFT.get() {
        0 => with_running(BUDGET, |environment| {
            stop(environment, ProgramFault::LoopLimit);
            Ok(0)
        }),
        left => {
            LEFT.set(left - 1);
            1
        }
    }
}

/// `void *bpf_map_lookup_elem(map, key)`: the value's address, or null.
fn map_lookup_elem(map: u64, key: u64, _: u64, _: u64, _: u64) -> u64 {
    with_running(MAP_LOOKUP_ELEM, |environment| {
        let map = environment.maps.resolve(map).ok_or(OutOfReach)?;
        Ok(map.value_address(read_u32(environment, key)?).unwrap_or(0) as i64)
    })
}

/// `long bpf_map_update_elem(map, key, value, flags)`, as `array_map_update_elem`.
fn map_update_elem(map: u64, key: u64, value: u64, flags: u64, _: u64) -> u64 {
    const BPF_NOEXIST: u64 = 1;
    const BPF_EXIST: u64 = 2;
    with_running(MAP_UPDATE_ELEM, |environment| {
        let map = environment.maps.resolve(map).ok_or(OutOfReach)?;
        let index = read_u32(environment, key)?;
        if flags > BPF_EXIST {
            return Ok(-i64::from(libc::EINVAL));
        }
        let Some(address) = map.value_address(index) else { return Ok(-i64::from(libc::E2BIG)) };
        if flags == BPF_NOEXIST {
            return Ok(-i64::from(libc::EEXIST));
        }
        environment.reach.copy(value, address, map.value_size())?;
        Ok(0)
    })
}

fn ktime_get_ns(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    with_running(KTIME_GET_NS, |environment| Ok(environment.now_ns.get() as i64))
}

/// splitmix64 of a seed that the program's owner gives.
fn get_prandom_u32(_: u64, _: u64, _: u64, _: u64, _: u64) -> u64 {
    with_running(GET_PRANDOM_U32, |environment| {
        let state = environment.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        environment.random.set(state);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        Ok(i64::from((mixed ^ mixed >> 31) as u32))
    })
}

/// `long bpf_trace_printk(format, size, ...)`: what is printed is a log event, and is kept with the object.
fn trace_printk(format: u64, size: u64, first: u64, second: u64, third: u64) -> u64 {
    const LONGEST_FORMAT: usize = 512;
    with_running(TRACE_PRINTK, |environment| {
        let mut bytes = [0; LONGEST_FORMAT];
        let size = size as u32 as usize;
        let Some(bytes) = bytes.get_mut(..size) else { return Ok(-i64::from(libc::EINVAL)) };
        environment.reach.read(format, bytes)?;
        let mut read_byte = |address| {
            let mut byte = [0];
            environment.reach.read(address, &mut byte).map(|()| byte[0])
        };
        match format_printk(bytes, [first, second, third], &mut read_byte)? {
            Some(text) => {
                let length = text.len();
                environment.printed.push(&environment.function, text);
                Ok(length as i64)
            }
            None => Ok(-i64::from(libc::EINVAL)),
        }
    })
}

/// `long bpf_skb_load_bytes(skb, offset, to, length)`.
fn skb_load_bytes(_context: u64, offset: u64, to: u64, length: u64, _: u64) -> u64 {
    with_running(SKB_LOAD_BYTES, |environment| {
        let (offset, length) = (u64::from(offset as u32), u64::from(length as u32));
        let (message, available) = environment.reach.message();
        if offset + length > available {
            // The kernel clears what it cannot fill.
            let zeros = [0; 64];
            for done in (0..length).step_by(zeros.len()) {
                let part = (length - done).min(zeros.len() as u64) as usize;
                environment.reach.write(to + done, &zeros[..part])?;
            }
            return Ok(-i64::from(libc::EFAULT));
        }
        environment.reach.copy(message + offset, to, length as usize)?;
        Ok(0)
    })
}

/// `long bpf_skb_pull_data(skb, length)`: a message is contiguous already.
fn skb_pull_data(_context: u64, length: u64, _: u64, _: u64, _: u64) -> u64 {
    with_running(SKB_PULL_DATA, |environment| {
        let (_, available) = environment.reach.message();
        Ok(if u64::from(length as u32) > available { -i64::from(libc::ENOMEM) } else { 0 })
    })
}

fn read_u32(environment: &Environment, address: u64) -> Result<u32, OutOfReach> {
    let mut bytes = [0; 4];
    environment.reach.read(address, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}
