//! What the author of a filter works with: `socktap new`, `socktap test` with settings, traces and maps.

use std::path::Path;
use std::process::{Command, Output};

const SOCKTAP: &str = env!("CARGO_BIN_EXE_socktap");

fn run(program: &str, arguments: &[&str], folder: &Path) -> Output {
    Command::new(program)
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"))
}

/// stdout of a command that must end well.
#[track_caller]
fn good(output: &Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn a_new_filter_passes_its_own_test() {
    let folder = tempfile::tempdir().unwrap();
    good(&run(SOCKTAP, &["new", "my-filter"], folder.path()));
    let own = folder.path().join("my-filter");
    let make = |target: &str| run("make", &[target, &format!("SOCKTAP={SOCKTAP}")], &own);
    assert!(good(&make("test")).ends_with("my-filter: as expected\n"));

    let trace = good(&make("trace"));
    let lines: Vec<serde_json::Value> = trace.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(lines.len(), 3, "{trace}");
    assert_eq!(lines[1]["printed"], serde_json::json!(["judge: a line of 9 bytes is forbidden"]));
    assert!(lines[0].get("printed").is_none());
    // Each byte costs the parser a turn of its loop.
    let spent = |line: usize| lines[line]["parser_instructions"].as_u64().unwrap();
    assert_eq!((spent(0) - spent(2)) * 3, (spent(1) - spent(0)) * 2, "{trace}");

    // The sample does not pass any more if the filter is another one.
    let source = own.join("my-filter.bpf.c");
    std::fs::write(&source, std::fs::read_to_string(&source).unwrap().replace("forbidden = '#'", "forbidden = '!'"))
        .unwrap();
    assert!(!make("test").status.success());
    // Nothing is overwritten, and a name needs no quoting.
    for name in ["my-filter", "a b", "..", ""] {
        assert_eq!(run(SOCKTAP, &["new", name], folder.path()).status.code(), Some(2), "{name}");
    }
}

#[test]
fn settings_and_maps_of_a_test() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("lines.bpf.o"), tap_engine::shipped::LINES).unwrap();
    std::fs::write(folder.path().join("input"), "a secret\nall clear\n").unwrap();
    let test = |more: &[&str]| {
        let arguments = ["test", "lines.bpf.o", "--parser", "parse_line", "--verdict", "no_word", "--input", "input"];
        run(SOCKTAP, &[&arguments, more].concat(), folder.path())
    };
    let verdicts = |output: &Output| -> Vec<String> {
        let text = good(output);
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.filter_map(|line| line.get("verdict").and_then(|verdict| verdict.as_str()).map(str::to_owned)).collect()
    };
    assert_eq!(verdicts(&test(&[])), ["drop", "pass"]);
    assert_eq!(verdicts(&test(&["--set", "forbidden_word=clear"])), ["pass", "drop"]);
    assert_eq!(verdicts(&test(&["--set", "forbidden_word=clear", "--verify", "off"])), ["pass", "drop"]);

    let dump = good(&test(&["--map", ".rodata"]));
    assert!(
        dump.lines().last().unwrap().starts_with("{\"key\":\"0x00000000\",\"map\":\".rodata\",\"value\":\"0x"),
        "{dump}"
    );
    for (wrong, word) in [
        (["--set", "forbidden_wort=x"], "do you mean `forbidden_word`?"),
        (["--set", "forbidden_word=5"], "it is char["),
        (["--set", "forbidden_word"], "NAME=VALUE"),
        (["--map", "none"], "has no map `none`"),
    ] {
        let output = test(&wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(stderr.contains(word), "{stderr}");
    }
}
