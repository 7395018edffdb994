//! A BPF object file: its programs, its maps and its global variables.
//!
//! The ELF file is read and linked by aya-obj, in this order: parse → make maps → relocate references to maps, with a map's
//! index in place of a file descriptor → relocate calls, which appends to each program all that it calls → lower each program.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use aya_obj::EbpfSectionKind;
use object::{Object as _, ObjectSection as _};

use crate::callees;
use crate::error::LoadError;
use crate::functions::{Linked, Refusal};
use crate::globals::{Patch, Variables};
use crate::helpers::Environment;
use crate::instruction::Instruction;
use crate::machine::{Code, Mode};
use crate::maps::{Map, MapStore, Maps};
use crate::names;
use crate::print::PrintLog;
use crate::program::Program;
use crate::sections::{self, Role};
use crate::verify;

/// The most bytes of one section, code or global data.
const MAX_SECTION: u64 = 64 << 20;

/// What a program is for; its section declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Tells the length of the message at the head of a stream: `SEC("sk_skb/stream_parser")`.
    StreamParser,
    /// Judges a message: `SEC("sk_skb/stream_verdict")`.
    StreamVerdict,
}

impl Kind {
    /// The section that declares it; a `/suffix` may follow.
    pub fn section(self) -> &'static str {
        match self {
            Self::StreamParser => "sk_skb/stream_parser",
            Self::StreamVerdict => "sk_skb/stream_verdict",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::StreamParser => "stream parser",
            Self::StreamVerdict => "stream verdict",
        })
    }
}

/// How an object is loaded.
#[derive(Clone, Debug, Default)]
pub struct LoadOptions {
    /// Values of its global variables, by name.
    pub set: BTreeMap<String, Setting>,
    /// Where its maps are found or made.
    pub maps: Arc<MapStore>,
}

/// A value for a global variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Setting {
    /// For integers and enumerations.
    Integer(i64),
    /// For integers too: 0 or 1.
    Boolean(bool),
    /// For arrays of characters.
    Text(String),
    /// For arrays.
    List(Vec<Setting>),
}

/// A BPF object file, as `clang -O2 -g -target bpf` makes it. Its maps and global variables exist once and are shared by all
/// instances of its programs, in all threads.
pub struct Object {
    name: String,
    bytes: Vec<u8>,
    /// By name, in alphabetical order.
    functions: Vec<Function>,
    /// What was set, which the verifier is to see too.
    patches: Vec<Patch>,
    settings: Vec<(String, String)>,
    maps: Arc<Maps>,
    printed: Arc<PrintLog>,
    mode: Mode,
    /// Made when the first program is asked for; or why that failed.
    code: OnceLock<Result<Arc<Code>, String>>,
}

struct Function {
    name: String,
    role: Role,
    linked: Linked,
}

impl Object {
    /// Reads and links the object file at `path`. Every program in it is checked.
    ///
    /// # Errors
    /// The file cannot be read, is not a BPF object, or needs what the engine does not have.
    pub fn load(path: &Path, options: &LoadOptions) -> Result<Self, LoadError> {
        let bytes = std::fs::read(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => LoadError::NotFound { path: path.to_owned() },
            _ => LoadError::Unreadable { path: path.to_owned(), source },
        })?;
        Self::from_bytes_with(&path.display().to_string(), &bytes, options)
    }

    /// As [`load`](Self::load), from the file's contents, with nothing set and maps of its own; `name` is for messages.
    ///
    /// # Errors
    /// As `load`.
    pub fn from_bytes(name: &str, bytes: &[u8]) -> Result<Self, LoadError> {
        Self::from_bytes_with(name, bytes, &LoadOptions::default())
    }

    /// As [`load`](Self::load), from the file's contents.
    ///
    /// # Errors
    /// As `load`.
    pub fn from_bytes_with(name: &str, bytes: &[u8], options: &LoadOptions) -> Result<Self, LoadError> {
        // aya-obj indexes by numbers that it finds in the file without checking all of them: a damaged file can make it
        // panic. It has no state that outlives the call, so nothing is left half done.
        let linked = catch_unwind(AssertUnwindSafe(|| link(name, bytes, options)));
        let Parts { maps, programs, patches, settings, array_values, known } = linked.unwrap_or_else(|_| {
            Err(LoadError::NotBpf { object: name.to_owned(), reason: "its tables point to what is not there".into() })
        })?;
        if programs.is_empty() {
            return Err(LoadError::NoPrograms { object: name.to_owned() });
        }
        let mut functions = Vec::new();
        for (function, role, instructions) in programs {
            let linked = Linked::check(instructions, &maps).map_err(|refusal| refused(name, &function, refusal))?;
            functions.push(Function { name: function, role, linked });
        }
        functions.sort_by(|one, other| one.name.cmp(&other.name));
        for (map, index, function) in array_values {
            let program = functions.iter().position(|known| known.name == function);
            let placed =
                program.zip(maps.by_name(&map)).is_some_and(|(program, map)| map.set_program(index, program as u32));
            if !placed {
                let reason =
                    format!("its value {index} is `{function}`, which is no program of ours, or beyond its end");
                return Err(LoadError::BadMap { object: name.to_owned(), map, reason });
            }
        }
        Ok(Self {
            name: name.to_owned(),
            bytes: known,
            functions,
            patches,
            settings,
            maps: Arc::new(maps),
            printed: Arc::default(),
            mode: Mode { checked: true, counted: false },
            code: OnceLock::new(),
        })
    }

    /// The name that it was loaded with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its programs by name, with their kinds; `None`: it can be either.
    pub fn functions(&self) -> impl Iterator<Item = (&str, Option<Kind>)> {
        self.functions.iter().map(|function| (function.name.as_str(), function.role.kind))
    }

    /// Loads every program into the running kernel once, as the type that its section declares, and removes it again: so the
    /// kernel's own verifier judges it. Needs the rights to load BPF programs. From then on programs run without run-time checks.
    ///
    /// # Errors
    /// [`LoadError::Refused`] with the end of the verifier's log, [`LoadError::NotPermitted`], [`LoadError::KernelFailed`].
    pub fn verify(&mut self) -> Result<(), LoadError> {
        let functions = self.functions.iter().map(|function| (function.name.as_str(), function.role.is_socket_filter));
        verify::verify(&self.name, &self.bytes, &self.patches, functions)?;
        self.set_mode(Mode { checked: false, ..self.mode });
        Ok(())
    }

    /// From now on programs count the instructions of each run, at some cost: see [`Program::steps`].
    pub fn count_steps(&mut self) {
        self.set_mode(Mode { counted: true, ..self.mode });
    }

    fn set_mode(&mut self, mode: Mode) {
        self.mode = mode;
        self.code = OnceLock::new();
    }

    /// An instance of `function`. The first call compiles the object's programs.
    ///
    /// # Errors
    /// There is no such function, or it is of another kind.
    pub fn program(&self, function: &str, kind: Kind) -> Result<Program, LoadError> {
        let Some(index) = self.functions.iter().position(|found| found.name == function) else {
            let kind = |kind: Option<Kind>| kind.map_or("parser or verdict".to_owned(), |kind| kind.to_string());
            let known: Vec<String> =
                self.functions().map(|(name, found)| format!("{name} ({})", kind(found))).collect();
            return Err(LoadError::NoSuchFunction {
                object: self.name.clone(),
                function: function.to_owned(),
                known: known.join(", "),
            });
        };
        if let Some(found) = self.functions[index].role.kind.filter(|found| *found != kind) {
            let (object, function) = (self.name.clone(), function.to_owned());
            return Err(LoadError::WrongKind { object, function, found, wanted: kind });
        }
        let environment = Environment::new(Arc::clone(&self.maps), Arc::clone(&self.printed), function.to_owned());
        Ok(Program::new(kind, self.code()?, index, environment)?)
    }

    /// The native code of all programs.
    fn code(&self) -> Result<&Arc<Code>, LoadError> {
        let code = self.code.get_or_init(|| {
            let programs: Vec<&Linked> = self.functions.iter().map(|function| &function.linked).collect();
            Code::compile(&programs, &self.maps, self.mode).map(Arc::new).map_err(|error| error.to_string())
        });
        code.as_ref().map_err(|reason| LoadError::NotBpf { object: self.name.clone(), reason: reason.clone() })
    }

    /// Its maps and its global data (`.data`, `.bss`, `.rodata`), by name.
    pub fn maps(&self) -> impl Iterator<Item = &Arc<Map>> {
        self.maps.all().iter()
    }

    /// The constants that [`LoadOptions::set`] can change: names and types.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.settings.iter().map(|(name, kind)| (name.as_str(), kind.as_str()))
    }

    /// The map of that name, or global data.
    pub fn map(&self, name: &str) -> Option<&Arc<Map>> {
        self.maps.by_name(name)
    }

    /// Takes the latest lines that its programs have printed with `bpf_trace_printk`, each with its function's name; at most
    /// 256 are kept.
    pub fn take_printed(&self) -> Vec<String> {
        self.printed.take()
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Object").field("name", &self.name).field("mode", &self.mode).finish_non_exhaustive()
    }
}

/// What an object file is made of.
struct Parts {
    maps: Maps,
    programs: Vec<Found>,
    patches: Vec<Patch>,
    /// Names and types of constants that can be set.
    settings: Vec<(String, String)>,
    /// Map, index and function of each initial value of program arrays.
    array_values: Vec<(String, u32, String)>,
    /// The file with sections' names that aya knows.
    known: Vec<u8>,
}

/// Name, role and linked instructions.
type Found = (String, Role, Vec<Instruction>);

fn link(name: &str, bytes: &[u8], options: &LoadOptions) -> Result<Parts, LoadError> {
    let not_bpf = |reason: String| LoadError::NotBpf { object: name.to_owned(), reason };
    check_header(bytes).map_err(|reason| not_bpf(reason.into()))?;
    check_sections(bytes).map_err(not_bpf)?;
    let file = object::File::parse(bytes).map_err(|error| not_bpf(error.to_string()))?;
    callees::check(&file).map_err(not_bpf)?;
    let known = sections::with_known_names(bytes, &file);
    let mut object = aya_obj::Object::parse(&known).map_err(|error| not_bpf(chain(&error)))?;
    if object.has_btf_relocations() {
        return Err(not_bpf("it has CO-RE relocations, which need the types of a kernel".into()));
    }

    let variables = Variables::read(&file);
    let wrong = |(variable, reason)| LoadError::BadSetting { object: name.to_owned(), name: variable, reason };
    let patches = variables.patches(&options.set).map_err(wrong)?;
    for Patch { name: variable, section, offset, bytes } in &patches {
        let data = object.maps.get_mut(section).and_then(|map| data_of(map).get_mut(*offset..offset + bytes.len()));
        let beyond = || wrong((variable.clone(), "it lies beyond its section".into()));
        data.ok_or_else(beyond)?.copy_from_slice(bytes);
    }
    let mut definitions: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
    definitions.retain(|(_, map)| is_real(map));
    definitions.sort_by(|one, other| one.0.cmp(&other.0));
    let maps = Maps::new(name, definitions.iter().map(|(name, map)| (name.as_str(), map)), &options.maps)?;

    let text_sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    let by_index = definitions.iter().enumerate().map(|(index, (name, map))| (name.as_str(), index as i32, map));
    object.relocate_maps(by_index, &text_sections).map_err(|error| not_bpf(chain(&error)))?;
    object.relocate_calls(&text_sections).map_err(|error| not_bpf(chain(&error)))?;

    let mut programs = Vec::new();
    let roles = sections::roles(&file);
    for (function, program) in &object.programs {
        let Some(role) = roles.get(function).copied() else { continue };
        let linked = object.functions.get(&program.function_key());
        let instructions = linked.map(|linked| linked.instructions.iter().map(Instruction::from).collect());
        programs.push((function.clone(), role, instructions.unwrap_or_default()));
    }
    let array_values = sections::array_values(&file, |map| variables.definition_size(map));
    let settings = variables.settings().map(|(name, kind)| (name.to_owned(), kind)).collect();
    Ok(Parts { maps, programs, patches, settings, array_values, known })
}

/// The initial values of a section of global data: `.bss` has none in the file, which means zeros.
fn data_of(map: &mut aya_obj::Map) -> &mut Vec<u8> {
    let size = map.value_size() as usize;
    let data = map.data_mut();
    data.resize(size, 0);
    data
}

/// An empty section of global data is no map.
fn is_real(map: &aya_obj::Map) -> bool {
    match map.section_kind() {
        EbpfSectionKind::Data | EbpfSectionKind::Rodata | EbpfSectionKind::Bss => map.value_size() > 0,
        _ => true,
    }
}

/// No section may claim more than [`MAX_SECTION`] bytes. `.bss` has none in the file, and aya-obj allocates what it claims:
/// an allocation that fails ends the process.
fn check_sections(bytes: &[u8]) -> Result<(), String> {
    let file = object::File::parse(bytes).map_err(|error| error.to_string())?;
    match file.sections().find(|section| section.size() > MAX_SECTION) {
        Some(section) => Err(format!(
            "its section `{}` claims {} bytes, and at most {MAX_SECTION} are possible",
            section.name().unwrap_or("?"),
            section.size(),
        )),
        None => Ok(()),
    }
}

/// The first bytes of an ELF file for this machine's BPF.
fn check_header(bytes: &[u8]) -> Result<(), &'static str> {
    const EM_BPF: u16 = 247;
    let little = cfg!(target_endian = "little");
    match bytes {
        [0x7f, b'E', b'L', b'F', ..] => {}
        _ => return Err("it is not an ELF file"),
    }
    match bytes.get(18..20).map(|machine| u16::from_ne_bytes([machine[0], machine[1]])) {
        _ if bytes.get(5) != Some(&if little { 1 } else { 2 }) => Err("it is for the other byte order"),
        Some(EM_BPF) => Ok(()),
        Some(_) => Err("it is an ELF file for another machine than BPF"),
        None => Err("it is cut short"),
    }
}

/// An error and all that caused it, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

fn refused(object: &str, function: &str, refusal: Refusal) -> LoadError {
    let (object, function) = (object.to_owned(), function.to_owned());
    match refusal {
        Refusal::Instruction(instruction, what) => {
            LoadError::UnsupportedInstruction { object, function, instruction, what }
        }
        Refusal::Helper(instruction, number) => {
            LoadError::UnsupportedHelper { object, function, instruction, helper: names::helper(number) }
        }
        Refusal::Program(reason) => LoadError::BadProgram { object, function, reason },
    }
}
