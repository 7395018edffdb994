//! `bpf_trace_printk`: its format, and where the lines go.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use crate::machine::OutOfReach;

/// Lines that an object keeps; the oldest go first.
const KEPT_LINES: usize = 256;

/// The longest string that `%s` shows, in bytes.
const LONGEST_STRING: u64 = 256;

/// What the programs of an object have printed lately.
#[derive(Debug, Default)]
pub(crate) struct PrintLog(Mutex<VecDeque<String>>);

impl PrintLog {
    /// Logs a line that `function` printed, as an event of the target `program`, and keeps it.
    pub(crate) fn push(&self, function: &str, text: String) {
        let text = text.trim_end_matches('\n');
        tracing::info!(target: "program", "{function}: {text}");
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == KEPT_LINES {
            lines.pop_front();
        }
        lines.push_back(format!("{function}: {text}"));
    }

    /// Takes the lines that are kept, oldest first.
    pub(crate) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}

/// Fills in a format as `bpf_bprintf_prepare` (`kernel/bpf/helpers.c`) allows it: `%d %i %u %x %X %p %c %s %%`, with `l` or
/// `ll`, `0` and a width. `None`: the format is not valid. `read_byte` reads program memory, for `%s`.
pub(crate) fn format_printk(
    format: &[u8],
    arguments: &[u64],
    read_byte: &mut impl FnMut(u64) -> Result<u8, OutOfReach>,
) -> Result<Option<String>, OutOfReach> {
    let Some((0, format)) = format.split_last() else { return Ok(None) };
    let mut text = Vec::new();
    let mut arguments = arguments.iter().copied();
    let mut rest = format.iter().copied().take_while(|&byte| byte != 0).peekable();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            text.push(byte);
            continue;
        }
        if rest.next_if_eq(&b'%').is_some() {
            text.push(b'%');
            continue;
        }
        let zeros = rest.next_if_eq(&b'0').is_some();
        let mut width = 0;
        while let Some(digit) = rest.next_if(u8::is_ascii_digit) {
            width = (width * 10 + usize::from(digit - b'0')).min(LONGEST_STRING as usize);
        }
        let mut longs = 0;
        while rest.next_if_eq(&b'l').is_some() {
            longs += 1;
        }
        let (Some(conversion), Some(argument), 0..=2) = (rest.next(), arguments.next(), longs) else { return Ok(None) };
        let signed = if longs == 0 { i64::from(argument as i32) } else { argument as i64 };
        let unsigned = if longs == 0 { u64::from(argument as u32) } else { argument };
        let shown = match conversion {
            b'd' | b'i' => signed.to_string().into_bytes(),
            b'u' => unsigned.to_string().into_bytes(),
            b'x' => format!("{unsigned:x}").into_bytes(),
            b'X' => format!("{unsigned:X}").into_bytes(),
            b'p' if longs == 0 => format!("{argument:016x}").into_bytes(),
            b'c' if longs == 0 => vec![argument as u8],
            b's' if longs == 0 => read_string(argument, read_byte)?,
            _ => return Ok(None),
        };
        let fill = if zeros { b'0' } else { b' ' };
        text.extend(std::iter::repeat_n(fill, width.saturating_sub(shown.len())));
        text.extend(shown);
    }
    Ok(Some(String::from_utf8_lossy(&text).into_owned()))
}

fn read_string(address: u64, read_byte: &mut impl FnMut(u64) -> Result<u8, OutOfReach>) -> Result<Vec<u8>, OutOfReach> {
    let mut string = Vec::new();
    for offset in 0..LONGEST_STRING {
        match read_byte(address.wrapping_add(offset))? {
            0 => break,
            byte => string.push(byte),
        }
    }
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(format: &[u8], arguments: [u64; 3]) -> Option<String> {
        let mut memory = |address: u64| b"text\0".get(address as usize).copied().ok_or(OutOfReach);
        format_printk(format, &arguments, &mut memory).unwrap()
    }

    #[test]
    fn formats_are_filled_in_as_by_the_kernel() {
        let table: [(&[u8], [u64; 3], Option<&str>); 13] = [
            (b"plain\0", [0; 3], Some("plain")),
            (b"%d %u %x\0", [u64::MAX, u64::MAX, 0xab], Some("-1 4294967295 ab")),
            (b"%ld %llu %lX\0", [u64::MAX, 7, 0xab], Some("-1 7 AB")),
            (b"%04x|%4d|%2d\0", [0xab, 7, 1234], Some("00ab|   7|1234")),
            (b"100%% %c%c\0", [65, 66, 0], Some("100% AB")),
            (b"<%s>\0", [0; 3], Some("<text>")),
            (b"%p\0", [16, 0, 0], Some("0000000000000010")),
            (b"cut\0off\0", [0; 3], Some("cut")),
            (b"no end", [0; 3], None),
            (b"", [0; 3], None),
            (b"%d %d %d %d\0", [0; 3], None),
            (b"%f\0", [0; 3], None),
            (b"%\0", [0; 3], None),
        ];
        for (format, arguments, expected) in table {
            assert_eq!(shown(format, arguments).as_deref(), expected, "{}", String::from_utf8_lossy(format));
        }
    }

    #[test]
    fn a_string_beyond_memory_is_a_fault() {
        let mut memory = |_| Err(OutOfReach);
        assert_eq!(format_printk(b"%s\0", &[0; 3], &mut memory), Err(OutOfReach));
    }

    #[test]
    fn the_log_keeps_the_latest_lines() {
        let log = PrintLog::default();
        (0..KEPT_LINES + 2).for_each(|number| log.push("f", format!("{number}\n")));
        let lines = log.take();
        assert_eq!((lines.len(), lines[0].as_str()), (KEPT_LINES, "f: 2"));
        assert!(log.take().is_empty());
    }
}
