//! The programs of one direction of a tap on one worker, and how they change while flows go on.
//!
//! ```text
//!   tap ───────────▶ current ◀───────┐
//!                                    │ flows at a boundary, and all that begin a message
//!   flows in the middle of ──▶ earlier generation: the rest of that message is judged by it
//!   a message of known length
//! ```
//! A flow that has been told the length of its message keeps the programs that said it, until the message has ended; then, or at
//! once if the length was not known, it goes on with the current ones. When the last such flow lets go of a generation, it is
//! freed. At most [`EARLIER_LIMIT`] earlier ones are kept: beyond, the oldest is withdrawn, and what it had begun is judged by
//! the current one. No byte is lost either way, since a message's length stays what it is.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};

use tap_engine::{Filter, FlowInfo, MessageBuffer, Program, ProgramFault, Verdict};

/// Earlier generations that one direction of a tap keeps on one worker for messages that they began.
pub const EARLIER_LIMIT: usize = 8;

/// The programs of one direction.
#[derive(Debug)]
pub struct Programs {
    /// Parser and live verdict.
    pub filter: Filter,
    /// A verdict that is asked about the same messages and decides nothing.
    pub shadow: Option<Program>,
}

impl Programs {
    /// What the shadow, if there is one, says about the message `range` of `buffer`, which the live verdict has judged. It sees
    /// the bytes as that one left them; what it does to its context stays with it.
    pub(crate) fn ask_shadow(
        &mut self,
        flow: &FlowInfo,
        now_ns: u64,
        buffer: &mut MessageBuffer,
        range: std::ops::Range<usize>,
    ) -> Option<Result<Verdict, ProgramFault>> {
        let mut flow = *flow;
        let value = self.shadow.as_mut()?.run(&mut flow, now_ns, buffer, range);
        Some(value.map(Verdict::from_return_value))
    }
}

impl From<Filter> for Programs {
    fn from(filter: Filter) -> Self {
        Self { filter, shadow: None }
    }
}

/// Programs that a tap and its flows share; empty when they were withdrawn.
#[derive(Debug)]
pub(crate) struct Generation(RefCell<Option<Programs>>);

impl Generation {
    fn is_withdrawn(&self) -> bool {
        self.0.borrow().is_none()
    }

    /// # Panics
    /// If they were withdrawn, or are in use.
    pub(crate) fn programs(&self) -> RefMut<'_, Programs> {
        RefMut::map(self.0.borrow_mut(), |programs| programs.as_mut().expect("programs that were not withdrawn"))
    }
}

/// The current programs of a direction, and the earlier ones that flows still need.
#[derive(Debug, Default)]
pub struct Generations {
    current: Option<Rc<Generation>>,
    /// Oldest first; those that no flow needs any more are gone.
    earlier: VecDeque<Weak<Generation>>,
}

impl Generations {
    /// These programs, and none before them. `None`: the direction is not judged.
    pub fn new(programs: Option<Programs>) -> Self {
        let current = programs.map(|programs| Rc::new(Generation(RefCell::new(Some(programs)))));
        Self { current, earlier: VecDeque::new() }
    }

    /// Whether there are programs at present.
    pub fn judges(&self) -> bool {
        self.current.is_some()
    }

    /// From now on messages are begun by `programs`.
    pub fn replace(&mut self, programs: Option<Programs>) {
        let next = Self::new(programs).current;
        if let Some(last) = std::mem::replace(&mut self.current, next) {
            self.earlier.push_back(Rc::downgrade(&last));
        }
        self.earlier.retain(|generation| generation.strong_count() > 0);
        while self.earlier.len() > EARLIER_LIMIT {
            if let Some(oldest) = self.earlier.pop_front().and_then(|oldest| oldest.upgrade()) {
                oldest.0.take();
            }
        }
    }

    /// Earlier generations that flows still need.
    pub fn earlier(&self) -> usize {
        self.earlier.iter().filter(|generation| generation.strong_count() > 0).count()
    }
}

/// The programs that a flow's message at the head belongs to.
#[derive(Debug, Default)]
pub(crate) struct Held(Option<Rc<Generation>>);

/// What [`Held::take_up`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// The programs are those of the last time.
    Same,
    /// They are the current ones now.
    Changed,
    /// There are none any more.
    Nothing,
}

impl Held {
    /// Takes up the current programs, if the message at the head is not one that those of the last time must end.
    pub(crate) fn take_up(&mut self, generations: &Generations, in_message: bool) -> Taken {
        let same = match (&self.0, &generations.current) {
            (Some(held), Some(current)) => Rc::ptr_eq(held, current),
            _ => false,
        };
        if same || in_message && self.0.as_ref().is_some_and(|held| !held.is_withdrawn()) {
            return Taken::Same;
        }
        self.0.clone_from(&generations.current);
        if self.0.is_some() { Taken::Changed } else { Taken::Nothing }
    }

    /// Whether the current programs are others.
    pub(crate) fn is_outdated(&self, generations: &Generations) -> bool {
        match (&self.0, &generations.current) {
            (Some(held), Some(current)) => !Rc::ptr_eq(held, current),
            (held, current) => held.is_some() != current.is_some(),
        }
    }

    /// The programs, if any were taken up.
    pub(crate) fn generation(&self) -> Option<Rc<Generation>> {
        self.0.clone()
    }

    /// Lets go of them.
    pub(crate) fn release(&mut self) {
        self.0 = None;
    }
}

#[cfg(test)]
mod tests {
    use tap_engine::{Kind, Object};

    use super::*;

    fn programs() -> Option<Programs> {
        let object = Object::from_bytes("len4", tap_engine::shipped::LEN4).unwrap();
        Some(Filter::new(object.program("parse_len4", Kind::StreamParser).unwrap(), None, 100).into())
    }

    #[test]
    fn a_generation_lives_as_long_as_a_flow_needs_it() {
        let mut generations = Generations::new(programs());
        let mut held = Held::default();
        assert_eq!(held.take_up(&generations, false), Taken::Changed);
        generations.replace(programs());
        assert_eq!((held.take_up(&generations, true), held.is_outdated(&generations)), (Taken::Same, true));
        assert_eq!(generations.earlier(), 1);
        assert_eq!(held.take_up(&generations, false), Taken::Changed);
        assert_eq!((held.take_up(&generations, true), held.is_outdated(&generations)), (Taken::Same, false));
        assert_eq!(generations.earlier(), 0);
        generations.replace(None);
        assert_eq!(held.take_up(&generations, true), Taken::Same);
        assert_eq!(held.take_up(&generations, false), Taken::Nothing);
        assert_eq!(generations.earlier(), 0);
    }

    #[test]
    fn beyond_the_limit_the_oldest_generation_is_withdrawn() {
        let mut generations = Generations::new(programs());
        let mut flows: Vec<Held> = Vec::new();
        for _ in 0..EARLIER_LIMIT + 3 {
            let mut held = Held::default();
            held.take_up(&generations, false);
            flows.push(held);
            generations.replace(programs());
            assert!(generations.earlier() <= EARLIER_LIMIT);
        }
        for (number, held) in flows.iter_mut().enumerate() {
            let taken = if number < 3 { Taken::Changed } else { Taken::Same };
            assert_eq!(held.take_up(&generations, true), taken, "{number}");
            let _ = held.generation().expect("programs").programs();
        }
    }
}
