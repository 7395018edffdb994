//! The same objects on the same byte streams, in the kernel's own sockmap and here: equal calls, with equal contexts, lengths and
//! verdicts. Needs root; says so where it has not.
//!
//! Programs write what they see and return to a ring buffer, on both sides. What comes out of the kernel's socket is not looked at: a drop
//! stalls it until more arrives. Two more habits of the kernel decide how bytes are sent:
//! - With several messages in one skb, its programs see the skb, not the message. So the next message is sent when the last is judged.
//! - Its bytes lie behind `data_end` at first, and a parser must not pull them: the stream parser keeps pointers into the skb. So parsers here
//!   read by `bpf_skb_load_bytes`; verdicts pull, and then are those that ship with socktap.

mod common;

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::sync::Arc;

use aya::maps::{MapData, RingBuf, SockMap};
use aya::programs::SkSkb;
use aya::{Ebpf, EbpfLoader};
use common::{compile_with, filter, is_root};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::TestRunner;
use tap_engine::{Filter, FlowInfo, MessageBuffer, Object, Step, StreamError, StreamState, Verdict};

/// How long the kernel may take for a call; no test waits so long unless it fails.
const PATIENCE_MS: u16 = 10_000;

/// The longest message that the parsers know.
const LONGEST: usize = 64;

/// `report` tells what a program sees, and what it is about to return.
const REPORT: &str = r#"
    struct { __uint(type, BPF_MAP_TYPE_SOCKMAP); __uint(max_entries, 1); __type(key, __u32); __type(value, __u32); } sockets SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 65536); } records SEC(".maps");
    struct record {
        int result;
        __u32 is_verdict, len, family, protocol, local_port, remote_port, local_ip[4], remote_ip[4], priority, tc_index;
        unsigned char bytes[64];
    };
    static __attribute__((always_inline)) int report(struct __sk_buff *skb, __u32 is_verdict, int result) {
        struct record record = { .result = result, .is_verdict = is_verdict, .len = skb->len, .family = skb->family,
            .protocol = skb->protocol, .local_port = skb->local_port, .remote_port = skb->remote_port };
        if (record.family == 2) {
            record.local_ip[0] = skb->local_ip4;
            record.remote_ip[0] = skb->remote_ip4;
        } else {
            record.local_ip[0] = skb->local_ip6[0]; record.remote_ip[0] = skb->remote_ip6[0];
            record.local_ip[1] = skb->local_ip6[1]; record.remote_ip[1] = skb->remote_ip6[1];
            record.local_ip[2] = skb->local_ip6[2]; record.remote_ip[2] = skb->remote_ip6[2];
            record.local_ip[3] = skb->local_ip6[3]; record.remote_ip[3] = skb->remote_ip6[3];
        }
        if (!is_verdict) {
            skb->priority = result;
            skb->tc_index = 0x10000 + skb->len * 3;
        }
        record.priority = skb->priority;
        record.tc_index = skb->tc_index;
        __u64 copied = skb->len;
        if (copied > 64) copied = 64;
        asm volatile("" : "+r"(copied));
        if (copied - 1 < 64) bpf_skb_load_bytes(skb, 0, record.bytes, copied);
        bpf_ringbuf_output(&records, &record, sizeof(record), 0);
        return result;
    }"#;

/// A length and so many bytes, as `len4` has them; the verdict is that of `len4`.
const LEN4: &str = r#"
    PARSER int parse(struct __sk_buff *skb) {
        unsigned char head[4];
        if (bpf_skb_load_bytes(skb, 0, head, 4)) return report(skb, 0, 0);
        unsigned length = head[0] << 24 | head[1] << 16 | head[2] << 8 | head[3];
        return report(skb, 0, length > 60 ? -2 : 4 + length);
    }
    VERDICT int judge(struct __sk_buff *skb) {
        bpf_skb_pull_data(skb, skb->len);
        return report(skb, 1, by_first_byte(skb));
    }"#;

/// Lines, with the verdict of `lines`.
const LINES: &str = r#"
    PARSER int parse(struct __sk_buff *skb) {
        unsigned char bytes[64] = {};
        unsigned long length = skb->len;
        if (length > 64) length = 64;
        asm volatile("" : "+r"(length));
        if (length - 1 >= 64 || bpf_skb_load_bytes(skb, 0, bytes, length)) return report(skb, 0, 0);
        for (int i = 0; i < 64; i++)
            if (bytes[i] == '\n') return report(skb, 0, i + 1);
        return report(skb, 0, length == 64 ? -2 : 0);
    }
    VERDICT int judge(struct __sk_buff *skb) {
        bpf_skb_pull_data(skb, skb->len);
        return report(skb, 1, no_word(skb));
    }"#;

/// Maps and context fields decide: the third message of a kind is dropped; the parser tells the verdict by `priority` how long it is.
const COUNTED: &str = r#"
    struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 8); __type(key, __u32); __type(value, __u64); } kinds SEC(".maps");
    PARSER int parse(struct __sk_buff *skb) {
        unsigned char head[2];
        if (bpf_skb_load_bytes(skb, 0, head, 2)) return report(skb, 0, 0);
        return report(skb, 0, head[1] > 60 ? -22 : 2 + head[1]);
    }
    VERDICT int judge(struct __sk_buff *skb) {
        unsigned char kind = 0;
        __u64 one = 1;
        bpf_skb_load_bytes(skb, 0, &kind, 1);
        __u32 key = kind;
        __u64 *count = bpf_map_lookup_elem(&kinds, &key);
        if (!count) {
            int full = bpf_map_update_elem(&kinds, &key, &one, BPF_NOEXIST);
            return report(skb, 1, full ? 2 : SK_PASS);
        }
        *count += 1;
        if (skb->priority != skb->len) return report(skb, 1, 9);
        return report(skb, 1, *count % 3 == 0 ? SK_DROP : SK_PASS);
    }"#;

/// The object: `source`, and the functions of a filter that ships with socktap, as subprograms.
fn compile(shipped: Option<&str>, source: &str) -> Vec<u8> {
    let include = shipped.map_or(String::new(), |name| {
        format!("#pragma push_macro(\"SEC\")\n#undef SEC\n#define SEC(name)\n#include \"{name}.bpf.c\"\n#pragma pop_macro(\"SEC\")\n")
    });
    compile_with(&format!("{include}{REPORT}{source}"), &[concat!("-I", env!("CARGO_MANIFEST_DIR"), "/programs")])
}

/// A socket map of the kernel, with an object's programs.
struct Kernel {
    /// Dropping it removes the programs.
    _loaded: Ebpf,
    sockets: SockMap<MapData>,
    records: RingBuf<MapData>,
}

impl Kernel {
    fn load(bytes: &[u8]) -> Self {
        let mut loaded = EbpfLoader::new().btf(None).load(bytes).unwrap();
        let sockets = SockMap::try_from(loaded.take_map("sockets").unwrap()).unwrap();
        let records = RingBuf::try_from(loaded.take_map("records").unwrap()).unwrap();
        for function in ["parse", "judge"] {
            let program: &mut SkSkb = loaded.program_mut(function).unwrap().try_into().unwrap();
            program.load().unwrap_or_else(|error| panic!("{function}: {error:?}"));
            program.attach(sockets.fd()).unwrap();
        }
        Self { _loaded: loaded, sockets, records }
    }

    /// What the next call of a program reports.
    fn record(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(record) = self.records.next() {
                return Some(record.to_vec());
            }
            let mut readable = [PollFd::new(self.records.as_fd(), PollFlags::POLLIN)];
            match poll(&mut readable, PollTimeout::from(PATIENCE_MS)) {
                Ok(0) => return None,
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(error) => panic!("poll: {error}"),
            }
        }
    }
}

/// The same object here.
struct Ours {
    object: Arc<Object>,
    filter: Filter,
}

impl Ours {
    fn load(bytes: &[u8]) -> Self {
        let mut object = Object::from_bytes("sockmap.bpf.o", bytes).unwrap();
        object.verify().unwrap();
        let object = Arc::new(object);
        let filter = filter(&object, "parse", Some("judge"), 4096);
        Self { object, filter }
    }

    fn records(&self) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        self.object.map("records").unwrap().drain(&mut |record| records.push(record.to_vec()));
        records
    }
}

/// A message, and where it is split.
type Message = (Vec<u8>, Vec<prop::sample::Index>);

/// How often there was what.
#[derive(Debug, Default)]
struct Tally {
    passed: usize,
    dropped: usize,
    disconnected: usize,
    errors: usize,
    parsed_again: usize,
}

/// Sends `messages` over one connection of the kernel, and gives them to our filter; compares all calls of programs.
fn compare(kernel: &mut Kernel, ours: &mut Ours, address: &str, messages: &[Message], tally: &mut Tally) {
    let listener = TcpListener::bind(address).unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    client.set_nodelay(true).unwrap();
    let (application, remote) = listener.accept().unwrap();
    let mut flow = FlowInfo::new(application.local_addr().unwrap(), remote);
    kernel.sockets.set(0, &application, 0).unwrap();

    for (bytes, splits) in messages {
        let mut ends: Vec<usize> = splits.iter().map(|split| split.index(bytes.len())).filter(|&end| end > 0).collect();
        ends.extend([bytes.len()]);
        ends.sort_unstable();
        ends.dedup();
        let mut buffer = MessageBuffer::new(bytes.len()).unwrap();
        buffer.as_mut_slice().copy_from_slice(bytes);
        let (mut state, mut sent, mut parses) = (StreamState::default(), 0, 0);
        for end in ends {
            let step = ours.filter.next(&mut state, &mut flow, 0, &mut buffer, 0, end);
            client.write_all(&bytes[sent..end]).unwrap();
            sent = end;
            let records = ours.records();
            for (index, record) in records.iter().enumerate() {
                let of_kernel = kernel.record();
                assert_eq!(of_kernel.as_ref(), Some(record), "record {index} of {end} bytes of {bytes:?}: {step:?}");
            }
            parses += records.iter().filter(|record| record[4] == 0).count();
            let result = records.last().map_or(0, |record| i32::from_ne_bytes(record[..4].try_into().unwrap()));
            match step {
                Step::NeedMore { .. } => assert!(end < bytes.len(), "a message without end: {bytes:?}"),
                Step::Message { length, verdict } => {
                    assert_eq!((length, end), (bytes.len(), bytes.len()));
                    let (count, expected) = match verdict {
                        Verdict::Pass => (&mut tally.passed, 1),
                        Verdict::Drop => (&mut tally.dropped, 0),
                        Verdict::Disconnect => (&mut tally.disconnected, 2),
                    };
                    assert_eq!(result, expected);
                    *count += 1;
                }
                Step::Error(error) => {
                    assert_eq!(error, StreamError::Unrecoverable(result.into()));
                    tally.errors += 1;
                    return;
                }
            }
        }
        tally.parsed_again += usize::from(parses > 1);
    }
}

/// Compares the kernel and us on streams of such messages, each with three splits at most.
fn compare_all(shipped: Option<&str>, source: &str, message: impl Strategy<Value = Vec<u8>>) -> Option<Tally> {
    if !is_root() {
        println!("skipped: needs root");
        return None;
    }
    let bytes = compile(shipped, source);
    let (mut kernel, mut ours) = (Kernel::load(&bytes), Ours::load(&bytes));
    let streams = vec((message, vec(any::<prop::sample::Index>(), 0..4)), 1..20);
    let mut runner = TestRunner::deterministic();
    let mut tally = Tally::default();
    for address in ["127.0.0.1:0", "[::1]:0"].into_iter().cycle().take(40) {
        let messages = streams.new_tree(&mut runner).unwrap().current();
        compare(&mut kernel, &mut ours, address, &messages, &mut tally);
    }
    assert!(kernel.records.next().is_none(), "the kernel called a program once more");
    Some(tally)
}

#[test]
fn length_prefixed_messages_are_cut_and_judged_as_by_the_kernel() {
    let message = (
        prop_oneof![20 => Just(0_u8), 1 => Just(1_u8)],
        prop::sample::select(b"DX.\xff".to_vec()),
        vec(any::<u8>(), 0..LONGEST - 5),
    )
        .prop_map(|(high, first, rest)| {
            let length = u32::from(high) << 24 | (rest.len() as u32 + 1);
            [&length.to_be_bytes()[..], &[first], &rest].concat()
        });
    let Some(tally) = compare_all(Some("len4"), LEN4, message) else { return };
    let Tally { passed, dropped, disconnected, errors, parsed_again } = tally;
    assert!([passed, dropped, disconnected, errors, parsed_again].iter().all(|&count| count > 5), "{tally:?}");
}

#[test]
fn lines_are_cut_and_judged_as_by_the_kernel() {
    let message = prop_oneof![
        20 => ("[a-z ]{0,20}", prop::sample::select(vec!["", "secret", "SecrEt", "secre"]), "[a-z ]{0,20}")
            .prop_map(|(before, word, after)| format!("{before}{word}{after}\n").into_bytes()),
        1 => Just(vec![b'a'; LONGEST]),
    ];
    let Some(tally) = compare_all(Some("lines"), LINES, message) else { return };
    let Tally { passed, dropped, errors, parsed_again, .. } = tally;
    assert!([passed, dropped, errors, parsed_again].iter().all(|&count| count > 5), "{tally:?}");
}

#[test]
fn maps_and_notes_are_those_of_the_kernel() {
    let message = (0..12_u8, vec(any::<u8>(), 0..60), prop::bool::weighted(0.05)).prop_map(|(kind, rest, damaged)| {
        let length = if damaged { 99 } else { rest.len() as u8 };
        [&[kind, length][..], &rest].concat()
    });
    let Some(tally) = compare_all(None, COUNTED, message) else { return };
    let Tally { passed, dropped, disconnected, errors, parsed_again } = tally;
    assert!([passed, dropped, disconnected, errors, parsed_again].iter().all(|&count| count > 5), "{tally:?}");
}
