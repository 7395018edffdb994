//! A path that carries less than was thought (RFC 9293 §3.7.2), and who says so (RFC 5927 §7).

use crate::common::{NETWORKS, Network, Setup};
use crate::play::{Transcript, lines};

/// Three segments on their way; the peer has acknowledged the first.
fn in_flight(network: Network) -> Transcript {
    let mut script = Transcript::new(Setup::on(network));
    let mss = if network.v6 { 1440 } else { 1460 };
    let text = 3 * mss + 1;
    let last = format!("> P. {}:{text} ack 1\n +100 < . 1 ack {}", 2 * mss + 1, mss + 1);
    script.play(&(format!("send {}\n", 3 * mss) + &lines("> .", 1..2 * mss + 1, mss as usize, "ack 1") + &last));
    script
}

/// An error quotes a segment of ours.
fn too_big(script: &mut Transcript, seq: u32, mtu: usize) -> bool {
    let (now, seq) = (script.now, script.setup.ours.seq.wrapping_add(seq));
    script.connection.handle_packet_too_big(now, seq, mtu)
}

/// RFC 8201 §5.4, RFC 1191 §6.5: what was too big is cut up and sent again at once, without a sign of congestion.
#[test]
fn segments_are_cut_up() {
    let mut script = in_flight(NETWORKS[0]);
    assert!(too_big(&mut script, 1461, 1040));
    script.play(
        "> . 1461:2461 ack 1
         > . 2461:2921 ack 1
         > . 2921:3921 ack 1
         > P. 3921:4381 ack 1
         +100 < . 1 ack 4381
         send 1500
         > . 4381:5381 ack 1
         > P. 5381:5881 ack 1",
    );
}

/// What has arrived is not sent again, and what is cut up can get lost like anything else.
#[test]
fn what_has_arrived_is_not_cut_up() {
    let mut script = in_flight(NETWORKS[0]);
    script.play("< . 1 ack 1461 sack 2921:4381");
    assert!(too_big(&mut script, 1461, 1040));
    script.play(
        "> . 1461:2461 ack 1
         > . 2461:2921 ack 1
         +100 < . 1 ack 2461 sack 2921:4381
         +100 < . 1 ack 4381
         +100000",
    );
}

/// A FIN takes a number and no room.
#[test]
fn a_fin_behind_a_cut_segment() {
    let mut script = Transcript::new(Setup::default());
    script.play("send 1460\n finish\n > FP. 1:1461 ack 1");
    assert!(too_big(&mut script, 1, 770));
    script.play(
        "> . 1:731 ack 1
         > FP. 731:1461 ack 1
         +100 < . 1 ack 1462
         is FinWait2",
    );
}

/// RFC 5927 §4.1: "check that the TCP sequence number contained in the payload of the ICMP error message is within the range of
/// the data already sent but not yet acknowledged": SND.UNA =< SEG.SEQ < SND.NXT.
#[test]
fn forged_errors_are_ignored() {
    let mut script = in_flight(NETWORKS[0]);
    for seq in [0, 1, 1460, 4381, 4382, 1 << 31] {
        assert!(!too_big(&mut script, seq, 1000), "{seq}");
    }
    assert!(!too_big(&mut script, 1461, 1500), "no news");
    assert!(!too_big(&mut script, 1461, 9000), "it never raises");
    script.play("+50 < . 1 ack 4381");
    assert!(!too_big(&mut script, 1461, 1000), "it has arrived");
}

/// RFC 1191 §3, RFC 8200 §5: no path carries less than this; an attacker is not to make segments tiny.
#[test]
fn there_is_a_floor() {
    for (network, least, segment) in [(0, 552, 512), (2, 1280, 1220)] {
        let mut script = in_flight(NETWORKS[network]);
        let una = script.setup.ours.seq.wrapping_neg().wrapping_add(script.connection.snd_nxt());
        for mtu in [0, 68, least - 1] {
            assert!(!too_big(&mut script, una - 1, mtu), "{mtu}");
        }
        assert!(too_big(&mut script, una - 1, least));
        assert_eq!(script.transmit()[0].payload.len(), segment);
        assert!(!too_big(&mut script, una - 1, least), "once");
    }
}

/// RFC 6691: timestamps take their part.
#[test]
fn timestamps_take_their_part() {
    let mut script = Transcript::new(Setup::default().timestamps(0, 0));
    script.play("send 1448\n > P. 1:1449 ack 1");
    assert!(too_big(&mut script, 1, 1040));
    script.play("> . 1:989 ack 1\n > P. 989:1449 ack 1\n +100 < . 1 ack 1449 ts 100/0");
}

/// A connection that is over does not care.
#[test]
fn after_the_end_nothing_is_too_big() {
    let mut script = in_flight(NETWORKS[0]);
    script.play("abort\n > R. 4381 ack 1");
    assert!(!too_big(&mut script, 1461, 1000));
}
