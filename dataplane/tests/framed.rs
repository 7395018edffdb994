//! A protocol of length-prefixed messages in both directions: what the receiver reads is exactly the passed messages,
//! in order, however the sender cuts them; a disconnect resets both ends.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use common::{
    Lab, MESSAGE_PORT, Random, SERVER_V4, SERVERS, STEP_LIMIT, assert_same_bytes, connect_from, conversation, message,
    pair, read_to_end, write_in_chunks,
};

/// Both directions judged: a message whose first byte is `D` is dropped, `X` disconnects, all else passes.
const FILTERED: &str = "[[tap]]\nname = \"framed\"\nserver_port = [\"4444-5443\"]\n\
    receive = { object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\" }\n\
    send = { object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\" }\n";

#[test]
fn only_passed_messages_arrive_in_both_directions() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    let random = Random::from_environment(4);
    // Four connections of each family at a time, three times.
    for round in 0..3 {
        let pairs: Vec<_> = (0..8).map(|index| (index, pair(&lab, SERVERS[index % 2]))).collect();
        std::thread::scope(|scope| {
            for (index, (client, server)) in &pairs {
                for (direction, (from, to)) in [(client, server), (server, client)].into_iter().enumerate() {
                    let mut random = random.fork((round * 100 + index * 2 + direction) as u64);
                    let (sent, expected) = conversation(&mut random, 100);
                    scope.spawn(move || write_in_chunks(from, &sent, &mut random));
                    let what = format!("round {round}, connection {index}, direction {direction}");
                    scope.spawn(move || assert_same_bytes(&what, &read_to_end(to, &what), &expected));
                }
            }
        });
    }
    socktap.assert_healthy();
}

/// `sender` sends one message that passes, and one that disconnects: the first arrives, then both ends are reset.
fn disconnects(sender: &mut TcpStream, receiver: &mut TcpStream, what: &str) {
    let good = message(b'p', b"assed");
    sender.write_all(&good).expect("write");
    let mut received = vec![0; good.len()];
    receiver.read_exact(&mut received).unwrap_or_else(|error| panic!("{what}: the first message: {error}"));
    assert_eq!(received, good, "{what}");

    sender.write_all(&message(b'X', b"is forbidden")).expect("write");
    for (end, stream) in [("the receiver", receiver), ("the sender", sender)] {
        match stream.read(&mut [0; 64]) {
            Ok(count) => panic!("{what}: {end} read {count} bytes and was not reset"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}: {end}: {error}"),
        }
    }
}

#[test]
fn a_disconnect_resets_both_ends() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        let (mut client, mut served) = pair(&lab, server);
        disconnects(&mut client, &mut served, &format!("client to {server}"));
        let (mut client, mut served) = pair(&lab, server);
        disconnects(&mut served, &mut client, &format!("{server} to client"));
    }
    socktap.assert_healthy();
}

#[test]
fn a_message_that_is_too_big_disconnects() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", &format!("[limits]\nmessage = 1000\n\n{FILTERED}")));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    let largest = message(b'l', &[7; 995]);
    assert_eq!(largest.len(), 1000);
    client.write_all(&largest).expect("write");
    let mut received = vec![0; largest.len()];
    served.read_exact(&mut received).expect("the largest message passes");
    assert_eq!(received, largest);

    client.write_all(&message(b'l', &[7; 996])).expect("write");
    for stream in [&mut served, &mut client] {
        let error = stream.read(&mut [0; 64]).expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    socktap.assert_healthy();
}

#[test]
fn observe_judges_but_passes() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", &format!("{FILTERED}mode = \"observe\"\n")));
    let (mut client, served) = pair(&lab, SERVER_V4);
    let mut sent = message(b'D', b"ropped elsewhere");
    sent.extend(message(b'X', b"is no end here"));
    client.write_all(&sent).expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_same_bytes("observed messages", &read_to_end(&served, "server"), &sent);
    socktap.assert_healthy();
}

#[test]
fn each_end_may_close_its_direction_first() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    let mut random = Random::from_environment(5);
    for server in SERVERS {
        for client_first in [true, false] {
            let (client, served) = pair(&lab, server);
            let (mut first, mut second) = if client_first { (client, served) } else { (served, client) };
            let question = message(b'q', b"uestion");
            first.write_all(&question).expect("write");
            first.shutdown(Shutdown::Write).expect("shutdown");
            // The other end sees the end of the question, and answers at length all the same.
            assert_same_bytes("question", &read_to_end(&second, "question"), &question);
            let mut answer = Vec::new();
            for _ in 0..40 {
                answer.extend(message(b'a', &random.bytes(50_000)));
            }
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    second.write_all(&answer).expect("write");
                    second.shutdown(Shutdown::Write).expect("shutdown");
                });
                let what = format!("answer, {server}, client first: {client_first}");
                assert_same_bytes(&what, &read_to_end(&first, &what), &answer);
            });
        }
    }
    socktap.assert_healthy();
}

#[test]
fn a_slow_reader_holds_the_sender_back_and_loses_nothing() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    let mut random = Random::from_environment(6);
    let (client, mut served) = pair(&lab, SERVER_V4);
    let mut sent = Vec::new();
    while sent.len() < 40_000_000 {
        sent.extend(message(b's', &random.bytes(60_000)));
    }
    std::thread::scope(|scope| {
        // Far more than all buffers on the way hold: the sender must come to a stand before the reader begins.
        client.set_nonblocking(true).expect("non-blocking");
        let mut written = 0;
        let mut last = usize::MAX;
        common::wait_until("the sender to be held back", STEP_LIMIT, || {
            let before = written;
            while written < sent.len() {
                match (&client).write(&sent[written..]) {
                    Ok(count) => written += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("write: {error}"),
                }
            }
            // Several rounds without progress.
            last = if written > before { 0 } else { last.saturating_add(1) };
            (50..usize::MAX).contains(&last)
        });
        assert!(written < 30_000_000, "{written} bytes went into the wire though nobody reads");
        client.set_nonblocking(false).expect("blocking");
        let rest = &sent[written..];
        scope.spawn(|| {
            (&client).write_all(rest).expect("write");
            client.shutdown(Shutdown::Write).expect("shutdown");
        });
        let mut received = Vec::new();
        served.read_to_end(&mut received).expect("read");
        assert_same_bytes("everything", &received, &sent);
    });
    socktap.assert_healthy();
}

#[test]
fn lines_with_the_forbidden_word_vanish() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops(
        "",
        "[[tap]]\nname = \"lines\"\nserver_port = [\"4444-5443\"]\n\
         receive = { object = \"lines.bpf.o\", parser = \"parse_line\", verdict = \"no_word\" }\n",
    ));
    let mut random = Random::from_environment(11);
    let (mut sent, mut expected) = (String::new(), String::new());
    for index in 0..500 {
        let text = "abcdefghij ".repeat(random.between(0, 120));
        let forbidden = random.between(0, 3) == 0;
        let line = format!("{index} {text}{}{text}\n", if forbidden { "a Secret" } else { "nothing" });
        sent += &line;
        if !forbidden {
            expected += &line;
        }
    }
    let (client, served) = pair(&lab, SERVER_V4);
    std::thread::scope(|scope| {
        scope.spawn(|| write_in_chunks(&client, sent.as_bytes(), &mut random));
        assert_same_bytes("lines", &read_to_end(&served, "server"), expected.as_bytes());
    });
    socktap.assert_healthy();
}

/// What the server reads, up to the end of the stream or a reset.
fn read_to_end_or_reset(mut stream: &TcpStream) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, false),
        Err(error) if error.kind() == ErrorKind::ConnectionReset => (bytes, true),
        Err(error) => panic!("{error} after {} bytes", bytes.len()),
    }
}

/// Sends a message that passes, one that is longer than the limit, and then `tail`, and ends the direction. Gives what was
/// sent, what arrived, and whether a reset came after it.
fn send_a_bad_length(policy: &str) -> Option<(Vec<u8>, Vec<u8>, bool)> {
    let lab = Lab::start()?;
    lab.write_shipped_programs();
    let tap = format!("[limits]\nmessage = 1000\n\n{FILTERED}on_parse_error = \"{policy}\"\n");
    let mut socktap = lab.socktap(&lab.ops("", &tap));
    let (mut client, served) = pair(&lab, SERVER_V4);
    let mut sent = message(b'p', b"assed");
    sent.extend(message(b'l', &[7; 5000]));
    sent.extend(message(b'D', b"ropped if it is judged"));
    client.write_all(&sent).expect("write");
    // After a disconnect the stream may be gone already.
    let _ = client.shutdown(Shutdown::Write);
    let (received, reset) = read_to_end_or_reset(&served);
    socktap.assert_healthy();
    Some((sent, received, reset))
}

#[test]
fn a_parse_error_disconnects_after_what_had_passed() {
    let Some((_, received, reset)) = send_a_bad_length("disconnect") else { return };
    assert_eq!((received, reset), (message(b'p', b"assed"), true));
}

#[test]
fn a_parse_error_may_drop_the_rest_of_the_direction() {
    let Some((_, received, reset)) = send_a_bad_length("drop") else { return };
    assert_eq!((received, reset), (message(b'p', b"assed"), false));
}

#[test]
fn a_parse_error_may_pass_the_rest_of_the_flow() {
    let Some((sent, received, reset)) = send_a_bad_length("pass") else { return };
    assert_same_bytes("the rest of the flow", &received, &sent);
    assert!(!reset);
}

#[test]
fn a_message_that_stays_incomplete_times_out() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", &format!("{FILTERED}message_timeout = \"300ms\"\n")));
    let (mut client, served) = pair(&lab, SERVER_V4);
    let passed = message(b'p', b"assed");
    client.write_all(&passed).expect("write");
    client.write_all(&message(b'p', b"assed, if it were whole")[..9]).expect("write");
    assert_eq!(read_to_end_or_reset(&served), (passed, true));
    let error = client.read(&mut [0; 8]).expect_err("reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    socktap.assert_healthy();
}

#[test]
fn a_stream_that_ends_within_a_message_disconnects_after_what_had_passed() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    let (mut client, served) = pair(&lab, SERVER_V4);
    let passed = message(b'p', b"assed");
    client.write_all(&passed).expect("write");
    client.write_all(&passed[..7]).expect("write");
    client.shutdown(Shutdown::Write).expect("shutdown");
    assert_eq!(read_to_end_or_reset(&served), (passed, true));
    socktap.assert_healthy();
}

#[test]
fn receive_and_send_are_those_of_the_application() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    // Only what the client, as the application, receives is judged.
    let tap = "[[tap]]\nname = \"framed\"\nserver_port = [\"4444-5443\"]\napplication = \"client\"\n\
        receive = { object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\" }\n";
    let mut socktap = lab.socktap(&lab.ops("", tap));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    let dropped = message(b'D', b"ropped on the way to the client");
    for stream in [&mut client, &mut served] {
        stream.write_all(&dropped).expect("write");
        stream.shutdown(Shutdown::Write).expect("shutdown");
    }
    assert_same_bytes("to the server", &read_to_end(&served, "server"), &dropped);
    assert_same_bytes("to the client", &read_to_end(&client, "client"), &[]);
    socktap.assert_healthy();
}

#[test]
fn a_full_table_takes_no_more_flows_and_the_ones_in_it_go_on() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut socktap = lab.socktap(&lab.ops("", &format!("[limits]\nflows = 1\n\n{FILTERED}")));
    let (mut client, mut served) = pair(&lab, SERVER_V4);
    let address = SocketAddr::new(SERVER_V4, MESSAGE_PORT);
    let error = connect_from(&lab.client, address, std::time::Duration::from_millis(300)).expect_err("no room");
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{error}");
    let passed = message(b'p', b"assed");
    client.write_all(&passed).expect("write");
    let mut received = vec![0; passed.len()];
    served.read_exact(&mut received).expect("the flow in the table goes on");
    assert_eq!(received, passed);
    drop((client, served));
    socktap.assert_healthy();
}
