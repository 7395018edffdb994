//! Bytes in, messages with verdicts out: the kernel's strparser (`net/strparser/strparser.c`) without the sockets.
//!
//! | strparser | here |
//! |---|---|
//! | the parser returns 0: wait for more | [`Step::NeedMore`]; not asked again before there are more bytes |
//! | a length beyond the bytes that are there: wait for all of them | [`Step::NeedMore`] with the length; not asked again before it is complete |
//! | a negative number | [`StreamError::Unrecoverable`] |
//! | `-EPROTO`: a length that lies in bytes seen before | [`StreamError::BadLength`] |
//! | `-EMSGSIZE`: longer than `max_msg_size` | [`StreamError::MessageTooBig`] |

use std::ops::Range;

use crate::context::{FlowInfo, Notes};
use crate::machine::MessageBuffer;
use crate::object::Kind;
use crate::program::{Program, ProgramFault};
use crate::verdict::Verdict;

/// The programs of one direction of one tap, instances of one worker.
#[derive(Debug)]
pub struct Filter {
    parser: Program,
    verdict: Option<Program>,
    max_message: usize,
    /// A program may write to its context.
    takes_notes: bool,
    /// Instructions that the parser and the verdict have spent, if they count them.
    spent: [u64; 2],
}

/// What is known of the message at the head of one stream. One per flow and direction; a new stream starts with the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamState {
    /// The message's length, once the parser has told it; 0 = not known. Never more than `max_message`.
    length: usize,
    /// Bytes of which the parser has said that they do not suffice.
    seen: usize,
    /// What the parser has written to its context when it told the length.
    notes: Notes,
}

impl StreamState {
    /// The length of the message at the head, if it is known and the message incomplete.
    pub fn known_length(&self) -> Option<usize> {
        (self.length > 0).then_some(self.length)
    }
}

/// What [`Filter::next`] found at the head of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The message is not complete.
    NeedMore {
        /// Its length in bytes, if the parser has told it.
        known_length: Option<usize>,
    },
    /// A complete message.
    Message {
        /// Its length in bytes, at least 1.
        length: usize,
        /// What becomes of it.
        verdict: Verdict,
    },
    /// The stream cannot be cut into messages any further.
    Error(StreamError),
}

/// Why a stream cannot be cut into messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The parser returned this negative number.
    #[error("the parser gave up with {0}")]
    Unrecoverable(i64),
    /// The parser returned a length that lies within bytes of which it had said that they do not suffice.
    #[error("the parser returned a length of {length}, but had asked for more than {seen} bytes")]
    BadLength {
        /// What it returned.
        length: usize,
        /// Bytes that it had seen without knowing the length.
        seen: usize,
    },
    /// The message is longer than it may be.
    #[error("{}", too_big(*.length, *.max))]
    MessageTooBig {
        /// Its length; `None`: the parser does not know it although `max` bytes are there.
        length: Option<usize>,
        /// Bytes that a message may have.
        max: usize,
    },
    /// The parser or the verdict did what programs must not do.
    #[error("program fault: {0}")]
    Fault(#[from] ProgramFault),
}

fn too_big(length: Option<usize>, max: usize) -> String {
    match length {
        Some(length) => format!("a message of {length} bytes is more than the limit of {max}"),
        None => format!("the parser does not know the message's length after {max} bytes, which is the limit"),
    }
}

impl StreamError {
    /// Its name, for counters and events.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Unrecoverable(_) => "unrecoverable",
            Self::BadLength { .. } => "bad_length",
            Self::MessageTooBig { .. } => "message_too_big",
            Self::Fault(_) => "program_fault",
        }
    }
}

impl Filter {
    /// A parser, and a verdict on its messages (`None` = all pass), of at most `max_message` bytes each.
    ///
    /// # Panics
    /// If a program is of the wrong kind.
    pub fn new(parser: Program, verdict: Option<Program>, max_message: usize) -> Self {
        assert_eq!(parser.kind(), Kind::StreamParser, "the parser");
        if let Some(verdict) = &verdict {
            assert_eq!(verdict.kind(), Kind::StreamVerdict, "the verdict");
        }
        let takes_notes = parser.writes_context() || verdict.as_ref().is_some_and(Program::writes_context);
        Self { parser, verdict, max_message, takes_notes, spent: [0; 2] }
    }

    /// Seeds what `bpf_get_prandom_u32` gives to both programs.
    pub fn seed_random(&mut self, seed: u64) {
        self.parser.seed_random(seed);
        if let Some(verdict) = &mut self.verdict {
            verdict.seed_random(!seed);
        }
    }

    /// From now on both programs run on CPU `cpu`, which is a worker.
    pub fn on_cpu(&mut self, cpu: u32) {
        self.programs().for_each(|program| program.on_cpu(cpu));
    }

    /// Instructions that the parser and the verdict have spent since this was last asked, if their objects
    /// [count them](crate::Object::count_steps).
    pub fn take_spent(&mut self) -> [u64; 2] {
        std::mem::take(&mut self.spent)
    }

    fn programs(&mut self) -> impl Iterator<Item = &mut Program> {
        std::iter::once(&mut self.parser).chain(&mut self.verdict)
    }

    /// Judges the message at the head of a stream, of which the bytes `start..end` of `buffer` are all that is there. The parser
    /// sees these, up to `max_message` of them; the verdict sees the message.
    ///
    /// After [`Step::Message`] the caller moves `start` on by its length, and calls again if bytes are left. After
    /// [`Step::NeedMore`] it calls again when there are more, with the head at `start` again. After [`Step::Error`] it stops.
    /// How the bytes of a stream are spread over calls changes nothing about messages and verdicts, if what the parser says
    /// about a message follows from the message's first bytes.
    ///
    /// `now_ns` is the time that programs see.
    ///
    /// # Panics
    /// If `start..end` is not within the buffer.
    pub fn next(
        &mut self,
        stream: &mut StreamState,
        flow: &mut FlowInfo,
        now_ns: u64,
        buffer: &mut MessageBuffer,
        start: usize,
        end: usize,
    ) -> Step {
        assert!(start <= end && end <= buffer.capacity(), "bytes beyond the buffer");
        let available = end - start;
        if stream.length == 0 {
            if available <= stream.seen {
                return Step::NeedMore { known_length: None };
            }
            // No message reaches beyond `max_message`; and a parser that sees no further says the same about the same stream,
            // however many bytes have arrived at once.
            let head = start..start + available.min(self.max_message);
            let shown = head.len();
            if self.takes_notes {
                flow.set_notes(&Notes::default());
            }
            match self.parse(stream.seen, flow, now_ns, buffer, head) {
                Ok(Some(length)) => {
                    stream.length = length;
                    if self.takes_notes {
                        stream.notes = flow.notes();
                    }
                }
                Ok(None) => {
                    stream.seen = shown;
                    return Step::NeedMore { known_length: None };
                }
                Err(error) => return Step::Error(error),
            }
        }
        let length = stream.length;
        if available < length {
            return Step::NeedMore { known_length: Some(length) };
        }
        if self.takes_notes {
            flow.set_notes(&stream.notes);
        }
        match self.judge(flow, now_ns, buffer, start..start + length) {
            Ok(verdict) => {
                *stream = StreamState::default();
                Step::Message { length, verdict }
            }
            Err(fault) => Step::Error(StreamError::Fault(fault)),
        }
    }

    /// The length of the message at the head, if these bytes suffice to tell it. `seen` of them did not.
    fn parse(
        &mut self,
        seen: usize,
        flow: &mut FlowInfo,
        now_ns: u64,
        buffer: &mut MessageBuffer,
        head: Range<usize>,
    ) -> Result<Option<usize>, StreamError> {
        let (max, shown) = (self.max_message, head.len());
        // strparser takes the return value for an int.
        let returned = self.parser.run(flow, now_ns, buffer, head);
        self.spent[0] += self.parser.steps();
        match returned? as i32 {
            error @ ..=-1 => Err(StreamError::Unrecoverable(error.into())),
            0 if shown == max => Err(StreamError::MessageTooBig { length: None, max }),
            0 => Ok(None),
            length => match length as usize {
                length if length <= seen => Err(StreamError::BadLength { length, seen }),
                length if length > max => Err(StreamError::MessageTooBig { length: Some(length), max }),
                length => Ok(Some(length)),
            },
        }
    }

    fn judge(
        &mut self,
        flow: &mut FlowInfo,
        now_ns: u64,
        buffer: &mut MessageBuffer,
        message: Range<usize>,
    ) -> Result<Verdict, ProgramFault> {
        match &mut self.verdict {
            None => Ok(Verdict::Pass),
            Some(verdict) => {
                let returned = verdict.run(flow, now_ns, buffer, message);
                self.spent[1] += verdict.steps();
                returned.map(Verdict::from_return_value)
            }
        }
    }
}
