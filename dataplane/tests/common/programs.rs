//! Programs that tests bring along.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::need;

/// Compiles a program as the README says.
pub fn compile(folder: &Path, name: &str, source: &str) -> PathBuf {
    need(&["clang"]);
    let file = folder.join(format!("{name}.bpf.c"));
    std::fs::write(&file, source).expect("a file");
    let object = folder.join(format!("{name}.bpf.o"));
    let mut command = Command::new("clang");
    command.args([
        "-O2",
        "-g",
        "-target",
        "bpf",
        "-I/usr/include/x86_64-linux-gnu",
        "-I/usr/include/aarch64-linux-gnu",
        "-c",
    ]);
    let output = command.arg(&file).arg("-o").arg(&object).output().expect("clang starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    object
}
