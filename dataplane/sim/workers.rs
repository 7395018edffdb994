//! socktap between the hosts: its workers, fed in batches as the driver of the AF_XDP sockets feeds them.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};

use config::{Midstream, OnParseError};
use dataplane::counters::DropReason;
use dataplane::programs::{Generations, Programs};
use dataplane::steer::Selection;
use dataplane::worker::{Tap, TapChange, TapState};
use dataplane::{Fate, Output, Side, Worker, WorkerConfig};
use tap_engine::{Filter, Kind, Object};
use tcp::time::Instant;

use crate::middle::{Middle, Outbox, Sided};
use crate::random::Random;
use crate::scenario::{MiddlePlan, Scenario, TAPPED_PORT};

/// The filter for messages behind a 4-byte length. Shared by all runs, as by all workers: it keeps nothing.
static LEN4: LazyLock<Arc<Object>> = LazyLock::new(|| {
    Arc::new(Object::from_bytes("len4", tap_engine::shipped::LEN4).expect("the shipped filter is an object"))
});

/// Workers that share the flows.
pub struct Workers {
    workers: Vec<Worker>,
    /// Frames that change hands.
    handed: VecDeque<(usize, usize, Vec<u8>)>,
    /// Which queue, and so which worker, a frame comes in on.
    random: Random,
    /// Percent of batches before which a worker's programs change, to the same ones.
    changes: usize,
    changed: u64,
    plan: MiddlePlan,
    partial: bool,
}

/// Programs of both directions.
fn programs(plan: &MiddlePlan) -> [Option<Programs>; 2] {
    plan.judged.map(|judged| {
        judged.then(|| {
            let program = |name, kind| LEN4.program(name, kind).expect("the shipped filter has its programs");
            let verdict = plan.verdicts.then(|| program("by_first_byte", Kind::StreamVerdict));
            Filter::new(program("parse_len4", Kind::StreamParser), verdict, plan.message).into()
        })
    })
}

fn on_parse_error(plan: &MiddlePlan) -> OnParseError {
    if plan.discards { OnParseError::Drop } else { OnParseError::Disconnect }
}

impl Workers {
    /// Workers with the scenario's tap.
    pub fn new(seed: u64, scenario: &Scenario) -> Self {
        let plan = &scenario.middle;
        let worker = |index: usize| {
            let tap = Tap {
                name: "len4".into(),
                selection: Selection { server_ports: vec![TAPPED_PORT..=TAPPED_PORT + 10], ..Selection::default() },
                state: TapState {
                    programs: programs(plan).map(Generations::new),
                    application: Side::Server,
                    observe: false,
                    on_parse_error: on_parse_error(plan),
                    message_timeout: None,
                    midstream: Midstream::Reset,
                },
            };
            let config = WorkerConfig {
                index,
                workers: plan.workers,
                seed: seed ^ index as u64,
                owner_seed: seed,
                mtu: scenario.mtu,
                ifindex: [1, 2],
                accept_partial_checksums: [0, 1].map(|side: usize| scenario.hosts[side].partial_checksums),
                fragments: config::Fragments::Drop,
                flows: 1000,
                message: plan.message,
                taps: vec![tap],
            };
            Worker::new(config, Instant::ZERO).expect("memory for messages")
        };
        Self {
            workers: (0..plan.workers).map(worker).collect(),
            handed: VecDeque::new(),
            random: Random::new(!seed),
            changes: 0,
            changed: 0,
            plan: plan.clone(),
            partial: scenario.hosts.iter().any(|host| host.partial_checksums),
        }
    }

    /// With programs that change now and then, or often.
    pub fn with_changes(mut self) -> Self {
        self.changes = self.random.pick(&[0, 0, 1, 10, 50]);
        self
    }

    fn handle(
        &mut self,
        now: Instant,
        index: usize,
        from: usize,
        mut frame: Vec<u8>,
        out: &mut Outbox,
    ) -> Result<(), String> {
        let before = frame.clone();
        match self.workers[index].handle_frame(now, Side::BOTH[from], &mut frame, out) {
            Fate::Consumed | Fate::Dropped(_) => {}
            Fate::Forward => {
                if frame != before && !self.partial {
                    return Err(format!("a frame was changed on its way across: {before:02x?} became {frame:02x?}"));
                }
                if out.room[1 - from] > 0 {
                    out.room[1 - from] -= 1;
                    out.frames.push((1 - from, frame));
                } else {
                    self.workers[index].count_drop(DropReason::TransmitFull);
                }
            }
            Fate::HandOver(owner) if owner == index => return Err(format!("worker {index} hands over to itself")),
            Fate::HandOver(owner) => self.handed.push_back((owner, from, frame)),
        }
        Ok(())
    }
}

impl Middle for Workers {
    fn batch(&mut self, now: Instant, batch: Vec<Sided>, out: &mut Outbox) -> Result<(), String> {
        for (from, frame) in batch {
            let index = self.random.below(self.workers.len());
            self.handle(now, index, from, frame, out)?;
        }
        while let Some((owner, from, frame)) = self.handed.pop_front() {
            self.handle(now, owner, from, frame, out)?;
        }
        for worker in &mut self.workers {
            if self.changes > 0 && self.random.chance(self.changes) {
                let change = TapChange {
                    programs: programs(&self.plan),
                    observe: false,
                    on_parse_error: on_parse_error(&self.plan),
                    message_timeout: None,
                };
                worker.change_taps(vec![change]);
                self.changed += 1;
            }
            if worker.poll_at().is_some_and(|deadline| deadline <= now) {
                worker.handle_timeouts(now);
            }
            worker.pump(now);
            worker.poll_transmit(now, out);
        }
        Ok(())
    }

    fn terminates(&self) -> bool {
        true
    }

    fn poll_at(&self) -> Option<Instant> {
        self.workers.iter().filter_map(Worker::poll_at).min()
    }

    fn has_work(&self) -> bool {
        self.workers.iter().any(Worker::has_work)
    }

    fn leftovers(&self) -> Option<String> {
        let left = |(index, worker): (usize, &Worker)| {
            let left = worker.flow_count() > 0 || worker.has_work() || worker.poll_at().is_some();
            left.then(|| format!("worker {index} has {} flows, poll_at {:?}", worker.flow_count(), worker.poll_at()))
        };
        let all: Vec<_> = self.workers.iter().enumerate().filter_map(left).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts = vec![("changes of programs", self.changed)];
        for tcp in self.workers.iter().flat_map(Worker::tcp_counters) {
            counts.extend([
                ("retransmissions", tcp.retransmissions),
                ("retransmission timeouts", tcp.retransmission_timeouts),
                ("tail loss probes", tcp.tail_loss_probes),
                ("undone recoveries", tcp.undone_recoveries),
            ]);
        }
        for counters in self.workers.iter().map(Worker::counters) {
            counts.extend(DropReason::ALL.map(|reason| (reason.as_str(), counters.dropped[reason as usize])));
            counts.push(("frames handed over", counters.frames_handed_over));
            counts.push(("frames forwarded", counters.frames_forwarded.iter().sum()));
            for tap in &counters.taps {
                let flows = [
                    ("flows opened", tap.flows_opened),
                    ("flows established", tap.flows_established),
                    ("flows refused", tap.flows_refused),
                    ("flows reset", tap.flows_reset),
                    ("flows disconnected", tap.flows_disconnected),
                    ("flows timed out", tap.flows_timed_out),
                    ("flows closed", tap.flows_closed),
                ];
                counts.extend(flows);
                for direction in &tap.directions {
                    let [passed, dropped, disconnected] = direction.messages;
                    counts.extend([
                        ("messages passed", passed),
                        ("messages dropped", dropped),
                        ("messages disconnected", disconnected),
                    ]);
                    counts.push(("stream errors", direction.errors.iter().sum()));
                }
            }
        }
        counts
    }
}

impl Output for Outbox {
    fn room(&self, to: Side) -> usize {
        self.room[to as usize]
    }

    fn frame(&mut self, to: Side, length: usize) -> Option<&mut [u8]> {
        let room = &mut self.room[to as usize];
        *room = room.checked_sub(1)?;
        // Whatever is not written shows up as a wrong checksum.
        self.frames.push((to as usize, vec![0xa5; length]));
        self.frames.last_mut().map(|(_, frame)| frame.as_mut_slice())
    }
}
