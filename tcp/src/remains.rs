//! What is left of a connection that is over: enough to answer what its peer sends late.

use std::net::SocketAddr;

use smoltcp::time::Instant;

use crate::FrameSink;
use crate::timestamps::Clock;
use crate::wire::{self, Envelope, Flags, Headers, OptionWriter, Segment};

/// What is left of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Remains(pub(crate) Kind);

#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// We have reset it; the reset may have got lost.
    Reset,
    /// TIME-WAIT: our ACK of the peer's FIN may have got lost.
    TimeWait { local: SocketAddr, remote: SocketAddr, seq: u32, ack: u32, window: u16, clock: Option<Clock> },
}

impl Remains {
    /// Answers a segment of the peer, if it needs an answer. `h`: its headers. True: an answer was sent.
    pub fn answer(&self, now: Instant, h: &Headers, envelope: &Envelope, sink: &mut impl FrameSink) -> bool {
        match self.0 {
            // RFC 9293 §3.10.7.1: as to what belongs to no connection. Also answers the challenge ACK (RFC 5961 §3.2) of a
            // peer that had not received all that was before the reset.
            Kind::Reset => wire::build_rst(sink, envelope, h),
            // RFC 9293 §3.10.7.4, eighth, TIME-WAIT: "acknowledge it". RFC 1337 §3(a): a reset is ignored.
            Kind::TimeWait { local, remote, seq, ack, window, clock } => {
                let mut options = OptionWriter::default();
                clock.into_iter().for_each(|clock| options.timestamps(clock.stamp(now)));
                let segment = Segment {
                    source: local,
                    destination: remote,
                    seq,
                    ack,
                    flags: Flags::ACK,
                    window,
                    options: options.as_bytes(),
                    payload: [&[]; 2],
                };
                h.segment_len() > 0 && !h.flags.rst() && wire::build_segment(sink, envelope, &segment)
            }
        }
    }
}
