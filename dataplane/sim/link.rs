//! One direction of a link: delay, a rate, and until a given time loss, reordering, duplication and corruption.

use std::collections::VecDeque;

use tcp::time::{Duration, Instant};

use crate::frames;
use crate::random::Random;

/// What a link does to frames.
#[derive(Clone, Debug)]
pub struct LinkPlan {
    /// One-way delay.
    pub delay: Duration,
    /// Time that a byte takes, in nanoseconds; 0: none.
    pub byte_ns: u64,
    /// Frames that may wait for their turn; more are lost.
    pub queue: usize,
    /// Of a thousand frames, how many are lost.
    pub loss: usize,
    /// Percent of frames that arrive twice.
    pub duplicate: usize,
    /// Percent of frames that are held up, so that later ones overtake them.
    pub reorder: usize,
    /// For how long, at most.
    pub hold: Duration,
    /// Percent of frames in which something is flipped that a checksum covers.
    pub corrupt: usize,
    /// Short frames are padded, as Ethernet does.
    pub pad: bool,
}

impl LinkPlan {
    /// Frames can get lost here.
    pub fn is_lossy(&self) -> bool {
        self.loss > 0 || self.corrupt > 0 || (self.byte_ns > 0 && self.queue < 1000)
    }

    /// Frames arrive as they were sent, once and in order.
    pub fn is_faultless(&self) -> bool {
        !self.is_lossy() && self.duplicate == 0 && self.reorder == 0
    }
}

/// One direction of a link.
pub struct Link {
    plan: LinkPlan,
    random: Random,
    /// From then on it is without fault.
    faults_end: Instant,
    /// When the last bit of each frame leaves that waits for its turn.
    waiting: VecDeque<Instant>,
    /// When the last frame arrives that was not held up.
    last_arrival: Instant,
}

impl Link {
    /// A link that behaves as planned, and well from `faults_end` on.
    pub fn new(plan: LinkPlan, faults_end: Instant, random: Random) -> Self {
        Self { plan, random, faults_end, waiting: VecDeque::new(), last_arrival: Instant::ZERO }
    }

    /// Takes in a frame; `arrive` is called for each time that it comes out.
    pub fn carry(&mut self, now: Instant, mut frame: Vec<u8>, mut arrive: impl FnMut(Instant, Vec<u8>)) {
        let plan = &self.plan;
        let random = &mut self.random;
        if plan.pad && frame.len() < 60 {
            frame.resize(60, 0xee);
        }
        let length_us = (frame.len() as u64 * plan.byte_ns).div_ceil(1000);
        while self.waiting.front().is_some_and(|&left| left <= now) {
            self.waiting.pop_front();
        }
        let begin = self.waiting.back().copied().unwrap_or(now);
        let faults = now < self.faults_end;
        if faults {
            if random.below(1000) < plan.loss || self.waiting.len() > plan.queue {
                return;
            }
            if random.chance(plan.corrupt) {
                let covered = frames::covered_by_checksum(&frame);
                if !covered.is_empty() {
                    let position = random.between(covered.start, covered.end - 1);
                    let change = random.between(1, 255) as u8;
                    // A change within one byte changes the sum, whatever it is; a second one could make it right again.
                    if frames::segment(&frame).is_some_and(|segment| segment.checksums_good) {
                        frame[position] ^= change;
                    }
                }
            }
        }
        let left = begin + Duration::from_micros(length_us);
        if left > now {
            self.waiting.push_back(left);
        }
        let in_order = (left + plan.delay).max(self.last_arrival);
        if faults && random.chance(plan.duplicate) {
            let late = random.below(plan.hold.total_micros() as usize + 1) as u64;
            arrive(in_order + Duration::from_micros(late), frame.clone());
        }
        if faults && random.chance(plan.reorder) {
            let late = random.below(plan.hold.total_micros() as usize + 1) as u64;
            arrive(in_order + Duration::from_micros(late), frame);
        } else {
            self.last_arrival = in_order;
            arrive(in_order, frame);
        }
    }
}
