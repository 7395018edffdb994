//! How text leaves: segments, windows, probes of the peer's window (RFC 9293 §3.7, §3.8.6; RFC 5681; RFC 6928).

use tcp::time::Duration;
use tcp::wire::SynOptions;

use crate::common::{ACK, NETWORKS, Seg, Setup, seg};
use crate::play::{Transcript, lines, text};

/// The text of the first segment, if there is more than enough to send.
fn segment_size(setup: Setup) -> usize {
    let mut script = Transcript::new(setup);
    script.connection.send(&text(1, 60_000));
    script.transmit()[0].payload.len()
}

/// RFC 9293 §3.7.1: "Eff.snd.MSS = min(SendMSS+20, MMS_S) - TCPhdrsize - IPoptionsize"; 536 and 1220 of a peer that says nothing.
#[test]
fn segments_are_as_long_as_peer_and_path_allow() {
    let setup = |network: usize, mtu, mss| {
        let mut setup = Setup { mtu, ..Setup::on(NETWORKS[network]) };
        setup.peers.options.mss = mss;
        setup
    };
    for (network, mtu, mss, expected) in [
        (0, 1500, Some(1460), 1460),
        (0, 1500, Some(1000), 1000),
        (0, 1500, Some(9000), 1460),
        (0, 9000, Some(8960), 8960),
        (0, 1500, None, 536),
        (2, 1500, Some(1460), 1440),
        (2, 1500, None, 1220),
        (0, 1500, Some(1), 48),
        (0, 0, Some(1460), 536),
    ] {
        assert_eq!(segment_size(setup(network, mtu, mss)), expected);
        // RFC 6691 §2: options shorten the text.
        let stamped = setup(network, mtu, mss).timestamps(0, 0);
        assert_eq!(segment_size(stamped), expected - 12);
    }
}

/// RFC 6928 §2: "IW = min (10*MSS, max (2*MSS, 14600))".
#[test]
fn the_first_flight_is_ten_segments() {
    for (mss, mtu, expected) in [(1460, 1500, 14_600), (536, 1500, 5360), (100, 1500, 1000), (8960, 9000, 17_920)] {
        let mut setup = Setup { mtu, ..Setup::default() };
        setup.peers.options = SynOptions { mss: Some(mss), ..setup.peers.options };
        let mut script = Transcript::new(setup);
        script.connection.send(&text(1, 60_000));
        let flight: usize = script.transmit().iter().map(|segment| segment.payload.len()).sum();
        assert_eq!(flight, expected);
    }
}

/// RFC 5681 §3.1: slow start: each ACK lets twice as much leave.
#[test]
fn slow_start() {
    let mut script = Transcript::new(Setup::default());
    script.play(&("send 60000\n".to_owned() + &lines("> .", 1..14_601, 1460, "ack 1")));
    script.play(
        "+100 < . 1 ack 2921
         > . 14601:16061 ack 1
         > . 16061:17521 ack 1
         > . 17521:18981 ack 1
         > . 18981:20441 ack 1
         < . 1 ack 5841
         > . 20441:21901 ack 1
         > . 21901:23361 ack 1
         > . 23361:24821 ack 1
         > . 24821:26281 ack 1",
    );
}

/// RFC 5681 §4.1: "if the TCP has not sent data in an interval exceeding the retransmission timeout", no more than the initial
/// window leaves.
#[test]
fn after_a_pause_the_first_window_counts() {
    let mut script = Transcript::new(Setup::default());
    script.play(&("send 14600\n".to_owned() + &lines("> .", 1..13_141, 1460, "ack 1") + "> P. 13141:14601 ack 1"));
    script.play("+100 < . 1 ack 14601");
    script.play(
        &("+199\n send 29200\n".to_owned()
            + &lines("> .", 14_601..42_341, 1460, "ack 1")
            + "> P. 42341:43801 ack 1\n +100 < . 1 ack 43801"),
    );
    script.play(&("+201\n send 29200\n".to_owned() + &lines("> .", 43_801..58_401, 1460, "ack 1")));
}

/// RFC 9293 §3.8.6: no more than SND.UNA + SND.WND; a window that moves is not one that opens.
#[test]
fn the_window_of_the_peer_counts() {
    Transcript::new(Setup::default()).play(
        "< . 1 ack 1 win 3000
         send 6000
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         +100 < . 1 ack 1461 win 1540
         < . 1 ack 1461 win 3000
         > . 2921:4381 ack 1
         < . 1 ack 4381 win 3000
         > . 4381:5841 ack 1
         > P. 5841:6001 ack 1",
    );
}

/// RFC 9293 §3.10.7.4, fifth: "if (SND.WL1 < SEG.SEQ or (SND.WL1 = SEG.SEQ and SND.WL2 =< SEG.ACK)), set SND.WND": the window of
/// a segment that was overtaken does not count.
#[test]
fn the_window_of_an_overtaken_segment_does_not_count() {
    Transcript::new(Setup::default()).play(
        "< . 11:21 ack 1 win 5000
         > . 1 ack 1 sack 11:21
         < . 1:11 ack 1 win 100
         > . 1 ack 21
         send 1000
         > P. 1:1001 ack 21",
    );
}

/// RFC 9293 §3.8.6.2.1: "the sender's SWS avoidance algorithm": a full segment; or all that is queued; or half of the largest
/// window; or what there is, when the override timer fires.
#[test]
fn no_silly_segments() {
    Transcript::new(Setup::default()).play(
        "< . 1 ack 1 win 1000
         send 2000
         +300 > . 1:1001 ack 1
         +100 < . 1 ack 1001 win 999
         +100 < . 1 ack 1001 win 1000
         > P. 1001:2001 ack 1",
    );
    let mut setup = Setup::default();
    setup.peers.window = 1000;
    Transcript::new(setup).play(
        "send 1400
         > . 1:1001 ack 1
         +100 < . 1 ack 1001 win 399
         +100 < . 1 ack 1001 win 400
         > P. 1001:1401 ack 1
         +100 < . 1 ack 1401 win 1000
         send 2000
         > . 1401:2401 ack 1
         +100 < . 1 ack 2401 win 499
         +100 < . 1 ack 2401 win 500
         > . 2401:2901 ack 1",
    );
}

/// RFC 9293 §3.8.6.1: "the sending TCP peer must regularly transmit at least one octet of new data [...] or retransmit"; "the
/// interval between successive probes SHOULD be increased exponentially", from the retransmission timeout on, to 2 minutes.
#[test]
fn a_closed_window_is_probed() {
    let mut script = Transcript::new(Setup::default());
    script.play("< . 1 ack 1 win 0\n send 7");
    for millis in [300, 600, 1200, 2400, 4800, 9600, 19_200, 38_400, 76_800, 120_000, 120_000] {
        script.play(&format!("+{millis} > . 0 ack 1\n < . 1 ack 1 win 0"));
    }
    script.play("+60000 < . 1 ack 1 win 100\n > P. 1:8 ack 1\n +100 < . 1 ack 8\n +100000");
}

/// RFC 9293 §3.8.6.1: "allow the connection to remain open as long as the receiving TCP peer continues to send acknowledgments";
/// and when none come. The answer to a probe opens the window if what has opened it was lost; then probes begin anew.
#[test]
fn the_answer_to_a_probe_opens_the_window() {
    Transcript::new(Setup::default()).play(
        "< . 1 ack 1 win 0
         send 3000
         +300 > . 0 ack 1
         +600 > . 0 ack 1
         < . 1 ack 1 win 1460
         > . 1:1461 ack 1
         +100 < . 1 ack 1461 win 0
         +300 > . 1460 ack 1
         < . 1 ack 1461 win 65535
         > . 1461:2921 ack 1
         > P. 2921:3001 ack 1",
    );
}

/// What was sent before the window closed is repeated, not probed for.
#[test]
fn what_finds_a_closed_window_is_repeated() {
    Transcript::new(Setup::default()).play(
        "send 5
         > P. 1:6 ack 1
         +100 < . 1 ack 1 win 0
         +300 > P. 1:6 ack 1
         < . 1 ack 1 win 0
         +300 > P. 1:6 ack 1
         < . 1 ack 6 win 0
         +1000 send 5
         +600 > . 5 ack 1
         < . 1 ack 6 win 5
         > P. 6:11 ack 1",
    );
}

/// RFC 9293 §3.8.6: "the sending TCP peer [...] MUST be robust against window shrinking": nothing but the first segment is
/// repeated beyond the new edge.
#[test]
fn a_window_that_shrinks() {
    Transcript::new(Setup::default()).play(
        "send 4380
         > . 1:1461 ack 1
         > . 1461:2921 ack 1
         > P. 2921:4381 ack 1
         +100 < . 1 ack 1461 win 0
         +202 > P. 2921:4381 ack 1
         +300 > . 1461:2921 ack 1
         < . 1 ack 1461 win 0
         +600 > . 1461:2921 ack 1
         < . 1 ack 2921 win 0
         > P. 2921:4381 ack 1
         < . 1 ack 4381 win 0
         +100000",
    );
}

/// Fills the queue, and acknowledges what leaves, for some round trips. Returns the size that the queue has then.
fn queue_after(script: &mut Transcript, round_trips: usize, window: u16) -> usize {
    let mut queued = 1;
    for _ in 0..round_trips {
        let room = script.connection.send_room();
        assert_eq!(script.connection.send(&text(queued, room as u32 + 1)), room);
        assert_eq!(script.connection.send_room(), 0);
        queued += room as u32;
        let last = script.transmit().pop().expect("a window that is open");
        let ack = last.seq.wrapping_add(last.payload.len() as u32);
        script.now += Duration::from_millis(100);
        script.receive(&Seg { window, ..seg(ACK, last.ack, ack) });
    }
    script.connection.send_queue() + script.connection.send_room()
}

/// The room for text to be sent follows the congestion window; no more is queued than finds room.
#[test]
fn room_follows_the_congestion_window() {
    let mut script = Transcript::new(Setup::default());
    let first = script.connection.send_room();
    assert!((64 * 1024..128 * 1024).contains(&first), "{first}");
    let later = queue_after(&mut script, 40, 8192);
    assert!((first..2 * first).contains(&later), "the peer's window holds the congestion window back: {later}");
    let mut script = Transcript::new(Setup::default().scales(Some(7), Some(7)));
    assert_eq!(queue_after(&mut script, 12, u16::MAX), 8 << 20, "the largest queue");
}
