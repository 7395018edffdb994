//! Compiles the shipped filters in `programs/` into `$OUT_DIR/NAME.bpf.o`, which `lib.rs` embeds.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

const FILTERS: [&str; 7] = ["redis", "http1", "lines", "len4", "dns", "kafka", "tls"];

fn main() {
    println!("cargo::rerun-if-changed=programs");
    println!("cargo::rerun-if-env-changed=CLANG");

    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let mut make = Command::new("make");
    make.args(["-C", "programs", &format!("O={out}")]);
    // The flags of an outer make are not meant for this one.
    make.env_remove("MAKEFLAGS").env_remove("MAKELEVEL");
    if let Ok(clang) = env::var("CLANG") {
        make.arg(format!("CLANG={clang}"));
    }
    match make.output() {
        Err(error) => fail(&format!("cannot run `make` ({error}). Install it: apt-get install make clang libbpf-dev.")),
        Ok(output) if !output.status.success() => {
            let log = String::from_utf8_lossy(&output.stderr);
            let hint = if log.contains("not found") || log.contains("No such file or directory") {
                "clang or headers are missing: apt-get install clang libbpf-dev linux-libc-dev.\n"
            } else {
                ""
            };
            fail(&format!("`make -C tap-engine/programs` failed. {hint}{log}"));
        }
        Ok(_) => {}
    }
    for filter in FILTERS {
        let object = Path::new(&out).join(format!("{filter}.bpf.o"));
        if fs::metadata(&object).is_err() {
            fail(&format!("`make -C tap-engine/programs` did not make {}", object.display()));
        }
    }
}

fn fail(message: &str) -> ! {
    eprintln!("tap-engine: {message}");
    std::process::exit(1);
}
