//! What a verdict program's return value means.

const SK_PASS: u32 = 1;
const STAP_DISCONNECT: u32 = 2;

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// It goes on to the receiver.
    Pass,
    /// It is acknowledged to its sender and goes nowhere; the stream goes on.
    Drop,
    /// It goes nowhere, and both sides are reset.
    Disconnect,
}

impl Verdict {
    /// The meaning of a return value: the kernel's `sk_psock_map_verd` (anything but `SK_PASS` is a drop), and
    /// `STAP_DISCONNECT`. As in the kernel, only the lower 32 bits of register 0 count.
    pub fn from_return_value(value: u32) -> Self {
        match value {
            SK_PASS => Self::Pass,
            STAP_DISCONNECT => Self::Disconnect,
            _ => Self::Drop,
        }
    }

    /// `pass`, `drop` or `disconnect`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Drop => "drop",
            Self::Disconnect => "disconnect",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn return_values_mean_what_they_mean_to_the_kernel() {
        let table = [
            (0, Verdict::Drop),
            (1, Verdict::Pass),
            (2, Verdict::Disconnect),
            (3, Verdict::Drop),
            (u32::MAX, Verdict::Drop),
            (0x0100_0001, Verdict::Drop),
        ];
        for (value, verdict) in table {
            assert_eq!(Verdict::from_return_value(value), verdict, "{value}");
        }
    }
}
