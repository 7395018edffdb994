//! A flow whose two hosts are still making their handshake: it passes through, as over a wire. Nothing is terminated before
//! both have acknowledged the other's SYN, so a connection that the server would refuse, or never answer, is never
//! accepted by us; and the hosts' own timers repeat what gets lost.
//!
//! ```text
//!   client                                    server
//!     │ SYN            ─────────────▶ SYN        │
//!     │ SYN-ACK        ◀───────────── SYN-ACK    │
//!     │ ACK, perhaps with text ─▶│               │   from here on there are two connections,
//!     │                          │ ACK  ───────▶ │   with the hosts' own numbers
//! ```

use tcp::handshake::Syn;
use tcp::time::{Duration, Instant};
use tcp::wire::{Headers, SegmentOptions};

use crate::counters::DropReason;
use crate::steer::{FlowKey, Side};

/// How long a handshake may stand still. It may go on afterwards, then as a new flow.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same where the rest of a handshake that nobody knows would pass unjudged: a server that answers with SYN cookies takes
/// an ACK for two minutes without a sign of it (`MAX_SYNCOOKIE_AGE` of Linux).
pub const COOKIE_TIMEOUT: Duration = Duration::from_secs(150);

/// A handshake, as far as it has come.
#[derive(Debug)]
pub struct Opening {
    /// What each host has said.
    hosts: [Host; 2],
    /// Another SYN of the client: the server may take that one.
    other_syn: Option<Syn>,
    /// When something was last heard.
    heard: Instant,
    /// How long it may stand still.
    timeout: Duration,
}

/// What one host has said so far.
#[derive(Clone, Copy, Debug, Default)]
struct Host {
    syn: Option<Syn>,
    /// When its SYN passed; none if it has passed more than once, and nobody knows which one was answered.
    syn_at: Option<Instant>,
    /// How long it took to answer the other host's SYN.
    rtt: Option<Duration>,
    /// It has acknowledged the other host's SYN.
    has_acked: bool,
}

/// What becomes of a segment of the handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It goes on to the other host.
    Relay,
    /// It goes on, and ends the handshake: it is a valid reset.
    Reset,
    /// It completes the handshake: both sides are terminated from now on.
    Establish,
    /// It is not for the other host.
    Drop(DropReason),
}

impl Opening {
    /// A handshake in which nothing has been said yet.
    pub fn new(now: Instant, timeout: Duration) -> Self {
        Self { hosts: [Host::default(); 2], other_syn: None, heard: now, timeout }
    }

    /// When the handshake is given up.
    pub fn deadline(&self) -> Instant {
        self.heard + self.timeout
    }

    /// Takes a segment of the host on side `from`. `h`: its headers, parsed from `frame`.
    pub fn handle_segment(&mut self, now: Instant, from: Side, frame: &[u8], h: &Headers) -> Step {
        self.heard = now;
        if h.flags.rst() {
            return if self.is_valid_reset(from, h) { Step::Reset } else { Step::Relay };
        }
        if h.flags.syn() {
            if h.flags.fin() {
                return Step::Drop(DropReason::NotYetOpen);
            }
            self.note_syn(now, from, Syn::new(frame, h));
        }
        if h.flags.ack() {
            self.note_ack(now, from, frame, h);
        }
        if self.hosts.iter().all(|host| host.has_acked) {
            Step::Establish
        } else if h.flags.syn() || h.segment_len() == 0 {
            Step::Relay
        } else {
            // Text or FIN before the handshake is complete: nobody would judge it.
            Step::Drop(DropReason::NotYetOpen)
        }
    }

    fn note_syn(&mut self, now: Instant, from: Side, syn: Syn) {
        let host = &mut self.hosts[from as usize];
        match host.syn {
            None => (host.syn, host.syn_at) = (Some(syn), Some(now)),
            Some(known) if known.seq == syn.seq => (host.syn, host.syn_at) = (Some(syn), None),
            // The same ends again, for another connection, or someone pretends that: the server decides.
            Some(_) if from == Side::Client => self.other_syn = Some(syn),
            Some(_) => {
                *host = Host { syn: Some(syn), syn_at: Some(now), ..Host::default() };
                self.hosts[Side::Client as usize].has_acked = false;
            }
        }
    }

    /// The SYN that the host on side `from` acknowledges, and its own, count from now on.
    fn note_ack(&mut self, now: Instant, from: Side, frame: &[u8], h: &Headers) {
        let other = from.other() as usize;
        if from == Side::Server
            && h.flags.syn()
            && let Some(syn) = self.other_syn.take_if(|syn| syn.seq.wrapping_add(1) == h.ack)
        {
            self.hosts[other] = Host { syn: Some(syn), ..Host::default() };
        }
        let theirs = self.hosts[other];
        let host = &mut self.hosts[from as usize];
        let (Some(own), Some(syn)) = (&mut host.syn, theirs.syn) else { return };
        // Within the window (RFC 9293 §3.10.7.4, first), or a probe: the first ACK may have got lost, and this be a later one.
        let ahead = h.seq.wrapping_sub(own.seq.wrapping_add(1));
        let acceptable = h.flags.syn() || ahead <= u32::from(syn.window) || ahead == u32::MAX;
        if !acceptable || h.ack != syn.seq.wrapping_add(1) {
            return;
        }
        if !host.has_acked {
            host.has_acked = true;
            host.rtt = theirs.syn_at.map(|at| now - at);
        }
        // The clock of the host has gone on since its SYN (and never goes back, RFC 7323 §5.3).
        if let (Some(stamp), Some(newer)) =
            (&mut own.options.timestamps, SegmentOptions::parse(h.options(frame)).timestamps)
            && newer.value.wrapping_sub(stamp.value) < 1 << 31
        {
            *stamp = newer;
        }
    }

    /// RFC 9293 §3.10.7.3: in SYN-SENT, a reset must acknowledge the SYN; §3.10.7.4: afterwards it must have the next number.
    fn is_valid_reset(&self, from: Side, h: &Headers) -> bool {
        let answers = |syn: Syn| h.flags.ack() && h.ack == syn.seq.wrapping_add(1);
        let follows = |syn: Syn| h.seq == syn.seq.wrapping_add(1);
        let syn_of = |side: Side| self.hosts[side as usize].syn;
        match syn_of(from) {
            None => syn_of(from.other()).is_some_and(answers),
            Some(own) => follows(own),
        }
    }

    /// Of a complete handshake: what the connection to the host on side `to` begins with.
    pub fn handshake(&self, to: Side, key: &FlowKey) -> Option<tcp::Handshake> {
        let (peer, across) = (&self.hosts[to as usize], &self.hosts[to.other() as usize]);
        let (local, remote) = match to {
            Side::Client => (key.server, key.client),
            Side::Server => (key.client, key.server),
        };
        Some(tcp::Handshake { local, remote, ours: across.syn?, peers: peer.syn?, rtt: peer.rtt })
    }

    /// The number of the client's SYN.
    pub fn client_iss(&self) -> Option<u32> {
        self.hosts[Side::Client as usize].syn.map(|syn| syn.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tcp::wire::{Flags, L2Header};

    const SYN: Flags = Flags::SYN;
    const ACK: Flags = Flags::ACK;
    const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
    const RST: Flags = Flags::RST;
    const RST_ACK: Flags = Flags::RST.with(Flags::ACK);
    const FRAME: [u8; 54] = [0; 54];

    /// A handshake that is told of segments, one a millisecond.
    struct Script {
        opening: Opening,
        now: Instant,
    }

    impl Script {
        fn new() -> Self {
            Self { opening: Opening::new(Instant::ZERO, HANDSHAKE_TIMEOUT), now: Instant::ZERO }
        }

        fn say(&mut self, from: Side, flags: Flags, seq: u32, ack: u32, length: usize) -> Step {
            self.now += Duration::from_millis(1);
            let headers = Headers {
                l2: L2Header::default(),
                ip_offset: 14,
                tcp_offset: 34,
                payload_offset: 54,
                end: 54 + length,
                source: "10.0.0.1:1".parse().unwrap(),
                destination: "10.0.0.2:2".parse().unwrap(),
                vlan: [0; 2],
                seq,
                ack,
                flags,
                window: 100,
                hop_limit: 64,
                traffic_class: 0,
                flow_label: 0,
            };
            self.opening.handle_segment(self.now, from, &FRAME, &headers)
        }

        fn client(&mut self, flags: Flags, seq: u32, ack: u32) -> Step {
            self.say(Side::Client, flags, seq, ack, 0)
        }

        fn server(&mut self, flags: Flags, seq: u32, ack: u32) -> Step {
            self.say(Side::Server, flags, seq, ack, 0)
        }

        fn numbers(&self) -> [u32; 2] {
            self.opening.hosts.map(|host| host.syn.unwrap().seq)
        }
    }

    /// RFC 9293 figure 6.
    #[test]
    fn three_ways() {
        let mut script = Script::new();
        assert_eq!(script.client(SYN, 100, 0), Step::Relay);
        assert_eq!(script.server(SYN_ACK, 300, 101), Step::Relay);
        assert_eq!(script.client(ACK, 101, 301), Step::Establish);
        assert_eq!(script.numbers(), [100, 300]);
        assert_eq!(script.opening.hosts.map(|host| host.rtt), [Some(Duration::from_millis(1)); 2]);
    }

    #[test]
    fn the_last_ack_may_carry_text_and_text_before_it_goes_nowhere() {
        for seq in [101, 106] {
            let mut script = Script::new();
            script.client(SYN, 100, 0);
            assert_eq!(script.say(Side::Client, ACK, 101, 301, 5), Step::Drop(DropReason::NotYetOpen));
            script.server(SYN_ACK, 300, 101);
            assert_eq!(script.say(Side::Client, ACK, 202, 301, 5), Step::Drop(DropReason::NotYetOpen), "far ahead");
            assert_eq!(script.say(Side::Client, ACK, seq, 301, 5), Step::Establish, "within the window, which is 100");
        }
    }

    #[test]
    fn repeated_segments_pass_and_are_no_measurement() {
        let mut script = Script::new();
        for _ in 0..3 {
            assert_eq!(script.client(SYN, 100, 0), Step::Relay);
        }
        for _ in 0..2 {
            assert_eq!(script.server(SYN_ACK, 300, 101), Step::Relay);
        }
        assert_eq!(script.client(ACK, 101, 301), Step::Establish);
        assert_eq!(script.opening.hosts.map(|host| host.rtt), [None; 2]);
    }

    /// RFC 9293 figure 7.
    #[test]
    fn both_at_once() {
        let mut script = Script::new();
        assert_eq!(script.client(SYN, 100, 0), Step::Relay);
        assert_eq!(script.server(SYN, 300, 0), Step::Relay);
        assert_eq!(script.client(SYN_ACK, 100, 301), Step::Relay);
        assert_eq!(script.server(SYN_ACK, 300, 101), Step::Establish);
        assert_eq!(script.numbers(), [100, 300]);
    }

    /// RFC 9293 figures 8 and 9: an old SYN, and an old connection of the server.
    #[test]
    fn old_ones_are_sorted_out_by_the_hosts() {
        let mut script = Script::new();
        assert_eq!(script.client(SYN, 90, 0), Step::Relay);
        assert_eq!(script.client(SYN, 100, 0), Step::Relay);
        assert_eq!(script.server(SYN_ACK, 300, 91), Step::Relay);
        assert_eq!(script.client(RST, 91, 0), Step::Reset);
        let mut script = Script::new();
        script.client(SYN, 400, 0);
        assert_eq!(script.server(ACK, 300, 100), Step::Relay, "of the old connection");
        assert_eq!(script.client(RST, 100, 0), Step::Relay);
        assert_eq!(script.client(SYN, 400, 0), Step::Relay);
        assert_eq!(script.server(SYN_ACK, 800, 401), Step::Relay);
        assert_eq!(script.client(ACK, 401, 801), Step::Establish);
    }

    #[test]
    fn another_syn_counts_when_the_server_takes_it_and_not_before() {
        let mut script = Script::new();
        script.client(SYN, 100, 0);
        script.server(SYN_ACK, 300, 101);
        assert_eq!(script.client(SYN, 5000, 0), Step::Relay, "someone pretends");
        assert_eq!(script.client(ACK, 101, 301), Step::Establish);
        let mut script = Script::new();
        script.client(SYN, 100, 0);
        script.client(SYN, 5000, 0);
        script.server(SYN_ACK, 300, 5001);
        assert_eq!(script.client(ACK, 101, 301), Step::Relay);
        assert_eq!(script.client(ACK, 5001, 301), Step::Establish);
        assert_eq!(script.numbers(), [5000, 300]);
    }

    /// A server that begins anew (with other SYN cookies, say) has not been acknowledged by what acknowledged the old one.
    #[test]
    fn another_answer_of_the_server_wants_another_ack() {
        let mut script = Script::new();
        script.client(SYN, 100, 0);
        script.server(SYN, 300, 0);
        assert_eq!(script.client(SYN_ACK, 100, 301), Step::Relay);
        assert_eq!(script.server(SYN_ACK, 700, 101), Step::Relay);
        assert_eq!(script.client(ACK, 101, 301), Step::Relay);
        assert_eq!(script.client(ACK, 101, 701), Step::Establish);
        assert_eq!(script.numbers(), [100, 700]);
    }

    #[test]
    fn only_a_reset_with_the_right_number_ends_it() {
        let mut script = Script::new();
        script.client(SYN, 100, 0);
        assert_eq!(script.server(RST, 0, 0), Step::Relay);
        assert_eq!(script.server(RST_ACK, 0, 100), Step::Relay);
        assert_eq!(script.client(RST, 7, 0), Step::Relay);
        assert_eq!(script.server(RST_ACK, 0, 101), Step::Reset);
        script.server(SYN_ACK, 300, 101);
        assert_eq!(script.server(RST_ACK, 0, 101), Step::Relay);
        assert_eq!(script.server(RST, 301, 0), Step::Reset);
        assert_eq!(script.client(RST, 101, 0), Step::Reset);
    }
}
