//! Two socktaps, and a link with faults between them: each is the peer of the other.

use std::collections::BTreeMap;

use tcp::time::Instant;

use crate::link::Link;
use crate::middle::{Middle, Outbox, Sided};
use crate::random::Random;
use crate::scenario::Scenario;
use crate::workers::Workers;

/// The client's socktap, the server's, and the link.
pub struct Chain {
    ends: [Workers; 2],
    /// Towards the client's end, and towards the server's.
    links: [Link; 2],
    /// Frames on the link, by the time and order of their arrival: the end that they arrive at.
    under_way: BTreeMap<(Instant, usize), Sided>,
    count: usize,
}

impl Chain {
    /// A chain whose link has the plans of the scenario's server-side link.
    pub fn new(seed: u64, scenario: &Scenario) -> Self {
        let mut random = Random::new(seed);
        let links = scenario.links[1].clone().map(|plan| Link::new(plan, scenario.faults_end, random.fork()));
        let ends = [seed, !seed].map(|seed| Workers::new(seed, scenario));
        Self { ends, links, under_way: BTreeMap::new(), count: 0 }
    }

    /// Lets one end work; what it sends goes to its host or onto the link.
    fn step(&mut self, now: Instant, end: usize, batch: Vec<Sided>, out: &mut Outbox) -> Result<(), String> {
        let mut sent = Outbox { room: [4096; 2], frames: Vec::new() };
        self.ends[end].batch(now, batch, &mut sent)?;
        for (to, frame) in sent.frames {
            if to == end {
                out.frames.push((to, frame));
            } else {
                let (under_way, count) = (&mut self.under_way, &mut self.count);
                self.links[to].carry(now, frame, |at, frame| {
                    *count += 1;
                    under_way.insert((at, *count), (to, frame));
                });
            }
        }
        Ok(())
    }
}

impl Middle for Chain {
    fn batch(&mut self, now: Instant, batch: Vec<Sided>, out: &mut Outbox) -> Result<(), String> {
        let mut batches = [Vec::new(), Vec::new()];
        batch.into_iter().for_each(|(from, frame)| batches[from].push((from, frame)));
        while let Some(first) = self.under_way.first_entry().filter(|first| first.key().0 <= now) {
            let (to, frame) = first.remove();
            batches[to].push((1 - to, frame));
        }
        let [client, server] = batches;
        self.step(now, 0, client, out)?;
        self.step(now, 1, server, out)
    }

    fn terminates(&self) -> bool {
        true
    }

    fn poll_at(&self) -> Option<Instant> {
        let arrival = self.under_way.first_key_value().map(|(&(at, _), _)| at);
        self.ends.iter().filter_map(Workers::poll_at).chain(arrival).min()
    }

    fn has_work(&self) -> bool {
        self.ends.iter().any(Workers::has_work)
    }

    fn leftovers(&self) -> Option<String> {
        self.ends.iter().find_map(Workers::leftovers)
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        self.ends.iter().flat_map(Workers::counts).collect()
    }
}
