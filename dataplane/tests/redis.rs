//! redis-server behind the redis filter: what is allowed works at full depth, what is forbidden never arrives.

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::{Lab, Redis, SERVERS, STEP_LIMIT, connect_from, need};

const FILTERED: &str = "[[tap]]\nname = \"redis\"\nserver_port = [6379]\n\
    receive = { object = \"redis.bpf.o\", parser = \"parse_command\", verdict = \"no_flush\" }\n\
    send = { object = \"redis.bpf.o\", parser = \"parse_reply\" }\n";

/// A command as clients send it (RESP array of bulk strings).
fn command(words: &[&str]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n{word}\r\n", word.len()).as_bytes());
    }
    bytes
}

/// Sends `request`, and reads exactly as many bytes as `answer` has.
fn exchange(stream: &mut TcpStream, request: &[u8], answer: &str) {
    stream.write_all(request).expect("the request is sent");
    let mut received = vec![0; answer.len()];
    stream.read_exact(&mut received).unwrap_or_else(|error| panic!("waiting for {answer:?}: {error}"));
    assert_eq!(String::from_utf8_lossy(&received), answer);
}

#[test]
fn the_benchmark_runs_with_and_without_pipelining() {
    let Some(lab) = Lab::start() else { return };
    need(&["redis-benchmark", "redis-cli"]);
    lab.write_shipped_programs();
    let _redis = Redis::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        let server = server.to_string();
        for pipelined in ["1", "16"] {
            let report = lab.client.run(
                "redis-benchmark",
                &[
                    "-h",
                    &server,
                    "-n",
                    "5000",
                    "-c",
                    "50",
                    "-P",
                    pipelined,
                    "-t",
                    "set,get,lpush,lrange_100",
                    "-r",
                    "500",
                    "--csv",
                ],
            );
            for test in ["SET", "GET", "LPUSH", "LRANGE_100"] {
                assert!(report.contains(&format!("\"{test}")), "no result of {test} with -P {pipelined}:\n{report}");
            }
        }
        let keys = lab.client.run("redis-cli", &["-h", &server, "dbsize"]);
        assert!(keys.trim().parse::<u32>().is_ok_and(|keys| keys > 400), "keys after the benchmark: {keys}");
    }
    socktap.assert_healthy();
}

#[test]
fn flushall_vanishes_and_the_stream_goes_on() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let _redis = Redis::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        let mut stream = connect_from(&lab.client, (server, 6379).into(), STEP_LIMIT).expect("connect");
        exchange(&mut stream, &command(&["SET", "key", "value"]), "+OK\r\n");
        // The answer to GET is the first thing that comes back: FLUSHALL and FLUSHDB got none, and did nothing.
        let mut request = command(&["FLUSHALL"]);
        request.extend(command(&["flushdb"]));
        request.extend(command(&["GET", "key"]));
        exchange(&mut stream, &request, "$5\r\nvalue\r\n");
        // The word alone is not forbidden.
        exchange(&mut stream, &command(&["SET", "word", "FLUSHALL"]), "+OK\r\n");
        exchange(&mut stream, &command(&["GET", "word"]), "$8\r\nFLUSHALL\r\n");
        // A large value, larger than any one segment.
        let large = "v".repeat(40_000);
        exchange(&mut stream, &command(&["SET", "large", &large]), "+OK\r\n");
        exchange(&mut stream, &command(&["GET", "large"]), &format!("$40000\r\n{large}\r\n"));
    }
    socktap.assert_healthy();
}

#[test]
fn shutdown_disconnects_and_the_server_lives_on() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let mut redis = Redis::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        let mut stream = connect_from(&lab.client, (server, 6379).into(), STEP_LIMIT).expect("connect");
        exchange(&mut stream, &command(&["SET", "key", "value"]), "+OK\r\n");
        stream.write_all(&command(&["SHUTDOWN", "NOSAVE"])).expect("the request is sent");
        let error = stream.read(&mut [0; 16]).expect_err("the connection is reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");

        let mut stream =
            connect_from(&lab.client, (server, 6379).into(), Duration::from_secs(5)).expect("connect again");
        exchange(&mut stream, &command(&["GET", "key"]), "$5\r\nvalue\r\n");
    }
    assert!(redis.process.status().is_none(), "redis-server was shut down");
    socktap.assert_healthy();
}

#[test]
fn what_is_no_redis_command_disconnects() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let _redis = Redis::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        let mut stream = connect_from(&lab.client, (server, 6379).into(), STEP_LIMIT).expect("connect");
        exchange(&mut stream, &command(&["PING"]), "+PONG\r\n");
        // An array whose count is no number.
        stream.write_all(b"*x\r\n$4\r\nPING\r\n").expect("the request is sent");
        let error = stream.read(&mut [0; 16]).expect_err("the connection is reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    socktap.assert_healthy();
}
