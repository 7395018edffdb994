//! From linked programs to executable code: one Cranelift function for each BPF function.

use std::collections::BTreeMap;
use std::mem::transmute;

use cranelift_codegen::ir::{AbiParam, Signature, UserFuncName, types};
use cranelift_codegen::isa::CallConv;
use cranelift_codegen::settings::{self, Configurable};
use cranelift_frontend::FunctionBuilderContext;
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};

use super::code::{Code, Compiled, Entry, FunctionPointer, Mode};
use super::translate::{self, Surroundings};
use crate::functions::Linked;
use crate::maps::Maps;

/// Whatever the code generator says.
type Failure = Box<dyn std::error::Error>;

/// See [`Code::compile`].
pub(super) fn compile(programs: &[&Linked], maps: &Maps, mode: Mode) -> Result<Code, Failure> {
    let mut module = new_module()?;
    let mut compiler = Compiler {
        signatures: Signatures::new(&module),
        module: &mut module,
        maps,
        mode,
        callbacks: Vec::new(),
        scratch: FunctionBuilderContext::new(),
    };
    let mut entries = Vec::new();
    for (number, program) in programs.iter().enumerate() {
        let (id, writes_context) = compiler.program(number, program)?;
        entries.push((id, program.functions.by_start[&0].frame, writes_context));
    }
    let callbacks = std::mem::take(&mut compiler.callbacks);
    module.finalize_definitions()?;
    let mut code = Code::new(mode, module);
    let finished = |id: FuncId, code: &mut Code| -> *const u8 {
        let module = code.module.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        module.as_ref().map_or(std::ptr::null(), |module| module.get_finalized_function(id))
    };
    for (id, frame_size, writes_context) in entries {
        // SAFETY: the function was declared with `Signatures::entry`, which is the type's, and is finished.
        let entry = unsafe { transmute::<*const u8, Entry>(finished(id, &mut code)) };
        code.programs.push(Compiled { entry, frame_size, writes_context });
    }
    for (id, steps) in callbacks {
        // SAFETY: the function was declared with `Signatures::function`, which is the type's, and is finished.
        let function = unsafe { transmute::<*const u8, FunctionPointer>(finished(id, &mut code)) };
        code.callbacks.push((function, steps));
    }
    Ok(code)
}

fn new_module() -> Result<JITModule, Failure> {
    let mut flags = settings::builder();
    // clang has optimised the programs already. Cranelift's optimiser moves what computes away from what loads, so that values wait on the
    // stack: a verdict of 320 instructions took 36 ns with it, and takes 19 without.
    flags.set("opt_level", "none")?;
    flags.set("is_pic", "false")?;
    flags.set("use_colocated_libcalls", "false")?;
    // Frames are small: the stack of programs is memory of its own.
    flags.set("enable_probestack", "false")?;
    flags.set("unwind_info", "false")?;
    flags.set("enable_verifier", if cfg!(debug_assertions) { "true" } else { "false" })?;
    let isa = cranelift_native::builder()?;
    let isa = isa.finish(settings::Flags::new(flags))?;
    Ok(JITModule::new(JITBuilder::with_isa(isa, cranelift_module::default_libcall_names())))
}

/// How compiled functions, and what they call, are called.
pub(super) struct Signatures {
    /// [`Entry`].
    pub(super) entry: Signature,
    /// [`FunctionPointer`].
    pub(super) function: Signature,
    /// Any function of numbers, by how many there are.
    pub(super) numbers: [Signature; 7],
}

impl Signatures {
    fn new(module: &JITModule) -> Self {
        let of = |count: usize| {
            let mut signature = Signature::new(CallConv::triple_default(module.isa().triple()));
            signature.params = vec![AbiParam::new(types::I64); count];
            signature.returns = vec![AbiParam::new(types::I64)];
            signature
        };
        Self { entry: of(2), function: of(7), numbers: std::array::from_fn(of) }
    }
}

struct Compiler<'a> {
    module: &'a mut JITModule,
    maps: &'a Maps,
    mode: Mode,
    signatures: Signatures,
    /// Functions whose addresses are given to helpers, over all programs, and what a call of each can cost.
    callbacks: Vec<(FuncId, i64)>,
    scratch: FunctionBuilderContext,
}

impl Compiler<'_> {
    /// Compiles a program with all its functions; the result is its first, and whether it may write to its context.
    fn program(&mut self, number: usize, program: &Linked) -> Result<(FuncId, bool), Failure> {
        let mut ids = BTreeMap::new();
        for &start in program.functions.by_start.keys() {
            let signature = if start == 0 { &self.signatures.entry } else { &self.signatures.function };
            let name = format!("program_{number}_{start}");
            ids.insert(start, self.module.declare_function(&name, Linkage::Local, signature)?);
        }
        let mut handles = BTreeMap::new();
        for (at, instruction) in program.instructions.iter().enumerate() {
            if !program.functions.second_slots[at] && instruction.is_callback() {
                let start = instruction.target(at).expect("checked: it leads to a function");
                handles.entry(start).or_insert_with(|| {
                    let function = &program.functions.by_start[&start];
                    self.callbacks.push((ids[&start], (function.end - function.start) as i64));
                    self.callbacks.len() - 1
                });
            }
        }
        let mut context = self.module.make_context();
        let mut writes_context = false;
        for (&start, function) in &program.functions.by_start {
            context.func.signature =
                if start == 0 { self.signatures.entry.clone() } else { self.signatures.function.clone() };
            context.func.name = UserFuncName::user(0, ids[&start].as_u32());
            let surroundings = Surroundings {
                program,
                maps: self.maps,
                mode: self.mode,
                ids: &ids,
                handles: &handles,
                signatures: &self.signatures,
            };
            writes_context |=
                translate::function(&surroundings, function, self.module, &mut context.func, &mut self.scratch);
            self.module.define_function(ids[&start], &mut context)?;
            self.module.clear_context(&mut context);
        }
        Ok((ids[&0], writes_context))
    }
}
