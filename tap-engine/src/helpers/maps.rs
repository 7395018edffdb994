//! Helpers on maps.

use super::{NO_TAIL_CALL, Outcome, error};
use crate::machine::{OutOfReach, Run, Stop};

/// `void *bpf_map_lookup_elem(map, key)`: the value's address, or null.
pub(super) fn lookup(run: &Run, [map, key, ..]: [u64; 5]) -> Outcome {
    let map = run.environment.maps.resolve(map).ok_or(Stop::Argument)?;
    Ok(map.value_address(read_u32(run, key)?).unwrap_or(0))
}

/// `long bpf_map_update_elem(map, key, value, flags)`, as `array_map_update_elem`.
pub(super) fn update(run: &Run, [map, key, value, flags, _]: [u64; 5]) -> Outcome {
    const BPF_NOEXIST: u64 = 1;
    const BPF_EXIST: u64 = 2;
    let map = run.environment.maps.resolve(map).ok_or(Stop::Argument)?;
    let index = read_u32(run, key)?;
    if flags > BPF_EXIST {
        return Ok(error(libc::EINVAL));
    }
    let Some(address) = map.value_address(index) else { return Ok(error(libc::E2BIG)) };
    if flags == BPF_NOEXIST {
        return Ok(error(libc::EEXIST));
    }
    run.copy(value, address, map.value_size())?;
    Ok(0)
}

/// `long bpf_tail_call(context, map, index)`.
pub(super) fn tail_call(run: &Run, [_, _map, index, ..]: [u64; 5]) -> Outcome {
    Ok(run.tail_call(index as u32)?.unwrap_or(NO_TAIL_CALL))
}

fn read_u32(run: &Run, address: u64) -> Result<u32, OutOfReach> {
    let mut bytes = [0; 4];
    run.read(address, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes))
}
