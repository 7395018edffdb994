//! Helpers on maps.

use std::ops::ControlFlow;

use super::{NO_TAIL_CALL, Outcome, error};
use crate::machine::{Run, Stop};
use crate::maps::{ElementKey, Map, Ring};

/// Turns that a program waits for a lock: the verifier proves that locks are given back soon.
const LOCK_TURNS: u32 = 1 << 22;

/// Records that one run may have reserved and not ended.
pub(super) const MAX_RECORDS: usize = 64;

fn resolve(run: &Run, handle: u64) -> Result<&Map, Stop> {
    run.environment.maps.resolve(handle).ok_or(Stop::Argument)
}

/// Calls `work` with a copy of the key at `address`.
fn with_key<R>(run: &Run, map: &Map, address: u64, work: impl FnOnce(&[u8]) -> R) -> Result<R, Stop> {
    let mut scratch = run.environment.scratch.borrow_mut();
    // No map has longer keys.
    let key = &mut scratch.key[..map.definition().key_size as usize];
    run.read(address, key)?;
    Ok(work(key))
}

fn errno(result: Result<(), i32>) -> u64 {
    result.map_or_else(error, |()| 0)
}

/// `void *bpf_map_lookup_elem(map, key)`: the value's address, or null.
pub(super) fn lookup(run: &Run, [map, key, ..]: [u64; 5]) -> Outcome {
    let map = resolve(run, map)?;
    with_key(run, map, key, |key| map.lookup(key, run.environment.cpu).unwrap_or(0))
}

/// `void *bpf_map_lookup_percpu_elem(map, key, cpu)`: the value of another CPU.
pub(super) fn lookup_percpu(run: &Run, [map, key, cpu, ..]: [u64; 5]) -> Outcome {
    let map = resolve(run, map)?;
    let cpu = cpu as u32;
    if cpu >= map.cpus() {
        return Ok(0);
    }
    with_key(run, map, key, |key| map.lookup(key, cpu).unwrap_or(0))
}

/// `long bpf_map_update_elem(map, key, value, flags)`.
pub(super) fn update(run: &Run, [map, key, value, flags, _]: [u64; 5]) -> Outcome {
    let map = resolve(run, map)?;
    if map.is_read_only() {
        return Ok(error(libc::EPERM));
    }
    let mut scratch = run.environment.scratch.borrow_mut();
    let super::Scratch { key: key_room, value: value_room } = &mut *scratch;
    let definition = map.definition();
    let key_copy = &mut key_room[..definition.key_size as usize];
    let value_copy = &mut value_room[..definition.value_size as usize];
    run.read(key, key_copy)?;
    run.read(value, value_copy)?;
    Ok(errno(map.update(key_copy, value_copy, flags, run.environment.cpu)))
}

/// `long bpf_map_delete_elem(map, key)`.
pub(super) fn delete(run: &Run, [map, key, ..]: [u64; 5]) -> Outcome {
    let map = resolve(run, map)?;
    if map.is_read_only() {
        return Ok(error(libc::EPERM));
    }
    with_key(run, map, key, |key| errno(map.delete_elem(key)))
}

/// `long bpf_for_each_map_elem(map, callback, context, flags)`: `callback(map, key, value, context)` until it returns 1.
pub(super) fn for_each(run: &Run, [handle, callback, context, flags, _]: [u64; 5]) -> Outcome {
    let map = resolve(run, handle)?;
    if flags != 0 {
        return Ok(error(libc::EINVAL));
    }
    let visited = map.for_each(run.environment.cpu, &mut |key, value| {
        let key = match key {
            ElementKey::Address(address) => address,
            ElementKey::Index(index) => run.show_index(index),
        };
        let result = run.call_back(callback, [handle, key, value, context])?;
        Ok::<_, Stop>(if result == 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
    })?;
    Ok(visited.map_or_else(error, u64::from))
}

/// `long bpf_tail_call(context, map, index)`.
pub(super) fn tail_call(run: &Run, [_, map, index, ..]: [u64; 5]) -> Outcome {
    match resolve(run, map)?.program_at(index as u32) {
        Some(program) => Ok(run.tail_call(program)?.unwrap_or(NO_TAIL_CALL)),
        None => Ok(NO_TAIL_CALL),
    }
}

/// `long bpf_sk_redirect_map(skb, map, key, flags)`, `bpf_sk_redirect_hash`: there are no sockets here, so what the kernel gives where none is found.
pub(super) fn redirect(run: &Run, [_, map, ..]: [u64; 5]) -> Outcome {
    const SK_DROP: u64 = 0;
    resolve(run, map)?;
    Ok(SK_DROP)
}

fn ring(run: &Run, handle: u64) -> Result<&Ring, Stop> {
    resolve(run, handle)?.ring().ok_or(Stop::Argument)
}

/// `long bpf_ringbuf_output(ring, data, size, flags)`.
pub(super) fn ringbuf_output(run: &Run, [map, data, size, flags, _]: [u64; 5]) -> Outcome {
    let ring = ring(run, map)?;
    if !are_flags(flags) {
        return Ok(error(libc::EINVAL));
    }
    let Some(address) = ring.reserve(size) else { return Ok(error(libc::EAGAIN)) };
    let copied = run.copy(data, address, size as usize);
    ring.end(address, copied.is_ok());
    copied?;
    Ok(0)
}

/// `void *bpf_ringbuf_reserve(ring, size, flags)`. A run that holds [`MAX_RECORDS`] finds no room.
pub(super) fn ringbuf_reserve(run: &Run, [map, size, flags, ..]: [u64; 5]) -> Outcome {
    let ring = ring(run, map)?;
    let records = &mut run.environment.held.borrow_mut().records;
    if flags != 0 || records.len() == MAX_RECORDS {
        return Ok(0);
    }
    let record = ring.reserve(size);
    records.extend(record);
    Ok(record.unwrap_or(0))
}

/// `void bpf_ringbuf_submit(data, flags)`.
pub(super) fn ringbuf_submit(run: &Run, [data, ..]: [u64; 5]) -> Outcome {
    end_record(run, data, true)
}

/// `void bpf_ringbuf_discard(data, flags)`.
pub(super) fn ringbuf_discard(run: &Run, [data, ..]: [u64; 5]) -> Outcome {
    end_record(run, data, false)
}

/// Ends the record at `data`, which this run has reserved, whichever ring buffer it is of.
fn end_record(run: &Run, data: u64, submit: bool) -> Outcome {
    let records = &mut run.environment.held.borrow_mut().records;
    let index = records.iter().rposition(|record| *record == data).ok_or(Stop::Argument)?;
    records.swap_remove(index);
    let mut rings = run.environment.maps.all().iter().filter_map(|map| map.ring());
    if rings.any(|ring| ring.end(data, submit)) { Ok(0) } else { Err(Stop::Argument) }
}

/// Discards the records that the run has not ended, so that those behind them come out, and opens its lock.
pub(super) fn give_back(run: &Run) {
    let held = &mut *run.environment.held.borrow_mut();
    for record in held.records.drain(..) {
        run.environment.maps.all().iter().filter_map(|map| map.ring()).any(|ring| ring.end(record, false));
    }
    if let Some(lock) = held.lock.take() {
        // It could be reached when it was taken.
        let _ = run.exchange(lock, 0);
    }
}

/// `u64 bpf_ringbuf_query(ring, what)`.
pub(super) fn ringbuf_query(run: &Run, [map, what, ..]: [u64; 5]) -> Outcome {
    Ok(ring(run, map)?.query(what))
}

/// `BPF_RB_NO_WAKEUP`, `BPF_RB_FORCE_WAKEUP`: the reader comes by itself.
fn are_flags(flags: u64) -> bool {
    flags & !3 == 0
}

/// `long bpf_spin_lock(struct bpf_spin_lock *lock)`, in a map value. A program holds one at a time, else it could wait for itself.
pub(super) fn spin_lock(run: &Run, [lock, ..]: [u64; 5]) -> Outcome {
    let held = &mut run.environment.held.borrow_mut().lock;
    if held.is_some() {
        return Err(Stop::Argument);
    }
    for turn in 1..LOCK_TURNS {
        if run.exchange(lock, 1)? == 0 {
            *held = Some(lock);
            return Ok(0);
        }
        // Whoever holds it may need this core to end.
        if turn.is_multiple_of(64) { std::thread::yield_now() } else { std::hint::spin_loop() }
    }
    Err(Stop::Steps)
}

/// `long bpf_spin_unlock(struct bpf_spin_lock *lock)`.
pub(super) fn spin_unlock(run: &Run, [lock, ..]: [u64; 5]) -> Outcome {
    let held = &mut run.environment.held.borrow_mut().lock;
    if *held != Some(lock) {
        return Err(Stop::Argument);
    }
    run.exchange(lock, 0)?;
    *held = None;
    Ok(0)
}
