//! Compiles the XDP program `bpf/steer.bpf.c` with clang into `$OUT_DIR/steer.bpf.o`, which `program.rs` embeds.

use std::{env, path::PathBuf, process::Command};

const SOURCE: &str = "bpf/steer.bpf.c";

fn main() {
    println!("cargo::rerun-if-changed={SOURCE}");
    println!("cargo::rerun-if-env-changed=CLANG");

    let object = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("steer.bpf.o");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    // Debian and Ubuntu keep <asm/types.h> under the name of the architecture; `-target bpf` does not look there.
    let architecture = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets CARGO_CFG_TARGET_ARCH");
    let output = Command::new(&clang)
        .args(["-O2", "-g", "-target", "bpf", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-I/usr/include/{architecture}-linux-gnu"))
        .args(["-c", SOURCE, "-o"])
        .arg(&object)
        .output();

    match output {
        Err(error) => fail(&format!(
            "cannot run `{clang}` ({error}). The XDP program is C: install clang and the libbpf headers \
             (Debian, Ubuntu: apt-get install clang libbpf-dev), or name the compiler in the variable CLANG."
        )),
        Ok(output) if !output.status.success() => {
            let log = String::from_utf8_lossy(&output.stderr);
            let hint = if log.contains("bpf/bpf_helpers.h") || log.contains("asm/types.h") {
                " Headers are missing: apt-get install libbpf-dev linux-libc-dev."
            } else {
                ""
            };
            fail(&format!("`{clang}` does not compile {SOURCE}.{hint}\n{log}"));
        }
        Ok(_) => {}
    }
}

fn fail(message: &str) -> ! {
    eprintln!("xdp-redirect: {message}");
    std::process::exit(1);
}
