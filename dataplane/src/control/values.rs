//! Keys and values of maps, as people write and read them.
//!
//! | written | means |
//! |---|---|
//! | `0x0a000001` | these bytes, in the order in which they lie in memory |
//! | `0a 00 00 01` | the same |
//! | `-5`, `1000` | a number, for 1, 2, 4 or 8 bytes, in the byte order of this machine |
//! | `"GET"` | a text, with zeros behind it |

/// The bytes that `text` means, `size` of them; or what is wrong.
pub(super) fn parse(text: &str, size: usize) -> Result<Vec<u8>, String> {
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let bytes = if let Some(quoted) = quoted {
        let mut bytes = quoted.as_bytes().to_vec();
        bytes.resize(size.max(bytes.len()), 0);
        bytes
    } else if let Some(digits) = text.strip_prefix("0x") {
        pairs(digits).ok_or_else(|| form(text))?
    } else if text.trim().contains(char::is_whitespace) {
        let bytes = text.split_whitespace().map(|pair| pairs(pair).filter(|bytes| bytes.len() == 1));
        bytes.collect::<Option<Vec<_>>>().ok_or_else(|| form(text))?.concat()
    } else {
        return number(text.trim(), size);
    };
    if bytes.len() == size { Ok(bytes) } else { Err(format!("`{text}` has {} bytes, not {size}", bytes.len())) }
}

fn form(text: &str) -> String {
    format!("`{text}` is no value: write 0x and hexadecimal digits, a decimal number, or a text in double quotes")
}

/// Two hexadecimal digits a byte.
fn pairs(digits: &str) -> Option<Vec<u8>> {
    let is_whole = digits.len().is_multiple_of(2) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_whole.then(|| {
        let pair = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).expect("two hexadecimal digits");
        (0..digits.len()).step_by(2).map(pair).collect()
    })
}

/// A signed or unsigned number of `size` bytes.
fn number(text: &str, size: usize) -> Result<Vec<u8>, String> {
    let number: i128 = text.parse().map_err(|_| form(text))?;
    if ![1, 2, 4, 8].contains(&size) {
        return Err(format!("{size} bytes are no number: write `{text}` as 0x and hexadecimal digits"));
    }
    let bits = 8 * size as u32;
    if number < -(1 << (bits - 1)) || number >= 1 << bits {
        return Err(format!("{text} does not fit into {size} bytes"));
    }
    // In two's complement the lower bytes are those of the smaller number.
    let (bytes, skip) = (number.to_ne_bytes(), size_of::<i128>() - size);
    Ok(if cfg!(target_endian = "little") { bytes[..size].to_vec() } else { bytes[skip..].to_vec() })
}

/// The unsigned number that 1, 2, 4 or 8 bytes are.
pub(super) fn as_number(bytes: &[u8]) -> Option<u64> {
    Some(match *bytes {
        [byte] => byte.into(),
        [a, b] => u16::from_ne_bytes([a, b]).into(),
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
        _ => u64::from_ne_bytes(bytes.try_into().ok()?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::events::hex;

    #[test]
    fn what_people_write() {
        for (text, bytes) in [
            ("0x0a000001", &[10, 0, 0, 1][..]),
            ("0a 00 00 01", &[10, 0, 0, 1]),
            ("1000", &1000u32.to_ne_bytes()),
            ("-5", &(-5i32).to_ne_bytes()),
            ("4294967295", &[0xff; 4]),
            ("\"GET\"", b"GET\0"),
            ("\"FULL\"", b"FULL"),
        ] {
            assert_eq!(parse(text, 4).as_deref(), Ok(bytes), "{text}");
        }
        assert_eq!(parse("18446744073709551615", 8), Ok(vec![0xff; 8]));
        assert_eq!(parse("-128", 1), Ok(vec![0x80]));
    }

    #[test]
    fn what_does_not_fit() {
        for (text, words) in [
            ("0x0a0000", "3 bytes, not 4"),
            ("0x0a00000", "is no value"),
            ("0xgg000000", "is no value"),
            ("0a 0 0 1", "is no value"),
            ("4294967296", "does not fit into 4"),
            ("-2147483649", "does not fit into 4"),
            ("\"HELLO\"", "5 bytes, not 4"),
            ("\"", "is no value"),
            ("", "is no value"),
            ("0xé0", "is no value"),
        ] {
            let error = parse(text, 4).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(parse("1", 3).unwrap_err().contains("3 bytes are no number"));
    }

    proptest! {
        #[test]
        fn bytes_and_numbers_come_back(bytes in prop::collection::vec(any::<u8>(), 1..20), text in ".*") {
            prop_assert_eq!(parse(&hex(&bytes), bytes.len()), Ok(bytes.clone()));
            if let Some(number) = as_number(&bytes) {
                prop_assert_eq!(parse(&number.to_string(), bytes.len()), Ok(bytes));
            }
            // Anything is answered.
            let _ = parse(&text, 8);
        }
    }
}
