//! `socktap check`, `socktap test`, and what the command says to a file that is wrong.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::{Lab, Random, compile, lacks_rights};
use tempfile::TempDir;

fn socktap(arguments: &[&str]) -> Output {
    let mut command = Command::new("timeout");
    command.args(["-k", "2", "60", env!("CARGO_BIN_EXE_socktap")]).args(arguments).output().expect("timeout starts")
}

/// stdout and stderr of a command that must end with `code`.
fn texts(output: &Output, code: i32) -> (String, String) {
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "stdout:\n{stdout}\nstderr:\n{stderr}");
    (stdout, stderr)
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write(folder: &TempDir, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.path().join(name);
    std::fs::write(&path, contents).expect("a file");
    path
}

/// Runs `socktap run` and `socktap check` with a wrong file: exit 2 both times, and all of `expected` in the message.
fn refused(file: &Path, expected: &[&str]) {
    for command in ["check", "run"] {
        let (_, stderr) = texts(&socktap(&[command, &file.to_string_lossy()]), 2);
        for words in expected {
            assert!(stderr.contains(words), "`socktap {command}` does not say {words:?}:\n{stderr}");
        }
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

const PORTS: &str = "[ports]\nclient = \"lo\"\nserver = \"no-such-port\"\n\n";

#[test]
fn a_malformed_file_is_refused_with_line_and_column() {
    let folder = folder();
    let file = write(&folder, "ops.toml", "[ports]\nclient = \"a\"\nserver = = \"b\"\n");
    refused(&file, &["ops.toml:3:", "server = = \"b\""]);
}

#[test]
fn an_unknown_key_is_refused_with_line_and_column() {
    let folder = folder();
    let file = write(&folder, "ops.toml", format!("{PORTS}[[tap]]\nname = \"a\"\nserver_prot = [80]\n"));
    refused(&file, &["ops.toml:7:1:", "server_prot", "server_port"]);
}

#[test]
fn a_missing_file_is_refused() {
    let folder = folder();
    refused(&folder.path().join("absent.toml"), &["absent.toml", "No such file"]);
}

#[test]
fn a_missing_object_is_refused_with_line_and_column() {
    let folder = folder();
    let text = format!("{PORTS}[[tap]]\nname = \"a\"\nreceive = {{ object = \"absent.bpf.o\", parser = \"parse\" }}\n");
    let file = write(&folder, "ops.toml", text);
    refused(&file, &["ops.toml:7:22:", "absent.bpf.o"]);
}

#[test]
fn a_missing_function_is_refused_with_those_that_there_are() {
    let folder = folder();
    write(&folder, "len4.bpf.o", tap_engine::shipped::LEN4);
    let text =
        format!("{PORTS}[[tap]]\nname = \"a\"\nreceive = {{ object = \"len4.bpf.o\", parser = \"parse_len5\" }}\n");
    let file = write(&folder, "ops.toml", text);
    refused(&file, &["ops.toml:7:", "parse_len5", "parse_len4"]);
}

#[test]
fn an_object_that_is_none_is_refused() {
    let folder = folder();
    write(&folder, "text.bpf.o", "this is no ELF file");
    let text = format!("{PORTS}[[tap]]\nname = \"a\"\nreceive = {{ object = \"text.bpf.o\", parser = \"parse\" }}\n");
    let file = write(&folder, "ops.toml", text);
    refused(&file, &["ops.toml:7:", "text.bpf.o"]);
}

#[test]
fn a_program_that_the_verifier_refuses_is_refused_with_its_log() {
    if lacks_rights() {
        return;
    }
    let folder = folder();
    // Reads a byte that may not be there.
    compile(
        folder.path(),
        "careless",
        "#include <linux/bpf.h>\n\
         __attribute__((section(\"sk_skb/stream_parser\"), used)) int parse(struct __sk_buff *skb)\n\
         {\n    return *(unsigned char *)(long)skb->data;\n}\n\
         char _license[] __attribute__((section(\"license\"), used)) = \"Dual MIT/GPL\";\n",
    );
    let text =
        format!("{PORTS}[[tap]]\nname = \"a\"\nreceive = {{ object = \"careless.bpf.o\", parser = \"parse\" }}\n");
    let file = write(&folder, "ops.toml", text);
    refused(&file, &["ops.toml:7:", "careless.bpf.o", "invalid access to packet"]);
}

#[test]
fn a_missing_interface_is_refused_with_those_that_there_are() {
    let Some(lab) = Lab::start() else { return };
    for (ops, line) in [
        ("[ports]\nclient = \"port1\"\nserver = \"port9\"\n", "ops.toml:3:10:"),
        ("[ports]\nclient = \"port8\"\nserver = \"port2\"\n", "ops.toml:2:10:"),
    ] {
        let file = lab.write("ops.toml", ops);
        let output = lab.socktap_output(&["run", &file.to_string_lossy()]);
        let (_, stderr) = texts(&output, 2);
        for words in [line, "port1", "port2"] {
            assert!(stderr.contains(words), "does not say {words:?}:\n{stderr}");
        }
        assert!(!lab.xdp_attached());
    }
}

#[test]
fn wrong_usage_is_refused() {
    for arguments in [&["run"][..], &["frobnicate"], &["check", "--frobnicate", "x"], &["test"]] {
        let (_, stderr) = texts(&socktap(arguments), 2);
        assert!(stderr.contains("Usage"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn check_tells_what_each_tap_selects_and_attaches_nothing() {
    let Some(lab) = Lab::start() else { return };
    lab.write_shipped_programs();
    let file = lab.write(
        "ops.toml",
        lab.ops(
            "",
            "[[tap]]\nname = \"framed\"\nserver = [\"10.77.0.0/24\"]\nserver_port = [4444, \"5000-5010\"]\n\
             receive = { object = \"len4.bpf.o\", parser = \"parse_len4\", verdict = \"by_first_byte\" }\n\n\
             [[tap]]\nname = \"rest\"\n",
        ),
    );
    let output = lab.socktap_output(&["check", &file.to_string_lossy()]);
    let (stdout, _) = texts(&output, 0);
    for words in ["framed", "10.77.0.0/24", "4444", "5000-5010", "parse_len4", "by_first_byte", "rest"] {
        assert!(stdout.contains(words), "does not say {words:?}:\n{stdout}");
    }
    assert!(!lab.xdp_attached());
}

#[test]
fn test_judges_messages_offline_the_same_however_they_are_split() {
    let folder = folder();
    let object = write(&folder, "len4.bpf.o", tap_engine::shipped::LEN4);
    let mut random = Random::from_environment(10);
    let (mut bytes, mut expected) = (Vec::new(), Vec::new());
    for index in 0..60 {
        let (kind, verdict) = [(b'p', "pass"), (b'D', "drop"), (b'q', "pass")][index % 3];
        let body = random.between(0, 700);
        let message_length = 4 + 1 + body;
        expected.push((bytes.len(), message_length, verdict));
        bytes.extend(u32::try_from(1 + body).expect("small").to_be_bytes());
        bytes.push(kind);
        bytes.extend(random.bytes(body));
    }
    // After a disconnect nothing more is judged.
    expected.push((bytes.len(), 6, "disconnect"));
    bytes.extend(b"\0\0\0\x02X!");

    let input = write(&folder, "stream", &bytes);
    for split in [None, Some("1"), Some("7"), Some("1000")] {
        let mut arguments = vec!["test", object.to_str().expect("UTF-8"), "--parser", "parse_len4", "--verdict"];
        arguments.extend(["by_first_byte", "--input", input.to_str().expect("UTF-8")]);
        arguments.extend(split.iter().flat_map(|size| ["--split", size]));
        let (stdout, _) = texts(&socktap(&arguments), 0);
        let judged: Vec<serde_json::Value> =
            stdout.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect();
        assert_eq!(judged.len(), expected.len(), "split {split:?}:\n{stdout}");
        for (judged, (offset, length, verdict)) in judged.iter().zip(&expected) {
            assert_eq!(judged["offset"], *offset, "split {split:?}: {judged}");
            assert_eq!(judged["length"], *length, "split {split:?}: {judged}");
            assert_eq!(judged["verdict"], *verdict, "split {split:?}: {judged}");
        }
    }
}

#[test]
fn test_refuses_a_missing_function() {
    let folder = folder();
    let object = write(&folder, "len4.bpf.o", tap_engine::shipped::LEN4);
    let input = write(&folder, "stream", "");
    let (object, input) = (object.to_string_lossy(), input.to_string_lossy());
    let (_, stderr) = texts(&socktap(&["test", &object, "--parser", "parse_len5", "--input", &input]), 2);
    assert!(stderr.contains("parse_len5") && stderr.contains("parse_len4"), "{stderr}");
}
