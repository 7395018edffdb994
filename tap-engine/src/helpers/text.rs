//! Helpers on text: print, compare, read numbers.

use super::{Outcome, error};
use crate::machine::{OutOfReach, Run, Stop};
use crate::print::format_printk;

/// The longest format.
const LONGEST_FORMAT: usize = 512;

/// The most arguments of a format (kernel: `MAX_BPRINTF_VARARGS`).
const MOST_ARGUMENTS: usize = 12;

/// `long bpf_trace_printk(format, size, ...)`: what is printed is a log event, and is kept with the object.
pub(super) fn trace_printk(run: &Run, [format, size, first, second, third]: [u64; 5]) -> Outcome {
    print(run, format, size, &[first, second, third])
}

/// `long bpf_trace_vprintk(format, size, arguments, bytes)`.
pub(super) fn trace_vprintk(run: &Run, [format, size, data, bytes, _]: [u64; 5]) -> Outcome {
    match arguments(run, data, bytes)? {
        Some((arguments, count)) => print(run, format, size, &arguments[..count]),
        None => Ok(error(libc::EINVAL)),
    }
}

/// `long bpf_snprintf(to, size, format, arguments, bytes)`: the length with its NUL, whether it fits or not.
pub(super) fn snprintf(run: &Run, [to, size, format, data, bytes]: [u64; 5]) -> Outcome {
    let Some((arguments, count)) = arguments(run, data, bytes)? else { return Ok(error(libc::EINVAL)) };
    // The verifier proves the format to be a constant text with a NUL; its length is not told.
    let mut text = [0; LONGEST_FORMAT];
    let mut length = 0;
    loop {
        let Some(byte) = text.get_mut(length..=length) else { return Ok(error(libc::EINVAL)) };
        run.read(format + length as u64, byte)?;
        length += 1;
        if text[length - 1] == 0 {
            break;
        }
    }
    let Some(text) = format_printk(&text[..length], &arguments[..count], &mut |at| read_byte(run, at))? else {
        return Ok(error(libc::EINVAL));
    };
    let room = size as u32 as usize;
    if room > 0 {
        let mut shown = text.as_bytes()[..text.len().min(room - 1)].to_vec();
        shown.push(0);
        run.write(to, &shown)?;
    }
    Ok(text.len() as u64 + 1)
}

fn print(run: &Run, format: u64, size: u64, arguments: &[u64]) -> Outcome {
    let mut bytes = [0; LONGEST_FORMAT];
    let Some(bytes) = bytes.get_mut(..size as u32 as usize) else { return Ok(error(libc::EINVAL)) };
    run.read(format, bytes)?;
    match format_printk(bytes, arguments, &mut |at| read_byte(run, at))? {
        Some(text) => {
            let length = text.len();
            run.environment.printed.push(&run.environment.function, text);
            Ok(length as u64)
        }
        None => Ok(error(libc::EINVAL)),
    }
}

/// Arguments of a format that lie in memory; none: too many, or not whole.
fn arguments(run: &Run, data: u64, bytes: u64) -> Result<Option<([u64; MOST_ARGUMENTS], usize)>, Stop> {
    let size = bytes as u32 as usize;
    let mut words = [0; MOST_ARGUMENTS];
    if !size.is_multiple_of(8) || size > 8 * MOST_ARGUMENTS {
        return Ok(None);
    }
    for (index, word) in words[..size / 8].iter_mut().enumerate() {
        let mut bytes = [0; 8];
        run.read(data + 8 * index as u64, &mut bytes)?;
        *word = u64::from_ne_bytes(bytes);
    }
    Ok(Some((words, size / 8)))
}

/// A byte of a text that `%s` shows: the verifier does not look where it is.
fn read_byte(run: &Run, address: u64) -> Result<u8, OutOfReach> {
    let mut byte = [0];
    run.read_unproved(address, &mut byte).map(|()| byte[0])
}

/// `long bpf_strncmp(first, size, second)`: the second is a constant text.
pub(super) fn strncmp(run: &Run, [first, size, second, ..]: [u64; 5]) -> Outcome {
    for offset in 0..u64::from(size as u32) {
        let (mut one, mut other) = ([0], [0]);
        run.read(first.wrapping_add(offset), &mut one)?;
        run.read(second.wrapping_add(offset), &mut other)?;
        let (one, other) = (one[0], other[0]);
        if one != other {
            return Ok(if one < other { u64::MAX } else { 1 });
        }
        if one == 0 {
            break;
        }
    }
    Ok(0)
}

/// `long bpf_strtol(text, size, flags, long *result)`: the bytes that the number takes.
pub(super) fn strtol(run: &Run, [text, size, flags, result, _]: [u64; 5]) -> Outcome {
    let (taken, negative, value) = match number(run, text, size, flags)? {
        Ok(number) => number,
        Err(errno) => return Ok(error(errno)),
    };
    let limit = if negative { 1 << 63 } else { (1 << 63) - 1 };
    if value > limit {
        return Ok(error(libc::ERANGE));
    }
    let value = if negative { value.wrapping_neg() } else { value };
    run.write(result, &value.to_ne_bytes())?;
    Ok(taken)
}

/// `long bpf_strtoul(text, size, flags, unsigned long *result)`.
pub(super) fn strtoul(run: &Run, [text, size, flags, result, _]: [u64; 5]) -> Outcome {
    let (taken, negative, value) = match number(run, text, size, flags)? {
        Ok(number) => number,
        Err(errno) => return Ok(error(errno)),
    };
    if negative {
        return Ok(error(libc::EINVAL));
    }
    run.write(result, &value.to_ne_bytes())?;
    Ok(taken)
}

/// As `__bpf_strtoull`: blanks, a sign, a base's prefix, digits. Bytes taken, negative, and the number; or an errno.
fn number(run: &Run, text: u64, size: u64, flags: u64) -> Result<Result<(u64, bool, u64), i32>, Stop> {
    const MOST: usize = 64;
    let base = (flags & 0x1f) as u32;
    if size == 0 || !matches!(base, 0 | 8 | 10 | 16) || flags & !0x1f != 0 {
        return Ok(Err(libc::EINVAL));
    }
    let mut bytes = [0; MOST];
    let length = size.min(MOST as u64) as usize;
    run.read(text, &mut bytes[..length])?;
    let bytes = &bytes[..length];
    let mut at = bytes.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let negative = bytes.get(at) == Some(&b'-');
    at += usize::from(negative);
    let hex = |at: usize| {
        bytes.get(at) == Some(&b'0')
            && matches!(bytes.get(at + 1), Some(b'x' | b'X'))
            && bytes.get(at + 2).is_some_and(u8::is_ascii_hexdigit)
    };
    let base = match base {
        0 if hex(at) => 16,
        0 if bytes.get(at) == Some(&b'0') => 8,
        0 => 10,
        base => base,
    };
    if base == 16 && hex(at) {
        at += 2;
    }
    let first = at;
    let mut value: u64 = 0;
    while let Some(digit) = bytes.get(at).and_then(|byte| char::from(*byte).to_digit(base)) {
        let next = value.checked_mul(base.into()).and_then(|value| value.checked_add(digit.into()));
        let Some(next) = next else { return Ok(Err(libc::ERANGE)) };
        value = next;
        at += 1;
    }
    Ok(if at == first { Err(libc::EINVAL) } else { Ok((at as u64, negative, value)) })
}
