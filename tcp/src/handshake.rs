//! The handshake of a flow. It passes from host to host as it is, but for what could not be honoured afterwards: so both
//! connections of the flow begin with the hosts' own numbers and options.
//!
//! [`relay`] writes a segment of the handshake for the other side; [`Syn`] is what has to be remembered of one.

use crate::FrameSink;
use crate::wire::{self, ECN_BITS, Flags, Headers, IPV4_HEADER, IPV6_HEADER, KIND_MSS, SynOptions, TCP_HEADER, Walk};

/// What one host has said in its SYN, or SYN-ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syn {
    /// Its initial sequence number.
    pub seq: u32,
    /// Its window, which is never scaled.
    pub window: u16,
    /// Its options.
    pub options: SynOptions,
}

impl Syn {
    /// Of a segment with SYN. `h`: its headers, parsed from `frame`.
    pub fn new(frame: &[u8], h: &Headers) -> Self {
        Self { seq: h.seq, window: h.window, options: SynOptions::parse(h.options(frame)) }
    }
}

/// What [`relay`] has changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Options overwritten with NOPs, since nobody would honour them: TCP Fast Open, Multipath TCP, unknown ones.
    pub options_removed: u32,
    /// ECN was asked for, or agreed to (RFC 3168 §6.1.1), and is not any more.
    pub ecn_removed: bool,
    /// The MSS was more than the path through us carries.
    pub mss_lowered: bool,
    /// Bytes of text that were cut off: nobody acknowledges them, so they come again.
    pub text_removed: usize,
}

/// Sends a segment of the handshake on: with the same numbers, options, and headers below. `mtu`: the largest IP packet that
/// the path through us carries. `h`: the segment's headers, parsed from `frame`. None: no frame was free.
pub fn relay(frame: &[u8], h: &Headers, mtu: usize, sink: &mut impl FrameSink) -> Option<Changes> {
    let out = sink.frame(h.payload_offset)?;
    out.copy_from_slice(&frame[..h.payload_offset]);
    let mut changes = Changes { text_removed: h.payload_len(), ..Changes::default() };
    shorten_ip(&mut out[h.ip_offset..], h.payload_offset - h.ip_offset);
    let tcp = &mut out[h.tcp_offset..];
    let ecn = Flags::ECE.with(Flags::CWR);
    changes.ecn_removed = h.flags.syn() && h.flags.bits() & ecn.bits() != 0;
    tcp[12] &= 0xf0; // Reserved bits: one of them is AccECN's.
    tcp[13] = h.flags.without(ecn).without(Flags::URG).bits();
    tcp[18..20].fill(0); // The urgent pointer.
    if h.flags.syn() {
        let ip_header = if h.source.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        let most = u16::try_from(mtu - ip_header - TCP_HEADER).unwrap_or(u16::MAX);
        mend_options(&mut tcp[TCP_HEADER..], most, &mut changes);
    }
    wire::fill_tcp_checksum(tcp, h.source.ip(), h.destination.ip());
    Some(changes)
}

/// Writes the length of a packet that ends with its TCP header, and takes congestion marks out.
fn shorten_ip(packet: &mut [u8], length: usize) {
    if packet[0] >> 4 == 4 {
        let header = usize::from(packet[0] & 0x0f) * 4;
        packet[1] &= !ECN_BITS;
        packet[2..4].copy_from_slice(&(length as u16).to_be_bytes());
        wire::fill_ipv4_checksum(&mut packet[..header]);
    } else {
        packet[1] &= !(ECN_BITS << 4);
        packet[4..6].copy_from_slice(&((length - IPV6_HEADER) as u16).to_be_bytes());
    }
}

/// Overwrites what cannot be honoured, and lowers an MSS above `most`.
fn mend_options(options: &mut [u8], most: u16, changes: &mut Changes) {
    let mut at = 0;
    loop {
        let mut walk = Walk::new(&options[at..]);
        let found = walk
            .next()
            .map(|(kind, begin, data)| (kind, at + begin, data.len() + 2, Walk::is_kept_in_a_syn(kind, data)));
        let end = at + walk.position();
        let Some((kind, begin, length, kept)) = found else {
            // The end of the list (of which nothing behind it counts), or what is malformed.
            let rest = &mut options[end..];
            changes.options_removed += u32::from(rest.first().is_some_and(|&kind| kind != 0));
            rest.fill(0);
            return;
        };
        if !kept {
            options[begin..begin + length].fill(1);
            changes.options_removed += 1;
        } else if kind == KIND_MSS && wire::read_u16(options, begin + 2) > most {
            options[begin + 2..begin + 4].copy_from_slice(&most.to_be_bytes());
            changes.mss_lowered = true;
        }
        at = end;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn mended(options: &[u8], most: u16) -> (Vec<u8>, Changes) {
        let (mut options, mut changes) = (options.to_vec(), Changes::default());
        mend_options(&mut options, most, &mut changes);
        (options, changes)
    }

    #[test]
    fn what_linux_sends_stays_as_it_is() {
        let options = [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7];
        assert_eq!(mended(&options, 1460), (options.to_vec(), Changes::default()));
    }

    #[test]
    fn an_mss_above_what_the_path_carries_is_lowered() {
        let (options, changes) = mended(&[2, 4, 0x23, 0x28, 1, 1, 4, 2], 1460);
        assert_eq!(options, [2, 4, 5, 180, 1, 1, 4, 2]);
        assert!(changes.mss_lowered && changes.options_removed == 0);
    }

    /// RFC 7413 (TCP Fast Open, kind 34), RFC 8684 (Multipath TCP, kind 30), RFC 2385 (MD5, kind 19), experiments (254).
    #[test]
    fn what_nobody_would_honour_becomes_nops() {
        let (options, changes) = mended(&[34, 6, 1, 2, 3, 4, 30, 4, 0, 1, 4, 2, 254, 4, 0xf9, 0x89], 1460);
        assert_eq!(options, [1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 4, 2, 1, 1, 1, 1]);
        assert_eq!(changes.options_removed, 3);
    }

    #[test]
    fn what_is_malformed_ends_the_list() {
        assert_eq!(mended(&[4, 2, 8, 0, 2, 4, 5, 180], 1460).0, [4, 2, 0, 0, 0, 0, 0, 0]);
        assert_eq!(mended(&[4, 2, 2, 40], 1460).0, [4, 2, 0, 0]);
        // Behind the end of the list nothing counts, and nothing is to slip through.
        let (options, changes) = mended(&[4, 2, 0, 34, 2, 0, 0, 0], 1460);
        assert_eq!((options, changes.options_removed), (vec![4, 2, 0, 0, 0, 0, 0, 0], 0));
        // An option that we know, of a length that we do not, is unknown.
        assert_eq!(mended(&[3, 4, 7, 7], 1460).0, [1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn mended_options_mean_the_same_and_nothing_else(
            options in proptest::collection::vec(prop_oneof![0u8..10, any::<u8>()], 0..41), most in 500u16..2000,
        ) {
            let (after, _) = mended(&options, most);
            let (was, is) = (SynOptions::parse(&options), SynOptions::parse(&after));
            prop_assert_eq!(is.mss, was.mss.map(|mss| mss.min(most)));
            prop_assert_eq!(
                (is.window_scale, is.sack_permitted, is.timestamps),
                (was.window_scale, was.sack_permitted, was.timestamps)
            );
            let understood = |(kind, _, data): (u8, usize, &[u8])| Walk::is_kept_in_a_syn(kind, data);
            prop_assert!(Walk::new(&after).all(understood));
            prop_assert_eq!(mended(&after, most), (after, Changes::default()));
        }
    }
}
