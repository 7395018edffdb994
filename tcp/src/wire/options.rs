//! TCP options: read from a segment, and written for one.

use arrayvec::ArrayVec;

use super::{TCP_HEADER, read_u16, read_u32};

const KIND_END: u8 = 0;
const KIND_NOP: u8 = 1;
/// Maximum segment size (RFC 9293 §3.7.1).
pub(crate) const KIND_MSS: u8 = 2;
/// Window scale (RFC 7323 §2).
const KIND_WINDOW_SCALE: u8 = 3;
/// SACK permitted (RFC 2018 §2).
const KIND_SACK_PERMITTED: u8 = 4;
/// SACK (RFC 2018 §3).
const KIND_SACK: u8 = 5;
/// Timestamps (RFC 7323 §3).
const KIND_TIMESTAMPS: u8 = 8;
/// Longest options of a header, in bytes.
const MAX_OPTIONS: usize = 60 - TCP_HEADER;
/// Blocks that a header without other options has room for.
pub const MAX_SACK_BLOCKS: usize = 4;
/// Largest shift of a window (RFC 7323 §2.3).
const MAX_WINDOW_SHIFT: u8 = 14;

/// A timestamps option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the value that is echoed; without meaning if there is no ACK flag.
    pub echo: u32,
}

/// Received bytes, from the first number up to, and without, the second.
pub type SackBlock = (u32, u32);

/// What the options of a segment without SYN say to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SegmentOptions {
    /// The timestamps option.
    pub timestamps: Option<Timestamps>,
    /// Blocks of the SACK option, in the order of the option.
    pub sack: ArrayVec<SackBlock, MAX_SACK_BLOCKS>,
}

impl SegmentOptions {
    /// Reads options; from the first malformed one on, there are none. Never panics.
    pub fn parse(options: &[u8]) -> Self {
        // The layout of nearly all segments (RFC 7323 appendix A).
        if let [KIND_NOP, KIND_NOP, KIND_TIMESTAMPS, 10, value @ ..] = options
            && value.len() == 8
        {
            return Self { timestamps: Some(timestamps(value)), sack: ArrayVec::new() };
        }
        let mut found = Self::default();
        for (kind, _, data) in Walk::new(options) {
            match (kind, data.len()) {
                (KIND_TIMESTAMPS, 8) => found.timestamps = Some(timestamps(data)),
                (KIND_SACK, 8 | 16 | 24 | 32) => {
                    found.sack = data.chunks_exact(8).map(|block| (read_u32(block, 0), read_u32(block, 4))).collect();
                }
                _ => {}
            }
        }
        found
    }
}

/// What the options of a SYN say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Largest text that the sender of the SYN takes in one segment; 0 counts as absent.
    pub mss: Option<u16>,
    /// Shift of the windows that the sender will offer, at most 14.
    pub window_scale: Option<u8>,
    /// The sender understands SACK.
    pub sack_permitted: bool,
    /// The timestamps option.
    pub timestamps: Option<Timestamps>,
}

impl SynOptions {
    /// Reads options; from the first malformed one on, there are none. Never panics.
    pub fn parse(options: &[u8]) -> Self {
        let mut found = Self::default();
        for (kind, _, data) in Walk::new(options) {
            match (kind, data) {
                (KIND_MSS, [_, _]) => found.mss = Some(read_u16(data, 0)).filter(|&mss| mss > 0),
                (KIND_WINDOW_SCALE, &[shift]) => found.window_scale = Some(shift.min(MAX_WINDOW_SHIFT)),
                (KIND_SACK_PERMITTED, []) => found.sack_permitted = true,
                (KIND_TIMESTAMPS, [_, _, _, _, _, _, _, _]) => found.timestamps = Some(timestamps(data)),
                _ => {}
            }
        }
        found
    }
}

fn timestamps(data: &[u8]) -> Timestamps {
    Timestamps { value: read_u32(data, 0), echo: read_u32(data, 4) }
}

/// Walks over options: kind, where the option begins, and its data. Ends before the first malformed one, at the end of list,
/// or at the end.
pub(crate) struct Walk<'a> {
    options: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    pub(crate) fn new(options: &'a [u8]) -> Self {
        Self { options, at: 0 }
    }

    /// Where the walk has come to; at the end of it: where the first byte is that was not understood.
    pub(crate) fn position(&self) -> usize {
        self.at
    }

    /// Whether options like this one may stand in a SYN that we let through: those whose meaning we keep.
    pub(crate) fn is_kept_in_a_syn(kind: u8, data: &[u8]) -> bool {
        matches!(
            (kind, data.len()),
            (KIND_MSS, 2) | (KIND_WINDOW_SCALE, 1) | (KIND_SACK_PERMITTED, 0) | (KIND_TIMESTAMPS, 8)
        )
    }
}

impl<'a> Iterator for Walk<'a> {
    type Item = (u8, usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        while self.options.get(self.at) == Some(&KIND_NOP) {
            self.at += 1;
        }
        let (begin, kind) = (self.at, *self.options.get(self.at)?);
        if kind == KIND_END {
            return None;
        }
        let length = usize::from(*self.options.get(begin + 1)?);
        if length < 2 {
            return None;
        }
        let data = self.options.get(begin + 2..begin + length)?;
        self.at += length;
        Some((kind, begin, data))
    }
}

/// Writes the options of a segment; always whole words.
#[derive(Clone, Debug, Default)]
pub struct OptionWriter {
    bytes: ArrayVec<u8, MAX_OPTIONS>,
}

impl OptionWriter {
    /// Adds a timestamps option.
    pub fn timestamps(&mut self, timestamps: Timestamps) {
        self.bytes.extend([KIND_NOP, KIND_NOP, KIND_TIMESTAMPS, 10]);
        self.bytes.extend(timestamps.value.to_be_bytes());
        self.bytes.extend(timestamps.echo.to_be_bytes());
    }

    /// Adds a SACK option with as many of these blocks as there is room for.
    pub fn sack(&mut self, blocks: impl Iterator<Item = SackBlock>) {
        let room = (self.bytes.remaining_capacity().saturating_sub(4)) / 8;
        let blocks: ArrayVec<SackBlock, MAX_SACK_BLOCKS> = blocks.take(room.min(MAX_SACK_BLOCKS)).collect();
        if blocks.is_empty() {
            return;
        }
        self.bytes.extend([KIND_NOP, KIND_NOP, KIND_SACK, 2 + 8 * blocks.len() as u8]);
        for (left, right) in blocks {
            self.bytes.extend(left.to_be_bytes());
            self.bytes.extend(right.to_be_bytes());
        }
    }

    /// What was written.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut writer = OptionWriter::default();
        let timestamps = Timestamps { value: 0x0102_0304, echo: 5 };
        writer.timestamps(timestamps);
        assert_eq!(SegmentOptions::parse(writer.as_bytes()).timestamps, Some(timestamps));
        writer.sack([(1, 2), (3, 4), (5, 6), (7, 8)].into_iter());
        assert_eq!(writer.as_bytes().len(), 40);
        let read = SegmentOptions::parse(writer.as_bytes());
        assert_eq!(read.timestamps, Some(timestamps));
        assert_eq!(&read.sack[..], [(1, 2), (3, 4), (5, 6)], "three blocks fit beside timestamps (RFC 2018 §3)");
    }

    #[test]
    fn options_of_a_linux_syn() {
        let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7];
        let expected = SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 9, echo: 0 }),
        };
        assert_eq!(SynOptions::parse(&options), expected);
        // A shift above 14 counts as 14 (RFC 7323 §2.3), an MSS of 0 as none.
        assert_eq!(SynOptions::parse(&[3, 3, 200, 1, 2, 4, 0, 0]).window_scale, Some(14));
        assert_eq!(SynOptions::parse(&[3, 3, 200, 1, 2, 4, 0, 0]).mss, None);
    }

    #[test]
    fn reading_ends_at_what_is_malformed() {
        for options in [&[8u8, 0, 1, 1][..], &[8, 1], &[8], &[5, 40, 1, 1], &[0, 0, 8, 10]] {
            assert_eq!(SegmentOptions::parse(options), SegmentOptions::default());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(options in proptest::collection::vec(any::<u8>(), 0..41)) {
            SegmentOptions::parse(&options);
            SynOptions::parse(&options);
        }
    }
}
