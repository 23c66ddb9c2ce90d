//! Reading kernels and device functions: parameters, scopes, registers, labels. What the instructions
//! mean is in `decode`.

use std::collections::HashMap;

use super::{
    code::{Code, Function, Inst, NONE, Param, Place, Slot},
    decode,
    error::PtxError,
    module::{Builder, Kernel, MAX_LOCAL, MAX_PARAM, MAX_SHARED, Named, Parser, aligned, declaration},
    operand::{self, Operand},
    text::{Token, syntax},
    types::Type,
};

/// The deepest nesting of braces in a body.
const MAX_NESTING: usize = 64;
/// The most slots (registers, constants) of one function; the last number means "none".
const MAX_SLOTS: usize = NONE as usize - 1;

/// What a name in a body stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Local {
    Register(u16, Type),
    Param(Param),
    /// Offset in the frame's local memory.
    Depot(u32),
    /// Offset in the kernel's own shared memory.
    SharedOwn(u32),
    /// Offset in the shared memory that functions have in common.
    SharedCommon(u32),
}

/// One pair of braces.
#[derive(Default)]
struct Scope<'a> {
    parent: Option<usize>,
    names: HashMap<&'a str, Local>,
    /// `%r<100>`: names are made when they are met.
    ranges: Vec<(&'a str, u64, Type)>,
    labels: HashMap<&'a str, u32>,
    tables: HashMap<&'a str, Vec<Token<'a>>>,
}

/// A function while it is read.
pub(super) struct Body<'a, 'm> {
    pub(super) module: &'m mut Builder,
    pub(super) function: Function,
    scopes: Vec<Scope<'a>>,
    scope: usize,
    constants: HashMap<Slot, u16>,
    /// Branches whose labels are not placed yet: instruction, scope, label.
    jumps: Vec<(usize, usize, Token<'a>)>,
    /// The same for tables of labels.
    table_jumps: Vec<(usize, usize, Token<'a>)>,
    kernel: bool,
    own_shared: u32,
    text: &'a str,
    place: Place,
}

/// Reads a kernel from `.entry` on.
pub(super) fn entry(module: &mut Builder, parser: &mut Parser<'_>) -> Result<(), PtxError> {
    parser.expect(".entry")?;
    let name = parser.name("the kernel's name")?;
    let mut body = Body::new(module, parser.text, name.text, true);
    let inputs = body.parameters(parser)?;
    let max_threads = directives(parser)?;
    if parser.take(";") {
        return Ok(());
    }
    let index = body.module.functions.len() as u32;
    body.module.name(name, Named::Function(index))?;
    body.function.inputs.clone_from(&inputs);
    let param_bytes = body.function.param_bytes;
    body.statements(parser)?;
    let (function, own_shared) = (body.function, body.own_shared);
    module.kernels.push(Kernel {
        name: name.text.to_owned(),
        params: inputs,
        param_bytes,
        shared_bytes: own_shared,
        local_bytes: function.local_bytes,
        max_threads,
        function: index as usize,
        shared_own: 0,
    });
    module.functions.push(function);
    Ok(())
}

/// Reads a device function, or its declaration, from `.func` on.
pub(super) fn function(module: &mut Builder, parser: &mut Parser<'_>) -> Result<(), PtxError> {
    parser.expect(".func")?;
    let mut body = Body::new(module, parser.text, "", false);
    // Results come first in the text; in the parameter space they follow no fixed order.
    let outputs = if parser.peek_is("(") { body.parameters(parser)? } else { Vec::new() };
    let name = parser.name("the function's name")?;
    let inputs = if parser.peek_is("(") { body.parameters(parser)? } else { Vec::new() };
    parser.take(".noreturn");
    directives(parser)?;
    let index = match body.module.names.get(name.text) {
        Some(&Named::Function(index)) => index,
        Some(_) => return Err(PtxError::Duplicate { line: name.line, name: name.text.to_owned() }),
        None => {
            let index = body.module.functions.len() as u32;
            body.module.name(name, Named::Function(index))?;
            // Declared before its body is read, so that it may call itself.
            body.module.functions.push(Function {
                name: name.text.to_owned(),
                inputs: inputs.clone(),
                outputs: outputs.clone(),
                ..Function::default()
            });
            index
        }
    };
    if parser.take(";") {
        return Ok(());
    }
    if body.module.functions[index as usize].defined {
        return Err(PtxError::Duplicate { line: name.line, name: name.text.to_owned() });
    }
    body.function.name = name.text.to_owned();
    body.function.inputs = inputs;
    body.function.outputs = outputs;
    body.statements(parser)?;
    let function = body.function;
    module.functions[index as usize] = function;
    Ok(())
}

/// Directives between a kernel's parameters and its body; the product of `.maxntid` or `.reqntid`.
fn directives(parser: &mut Parser<'_>) -> Result<Option<u32>, PtxError> {
    let mut max_threads = None;
    while let Some(token) = parser.peek().filter(|t| t.text.starts_with('.')) {
        parser.next("a directive")?;
        match token.text {
            ".maxntid" | ".reqntid" => {
                let mut product = 1;
                loop {
                    product *= parser.count("a number of threads", 1024)?;
                    if product > 1024 {
                        return Err(PtxError::TooLarge {
                            line: token.line,
                            what: token_name(token),
                            limit: 1024,
                        });
                    }
                    if !parser.take(",") {
                        break;
                    }
                }
                max_threads = Some(product as u32);
            }
            ".minnctapersm" | ".maxnctapersm" | ".maxnreg" => {
                parser.count("a number", u64::from(u32::MAX))?;
            }
            ".pragma" => {
                while !parser.take(";") {
                    parser.next(";")?;
                }
            }
            _ => return Err(PtxError::Unsupported { line: token.line, instruction: token.text.to_owned() }),
        }
    }
    Ok(max_threads)
}

fn token_name(token: Token<'_>) -> &'static str {
    if token.text == ".maxntid" { ".maxntid" } else { ".reqntid" }
}

impl<'a, 'm> Body<'a, 'm> {
    fn new(module: &'m mut Builder, text: &'a str, name: &str, kernel: bool) -> Self {
        let function = Function { name: name.to_owned(), defined: true, ..Function::default() };
        Self {
            module,
            function,
            scopes: vec![Scope::default()],
            scope: 0,
            constants: HashMap::new(),
            jumps: Vec::new(),
            table_jumps: Vec::new(),
            kernel,
            own_shared: 0,
            text,
            place: Place::default(),
        }
    }

    /// `(.param .u64 a, .param .b32 b)`.
    fn parameters(&mut self, parser: &mut Parser<'a>) -> Result<Vec<Param>, PtxError> {
        let mut all = Vec::new();
        if !parser.take("(") || parser.take(")") {
            return Ok(all);
        }
        loop {
            let token = parser.next("a parameter")?;
            if token.text != ".param" {
                return Err(PtxError::Unsupported {
                    line: token.line,
                    instruction: format!("a {} parameter", token.text),
                });
            }
            all.push(self.param(parser)?);
            if !parser.take(",") {
                parser.expect(")")?;
                return Ok(all);
            }
        }
    }

    fn param(&mut self, parser: &mut Parser<'a>) -> Result<Param, PtxError> {
        let declared = declaration(parser, MAX_PARAM)?;
        let line = declared.name.line;
        let size = declared.size.ok_or_else(|| syntax(line, "a length", declared.name.text))?;
        let offset = aligned(self.function.param_bytes, declared.align);
        let end = u64::from(offset) + size;
        // A function may declare such variables for each of its calls, so there may be many.
        if end > 1 << 20 {
            return Err(PtxError::TooLarge { line, what: "parameter space", limit: 1 << 20 });
        }
        self.function.param_bytes = end as u32;
        let param = Param { offset, size: size as u32 };
        self.declare(declared.name, Local::Param(param))?;
        Ok(param)
    }

    fn declare(&mut self, token: Token<'a>, local: Local) -> Result<(), PtxError> {
        match self.scopes[self.scope].names.insert(token.text, local) {
            None => Ok(()),
            Some(_) => Err(PtxError::Duplicate { line: token.line, name: token.text.to_owned() }),
        }
    }

    fn statements(&mut self, parser: &mut Parser<'a>) -> Result<(), PtxError> {
        parser.expect("{")?;
        let mut open = vec![self.scope];
        while let Some(&inner) = open.last() {
            self.scope = inner;
            let token = parser.next("}")?;
            match token.text {
                "}" => {
                    open.pop();
                }
                "{" => {
                    if open.len() == MAX_NESTING {
                        let limit = MAX_NESTING as u64;
                        return Err(PtxError::TooLarge {
                            line: token.line,
                            what: "the nesting of braces",
                            limit,
                        });
                    }
                    self.scopes.push(Scope { parent: Some(inner), ..Scope::default() });
                    open.push(self.scopes.len() - 1);
                }
                ".reg" => self.registers(parser)?,
                ".param" => {
                    self.param(parser)?;
                    parser.expect(";")?;
                }
                ".local" | ".shared" => self.variable(parser, token)?,
                ".pragma" => {
                    while !parser.take(";") {
                        parser.next(";")?;
                    }
                }
                "@" => {
                    let negate = parser.take("!");
                    let guard = parser.name("a predicate")?;
                    let opcode = parser.name("an instruction")?;
                    self.instruction(parser, token, opcode, Some((guard, negate)))?;
                }
                // Several modifiers in one word never hold a colon, so this is a label.
                _ if token.is_name() && parser.peek_is(":") => self.label(parser, token)?,
                _ if token.is_name() => self.instruction(parser, token, token, None)?,
                ";" => {}
                _ => {
                    return Err(PtxError::Unsupported {
                        line: token.line,
                        instruction: token.text.to_owned(),
                    });
                }
            }
        }
        self.resolve()
    }

    fn registers(&mut self, parser: &mut Parser<'a>) -> Result<(), PtxError> {
        let token = parser.next("a type")?;
        let ty = token.text.strip_prefix('.').and_then(Type::parse);
        let ty = ty.ok_or_else(|| PtxError::Unsupported {
            line: token.line,
            instruction: format!("a register of type {}", token.text),
        })?;
        loop {
            let name = parser.name("a register")?;
            if parser.take("<") {
                let count = parser.count("the number of registers", u64::from(u32::MAX))?;
                parser.expect(">")?;
                self.scopes[self.scope].ranges.push((name.text, count, ty));
            } else {
                let slot = self.slot(name.line, Slot::Register(name.text.to_owned()))?;
                self.declare(name, Local::Register(slot, ty))?;
            }
            if !parser.take(",") {
                parser.expect(";")?;
                return Ok(());
            }
        }
    }

    fn variable(&mut self, parser: &mut Parser<'a>, space: Token<'a>) -> Result<(), PtxError> {
        let (local, limit) =
            (space.text == ".local", if space.text == ".local" { MAX_LOCAL } else { MAX_SHARED });
        let declared = declaration(parser, limit)?;
        parser.expect(";")?;
        let line = declared.name.line;
        let size = declared.size.ok_or_else(|| syntax(line, "a length", declared.name.text))?;
        let place = |used: u32| {
            let at = aligned(used, declared.align);
            let end = u64::from(at) + size;
            let what = if local { "local memory" } else { "shared memory" };
            if end > limit { Err(PtxError::TooLarge { line, what, limit }) } else { Ok((at, end as u32)) }
        };
        let variable = if local {
            let (at, end) = place(self.function.local_bytes)?;
            self.function.local_bytes = end;
            Local::Depot(at)
        } else if self.kernel {
            let (at, end) = place(self.own_shared)?;
            self.own_shared = end;
            Local::SharedOwn(at)
        } else {
            Local::SharedCommon(self.module.place_shared(line, size, declared.align)?)
        };
        self.declare(declared.name, variable)
    }

    fn label(&mut self, parser: &mut Parser<'a>, name: Token<'a>) -> Result<(), PtxError> {
        parser.expect(":")?;
        if parser.take(".branchtargets") {
            let mut targets = Vec::new();
            loop {
                targets.push(parser.name("a label")?);
                if !parser.take(",") {
                    break;
                }
            }
            parser.expect(";")?;
            self.scopes[self.scope].tables.insert(name.text, targets);
            return Ok(());
        }
        if parser.peek_is(".callprototype") || parser.peek_is(".calltargets") {
            while !parser.take(";") {
                parser.next(";")?;
            }
            return Ok(());
        }
        let at = self.function.code.len() as u32;
        match self.scopes[self.scope].labels.insert(name.text, at) {
            None => Ok(()),
            Some(_) => Err(PtxError::Duplicate { line: name.line, name: name.text.to_owned() }),
        }
    }

    fn instruction(
        &mut self,
        parser: &mut Parser<'a>,
        start: Token<'a>,
        opcode: Token<'a>,
        guard: Option<(Token<'a>, bool)>,
    ) -> Result<(), PtxError> {
        let (operands, end) = operand::operands(parser)?;
        self.place = Place { line: start.line, start: start.at, end };
        let guard = match guard {
            Some((token, negate)) => {
                (self.register(token, Type { kind: super::types::Kind::Predicate, bits: 1 })?, negate)
            }
            None => (NONE, false),
        };
        let first = self.function.code.len();
        decode::instruction(self, opcode.text, &operands)?;
        for inst in &mut self.function.code[first..] {
            (inst.guard, inst.negate) = guard;
        }
        Ok(())
    }

    /// Appends an instruction that stands at the place being read.
    pub(super) fn push(&mut self, inst: Inst) {
        self.function.code.push(inst);
        self.function.places.push(self.place);
    }

    /// Remembers that the instruction appended next jumps to `label`.
    pub(super) fn jump(&mut self, label: Token<'a>) {
        self.jumps.push((self.function.code.len(), self.scope, label));
    }

    /// The same for a table of labels.
    pub(super) fn jump_by_table(&mut self, table: Token<'a>) {
        self.table_jumps.push((self.function.code.len(), self.scope, table));
    }

    fn text(&self) -> String {
        let text = self.text.get(self.place.start as usize..self.place.end as usize).unwrap_or("");
        text.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect()
    }

    pub(super) fn unsupported(&self) -> PtxError {
        PtxError::Unsupported { line: self.place.line, instruction: self.text() }
    }

    pub(super) fn misfit(&self, problem: impl Into<String>) -> PtxError {
        PtxError::Operands { line: self.place.line, instruction: self.text(), problem: problem.into() }
    }

    fn undeclared(token: Token<'_>) -> PtxError {
        PtxError::Undeclared { line: token.line, name: token.text.to_owned() }
    }

    fn slot(&mut self, line: u32, slot: Slot) -> Result<u16, PtxError> {
        if self.function.slots.len() >= MAX_SLOTS {
            return Err(PtxError::TooLarge {
                line,
                what: "registers and constants",
                limit: MAX_SLOTS as u64,
            });
        }
        self.function.slots.push(slot);
        Ok((self.function.slots.len() - 1) as u16)
    }

    /// The slot of a constant; equal ones share it.
    pub(super) fn constant(&mut self, slot: Slot) -> Result<u16, PtxError> {
        if let Some(&known) = self.constants.get(&slot) {
            return Ok(known);
        }
        let index = self.slot(self.place.line, slot.clone())?;
        self.constants.insert(slot, index);
        Ok(index)
    }

    /// The slot that nobody reads, for results that are not wanted.
    pub(super) fn sink(&mut self) -> Result<u16, PtxError> {
        self.constant(Slot::Register("_".to_owned()))
    }

    /// What a name stands for, from the innermost scope outwards.
    pub(super) fn lookup(&mut self, token: Token<'a>) -> Result<Option<Local>, PtxError> {
        let mut scope = Some(self.scope);
        while let Some(at) = scope {
            if let Some(&local) = self.scopes[at].names.get(token.text) {
                return Ok(Some(local));
            }
            let ranged = self.scopes[at].ranges.iter().find_map(|&(prefix, count, ty)| {
                let number = token.text.strip_prefix(prefix)?;
                // `%r01` is no name for `%r1`.
                let plain = number == "0" || !number.starts_with(['0', '+']);
                (plain && number.parse::<u64>().ok()? < count).then_some(ty)
            });
            if let Some(ty) = ranged {
                let slot = self.slot(token.line, Slot::Register(token.text.to_owned()))?;
                self.scopes[at].names.insert(token.text, Local::Register(slot, ty));
                return Ok(Some(Local::Register(slot, ty)));
            }
            scope = self.scopes[at].parent;
        }
        Ok(None)
    }

    /// A register of exactly the width of `ty`.
    pub(super) fn register(&mut self, token: Token<'a>, ty: Type) -> Result<u16, PtxError> {
        match self.lookup(token)? {
            Some(Local::Register(slot, found)) if found.bits == ty.bits => Ok(slot),
            Some(Local::Register(_, found)) => {
                let (wants, has) = (ty.bits, found.bits);
                Err(self.misfit(format!("{} has {has} bits instead of {wants}", token.text)))
            }
            Some(_) => Err(self.misfit(format!("{} is no register", token.text))),
            None => Err(Self::undeclared(token)),
        }
    }

    /// Gives jumps their targets.
    fn resolve(&mut self) -> Result<(), PtxError> {
        for (at, scope, label) in std::mem::take(&mut self.jumps) {
            let target = self.find(scope, label, |s| s.labels.get(label.text).copied())?;
            self.function.code[at].code = Code::Branch(target);
        }
        for (at, scope, table) in std::mem::take(&mut self.table_jumps) {
            let labels = self.find(scope, table, |s| s.tables.get(table.text).cloned())?;
            let targets = labels
                .into_iter()
                .map(|label| self.find(scope, label, |s| s.labels.get(label.text).copied()))
                .collect::<Result<Vec<_>, _>>()?;
            self.function.code[at].extra = self.function.targets.len() as i32;
            self.function.targets.push(targets);
        }
        // Falling off the end leaves the function.
        let last = Inst::new(Code::Return);
        self.push(last);
        Ok(())
    }

    fn find<T>(
        &self,
        scope: usize,
        name: Token<'a>,
        get: impl Fn(&Scope<'a>) -> Option<T>,
    ) -> Result<T, PtxError> {
        let mut scope = Some(scope);
        while let Some(at) = scope {
            if let Some(found) = get(&self.scopes[at]) {
                return Ok(found);
            }
            scope = self.scopes[at].parent;
        }
        Err(Self::undeclared(name))
    }

    /// Where a variable of the module lies, as a slot.
    pub(super) fn module_address(&self, name: &str, offset: i64) -> Option<Slot> {
        Some(match *self.module.names.get(name)? {
            Named::Global(index) => Slot::Global(index, offset),
            Named::Shared(at) => Slot::SharedCommon(i64::from(at) + offset),
            Named::SharedDynamic => Slot::SharedDynamic(offset),
            Named::Function(index) => Slot::Function(index),
        })
    }

    /// The index of a function of the module.
    pub(super) fn function_index(&self, name: &str) -> Option<u32> {
        match self.module.names.get(name) {
            Some(&Named::Function(index)) => Some(index),
            _ => None,
        }
    }

    /// A list of slots, by its index.
    pub(super) fn list(&mut self, slots: Vec<u16>) -> Result<u16, PtxError> {
        let index = self.function.lists.len();
        if index >= usize::from(NONE) {
            return Err(PtxError::TooLarge { line: self.place.line, what: "vectors", limit: NONE.into() });
        }
        self.function.lists.push(slots);
        Ok(index as u16)
    }

    /// The operands of an instruction that takes exactly `N`.
    pub(super) fn exactly<'o, const N: usize>(
        &self,
        operands: &'o [Operand<'a>],
    ) -> Result<&'o [Operand<'a>; N], PtxError> {
        operands.try_into().map_err(|_| self.misfit(format!("{} operands instead of {N}", operands.len())))
    }
}
