//! The names under which counters are shown to an operator.

use std::sync::{Arc, Mutex};

use xdp_redirect::Steering;

use crate::counters::{Counters, DirectionCounters, DropReason, MessageError};
use crate::events::EventSink;
use crate::io::Published;
use crate::metrics::{Sample, SampleKind};
use crate::records::Records;
use crate::steer::Side;
use crate::worker::TapState;

/// Everything that has counters.
pub struct Snapshot {
    /// Names of the taps, in the order of the ops file.
    pub taps: Vec<String>,
    /// What the workers published.
    pub published: Vec<Arc<Mutex<Published>>>,
    /// The steering program.
    pub steering: Arc<Mutex<Steering>>,
    /// The event writer.
    pub events: Option<EventSink>,
    /// The ring buffers.
    pub records: Records,
}

/// What a live verdict can say, in the order of its counters.
const VERDICTS: [&str; 3] = ["pass", "drop", "disconnect"];

type Labels = Vec<(&'static str, String)>;

impl Snapshot {
    /// All counters as they are now, summed over the workers.
    pub fn samples(&self) -> Vec<Sample> {
        let mut samples = Samples(Vec::new());
        self.steering_samples(&mut samples);
        let mut total = Counters::new(self.taps.len());
        let mut tcp = [tcp::Counters::default(); 2];
        let (mut flows, mut events_lost) = (0, self.events.as_ref().map_or(0, EventSink::lost));
        for worker in &self.published {
            let worker = worker.lock().expect("no thread panics while it holds this lock");
            add(&mut total, &worker.counters);
            tcp.iter_mut().zip(&worker.tcp).for_each(|(total, worker)| add_tcp(total, worker));
            flows += worker.flows as u64;
            events_lost += worker.events_lost;
        }
        samples.gauge("socktap_flows", "Flows in the table, those in TIME-WAIT included.", vec![], flows);
        samples.counter("socktap_events_lost", "Events that were not written.", vec![], events_lost);
        worker_samples(&mut samples, &total);
        tcp_samples(&mut samples, &total, &tcp);
        for (tap, counters) in self.taps.iter().zip(&total.taps) {
            tap_samples(&mut samples, tap, counters);
        }
        self.record_samples(&mut samples);
        samples.0
    }

    fn record_samples(&self, samples: &mut Samples) {
        for (tap, map, counts) in self.records.counts() {
            let Some(tap) = self.taps.get(tap) else { continue };
            let labels = || vec![("tap", tap.clone()), ("map", map.to_string())];
            samples.counter("socktap_records", "Records that programs put into ring buffers.", labels(), counts.taken);
            let help = "Records that found no room in a ring buffer or in the event file.";
            samples.counter("socktap_records_lost", help, labels(), counts.lost);
        }
    }

    fn steering_samples(&self, samples: &mut Samples) {
        let counters = self.steering.lock().expect("no thread panics while it holds this lock").counters();
        // A map that cannot be read is no reason to show nothing.
        for (reason, by_side) in counters.unwrap_or_default() {
            for side in Side::BOTH {
                let labels = vec![("port", side.as_str().into()), ("decision", reason.into())];
                let help = "Frames that the XDP program decided about.";
                samples.counter("socktap_xdp_frames", help, labels, by_side[side as usize]);
            }
        }
    }
}

struct Samples(Vec<Sample>);

impl Samples {
    fn counter(&mut self, name: &'static str, help: &'static str, labels: Labels, value: u64) {
        self.0.push(Sample { name, help, labels, value, kind: SampleKind::Counter });
    }

    fn gauge(&mut self, name: &'static str, help: &'static str, labels: Labels, value: u64) {
        self.0.push(Sample { name, help, labels, value, kind: SampleKind::Gauge });
    }
}

fn worker_samples(samples: &mut Samples, total: &Counters) {
    for side in Side::BOTH {
        let port = || vec![("port", side.as_str().to_string())];
        let index = side as usize;
        samples.counter(
            "socktap_frames_received",
            "Frames that workers took in.",
            port(),
            total.frames_received[index],
        );
        samples.counter("socktap_frames_sent", "Frames that flows sent.", port(), total.frames_sent[index]);
        let help = "Frames that workers sent across untouched, by the port they came in on.";
        samples.counter("socktap_frames_forwarded", help, port(), total.frames_forwarded[index]);
    }
    let help = "Frames that changed hands to the worker that owns their flow.";
    samples.counter("socktap_frames_handed_over", help, vec![], total.frames_handed_over);
    let help = "ICMP errors about segments of flows that a tap takes; they went across.";
    samples.counter("socktap_icmp_errors_seen", help, vec![], total.icmp_errors_seen);
    let help = "Flows whose segments were made shorter, since the path does not carry longer ones.";
    samples.counter("socktap_segments_shortened", help, vec![], total.segments_shortened);
    for reason in DropReason::ALL {
        let labels = vec![("reason", reason.as_str().into())];
        samples.counter("socktap_frames_dropped", "Frames dropped.", labels, total.dropped[reason as usize]);
    }
}

fn tcp_samples(samples: &mut Samples, total: &Counters, tcp: &[tcp::Counters; 2]) {
    let changes = [
        ("option_removed", total.handshakes.options_removed),
        ("ecn_removed", total.handshakes.ecn_removed),
        ("mss_lowered", total.handshakes.mss_lowered),
        ("byte_of_text_removed", total.handshakes.text_removed),
    ];
    for (change, value) in changes {
        let help = "What was changed in handshakes that pass through.";
        samples.counter("socktap_handshake_changes", help, vec![("change", change.into())], value);
    }
    for side in Side::BOTH {
        let counters = &tcp[side as usize];
        let events = [
            ("unacceptable_segment", counters.unacceptable_segments),
            ("old_timestamp", counters.old_timestamps),
            ("challenge_ack", counters.challenge_acks),
            ("challenge_ack_withheld", counters.challenge_acks_withheld),
            ("retransmission", counters.retransmissions),
            ("retransmission_timeout", counters.retransmission_timeouts),
            ("tail_loss_probe", counters.tail_loss_probes),
            ("undone_recovery", counters.undone_recoveries),
        ];
        for (event, value) in events {
            let labels = vec![("port", side.as_str().into()), ("event", event.into())];
            samples.counter("socktap_tcp_events", "What happened in terminated connections.", labels, value);
        }
    }
}

fn tap_samples(samples: &mut Samples, tap: &str, counters: &crate::counters::TapCounters) {
    let name = || ("tap", tap.to_string());
    let flows = [
        ("opened", counters.flows_opened),
        ("established", counters.flows_established),
        ("refused", counters.flows_refused),
        ("reset", counters.flows_reset),
        ("disconnected", counters.flows_disconnected),
        ("timed_out", counters.flows_timed_out),
        ("closed", counters.flows_closed),
    ];
    for (what, value) in flows {
        samples.counter("socktap_flow_events", "What happened to flows.", vec![name(), ("event", what.into())], value);
    }
    let help = "Segments of connections that were open before, which went across unjudged.";
    samples.counter("socktap_midstream_passed", help, vec![name()], counters.midstream_passed);
    for (kind, direction) in TapState::KINDS.iter().zip(&counters.directions) {
        let labels = || vec![name(), ("direction", kind.to_string())];
        for (index, verdict) in VERDICTS.iter().enumerate() {
            let mut labels = labels();
            labels.push(("verdict", verdict.to_string()));
            samples.counter("socktap_messages", "Messages judged.", labels.clone(), direction.messages[index]);
            samples.counter("socktap_message_bytes", "Bytes of judged messages.", labels, direction.bytes[index]);
        }
        for (live, row) in VERDICTS.iter().zip(&direction.shadow) {
            for (shadow, &value) in DirectionCounters::SHADOW_NAMES.iter().zip(row) {
                let mut labels = labels();
                labels.extend([("live", live.to_string()), ("shadow", shadow.to_string())]);
                samples.counter("socktap_shadow", "Messages judged twice, by both verdicts.", labels, value);
            }
        }
        let help = "Bytes that passed without being judged.";
        samples.counter("socktap_unjudged_bytes", help, labels(), direction.unjudged_bytes);
        let help = "Bytes discarded after a parse error.";
        samples.counter("socktap_discarded_bytes", help, labels(), direction.discarded_bytes);
        for (error, &value) in MessageError::NAMES.iter().zip(&direction.errors) {
            let mut labels = labels();
            labels.push(("error", error.to_string()));
            samples.counter("socktap_parse_errors", "Streams that could not be cut further.", labels, value);
        }
    }
}

fn add(total: &mut Counters, worker: &Counters) {
    fn each<const N: usize>(total: &mut [u64; N], worker: &[u64; N]) {
        total.iter_mut().zip(worker).for_each(|(total, worker)| *total += worker);
    }
    each(&mut total.frames_received, &worker.frames_received);
    each(&mut total.frames_sent, &worker.frames_sent);
    each(&mut total.frames_forwarded, &worker.frames_forwarded);
    each(&mut total.dropped, &worker.dropped);
    total.frames_handed_over += worker.frames_handed_over;
    total.handshakes.options_removed += worker.handshakes.options_removed;
    total.handshakes.ecn_removed += worker.handshakes.ecn_removed;
    total.handshakes.mss_lowered += worker.handshakes.mss_lowered;
    total.handshakes.text_removed += worker.handshakes.text_removed;
    total.icmp_errors_seen += worker.icmp_errors_seen;
    total.segments_shortened += worker.segments_shortened;
    for (total, worker) in total.taps.iter_mut().zip(&worker.taps) {
        total.flows_opened += worker.flows_opened;
        total.flows_established += worker.flows_established;
        total.flows_refused += worker.flows_refused;
        total.flows_reset += worker.flows_reset;
        total.flows_disconnected += worker.flows_disconnected;
        total.flows_timed_out += worker.flows_timed_out;
        total.flows_closed += worker.flows_closed;
        total.midstream_passed += worker.midstream_passed;
        for (total, worker) in total.directions.iter_mut().zip(&worker.directions) {
            each(&mut total.messages, &worker.messages);
            each(&mut total.bytes, &worker.bytes);
            each(&mut total.errors, &worker.errors);
            total.shadow.iter_mut().zip(&worker.shadow).for_each(|(total, worker)| each(total, worker));
            total.unjudged_bytes += worker.unjudged_bytes;
            total.discarded_bytes += worker.discarded_bytes;
        }
    }
}

fn add_tcp(total: &mut tcp::Counters, worker: &tcp::Counters) {
    total.unacceptable_segments += worker.unacceptable_segments;
    total.old_timestamps += worker.old_timestamps;
    total.challenge_acks += worker.challenge_acks;
    total.challenge_acks_withheld += worker.challenge_acks_withheld;
    total.retransmissions += worker.retransmissions;
    total.retransmission_timeouts += worker.retransmission_timeouts;
    total.tail_loss_probes += worker.tail_loss_probes;
    total.undone_recoveries += worker.undone_recoveries;
}
