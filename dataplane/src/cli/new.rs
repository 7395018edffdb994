//! `socktap new`: a filter to begin with, and a test that it passes.

use std::fs;
use std::io;
use std::path::Path;

use super::{Status, bad};

/// Names of the files, and what is in them; `NAME` stands for the filter's name.
const FILES: [(&str, &str); 7] = [
    ("NAME.bpf.c", include_str!("new/filter.bpf.c")),
    ("socktap.h", tap_engine::shipped::HEADER),
    ("Makefile", include_str!("new/Makefile")),
    ("sample", include_str!("new/sample")),
    ("expected", include_str!("new/expected")),
    ("ops.toml", include_str!("new/ops.toml")),
    ("README.md", include_str!("new/README.md")),
];

/// Writes the folder.
pub(super) fn new(folder: &Path) -> Status {
    let Some(name) = folder.file_name().and_then(|name| name.to_str()).filter(|name| is_name(name)) else {
        return bad(&format!("{} is no name for a filter\nhelp: take letters, digits, - and _", folder.display()));
    };
    match write(folder, name) {
        Ok(()) => {
            println!("{0}: {name}.bpf.c and a test. Try: make -C {0} test", folder.display());
            Status::Good
        }
        Err(error) => bad(&format!("{} cannot be made: {error}", folder.display())),
    }
}

/// The folder must be new: nothing is overwritten.
fn write(folder: &Path, name: &str) -> io::Result<()> {
    fs::create_dir(folder)?;
    for (file, text) in FILES {
        fs::write(folder.join(file.replace("NAME", name)), text.replace("NAME", name))?;
    }
    Ok(())
}

/// A name of a file that needs no quoting anywhere.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_'))
}
