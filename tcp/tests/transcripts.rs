//! What goes over the wire in each state, as transcripts with a scripted peer.

mod common;

use common::*;
use tcp::time::{Duration, Instant};
use tcp::wire::{self, Flags};
use tcp::{CHALLENGE_ACKS_PER_SECOND, Connection, OpenError, Options, Stack, State};

const SMALL: Options = Options { receive_buffer: 4096, send_buffer: 4096 };
const LARGE: Options = Options { receive_buffer: 1 << 20, send_buffer: 1 << 20 };

fn active(network: Network, iss: u32) -> Script {
    let mut stack = Stack::new(3, MTU);
    let now = Instant::from_secs(50);
    let connection =
        Connection::active_open(&mut stack, now, network.server(), network.client(), iss, &OPTIONS).unwrap();
    Script { network, now, stack, connection, sink: Sink::default() }
}

#[test]
fn passive_handshake_shows_the_iss_that_was_asked_for() {
    for network in NETWORKS {
        let syn = seg(SYN, 77, 0).options(&[2, 4, 5, 180, 1, 3, 3, 7, 4, 2, 0, 0]);
        let mut script = Script::passive(network, &LARGE, 0xffff_fffe, syn);
        let answer = script.transmit_one();
        assert_eq!((answer.flags, answer.seq, answer.ack), (SYN_ACK, 0xffff_fffe, 78));
        let mss = if network.v6 { 1440u16 } else { 1460 }.to_be_bytes();
        assert_eq!(answer.options[..4], [2, 4, mss[0], mss[1]]);
        assert_eq!((script.connection.iss(), script.connection.peer_iss()), (0xffff_fffe, Some(77)));
        script.receive(seg(ACK, 78, 0xffff_ffff));
        assert_eq!(script.connection.state(), State::Established);
        assert_eq!((script.connection.snd_nxt(), script.connection.rcv_nxt()), (0xffff_ffff, 78));
    }
}

#[test]
fn active_handshake_shows_the_iss_that_was_asked_for() {
    for network in NETWORKS {
        let mut script = active(network, 12345);
        let syn = script.transmit_one();
        assert_eq!((syn.flags, syn.seq, syn.ack), (SYN, 12345, 0));
        script.receive(seg(SYN_ACK, IRS, 12346));
        assert!(script.connection.is_established_or_later());
        let ack = script.transmit_one();
        assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, 12346, IRS + 1));
        assert_eq!(script.connection.peer_iss(), Some(IRS));
    }
}

#[test]
fn syn_is_repeated_with_the_same_number() {
    let mut script = active(NETWORKS[0], 9);
    assert_eq!(script.transmit_one().seq, 9);
    let due = script.poll_at().unwrap();
    assert_eq!(due - script.now, Duration::from_secs(1));
    script.now = due;
    let again = script.transmit_one();
    assert_eq!((again.flags, again.seq), (SYN, 9));
}

#[test]
fn in_syn_sent_only_a_reset_with_our_number_counts() {
    let mut script = active(NETWORKS[0], 500);
    script.receive(seg(RST_ACK, 0, 501)); // Nothing has been sent yet.
    script.transmit_one();
    script.receive(seg(RST, 0, 0));
    script.receive(seg(RST_ACK, 0, 500));
    assert!(!script.connection.was_reset());
    script.receive(seg(RST_ACK, 0, 501));
    assert!(script.connection.was_reset() && script.connection.is_closed());
    script.silent();
    assert_eq!(script.poll_at(), None);
}

#[test]
fn in_syn_sent_a_wrong_ack_is_reset() {
    let mut script = active(NETWORKS[3], 500);
    script.transmit_one();
    script.receive(seg(SYN_ACK, 40, 400));
    let reset = script.transmit_one();
    assert_eq!((reset.flags, reset.seq), (RST, 400));
    assert_eq!(script.connection.state(), State::SynSent);
}

#[test]
fn syn_with_unreadable_options_is_taken() {
    let script = Script::passive(NETWORKS[0], &OPTIONS, ISS, seg(SYN, IRS, 0).options(&[2, 4, 5, 180, 8, 0, 1, 1]));
    assert_eq!(script.connection.state(), State::SynReceived);
}

#[test]
fn impossible_opens_are_refused() {
    let mut stack = Stack::new(0, MTU);
    for (local, remote) in [
        ("10.0.0.1:1", "[fd00::1]:1"),
        ("0.0.0.0:1", "10.0.0.1:1"),
        ("10.0.0.1:0", "10.0.0.2:1"),
        ("10.0.0.1:1", "224.0.0.1:1"),
        ("255.255.255.255:1", "10.0.0.2:1"),
    ] {
        let open = Connection::active_open(
            &mut stack,
            Instant::ZERO,
            local.parse().unwrap(),
            remote.parse().unwrap(),
            1,
            &SMALL,
        );
        assert_eq!(open.err(), Some(OpenError::Unaddressable));
    }
    let frame = seg(ACK, 1, 1).to_frame(&NETWORKS[0].l2(), NETWORKS[0].client(), NETWORKS[0].server());
    let (h, _) = Seg::from_frame(&frame);
    let open = Connection::passive_open(&mut stack, Instant::ZERO, &frame, &h, 1, &SMALL);
    assert_eq!(open.err(), Some(OpenError::NotASyn));
}

#[test]
fn a_reset_in_syn_received_ends_the_connection() {
    let mut script = Script::passive(NETWORKS[0], &OPTIONS, ISS, seg(SYN, IRS, 0));
    script.receive(seg(RST, IRS + 2, 0));
    assert!(!script.connection.was_reset());
    script.receive(seg(RST, IRS + 1, 0));
    assert!(script.connection.was_reset());
}

#[test]
fn a_wrong_ack_in_syn_received_is_reset_and_the_right_one_still_counts() {
    let mut script = Script::passive(NETWORKS[0], &OPTIONS, ISS, seg(SYN, IRS, 0));
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 2));
    let reset = script.transmit_one();
    assert_eq!((reset.flags, reset.seq), (RST, ISS + 2));
    script.receive(seg(ACK, IRS + 1, ISS + 1));
    assert_eq!(script.connection.state(), State::Established);
}

#[test]
fn data_both_ways() {
    for network in NETWORKS {
        let mut script = Script::established(network, &OPTIONS);
        script.receive(seg(PSH_ACK, IRS + 1, ISS + 1).with(b"hello"));
        assert_eq!(script.take(100), b"hello");
        assert_eq!(script.connection.send(b"world"), 5);
        let data = script.transmit_one();
        assert_eq!((data.flags, data.seq, data.ack, &data.payload[..]), (PSH_ACK, ISS + 1, IRS + 6, &b"world"[..]));
        assert!(script.connection.awaits_ack());
        script.receive(seg(ACK, IRS + 6, ISS + 6));
        assert!(!script.connection.awaits_ack());
        assert_eq!(script.connection.send_queue(), 0);
        script.silent();
        assert_eq!(script.poll_at(), None);
    }
}

#[test]
fn an_ack_is_delayed_until_the_second_segment_or_10_ms() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    let text = [7; 1460];
    script.receive(seg(ACK, IRS + 1, ISS + 1).with(&text));
    script.silent();
    assert_eq!(script.poll_at(), Some(script.now + Duration::from_millis(10)));
    script.receive(seg(ACK, IRS + 1461, ISS + 1).with(&text));
    assert_eq!(script.transmit_one().ack, IRS + 2921);
    script.receive(seg(ACK, IRS + 2921, ISS + 1).with(&text));
    script.wait(10);
    assert_eq!(script.transmit_one().ack, IRS + 4381);
}

#[test]
fn the_peer_closes_first() {
    for network in NETWORKS {
        let mut script = Script::established(network, &OPTIONS);
        script.receive(seg(FIN_ACK, IRS + 1, ISS + 1).with(b"bye"));
        assert_eq!(script.connection.state(), State::CloseWait);
        assert!(script.connection.fin_received());
        script.wait(10);
        assert_eq!(script.transmit_one().ack, IRS + 5);
        assert_eq!(script.take(10), b"bye");
        assert_eq!(script.connection.send(b"more"), 4);
        script.connection.finish();
        assert_eq!(script.connection.send(b"too late"), 0);
        let fin = script.transmit_one();
        assert_eq!((fin.flags, fin.seq, &fin.payload[..]), (FIN_ACK, ISS + 1, &b"more"[..]));
        assert_eq!(script.connection.state(), State::LastAck);
        script.receive(seg(ACK, IRS + 5, ISS + 6));
        assert!(script.connection.is_closed() && !script.connection.was_reset());
        script.silent();
        assert_eq!(script.poll_at(), None);
    }
}

#[test]
fn we_close_first_and_unread_bytes_outlive_time_wait() {
    let mut script = Script::established(NETWORKS[2], &OPTIONS);
    script.connection.finish();
    assert_eq!(script.transmit_one().flags, FIN_ACK);
    script.receive(seg(ACK, IRS + 1, ISS + 2));
    assert_eq!(script.connection.state(), State::FinWait2);
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 2).with(b"late"));
    assert!(script.connection.is_time_wait() && script.connection.fin_received());
    script.wait(10);
    let ack = script.transmit_one();
    assert_eq!((ack.seq, ack.ack), (ISS + 2, IRS + 6));
    // The FIN comes again: our ACK was lost.
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 2).with(b"late"));
    assert_eq!(script.transmit_one().ack, IRS + 6);
    assert_eq!((script.connection.snd_nxt(), script.connection.rcv_nxt()), (ISS + 2, IRS + 6));
    assert_eq!(script.poll_at(), None);
    script.wait(60_000);
    script.silent();
    assert_eq!(script.take(10), b"late");
    script.receive(seg(RST, IRS + 6, 0));
    assert!(script.connection.is_time_wait()); // RFC 1337.
}

#[test]
fn both_close_at_once() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.finish();
    script.transmit_one();
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 1));
    assert_eq!(script.connection.state(), State::Closing);
    assert_eq!(script.transmit_one().ack, IRS + 2);
    script.receive(seg(ACK, IRS + 2, ISS + 2));
    assert!(script.connection.is_time_wait());
}

#[test]
fn a_reset_counts_only_with_the_exact_number() {
    for network in NETWORKS {
        let mut script = Script::established(network, &OPTIONS);
        script.receive(seg(PSH_ACK, IRS + 1, ISS + 1).with(b"abc"));
        // RFC 5961 §3.2: in the window, but not the next number: challenge.
        script.receive(seg(RST, IRS + 100, 0));
        let challenge = script.transmit_one();
        assert_eq!((challenge.flags, challenge.seq, challenge.ack), (ACK, ISS + 1, IRS + 4));
        // Outside: silence.
        script.receive(seg(RST, IRS.wrapping_sub(100), 0));
        script.receive(seg(RST, IRS + 1_000_000, 0));
        script.silent();
        assert_eq!(script.connection.state(), State::Established);
        script.receive(seg(RST, IRS + 4, 0));
        assert!(script.connection.was_reset() && script.connection.is_closed());
        assert_eq!(script.take(10), b"abc");
        script.connection.abort();
        script.silent();
    }
}

#[test]
fn a_syn_is_challenged() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.receive(seg(SYN, IRS + 50_000, 0));
    assert_eq!(script.transmit_one().flags, ACK);
    script.receive(seg(SYN_ACK, IRS, ISS + 1));
    assert_eq!(script.transmit_one().flags, ACK);
    assert_eq!(script.connection.state(), State::Established);
}

#[test]
fn challenge_acks_are_limited() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    for _ in 0..100 {
        script.receive(seg(RST, IRS + 100, 0));
    }
    assert_eq!(script.transmit().len(), CHALLENGE_ACKS_PER_SECOND as usize);
    script.wait(1000);
    script.receive(seg(RST, IRS + 100, 0));
    script.transmit_one();
    let counters = script.stack.counters();
    assert_eq!(counters.challenge_acks, 1 + u64::from(CHALLENGE_ACKS_PER_SECOND));
    assert_eq!(counters.challenge_acks_withheld, 100 - u64::from(CHALLENGE_ACKS_PER_SECOND));
}

#[test]
fn abort_resets_with_the_next_number_even_after_a_timeout() {
    let mut script = Script::established(NETWORKS[2], &OPTIONS);
    script.connection.send(b"0123456789");
    script.transmit_one();
    script.wait(1000);
    assert_eq!(script.transmit_one().seq, ISS + 1); // The retransmission.
    script.wait(2000);
    script.connection.abort();
    assert!(!script.connection.is_closed());
    assert_eq!(script.poll_at(), Some(script.now));
    let reset = script.transmit_one();
    assert_eq!((reset.flags, reset.seq, reset.ack), (RST_ACK, ISS + 11, IRS + 1));
    assert!(script.connection.is_closed() && !script.connection.was_reset());
    script.silent();
    assert_eq!(script.poll_at(), None);
}

#[test]
fn abort_in_every_state_of_the_handshake() {
    let mut script = active(NETWORKS[0], 70);
    script.connection.abort();
    script.silent();
    assert!(script.connection.is_closed());

    let mut script = active(NETWORKS[0], 70);
    script.transmit_one();
    script.connection.abort();
    let reset = script.transmit_one();
    assert_eq!((reset.flags, reset.seq), (RST, 71));

    let mut script = Script::passive(NETWORKS[0], &OPTIONS, 70, seg(SYN, IRS, 0));
    script.connection.abort();
    let reset = script.transmit_one();
    assert_eq!((reset.flags, reset.seq, reset.ack), (RST_ACK, 70, IRS + 1));
}

#[test]
fn a_reset_waits_for_a_frame() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.abort();
    script.sink.room = 0;
    script.silent();
    assert!(!script.connection.is_closed());
    assert!(script.poll_at().unwrap() > script.now);
    script.sink.room = 1;
    assert_eq!(script.transmit_one().flags, RST_ACK);
}

#[test]
fn without_frames_nothing_is_sent_and_nobody_spins() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(&[1; 3000]);
    script.sink.room = 0;
    script.silent();
    assert!(script.poll_at().unwrap() > script.now);
    assert_eq!(script.connection.snd_nxt(), ISS + 1);
    script.sink.room = usize::MAX;
    assert_eq!(script.transmit()[0].seq, ISS + 1);
    assert_eq!(script.stack.counters().lost_frames, 0);

    // A sink that does not say so loses the segment; the timer heals it.
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(b"lost");
    script.sink.tells_room = false;
    script.sink.room = 0;
    script.silent();
    assert_eq!(script.stack.counters().lost_frames, 1);
    script.sink.room = usize::MAX;
    script.now = script.poll_at().unwrap();
    assert_eq!(script.transmit_one().payload, b"lost");
}

#[test]
fn data_with_an_older_ack_is_taken() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(b"12345678");
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 9));
    script.receive(seg(PSH_ACK, IRS + 1, ISS + 5).window(17).with(b"overtaken"));
    assert_eq!(script.take(20), b"overtaken");
    // Neither the ACK nor the window of it counts.
    assert_eq!(script.connection.send_queue(), 0);
    script.connection.send(&[1; 1000]);
    assert_eq!(script.transmit_one().payload.len(), 1000);
}

#[test]
fn an_ack_of_what_was_never_sent_is_challenged() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(&[1; 8000]);
    let sent: usize = script.transmit().iter().map(|segment| segment.payload.len()).sum();
    assert!(sent < 8000); // The congestion window holds the rest back.
    script.receive(seg(ACK, IRS + 1, ISS + 1 + 8000));
    assert_eq!(script.connection.send_queue(), 8000);
    let challenge = script.transmit_one();
    assert_eq!((challenge.seq, challenge.ack), (ISS + 1 + sent as u32, IRS + 1));
    // RFC 5961 §5.2: as old as no segment on its way can be.
    script.receive(seg(PSH_ACK, IRS + 1, ISS - 100_000).with(b"blind"));
    assert_eq!(script.connection.receive_queue(), 0);
    script.transmit_one();
}

#[test]
fn a_fin_behind_the_window_is_not_taken() {
    let mut script = Script::established(NETWORKS[0], &SMALL);
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 1).with(&[5; 5000]));
    assert_eq!(script.connection.receive_queue(), 4096);
    assert!(!script.connection.fin_received());
    assert_eq!(script.transmit()[0].ack, IRS + 1 + 4096);
    script.take(5000);
    assert_eq!(script.transmit_one().window, 4096);
    script.receive(seg(FIN_ACK, IRS + 1 + 4096, ISS + 1).with(&[5; 904]));
    assert_eq!(script.connection.receive_queue(), 904);
    assert!(script.connection.fin_received());
}

#[test]
fn text_behind_a_fin_is_ignored() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 1).with(b"end"));
    script.receive(seg(PSH_ACK, IRS + 5, ISS + 1).with(b"more"));
    assert_eq!(script.connection.receive_queue(), 3);
}

#[test]
fn a_fin_on_text_that_is_there_already_is_taken() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.receive(seg(PSH_ACK, IRS + 1, ISS + 1).with(b"text"));
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 1).with(b"text"));
    assert!(script.connection.fin_received());
    assert_eq!(script.take(10), b"text");
    assert_eq!(script.connection.rcv_nxt(), IRS + 6);
}

#[test]
fn a_fin_before_its_text_waits() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.receive(seg(FIN_ACK, IRS + 5, ISS + 1));
    assert_eq!(script.transmit_one().ack, IRS + 1);
    assert!(!script.connection.fin_received());
    script.receive(seg(FIN_ACK, IRS + 1, ISS + 1).with(b"text"));
    assert!(script.connection.fin_received());
}

#[test]
fn a_segment_around_a_small_window_fills_it() {
    let mut script = Script::established(NETWORKS[0], &SMALL);
    script.receive(seg(ACK, IRS + 1, ISS + 1).with(&[1; 1460]));
    script.receive(seg(ACK, IRS + 1461, ISS + 1).with(&[2; 1460]));
    script.transmit();
    let mut text = vec![2; 1460];
    text.extend([3; 1400]);
    script.receive(seg(ACK, IRS + 1461, ISS + 1).with(&text));
    assert_eq!(script.connection.receive_queue(), 4096);
    assert_eq!(script.transmit()[0].ack, IRS + 1 + 4096);
}

#[test]
fn segments_out_of_order_are_joined_and_reported() {
    let syn = seg(SYN, IRS, 0).options(&[2, 4, 5, 180, 4, 2]);
    let mut script = Script::passive(NETWORKS[0], &OPTIONS, ISS, syn);
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 1));
    script.receive(seg(ACK, IRS + 5, ISS + 1).with(b"5678"));
    let duplicate = script.transmit_one();
    assert_eq!(duplicate.ack, IRS + 1);
    // RFC 2018: the block that arrived, in the peer's numbers.
    let mut block = vec![5, 10];
    block.extend((IRS + 5).to_be_bytes());
    block.extend((IRS + 9).to_be_bytes());
    assert!(duplicate.options.windows(10).any(|option| option == block), "{:?}", duplicate.options);
    script.receive(seg(ACK, IRS + 1, ISS + 1).with(b"1234"));
    assert_eq!(script.take(10), b"12345678");
}

#[test]
fn our_window_closes_and_reopens() {
    for network in NETWORKS {
        let mut script = Script::established(network, &SMALL);
        for piece in 0..4u32 {
            script.receive(seg(ACK, IRS + 1 + piece * 1024, ISS + 1).with(&[9; 1024]));
        }
        let closed = script.transmit_one();
        assert_eq!((closed.ack, closed.window), (IRS + 4097, 0));
        // A probe of the peer is answered, and its byte is not taken.
        script.receive(seg(ACK, IRS + 4097, ISS + 1).with(b"p"));
        let answer = script.transmit_one();
        assert_eq!((answer.ack, answer.window), (IRS + 4097, 0));
        // Linux probes with a number that it has used.
        script.receive(seg(ACK, IRS + 4096, ISS + 1));
        assert_eq!(script.transmit_one().ack, IRS + 4097);
        // ACKs of our data count all the same.
        script.connection.send(b"data");
        script.transmit_one();
        script.receive(seg(ACK, IRS + 4097, ISS + 5).with(b"p"));
        assert_eq!(script.connection.send_queue(), 0);
        script.transmit_one();
        assert_eq!(script.take(4096).len(), 4096);
        let open = script.transmit_one();
        assert_eq!((open.ack, open.window), (IRS + 4097, 4096));
    }
}

#[test]
fn the_peers_window_closes_and_reopens() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.receive(seg(ACK, IRS + 1, ISS + 1).window(0));
    script.connection.send(b"waiting");
    let probe = script.transmit_one();
    assert_eq!((probe.seq, &probe.payload[..]), (ISS + 1, &b"w"[..]));
    script.receive(seg(ACK, IRS + 1, ISS + 1).window(0));
    script.silent();
    script.now = script.poll_at().unwrap();
    assert_eq!(script.transmit_one().payload, b"w");
    script.receive(seg(ACK, IRS + 1, ISS + 1).window(100));
    assert_eq!(script.transmit_one().payload, b"waiting");
}

#[test]
fn a_lost_window_update_is_found_out() {
    // The segment and its retransmission find the window closed; the update that opens it is lost.
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(b"text");
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 1).window(0));
    script.now = script.poll_at().unwrap();
    script.silent();
    let due = script.poll_at().expect("a timer must run while bytes wait");
    script.now = due;
    assert_eq!(script.transmit_one().payload, b"t");
}

#[test]
fn fin_waits_until_the_window_has_room_for_the_bytes_before_it() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.receive(seg(ACK, IRS + 1, ISS + 1).with(b"x"));
    script.receive(seg(FIN_ACK, IRS + 2, ISS + 1).window(1000));
    script.connection.send(&[4; 3000]);
    script.connection.finish();
    assert_eq!(script.connection.state(), State::CloseWait);
    let mut seen = 0;
    let mut fin = false;
    for _ in 0..10 {
        for segment in script.transmit() {
            seen += segment.payload.len() as u32;
            fin |= segment.flags.fin();
        }
        // Closed, then opened by an ACK that acknowledges nothing new.
        script.receive(seg(ACK, IRS + 3, ISS + 1 + seen).window(0));
        script.receive(seg(ACK, IRS + 3, ISS + 1 + seen).window(1000));
    }
    assert!(fin);
    assert_eq!(seen, 3000);
    script.receive(seg(ACK, IRS + 3, ISS + 3002));
    assert!(script.connection.is_closed());
}

#[test]
fn a_scaled_window_never_takes_back_what_it_offered() {
    let syn = seg(SYN, IRS, 0).options(&[2, 4, 5, 180, 1, 3, 3, 2]);
    let mut script = Script::passive(NETWORKS[0], &LARGE, ISS, syn);
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 1));
    let shift = 5; // 1 MiB in 16 bits.
    let mut next = IRS + 1;
    let mut edge = next + 65535;
    let mut step = 1;
    while script.connection.receive_queue() < (1 << 20) - 4096 {
        step = step % 1459 + 7;
        assert!(next + step <= edge);
        script.receive(seg(ACK, next, ISS + 1).with(&vec![1; step as usize]));
        next += step;
        script.wait(10);
        for ack in script.transmit() {
            assert_eq!(ack.ack, next);
            edge = next + (u32::from(ack.window) << shift);
        }
    }
    // To the last byte of what was offered, in odd pieces.
    while next < edge {
        let step = 1001.min(edge - next);
        script.receive(seg(ACK, next, ISS + 1).with(&vec![1; step as usize]));
        next += step;
        script.wait(10);
        script.transmit();
    }
    assert_eq!(script.connection.rcv_nxt(), edge);
}

#[test]
fn data_beyond_the_offered_window_before_our_first_ack_does_no_harm() {
    // smoltcp believes the window of its own SYN to be scaled.
    let mut script = active(NETWORKS[0], ISS);
    script.connection = Connection::active_open(
        &mut script.stack,
        script.now,
        script.network.server(),
        script.network.client(),
        ISS,
        &Options { receive_buffer: 100_000, send_buffer: 4096 },
    )
    .unwrap();
    script.transmit_one();
    script.receive(seg(SYN_ACK, IRS, ISS + 1).options(&[3, 3, 4]));
    script.receive(seg(ACK, IRS + 1 + 99_000, ISS + 1).with(&[1; 1460]));
    script.receive(seg(ACK, IRS + 1 + 120_000, ISS + 1).with(&[1; 1460]));
    script.transmit();
    assert_eq!(script.connection.receive_queue(), 0);
}

#[test]
fn a_closed_window_after_our_fin_does_not_start_a_storm() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(b"abc");
    script.connection.finish();
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 3).window(0));
    script.receive(seg(ACK, IRS + 1, ISS + 5).window(0));
    assert_eq!(script.connection.state(), State::FinWait2);
    script.wait(100_000);
    script.silent();
    assert_eq!(script.poll_at(), None);
}

#[test]
fn a_fin_that_was_lost_behind_a_closed_window_is_sent_again() {
    let mut script = Script::established(NETWORKS[2], &OPTIONS);
    script.connection.send(b"abc");
    script.connection.finish();
    script.transmit_one();
    script.receive(seg(ACK, IRS + 1, ISS + 3).window(0));
    script.receive(seg(ACK, IRS + 1, ISS + 4).window(0));
    let fin = script.transmit_one();
    assert_eq!((fin.flags, fin.seq), (FIN_ACK, ISS + 4));
    script.now = script.poll_at().unwrap();
    let fin = script.transmit_one();
    assert_eq!((fin.flags, fin.seq), (FIN_ACK, ISS + 4));
}

#[test]
fn loss_is_retransmitted_by_the_timer_and_by_duplicate_acks() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    script.connection.send(b"first");
    script.transmit_one();
    script.now = script.poll_at().unwrap();
    let again = script.transmit_one();
    assert_eq!((again.seq, &again.payload[..]), (ISS + 1, &b"first"[..]));
    script.receive(seg(ACK, IRS + 1, ISS + 6));
    // Open the congestion window.
    let mut acked = ISS + 6;
    for _ in 0..6 {
        script.connection.send(&[1; 4000]);
        while script.connection.send_queue() > 0 {
            for segment in script.transmit() {
                acked = segment.seq + segment.payload.len() as u32;
            }
            script.receive(seg(ACK, IRS + 1, acked));
        }
    }
    script.connection.send(&[2; 6000]);
    assert!(script.transmit().len() >= 4);
    for _ in 0..4 {
        script.receive(seg(ACK, IRS + 1, acked));
    }
    let fast = script.transmit();
    assert_eq!(fast[0].seq, acked);
    // A bare ACK after a timeout carries the highest number: an older one would not be acceptable to the peer.
    let highest = script.connection.snd_nxt();
    script.now = script.poll_at().unwrap();
    script.transmit();
    script.receive(seg(ACK, IRS + 1, acked).with(b"x"));
    script.wait(10);
    assert!(script.transmit().iter().any(|ack| ack.payload.is_empty() && ack.seq == highest && ack.ack == IRS + 2));
}

#[test]
fn numbers_wrap() {
    for network in NETWORKS {
        let mut script = Script::passive(network, &OPTIONS, u32::MAX - 2, seg(SYN, u32::MAX - 3, 0));
        assert_eq!(script.transmit_one().seq, u32::MAX - 2);
        script.receive(seg(ACK, u32::MAX - 2, u32::MAX - 1));
        script.receive(seg(PSH_ACK, u32::MAX - 2, u32::MAX - 1).with(b"over the edge"));
        script.connection.send(b"and back");
        let answer = script.transmit_one();
        assert_eq!((answer.seq, answer.ack), (u32::MAX - 1, 10));
        script.receive(seg(ACK, 10, 6));
        assert_eq!(script.connection.send_queue(), 0);
        assert_eq!(script.take(20), b"over the edge");
        script.receive(seg(RST, 10, 0));
        assert!(script.connection.was_reset());
    }
}

#[test]
fn headers_that_smoltcp_does_not_know_are_taken_off() {
    // IPv4 options, IPv6 hop-by-hop and destination options.
    for v6 in [false, true] {
        let network = Network { v6, tags: 1 };
        let mut script = Script::established(network, &OPTIONS);
        let plain =
            seg(PSH_ACK, IRS + 1, ISS + 1).with(b"text").to_frame(&network.l2(), network.client(), network.server());
        let ip = network.l2().len();
        let mut frame = plain[..ip].to_vec();
        if v6 {
            frame.extend(&plain[ip..ip + 40]);
            frame.extend([60, 0, 0xc2, 4, 0, 0, 0, 0, 6, 1, 1, 12]);
            frame.extend([0; 12]);
            frame.extend(&plain[ip + 40..]);
            let length = (frame.len() - ip - 40) as u16;
            frame[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
            frame[ip + 6] = 0;
        } else {
            frame.extend(&plain[ip..ip + 20]);
            frame.extend([7, 3, 4, 1, 1, 1, 1, 0]);
            frame.extend(&plain[ip + 20..]);
            frame[ip] = 0x47;
            let length = (frame.len() - ip) as u16;
            frame[ip + 2..ip + 4].copy_from_slice(&length.to_be_bytes());
            frame[ip + 10..ip + 12].fill(0);
            let sum = naive_sum(&frame[ip..ip + 28], 0);
            frame[ip + 10..ip + 12].copy_from_slice(&(!sum as u16).to_be_bytes());
        }
        frame.extend([0; 6]); // Padding of Ethernet.
        script.receive_frame(frame);
        assert_eq!(script.take(10), b"text");
    }
}

#[test]
fn a_segment_of_another_connection_is_ignored() {
    let mut script = Script::established(NETWORKS[0], &OPTIONS);
    let mut stranger = script.network.client();
    stranger.set_port(1);
    script.receive_frame(seg(RST, IRS + 1, 0).to_frame(&script.network.l2(), stranger, script.network.server()));
    assert_eq!(script.connection.state(), State::Established);
    script.silent();
}

#[test]
fn resets_and_acks_outside_of_a_connection() {
    let network = NETWORKS[1];
    let mut sink = Sink::default();
    let frame = |segment: Seg| segment.to_frame(&network.l2(), network.client(), network.server());
    for (segment, expected) in [
        (seg(ACK, 5, 9), Some((RST, 9, 0))),
        (seg(SYN, 5, 0), Some((RST_ACK, 0, 6))),
        (seg(Flags::FIN, 5, 0).with(b"abc"), Some((RST_ACK, 0, 9))),
        (seg(RST, 5, 0), None),
    ] {
        let (h, _) = Seg::from_frame(&frame(segment));
        assert_eq!(wire::build_rst(&mut sink, &h), expected.is_some());
        let sent = sink.frames.pop_front().map(|frame| {
            let (answer, segment) = Seg::from_frame(&frame);
            assert_eq!((answer.l2, answer.source, answer.destination), (h.l2.reversed(), h.destination, h.source));
            (segment.flags, segment.seq, segment.ack)
        });
        assert_eq!(sent, expected);
    }
    assert!(wire::build_ack(&mut sink, &network.l2(), network.client(), network.server(), 3, 4));
    let (_, ack) = Seg::from_frame(&sink.frames.pop_front().unwrap());
    assert_eq!((ack.flags, ack.seq, ack.ack), (ACK, 3, 4));
}
