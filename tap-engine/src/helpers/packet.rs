//! Helpers on the message, which is the packet that programs see, and on checksums.

use super::{Outcome, error};
use crate::machine::Run;

/// Bytes that are copied at a time.
const PART: usize = 64;

/// `long bpf_skb_load_bytes(skb, offset, to, length)`.
pub(super) fn load_bytes(run: &Run, [_, offset, to, length, _]: [u64; 5]) -> Outcome {
    let (offset, length) = (u64::from(offset as u32), u64::from(length as u32));
    let (message, available) = run.message();
    if offset + length > available {
        // The kernel clears what it cannot fill.
        let zeros = [0; PART];
        for done in (0..length).step_by(PART) {
            let part = (length - done).min(PART as u64) as usize;
            run.write(to.wrapping_add(done), &zeros[..part])?;
        }
        return Ok(error(libc::EFAULT));
    }
    run.copy(message + offset, to, length as usize)?;
    Ok(0)
}

/// `long bpf_skb_store_bytes(skb, offset, from, length, flags)`: changes the copy that programs see.
pub(super) fn store_bytes(run: &Run, [_, offset, from, length, flags]: [u64; 5]) -> Outcome {
    /// `BPF_F_RECOMPUTE_CSUM | BPF_F_INVALIDATE_HASH`: there is neither.
    const ALLOWED: u64 = 3;
    let (offset, length) = (u64::from(offset as u32), u64::from(length as u32));
    let (message, available) = run.message();
    if flags & !ALLOWED != 0 {
        return Ok(error(libc::EINVAL));
    }
    if offset > i32::MAX as u64 || offset + length > available {
        return Ok(error(libc::EFAULT));
    }
    run.copy(from, message + offset, length as usize)?;
    Ok(0)
}

/// `long bpf_skb_pull_data(skb, length)`: a message is contiguous already.
pub(super) fn pull_data(run: &Run, [_, length, ..]: [u64; 5]) -> Outcome {
    let (_, available) = run.message();
    Ok(if u64::from(length as u32) > available { error(libc::ENOMEM) } else { 0 })
}

/// `u64 bpf_get_socket_cookie(skb)`: a number that is the flow's own: a hash of its ends and of when it began.
pub(super) fn socket_cookie(run: &Run, _: [u64; 5]) -> Outcome {
    Ok(run.cookie())
}

/// `s64 bpf_csum_diff(from, from_size, to, to_size, seed)`: the sum of `to`, and of the complement of `from`, as 16-bit words.
pub(super) fn csum_diff(run: &Run, [from, from_size, to, to_size, seed]: [u64; 5]) -> Outcome {
    /// The kernel's scratch area (`MAX_BPF_STACK`).
    const MOST: u64 = 512;
    let (from_size, to_size) = (u64::from(from_size as u32), u64::from(to_size as u32));
    if (from_size | to_size) & 3 != 0 || from_size + to_size > MOST {
        return Ok(error(libc::EINVAL));
    }
    let mut sum = u64::from(seed as u32);
    let mut bytes = [0; MOST as usize];
    for (address, size, complement) in [(from, from_size as usize, u32::MAX), (to, to_size as usize, 0)] {
        run.read(address, &mut bytes[..size])?;
        for word in bytes[..size].chunks_exact(4) {
            sum += u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]) ^ complement);
        }
    }
    // One's complement, folded to 16 bits as the kernel does since 6.12 (csum_from32to16).
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Ok(sum)
}
