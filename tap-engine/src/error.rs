//! What can be wrong with an object file.

use std::path::PathBuf;

use crate::machine::MemoryError;
use crate::object::Kind;

/// Why an object, or one of its functions, cannot be used. Each message is for the author of the program; further lines after
/// the first say what there is instead, or what the kernel said.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error("there is no file {}", path.display())]
    NotFound {
        /// The path as given.
        path: PathBuf,
    },
    /// The file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The bytes are not a BPF object file, or a damaged one.
    #[error(
        "{object} is not a usable BPF object: {reason}\nhelp: compile a filter with `clang -O2 -g -target bpf -c filter.bpf.c -o {object}`"
    )]
    NotBpf {
        /// The object's name.
        object: String,
        /// What is wrong.
        reason: String,
    },
    /// The object has no program of the kinds that socktap runs.
    #[error(
        "{object} holds no stream parser and no stream verdict\nhelp: put functions into SEC(\"sk_skb/stream_parser\") and SEC(\"sk_skb/stream_verdict\")"
    )]
    NoPrograms {
        /// The object's name.
        object: String,
    },
    /// The object has no function of that name.
    #[error("{object} has no function `{function}`\nhelp: it has {known}")]
    NoSuchFunction {
        /// The object's name.
        object: String,
        /// The function that was asked for.
        function: String,
        /// Those that there are, with their kinds.
        known: String,
    },
    /// The function is of the other kind.
    #[error("`{function}` in {object} is a {found}, not a {wanted}\nhelp: its section says so: SEC(\"{}\")", found.section())]
    WrongKind {
        /// The object's name.
        object: String,
        /// The function that was asked for.
        function: String,
        /// What its section declares.
        found: Kind,
        /// What was asked for.
        wanted: Kind,
    },
    /// A map of a type that the engine does not have.
    #[error(
        "map `{map}` in {object} is a {map_type}, which is not supported\nhelp: supported are BPF_MAP_TYPE_ARRAY, HASH, LRU_HASH, PERCPU_ARRAY, PERCPU_HASH, LRU_PERCPU_HASH, LPM_TRIE, PROG_ARRAY, RINGBUF and global variables"
    )]
    UnsupportedMap {
        /// The object's name.
        object: String,
        /// The map's name.
        map: String,
        /// The kernel's name of its type.
        map_type: String,
    },
    /// A map whose definition the kernel would refuse, or that is too large.
    #[error("map `{map}` in {object} cannot be made: {reason}")]
    BadMap {
        /// The object's name.
        object: String,
        /// The map's name.
        map: String,
        /// What is wrong with its definition.
        reason: String,
    },
    /// A call of a helper that the engine does not have.
    #[error(
        "`{function}` in {object} calls {helper} (instruction {instruction}), which is not supported\nhelp: supported are {}",
        crate::helpers::supported_names()
    )]
    UnsupportedHelper {
        /// The object's name.
        object: String,
        /// The program.
        function: String,
        /// The instruction's number in the linked program, from 0.
        instruction: usize,
        /// The kernel's name of the helper.
        helper: String,
    },
    /// An instruction that the engine does not have.
    #[error(
        "`{function}` in {object} uses {what} (instruction {instruction}), which is not supported\nhelp: compile with -mcpu=v2"
    )]
    UnsupportedInstruction {
        /// The object's name.
        object: String,
        /// The program.
        function: String,
        /// The instruction's number in the linked program, from 0.
        instruction: usize,
        /// What it is.
        what: String,
    },
    /// A program that cannot be right, or that exceeds a limit of the engine.
    #[error("`{function}` in {object} is not acceptable: {reason}")]
    BadProgram {
        /// The object's name.
        object: String,
        /// The program.
        function: String,
        /// What is wrong.
        reason: String,
    },
    /// The kernel's verifier refuses a program.
    #[error("the kernel refuses `{function}` in {object}: {reason}\n{log}")]
    Refused {
        /// The object's name.
        object: String,
        /// The program.
        function: String,
        /// The kernel's error.
        reason: String,
        /// The last lines of the verifier's log.
        log: String,
    },
    /// The kernel did not get as far as verifying.
    #[error("the kernel cannot load {object}: {reason}")]
    KernelFailed {
        /// The object's name.
        object: String,
        /// What failed.
        reason: String,
    },
    /// The right to load programs into the kernel is missing, so they cannot be verified.
    #[error(
        "no permission to have the kernel verify {object}: {reason}\nhelp: run as root, or with CAP_BPF and CAP_NET_ADMIN"
    )]
    NotPermitted {
        /// The object's name.
        object: String,
        /// What was not permitted.
        reason: String,
    },
    /// A setting that cannot be made.
    #[error("`{name}` of {object} cannot be set: {reason}")]
    BadSetting {
        /// The object's name.
        object: String,
        /// The variable's name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// No memory for maps or contexts.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
