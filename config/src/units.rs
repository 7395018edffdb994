//! Numbers with units: bytes and durations.

use std::time::Duration;

/// Bytes: a whole number, alone or with `B`, `KiB`, `MiB` or `GiB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text)?;
    let factor: u64 = match unit {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return Err(format!("unknown unit `{unit}`: use B, KiB, MiB or GiB")),
    };
    number.checked_mul(factor).ok_or_else(|| "too large".to_owned())
}

/// A duration: a whole number with `ms`, `s`, `m` or `h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let milliseconds: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "" => return Err("a unit is missing: ms, s, m or h".to_owned()),
        _ => return Err(format!("unknown unit `{unit}`: use ms, s, m or h")),
    };
    let total = number.checked_mul(milliseconds).ok_or_else(|| "too long".to_owned())?;
    Ok(Duration::from_millis(total))
}

/// The largest unit that gives a whole number; what [`duration`] reads back.
pub(crate) fn show_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    for (factor, unit) in [(3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if ms >= factor && ms.is_multiple_of(factor) {
            return format!("{}{unit}", ms / factor);
        }
    }
    format!("{ms}ms")
}

fn split(text: &str) -> Result<(u64, &str), String> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return Err("it must begin with a whole number".to_owned());
    }
    if unit.starts_with(['.', ',']) {
        return Err("only whole numbers are taken: use a smaller unit".to_owned());
    }
    let number = number.parse().map_err(|_| "the number is too large".to_owned())?;
    Ok((number, unit.trim_start_matches(' ')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in [("0", 0), ("17", 17), ("5B", 5), ("64KiB", 65536), ("1 MiB", 1 << 20), ("2GiB", 2 << 30)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for (text, error) in [
            ("", "it must begin with a whole number"),
            ("KiB", "it must begin with a whole number"),
            ("-1", "it must begin with a whole number"),
            ("64KB", "unknown unit `KB`: use B, KiB, MiB or GiB"),
            ("1.5MiB", "only whole numbers are taken: use a smaller unit"),
            ("99999999999999999999", "the number is too large"),
            ("18446744073709551615KiB", "too large"),
        ] {
            assert_eq!(size(text), Err(error.to_owned()), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, ms) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(show_duration(Duration::from_millis(ms)), text);
        }
        assert_eq!(duration("30"), Err("a unit is missing: ms, s, m or h".to_owned()));
        assert_eq!(duration("30 years"), Err("unknown unit `years`: use ms, s, m or h".to_owned()));
        assert_eq!(duration("99999999999999999h"), Err("too long".to_owned()));
    }

    proptest! {
        #[test]
        fn shown_durations_read_back(ms in 0..10_000_000_000u64) {
            let d = Duration::from_millis(ms);
            prop_assert_eq!(duration(&show_duration(d)), Ok(d));
        }

        #[test]
        fn sizes_read_back(n in 0..1u64 << 40, unit in 0..4usize) {
            let (name, factor) = [("", 1), ("B", 1), ("KiB", 1 << 10), ("MiB", 1 << 20)][unit];
            prop_assert_eq!(size(&format!("{n}{name}")), Ok(n * factor));
        }

        #[test]
        fn any_text_is_answered(text in ".*") {
            let _ = size(&text);
            let _ = duration(&text);
        }
    }
}
