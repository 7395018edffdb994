//! openssl's server and client behind the `tls` filter: the name that the client asks for decides, and a connection that has been let in works.

mod common;

use std::io::{Read, Write};
use std::process::{Output, Stdio};

use common::{Certificate, Lab, SERVER_V4, need, wait_for_port};

const FILTERED: &str = "[[tap]]\nname = \"tls\"\nserver_port = [443]\n\
    receive = { object = \"tls.bpf.o\", parser = \"parse_record\", verdict = \"by_name\", set = { names = [\".secret.test\"] } }\n";

#[test]
fn the_name_that_is_asked_for_decides() {
    let Some(lab) = Lab::start() else { return };
    need(&["openssl"]);
    lab.write("tls.bpf.o", tap_engine::shipped::TLS);
    let certificate = Certificate::make(&lab);
    let (file, key) = (certificate.file.to_string_lossy(), certificate.key.to_string_lossy());
    let arguments = ["s_server", "-accept", "443", "-www", "-cert", &file, "-key", &key];
    let mut server = lab.server.spawn("openssl", "openssl", &arguments);
    wait_for_port(&lab.server, &mut server, 443);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));

    let at = format!("{SERVER_V4}:443");
    let ask = |more: &[&str]| -> Output {
        let arguments = [&["20", "openssl", "s_client", "-quiet", "-connect", &at], more].concat();
        let mut client = lab.client.command("timeout", &arguments);
        let mut client = client.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may have been reset before it reads this.
        let _ = client.stdin.take().unwrap().write_all(b"GET / HTTP/1.0\r\n\r\n");
        let mut page = Vec::new();
        client.stdout.take().unwrap().read_to_end(&mut page).unwrap();
        Output { stdout: page, ..client.wait_with_output().unwrap() }
    };
    let is_page = |output: &Output| String::from_utf8_lossy(&output.stdout).contains("200 ok");
    for version in ["-tls1_2", "-tls1_3"] {
        let good = ask(&[version, "-servername", "www.open.test"]);
        assert!(is_page(&good), "{version}: {}", String::from_utf8_lossy(&good.stderr));
        for name in [&["-servername", "db.secret.test"][..], &["-servername", "DB.Secret.Test"], &["-noservername"]] {
            assert!(!is_page(&ask(&[&[version], name].concat())), "{version} {name:?}");
        }
    }
    assert!(is_page(&ask(&["-servername", "www.open.test"])));
    socktap.assert_healthy();
}
