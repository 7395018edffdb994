//! Programs that keep their connections for long and mix small with large, both ways at once: through a tap that passes
//! all, every byte arrives as it was sent.

mod common;

use std::net::IpAddr;
use std::time::Duration;

use common::{
    Certificate, Lab, Nginx, Postgres, Random, SERVER_V4, SERVER_V6, SERVERS, STEP_LIMIT, Sshd, assert_same_bytes,
    chatter, need,
};

const PASS_ALL: &str = "[[tap]]\nname = \"all\"\n";
/// Debian's own, which has Debian's libraries; there may be another one in the path.
const PYTHON: &str = "/usr/bin/python3";

#[test]
fn postgresql_answers_eight_clients_and_its_tables_pass_unchanged() {
    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    let Some(lab) = Lab::start() else { return };
    let postgres = Postgres::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    postgres.run(&lab.server, "pgbench", LOOPBACK, &["-i", "-q", "-s", "1"]);
    let report = postgres.run(&lab.client, "pgbench", SERVER_V4, &["-n", "-c", "8", "-j", "2", "-T", "10"]);
    assert!(report.contains("number of failed transactions: 0 "), "{report}");
    assert!(!report.contains("transactions actually processed: 0"), "{report}");

    let dump = |table: &str| format!("COPY (SELECT * FROM {table} ORDER BY aid) TO STDOUT");
    let psql = |host, server, command: &str| {
        postgres.run(host, "psql", server, &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", command])
    };
    let direct = psql(&lab.server, LOOPBACK, &dump("pgbench_accounts"));
    assert_eq!(direct.lines().count(), 100_000, "rows of the table");
    let file = lab.write("rows", &direct);
    for server in SERVERS {
        let dumped = psql(&lab.client, server, &dump("pgbench_accounts"));
        assert_same_bytes(&format!("a table from {server}"), dumped.as_bytes(), direct.as_bytes());

        let table = if server.is_ipv4() { "copy_4" } else { "copy_6" };
        psql(&lab.client, server, &format!("CREATE TABLE {table} (LIKE pgbench_accounts)"));
        psql(&lab.client, server, &format!("\\copy {table} FROM '{}'", file.display()));
        let stored = psql(&lab.server, LOOPBACK, &dump(table));
        assert_same_bytes(&format!("a table to {server}"), stored.as_bytes(), direct.as_bytes());
    }
    socktap.assert_healthy();
}

#[test]
fn scp_copies_fifty_megabytes_each_way() {
    let Some(lab) = Lab::start() else { return };
    need(&["scp"]);
    let sshd = Sshd::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    let contents = Random::from_environment(30).bytes(50_000_000);
    let original = lab.write("original", &contents);
    let (there, back) = (lab.path("there"), lab.path("back"));
    sshd.scp(&lab.client, &original.to_string_lossy(), &format!("root@{SERVER_V4}:{}", there.display()));
    assert_same_bytes("copied to the server", &std::fs::read(&there).expect("the copy"), &contents);
    sshd.scp(&lab.client, &format!("root@[{SERVER_V6}]:{}", there.display()), &back.to_string_lossy());
    assert_same_bytes("copied from the server", &std::fs::read(&back).expect("the copy"), &contents);
    socktap.assert_healthy();
}

#[test]
fn http2_streams_with_and_without_tls() {
    let Some(lab) = Lab::start() else { return };
    need(&["h2load"]);
    let nginx = Nginx::start_with_tls(&lab, &Certificate::make(&lab));
    let mut random = Random::from_environment(31);
    for (name, size) in [("small", 64), ("middle", 3000), ("large", 30_000)] {
        nginx.add(name, &random.bytes(size));
    }
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for server in [format!("https://{SERVER_V4}:8443"), format!("http://[{SERVER_V6}]:8081")] {
        let urls = ["small", "middle", "small", "large"].map(|name| format!("{server}/{name}"));
        let mut arguments = vec!["-n", "20000", "-c", "20", "-m", "10"];
        arguments.extend(urls.iter().map(String::as_str));
        let report = lab.client.run("h2load", &arguments);
        let all = "requests: 20000 total, 20000 started, 20000 done, 20000 succeeded, 0 failed, 0 errored, 0 timeout";
        assert!(report.contains(all), "{server}: {report}");
        assert!(report.contains("status codes: 20000 2xx"), "{server}: {report}");
    }
    socktap.assert_healthy();
}

/// Sends back what it gets.
const WEBSOCKET_SERVER: &str = r#"
import asyncio
import websockets

async def echo(socket):
    async for message in socket:
        await socket.send(message)

async def main():
    async with websockets.serve(echo, None, 8765, max_size=1 << 21, ping_interval=1, ping_timeout=60):
        print("listening", flush=True)
        await asyncio.Future()

asyncio.run(main())
"#;

/// Four connections at a time that send messages of random sizes, with pings in between, and compare what comes back.
const WEBSOCKET_CLIENT: &str = r#"
import asyncio
import random
import sys
import websockets

def message(numbers):
    size = numbers.choice([numbers.randint(0, 125), numbers.randint(126, 65535), numbers.randint(65536, 1 << 20)])
    data = numbers.randbytes(size)
    return data.hex()[:size] if numbers.random() < 0.3 else data

async def talk(server, seed, count, compression):
    numbers = random.Random(seed)
    messages = [message(numbers) for _ in range(count)]
    options = dict(max_size=1 << 21, compression=compression, ping_interval=1, ping_timeout=60)
    async with websockets.connect(f"ws://{server}:8765", **options) as socket:
        async def send():
            for text in messages:
                await socket.send(text)
        sender = asyncio.ensure_future(send())
        for number, text in enumerate(messages):
            if await socket.recv() != text:
                sys.exit(f"message {number} of {len(text)} bytes, seed {seed}, came back changed")
        await sender
    return sum(len(text) for text in messages)

async def main(server, seed, count):
    kinds = [None, None, None, "deflate"]
    sizes = await asyncio.gather(*(talk(server, seed + n, count, kind) for n, kind in enumerate(kinds)))
    print("echoed", len(kinds) * count, "messages,", sum(sizes), "bytes")

asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
"#;

#[test]
fn websocket_messages_of_all_sizes_come_back_unchanged() {
    let Some(lab) = Lab::start() else { return };
    let server = lab.write("server.py", WEBSOCKET_SERVER);
    let client = lab.write("client.py", WEBSOCKET_CLIENT);
    let mut echo = lab.server.spawn("websockets", PYTHON, &[&server.to_string_lossy()]);
    echo.wait_until("the WebSocket server to listen", STEP_LIMIT, |echo| echo.log().contains("listening"));
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    let mut random = Random::from_environment(32);
    for server in [SERVER_V4.to_string(), format!("[{SERVER_V6}]")] {
        let seed = (random.next() % 1_000_000_000).to_string();
        let report = lab.client.run(PYTHON, &[&client.to_string_lossy(), &server, &seed, "60"]);
        assert!(report.starts_with("echoed 240 messages"), "{server}: {report}");
    }
    socktap.assert_healthy();
}

#[test]
fn twenty_megabytes_each_way_under_tls_pass_unchanged() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    let certificate = Certificate::make(&lab);
    let nginx = Nginx::start_with_tls(&lab, &certificate);
    let contents = Random::from_environment(33).bytes(20_000_000);
    nginx.add("large", &contents);
    let original = lab.write("original", &contents);
    let copy = lab.path("copy");
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    let authority = certificate.file.to_string_lossy();
    for (server, version) in [(SERVER_V4.to_string(), "--http1.1"), (format!("[{SERVER_V6}]"), "--http2")] {
        let base = format!("https://{server}:8443");
        let curl = |arguments: [&str; 3]| {
            lab.client.run("curl", &[&["-sS", "--fail", "--cacert", &authority, version], &arguments[..]].concat())
        };
        curl(["-o", &copy.to_string_lossy(), &format!("{base}/large")]);
        assert_same_bytes(&format!("download from {base}"), &std::fs::read(&copy).expect("the download"), &contents);
        curl(["-T", &original.to_string_lossy(), &format!("{base}/upload/large")]);
        let stored = nginx.www.join("upload/large");
        assert_same_bytes(&format!("upload to {base}"), &std::fs::read(&stored).expect("the upload"), &contents);
        std::fs::remove_file(stored).expect("the upload can be removed");
    }
    socktap.assert_healthy();
}

#[test]
fn a_thousand_connections_talk_for_a_minute() {
    let Some(lab) = Lab::start() else { return };
    let seconds = std::env::var("SOCKTAP_MIX_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    let mut random = Random::from_environment(34);
    let report = chatter(&lab, &SERVERS, 7777, 1000, Duration::from_secs(seconds), &mut random);
    eprintln!("in {seconds} s (SOCKTAP_MIX_SECONDS): {report:?}");
    assert!(report.bytes > 0, "nothing was sent");
    socktap.assert_healthy();
}
