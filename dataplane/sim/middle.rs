//! What stands between the two hosts, as the network sees it; a wire, which is the control.

use tcp::time::Instant;

/// A frame and the side that it comes from or goes to.
pub type Sided = (usize, Vec<u8>);

/// The frames that a middle sends, and how many it may.
#[derive(Default)]
pub struct Outbox {
    /// How many more it may send, by side.
    pub room: [usize; 2],
    /// What it has sent.
    pub frames: Vec<Sided>,
}

/// Whatever joins the two links.
pub trait Middle {
    /// Takes in a batch of frames.
    fn batch(&mut self, now: Instant, batch: Vec<Sided>, out: &mut Outbox) -> Result<(), String>;
    /// Its segments are its own: they leave in order, whatever the hosts' links did to theirs.
    fn terminates(&self) -> bool;
    /// When it wants to be called without a frame.
    fn poll_at(&self) -> Option<Instant>;
    /// It waits for room.
    fn has_work(&self) -> bool;
    /// What is left of flows, for the end of a run: none is right.
    fn leftovers(&self) -> Option<String>;
    /// Counts by name, for the report of a swarm.
    fn counts(&self) -> Vec<(&'static str, u64)>;
}

/// All frames go across unchanged.
pub struct Wire;

impl Middle for Wire {
    fn batch(&mut self, _now: Instant, batch: Vec<Sided>, out: &mut Outbox) -> Result<(), String> {
        for (from, frame) in batch {
            if out.room[1 - from] > 0 {
                out.room[1 - from] -= 1;
                out.frames.push((1 - from, frame));
            }
        }
        Ok(())
    }

    fn terminates(&self) -> bool {
        false
    }

    fn poll_at(&self) -> Option<Instant> {
        None
    }

    fn has_work(&self) -> bool {
        false
    }

    fn leftovers(&self) -> Option<String> {
        None
    }

    fn counts(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
}
