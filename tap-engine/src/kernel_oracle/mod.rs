//! Tests: the engine computes what the kernel computes, and what the reference computes.
//!
//! Programs at random, valid ones and damaged ones, run in four places: in the kernel as `BPF_PROG_TYPE_SCHED_CLS` under
//! `BPF_PROG_TEST_RUN` (which the `sk_skb` type does not offer), as native code in both modes, and in rbpf's interpreter. What the kernel's
//! verifier takes must give the same result everywhere; what it does not take runs in checked mode only, and must end.
//!
//! `SOCKTAP_PROGRAMS=n` sets how many programs each test makes.

mod generate;
mod tables;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use proptest::prelude::*;

use crate::context::FlowInfo;
use crate::functions::{Linked, Refusal};
use crate::helpers::Environment;
use crate::instruction::Instruction;
use crate::machine::{Code, MessageBuffer, Mode};
use crate::maps::{MapStore, Maps};
use crate::object::Kind;
use crate::program::{Program, ProgramFault};
use crate::reference::{self, Ended};

/// The packet that programs work on.
const PACKET: usize = 64;

const VERIFIED: Mode = Mode { checked: false, counted: false };
const CHECKED: Mode = Mode { checked: true, counted: false };
const COUNTED: Mode = Mode { checked: true, counted: true };

const fn i(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Instruction {
    Instruction { code, dst, src, off, imm }
}

const fn exit() -> Instruction {
    i(crate::instruction::EXIT, 0, 0, 0, 0)
}

fn load64(dst: u8, value: u64) -> [Instruction; 2] {
    let load = i(crate::instruction::LD_IMM64, dst, 0, 0, value as u32 as i32);
    [load, i(0, 0, 0, 0, (value >> 32) as u32 as i32)]
}

fn no_maps() -> Arc<Maps> {
    Arc::new(Maps::new("test", std::iter::empty(), &MapStore::default()).unwrap())
}

fn linked(instructions: &[Instruction]) -> Result<Linked, Refusal> {
    Linked::check(instructions.to_vec(), &no_maps())
}

fn packet() -> Vec<u8> {
    (0..PACKET).map(|index| (index * 37 + 11) as u8).collect()
}

/// A program as native code, and a packet. Only what the kernel's verifier has taken may run in another mode than checked.
struct Native {
    program: Program,
    flow: FlowInfo,
    buffer: MessageBuffer,
}

impl Native {
    fn new(program: &Linked, mode: Mode) -> Self {
        let maps = no_maps();
        let code = Arc::new(Code::compile(&[program], &maps, mode).unwrap());
        let environment = Environment::new(maps, Arc::default(), "f".into());
        let program = Program::new(Kind::StreamVerdict, &code, 0, environment).unwrap();
        let flow = FlowInfo::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
        let mut buffer = MessageBuffer::new(PACKET).unwrap();
        buffer.as_mut_slice().copy_from_slice(&packet());
        Self { program, flow, buffer }
    }

    fn run(&mut self) -> Result<u32, ProgramFault> {
        self.program.run(&mut self.flow, 0, &mut self.buffer, 0..PACKET)
    }
}

/// What `program` returns as native code.
fn native(program: &Linked, mode: Mode) -> Result<u32, ProgramFault> {
    Native::new(program, mode).run()
}

/// What `program` returns in the interpreter, if that can run it.
fn interpreted(program: &Linked) -> Option<Ended> {
    let mut buffer = MessageBuffer::new(PACKET).unwrap();
    buffer.as_mut_slice().copy_from_slice(&packet());
    let mut flow = FlowInfo::new("10.0.0.1:1".parse().unwrap(), "10.0.0.2:2".parse().unwrap());
    flow.show(buffer.address(0), PACKET as u32);
    let context: Vec<u8> = flow.image_mut().iter().flat_map(|word| word.to_ne_bytes()).collect();
    reference::run(program, &context, buffer.as_slice())
}

/// What the kernel says.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Kernel {
    /// We may not ask.
    Silent,
    /// Its verifier refuses the program.
    Refuses(String),
    Returns(u32),
}

/// What `instructions` return in the kernel. The verifier's crash that programs/README.md tells of needs far longer programs.
#[expect(unsafe_code, reason = "bpf(2) has no other way in for raw instructions")]
fn in_kernel(instructions: &[Instruction]) -> Kernel {
    const BPF_PROG_LOAD: u32 = 5;
    const BPF_PROG_TEST_RUN: u32 = 10;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let bytes: Vec<u8> = instructions.iter().flat_map(|instruction| instruction.to_bytes()).collect();
    let mut log = vec![0_u8; 1 << 20];
    let mut load = [0_u8; 128];
    load[0..4].copy_from_slice(&BPF_PROG_TYPE_SCHED_CLS.to_ne_bytes());
    load[4..8].copy_from_slice(&(instructions.len() as u32).to_ne_bytes());
    load[8..16].copy_from_slice(&(bytes.as_ptr() as u64).to_ne_bytes());
    load[16..24].copy_from_slice(&(c"GPL".as_ptr() as u64).to_ne_bytes());
    load[24..28].copy_from_slice(&1_u32.to_ne_bytes());
    load[28..32].copy_from_slice(&(log.len() as u32).to_ne_bytes());
    load[32..40].copy_from_slice(&(log.as_mut_ptr() as u64).to_ne_bytes());
    // SAFETY: the attributes name `bytes`, a C string and `log`, all of which outlive the call, with their true lengths.
    let descriptor = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, load.as_mut_ptr(), load.len()) };
    if descriptor < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::EPERM) && !is_root() {
            return Kernel::Silent;
        }
        return Kernel::Refuses(format!("{error}: {}", String::from_utf8_lossy(&log)));
    }
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor as i32) };
    let packet = packet();
    let mut run = [0_u8; 128];
    run[0..4].copy_from_slice(&descriptor.as_raw_fd().to_ne_bytes());
    run[8..12].copy_from_slice(&(packet.len() as u32).to_ne_bytes());
    run[16..24].copy_from_slice(&(packet.as_ptr() as u64).to_ne_bytes());
    // SAFETY: the attributes name `packet` with its true length; nothing is written but the attributes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, run.as_mut_ptr(), 80) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    Kernel::Returns(u32::from_ne_bytes(run[4..8].try_into().unwrap()))
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0)
}

/// The program is valid, and gives the same everywhere.
fn agree(instructions: &[Instruction]) -> Result<(), TestCaseError> {
    let program = linked(instructions).unwrap();
    let value = match in_kernel(instructions) {
        Kernel::Returns(value) => {
            prop_assert_eq!(native(&program, VERIFIED), Ok(value), "verified");
            value
        }
        Kernel::Silent => native(&program, CHECKED).unwrap(),
        refusal @ Kernel::Refuses(_) => panic!("{refusal:?}"),
    };
    prop_assert_eq!(native(&program, CHECKED), Ok(value), "checked");
    prop_assert_eq!(native(&program, COUNTED), Ok(value), "counted");
    if let Some(ended) = interpreted(&program) {
        let Ended::Returned(result) = ended else { panic!("interpreted: {ended:?}") };
        prop_assert_eq!(result as u32, value, "interpreted");
    }
    Ok(())
}

/// The program, whatever it is, comes to an end in checked mode; without a fault and as in the other mode, if the kernel takes it.
fn ends(instructions: &[Instruction]) -> Result<(), TestCaseError> {
    let kernel = in_kernel(instructions);
    let taken = matches!(kernel, Kernel::Returns(_));
    // The kernel does not look at instructions that it has found to be dead; the loader looks at all.
    let Ok(program) = linked(instructions) else { return Ok(()) };
    // At other addresses: what depends on them differs. (And in the kernel what depends on the context does too.)
    let (mut one, mut other) = (Native::new(&program, CHECKED), Native::new(&program, CHECKED));
    let (one, other) = (one.run(), other.run());
    if taken {
        prop_assert!(one.is_ok() && other.is_ok(), "{one:?}, {other:?}");
        let verified = native(&program, VERIFIED);
        prop_assert!(verified.is_ok() && (one != other || one == verified), "{one:?}, verified {verified:?}");
    }
    // The interpreter has a stack and a count of loops of its own.
    if let (Ok(value), Some(Ended::Returned(result))) = (one, interpreted(&program))
        && !instructions.iter().any(|instruction| is_access(*instruction))
    {
        prop_assert_eq!(result as u32, value, "interpreted");
    }
    Ok(())
}

fn is_access(instruction: Instruction) -> bool {
    use crate::instruction::Class;
    matches!(instruction.class(), Class::Ld | Class::Ldx | Class::St | Class::Stx)
}

fn programs(usual: u32) -> ProptestConfig {
    let count = std::env::var("SOCKTAP_PROGRAMS").ok().and_then(|count| count.parse().ok());
    let cases = count.unwrap_or(usual);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 2000, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(programs(250))]

    #[test]
    fn valid_programs_give_the_same_everywhere(program in generate::program()) {
        agree(&program)?;
    }

    #[test]
    fn damaged_programs_are_refused_or_end(
        program in generate::program(),
        damages in prop::collection::vec(generate::damage(), 1..4),
    ) {
        let mut program = program;
        for damage in damages {
            damage.apply(&mut program);
        }
        ends(&program)?;
    }

    #[test]
    fn any_instructions_are_refused_or_end(
        body in prop::collection::vec((any::<u8>(), 0..12_u8, 0..12_u8, -4..4_i16, -4..40_i32), 1..12),
    ) {
        let mut all: Vec<_> = body.into_iter().map(|(code, dst, src, off, imm)| i(code, dst, src, off, imm)).collect();
        all.push(exit());
        ends(&all)?;
    }
}
