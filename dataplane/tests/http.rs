//! curl and nginx with socktap between them: nothing that is passed may change, whatever the size, number or direction.

mod common;

use common::{Lab, LabOptions, Nginx, Random, SERVERS, assert_same_bytes, need};

/// A tap on port 80 that parses nothing and passes all.
const PASS_ALL: &str = "[[tap]]\nname = \"web\"\nserver_port = [80]\n";

/// A tap on port 80 with the http1 filter.
const FILTERED: &str = "[[tap]]\nname = \"web\"\nserver_port = [80]\n\
    receive = { object = \"http1.bpf.o\", parser = \"parse_request\", verdict = \"no_admin\" }\n";

fn url(server: std::net::IpAddr, path: &str) -> String {
    format!("http://{}/{path}", std::net::SocketAddr::new(server, 80)).replace(":80/", "/")
}

/// Downloads and uploads 10 MB over both address families and compares every byte.
fn large_files(lab: &Lab, ops: &str) {
    need(&["curl"]);
    let nginx = Nginx::start(lab);
    let mut random = Random::from_environment(1);
    let down = random.bytes(10_000_000);
    nginx.add("large", &down);
    let up = random.bytes(10_000_000);
    let upload = lab.write("to-upload", &up);
    let mut socktap = lab.socktap(ops);

    for server in SERVERS {
        let copy = lab.path("downloaded");
        lab.client.run("curl", &["-sS", "--fail", "-o", &copy.to_string_lossy(), &url(server, "large")]);
        assert_same_bytes(&format!("download from {server}"), &std::fs::read(&copy).expect("the download"), &down);

        lab.client.run("curl", &["-sS", "--fail", "-T", &upload.to_string_lossy(), &url(server, "upload/large")]);
        let stored = nginx.www.join("upload/large");
        assert_same_bytes(&format!("upload to {server}"), &std::fs::read(&stored).expect("the upload"), &up);
        std::fs::remove_file(stored).expect("the upload can be removed");
    }
    socktap.assert_healthy();
}

/// `count` downloads of 50 KB files, all at once, each over a connection of its own.
fn parallel_downloads(lab: &Lab, server: std::net::IpAddr, nginx: &Nginx, count: usize) {
    let random = Random::from_environment(2);
    let mut list = String::new();
    let mut expected = Vec::new();
    let folder = lab.path("parallel");
    std::fs::create_dir_all(&folder).expect("a folder");
    for index in 0..count {
        let contents = random.fork(index as u64).bytes(50_000 + index);
        nginx.add(&format!("small-{index}"), &contents);
        expected.push(contents);
        let output = folder.join(index.to_string());
        list += &format!("url = \"{}\"\noutput = \"{}\"\n", url(server, &format!("small-{index}")), output.display());
    }
    let list = lab.write("list", list);
    let count = count.to_string();
    lab.client.run(
        "curl",
        &[
            "-sS",
            "--fail",
            "--parallel",
            "--parallel-immediate",
            "--parallel-max",
            &count,
            "-K",
            &list.to_string_lossy(),
        ],
    );
    for (index, contents) in expected.iter().enumerate() {
        let received = std::fs::read(folder.join(index.to_string())).expect("a download");
        assert_same_bytes(&format!("download {index} from {server}"), &received, contents);
    }
}

#[test]
fn ten_megabytes_each_way_pass_unchanged() {
    let Some(lab) = Lab::start() else { return };
    large_files(&lab, &lab.ops("", PASS_ALL));
}

#[test]
fn ten_megabytes_each_way_pass_unchanged_in_skb_mode() {
    let Some(lab) = Lab::start_with(LabOptions { small_frames: true, ..LabOptions::default() }) else { return };
    large_files(&lab, &lab.ops("xdp_mode = \"skb\"", PASS_ALL));
}

#[test]
fn ten_megabytes_down_pass_unchanged_through_the_http_filter() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    lab.write_shipped_programs();
    let nginx = Nginx::start(&lab);
    let contents = Random::from_environment(3).bytes(10_000_000);
    nginx.add("large", &contents);
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        let copy = lab.path("downloaded");
        lab.client.run("curl", &["-sS", "--fail", "-o", &copy.to_string_lossy(), &url(server, "large")]);
        assert_same_bytes(&format!("download from {server}"), &std::fs::read(&copy).expect("the download"), &contents);
    }
    socktap.assert_healthy();
}

#[test]
fn two_hundred_parallel_downloads_pass_unchanged() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    let nginx = Nginx::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for server in SERVERS {
        parallel_downloads(&lab, server, &nginx, 200);
    }
    socktap.assert_healthy();
}

#[test]
fn a_port_with_two_queues_gets_two_workers() {
    let Some(lab) = Lab::start_with(LabOptions { wire_queues: Some(2), host_queues: Some(2), ..LabOptions::default() })
    else {
        return;
    };
    need(&["curl"]);
    let nginx = Nginx::start(&lab);
    let mut socktap = lab.socktap(&lab.ops("", PASS_ALL));
    for server in SERVERS {
        parallel_downloads(&lab, server, &nginx, 50);
    }
    socktap.assert_healthy();
}

#[test]
fn the_http_filter_cuts_off_a_forbidden_path_and_nothing_else() {
    let Some(lab) = Lab::start() else { return };
    need(&["curl"]);
    lab.write_shipped_programs();
    let nginx = Nginx::start(&lab);
    nginx.add("hello", b"hello\n");
    nginx.add("administration", b"no secret\n");
    let mut socktap = lab.socktap(&lab.ops("", FILTERED));
    for server in SERVERS {
        assert_eq!(lab.client.run("curl", &["-sS", "--fail", &url(server, "hello")]), "hello\n");
        // Several requests on one connection; curl reuses it.
        let twice = lab.client.run("curl", &["-sS", "--fail", &url(server, "hello"), &url(server, "hello")]);
        assert_eq!(twice, "hello\nhello\n");

        for path in ["admin", "admin/users"] {
            let output = lab.client.output("curl", &["-sS", "--max-time", "20", &url(server, path)]);
            let stdout = String::from_utf8_lossy(&output.stdout);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert!(!stdout.contains("secret"), "{path} of {server} got through: {stdout}");
            // 56: the connection was reset while curl waited for the answer.
            assert_eq!(output.status.code(), Some(56), "{path} of {server}: {stderr}");
        }
        assert_eq!(lab.client.run("curl", &["-sS", "--fail", &url(server, "hello")]), "hello\n");
    }
    // The same page is open to whoever does not cross the tap.
    let direct = lab.server.run("curl", &["-sS", "--fail", "http://127.0.0.1/admin"]);
    assert_eq!(direct, "the secret page\n");
    socktap.assert_healthy();
}
