//! Reading a module: its directives, variables and functions. Bodies are read in `body.rs`.

use std::collections::HashMap;

use super::{
    body,
    code::{Function, Param},
    error::PtxError,
    operand::{Number, number},
    text::{Token, syntax, tokens},
    types::Type,
};

/// The largest variable in device memory, and the largest sum of initial values that is kept.
const MAX_GLOBAL: u64 = 1 << 40;
const MAX_INITIAL: u64 = 64 << 20;
/// What a block may have of shared memory on the largest device, and a thread of local memory.
pub(super) const MAX_SHARED: u64 = 227 << 10;
pub(super) const MAX_LOCAL: u64 = 512 << 10;
/// No variable in shared memory wants more.
const SHARED_ALIGN: u32 = 128;
/// What CUDA allows for parameters.
pub(super) const MAX_PARAM: u64 = 32764;

/// A loaded module: kernels ready to run, and the variables that its loader has to place.
#[derive(Debug)]
pub struct Module {
    pub(super) text: String,
    pub(super) functions: Vec<Function>,
    pub(super) dynamic_align: u32,
    kernels: Vec<Kernel>,
    globals: Vec<Global>,
}

/// A kernel of a module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its name, as mangled.
    pub name: String,
    /// Where each parameter lies in the bytes of [`super::Launch::params`].
    pub params: Vec<Param>,
    /// Length of all parameters in bytes.
    pub param_bytes: u32,
    /// Bytes of static shared memory.
    pub shared_bytes: u32,
    /// Bytes of local memory of one thread, without what called functions need.
    pub local_bytes: u32,
    /// The number of threads of a block that `.maxntid` or `.reqntid` allows.
    pub max_threads: Option<u32>,
    pub(super) function: usize,
    /// Where its own shared memory starts, after what functions have in common.
    pub(super) shared_own: u32,
}

/// A `.global` or `.const` variable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Global {
    /// Its name.
    pub name: String,
    /// Whether it is in constant memory.
    pub constant: bool,
    /// Length in bytes.
    pub size: u64,
    /// Alignment in bytes.
    pub align: u64,
    initial: Vec<u8>,
    /// Places where the address of another variable (plus an offset) or of a function is written.
    links: Vec<(u64, Link, i64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Global(usize),
    Function(usize),
}

/// Where functions have their addresses: in no memory.
pub(super) const FUNCTION_BASE: u64 = 0xf0f0_0000_0000_0000;

impl Global {
    /// The bytes that it starts with, given where all variables of the module lie: zeros where the
    /// module says nothing.
    #[must_use]
    pub fn image(&self, addresses: &[u64]) -> Vec<u8> {
        let mut image = self.initial.clone();
        image.resize(self.size as usize, 0);
        for &(at, link, offset) in &self.links {
            let base = match link {
                Link::Global(index) => addresses.get(index).copied().unwrap_or(0),
                Link::Function(index) => FUNCTION_BASE + 16 * index as u64,
            };
            let at = at as usize;
            image[at..at + 8].copy_from_slice(&base.wrapping_add_signed(offset).to_le_bytes());
        }
        image
    }
}

impl Module {
    /// Reads the text of a module.
    ///
    /// # Errors
    /// When the text is not PTX, or holds anything that this interpreter does not know.
    pub fn parse(text: &str) -> Result<Self, PtxError> {
        // The driver hands over C strings, and some callers count the end mark in.
        let text = text.trim_end_matches('\0');
        let mut parser = Parser { text, tokens: tokens(text)?, at: 0 };
        let mut builder = Builder::default();
        while let Some(token) = parser.peek() {
            builder.directive(&mut parser, token)?;
        }
        builder.finish(text.to_owned())
    }

    /// The kernel of that name.
    #[must_use]
    pub fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|k| k.name == name)
    }

    /// All kernels, in the order of the text.
    #[must_use]
    pub fn kernels(&self) -> &[Kernel] {
        &self.kernels
    }

    /// The variables that the loader places in device memory, in the order in which [`super::run`]
    /// wants their addresses.
    #[must_use]
    pub fn globals(&self) -> &[Global] {
        &self.globals
    }

    pub(super) fn is_kernel(&self, function: usize) -> bool {
        self.kernels.iter().any(|k| k.function == function)
    }

    /// The instruction at a place, on one line.
    pub(super) fn instruction(&self, place: super::code::Place) -> String {
        let text = self.text.get(place.start as usize..place.end as usize).unwrap_or("");
        text.split_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// The tokens of a text, and how far they were read.
pub(super) struct Parser<'a> {
    pub(super) text: &'a str,
    tokens: Vec<Token<'a>>,
    at: usize,
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.at).copied()
    }

    pub(super) fn peek_is(&self, text: &str) -> bool {
        self.peek().is_some_and(|t| t.text == text)
    }

    pub(super) fn line(&self) -> u32 {
        self.peek().or(self.tokens.last().copied()).map_or(1, |t| t.line)
    }

    pub(super) fn next(&mut self, expected: &'static str) -> Result<Token<'a>, PtxError> {
        let token = self.peek().ok_or_else(|| syntax(self.line(), expected, "the end of the text"))?;
        self.at += 1;
        Ok(token)
    }

    pub(super) fn take(&mut self, text: &str) -> bool {
        let found = self.peek_is(text);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, text: &'static str) -> Result<Token<'a>, PtxError> {
        let token = self.next(text)?;
        if token.text == text { Ok(token) } else { Err(syntax(token.line, text, token.text)) }
    }

    pub(super) fn name(&mut self, expected: &'static str) -> Result<Token<'a>, PtxError> {
        let token = self.next(expected)?;
        if token.is_name() { Ok(token) } else { Err(syntax(token.line, expected, token.text)) }
    }

    /// A number of at most `limit`.
    pub(super) fn count(&mut self, what: &'static str, limit: u64) -> Result<u64, PtxError> {
        let token = self.next(what)?;
        match number(token.text) {
            Some(Number::Integer(n)) if n <= u128::from(limit) => Ok(n as u64),
            Some(Number::Integer(_)) => Err(PtxError::TooLarge { line: token.line, what, limit }),
            _ => Err(syntax(token.line, what, token.text)),
        }
    }

    /// Skips a directive whose words end with `;`, or with the line.
    fn skip_line(&mut self) {
        let line = self.line();
        while self.peek().is_some_and(|t| t.line == line) {
            self.at += 1;
        }
    }

    /// Skips a block in braces.
    fn skip_block(&mut self) -> Result<(), PtxError> {
        self.expect("{")?;
        let mut depth = 1_u32;
        while depth > 0 {
            match self.next("}")?.text {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }
}

/// A declared variable: what stands between its state space and its initial value.
pub(super) struct Declared<'a> {
    pub(super) name: Token<'a>,
    pub(super) ty: Type,
    pub(super) align: u32,
    /// Length in bytes; `None` where the text leaves it open (`[]`).
    pub(super) size: Option<u64>,
}

/// Reads `.align N .ty .ptr ... name[count]...` after a state space.
pub(super) fn declaration<'a>(parser: &mut Parser<'a>, limit: u64) -> Result<Declared<'a>, PtxError> {
    let (mut align, mut ty, mut vector) = (None, None, 1);
    let name = loop {
        let token = parser.next("a declaration")?;
        match token.text {
            ".align" => {
                let n = parser.count("the alignment", 1 << 16)?;
                if !n.is_power_of_two() {
                    return Err(syntax(token.line, "an alignment that is a power of two", &n.to_string()));
                }
                // After `.ptr` comes the alignment of what is pointed at, which says nothing about this.
                align = align.or(ty.is_none().then_some(n as u32));
            }
            ".v2" => vector = 2,
            ".v4" => vector = 4,
            ".ptr" | ".global" | ".shared" | ".const" | ".local" if ty.is_some() => {}
            text if text.starts_with('.') => {
                let parsed = Type::parse(&text[1..]).filter(|t| t.bits >= 8);
                if parsed.is_none() || ty.is_some() {
                    return Err(PtxError::Unsupported { line: token.line, instruction: text.to_owned() });
                }
                ty = parsed;
            }
            _ if token.is_name() => break token,
            _ => return Err(syntax(token.line, "a name", token.text)),
        }
    };
    let ty = ty.ok_or_else(|| syntax(name.line, "a type", name.text))?;
    let element = u64::from(ty.bytes()) * vector;
    let mut size = Some(element);
    while parser.take("[") {
        if parser.take("]") {
            size = None;
            continue;
        }
        let n = parser.count("the array's length", limit)?;
        parser.expect("]")?;
        size = match size.map(|s| s.checked_mul(n)) {
            None => None,
            Some(Some(s)) if s <= limit => Some(s),
            _ => return Err(PtxError::TooLarge { line: name.line, what: "a variable", limit }),
        };
    }
    Ok(Declared { name, ty, align: align.unwrap_or(element as u32), size })
}

/// `at` moved up to a multiple of `align`.
pub(super) fn aligned(at: u32, align: u32) -> u32 {
    at.next_multiple_of(align.max(1))
}

/// What a name of the module stands for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Named {
    Global(u32),
    Shared(u32),
    SharedDynamic,
    Function(u32),
}

/// A module while it is read.
#[derive(Default)]
pub(super) struct Builder {
    pub(super) names: HashMap<String, Named>,
    pub(super) functions: Vec<Function>,
    pub(super) kernels: Vec<Kernel>,
    globals: Vec<Global>,
    initial_bytes: u64,
    /// Bytes of shared memory that belong to the module or to device functions.
    pub(super) shared_common: u32,
    pub(super) dynamic_align: u32,
}

impl Builder {
    fn directive<'a>(&mut self, parser: &mut Parser<'a>, token: Token<'a>) -> Result<(), PtxError> {
        match token.text {
            ".version" | ".target" | ".address_size" => {
                parser.skip_line();
                Ok(())
            }
            ".pragma" => {
                parser.skip_line();
                Ok(())
            }
            ".section" => {
                parser.next(".section")?;
                while !parser.peek_is("{") {
                    parser.next("{")?;
                }
                parser.skip_block()
            }
            ".visible" | ".extern" | ".weak" | ".common" => {
                parser.next("a directive")?;
                let external = token.text == ".extern";
                let next =
                    parser.peek().ok_or_else(|| syntax(token.line, "a directive", "the end of the text"))?;
                match next.text {
                    ".shared" => self.shared(parser, external),
                    ".global" | ".const" if external => Err(PtxError::Unsupported {
                        line: token.line,
                        instruction: format!(".extern {}", next.text),
                    }),
                    _ => self.directive(parser, next),
                }
            }
            ".shared" => self.shared(parser, false),
            ".global" | ".const" => self.global(parser),
            ".entry" => body::entry(self, parser),
            ".func" => body::function(self, parser),
            _ => Err(PtxError::Unsupported { line: token.line, instruction: token.text.to_owned() }),
        }
    }

    pub(super) fn name(&mut self, token: Token<'_>, named: Named) -> Result<(), PtxError> {
        match self.names.insert(token.text.to_owned(), named) {
            None => Ok(()),
            Some(_) => Err(PtxError::Duplicate { line: token.line, name: token.text.to_owned() }),
        }
    }

    fn shared(&mut self, parser: &mut Parser<'_>, external: bool) -> Result<(), PtxError> {
        parser.expect(".shared")?;
        let declared = declaration(parser, MAX_SHARED)?;
        parser.expect(";")?;
        match declared.size {
            // Its length is the launch's business; every such array starts at the same place.
            None | Some(0) => {
                self.dynamic_align = self.dynamic_align.max(declared.align);
                self.name(declared.name, Named::SharedDynamic)
            }
            Some(_) if external => Err(PtxError::Unsupported {
                line: declared.name.line,
                instruction: ".extern .shared with a length".to_owned(),
            }),
            Some(size) => {
                let at = self.place_shared(declared.name.line, size, declared.align)?;
                self.name(declared.name, Named::Shared(at))
            }
        }
    }

    pub(super) fn place_shared(&mut self, line: u32, size: u64, align: u32) -> Result<u32, PtxError> {
        let at = aligned(self.shared_common, align);
        let end = u64::from(at) + size;
        if end > MAX_SHARED {
            return Err(PtxError::TooLarge { line, what: "shared memory", limit: MAX_SHARED });
        }
        self.shared_common = end as u32;
        Ok(at)
    }

    fn global(&mut self, parser: &mut Parser<'_>) -> Result<(), PtxError> {
        let constant = parser.next("a state space")?.text == ".const";
        let declared = declaration(parser, MAX_GLOBAL)?;
        let line = declared.name.line;
        let mut global = Global {
            name: declared.name.text.to_owned(),
            constant,
            size: declared.size.unwrap_or(0),
            align: declared.align.into(),
            initial: Vec::new(),
            links: Vec::new(),
        };
        // Named first: a list may point at itself.
        self.name(declared.name, Named::Global(self.globals.len() as u32))?;
        self.globals.push(global.clone());
        if parser.take("=") {
            self.initial_values(parser, declared.ty, &mut global)?;
        }
        parser.expect(";")?;
        if declared.size.is_none() {
            global.size = global.initial.len() as u64;
        }
        if global.initial.len() as u64 > global.size {
            return Err(syntax(line, "no more values than elements", &global.name));
        }
        if let Some(last) = self.globals.last_mut() {
            *last = global;
        }
        Ok(())
    }

    fn initial_values(
        &mut self,
        parser: &mut Parser<'_>,
        ty: Type,
        into: &mut Global,
    ) -> Result<(), PtxError> {
        let mut depth = 0_u32;
        loop {
            if parser.take("{") {
                depth += 1;
                continue;
            }
            if depth > 0 && parser.take("}") {
                depth -= 1;
            } else {
                self.initial_value(parser, ty, into)?;
            }
            if depth == 0 {
                return Ok(());
            }
            if !parser.take(",") && !parser.peek_is("}") {
                return Err(syntax(parser.line(), ", or }", parser.peek().map_or("the end", |t| t.text)));
            }
        }
    }

    fn initial_value(
        &mut self,
        parser: &mut Parser<'_>,
        ty: Type,
        into: &mut Global,
    ) -> Result<(), PtxError> {
        let negative = parser.take("-");
        let token = parser.next("an initial value")?;
        self.initial_bytes += u64::from(ty.bytes());
        if self.initial_bytes > MAX_INITIAL {
            return Err(PtxError::TooLarge { line: token.line, what: "initial values", limit: MAX_INITIAL });
        }
        if token.is_number() {
            let value = number(token.text).and_then(|n| n.bits(ty, negative));
            let value = value.ok_or_else(|| syntax(token.line, "an initial value", token.text))?;
            into.initial.extend_from_slice(&value.to_le_bytes()[..ty.bytes() as usize]);
            return Ok(());
        }
        // An address: `name`, `name+8`, `generic(name)` or `generic(name)+8`.
        let generic = token.text == "generic" && parser.take("(");
        let name = if generic { parser.name("a variable")? } else { token };
        if generic {
            parser.expect(")")?;
        }
        let mut offset = 0;
        if parser.peek_is("+") || parser.peek_is("-") {
            let minus = parser.next("+")?.text == "-";
            let n = parser.count("an offset", 1 << 40)? as i64;
            offset = if minus { -n } else { n };
        }
        let link = match self.names.get(name.text) {
            Some(&Named::Global(index)) => Link::Global(index as usize),
            Some(&Named::Function(index)) => Link::Function(index as usize),
            _ => return Err(PtxError::Undeclared { line: name.line, name: name.text.to_owned() }),
        };
        if ty.bits != 64 {
            return Err(syntax(name.line, "a number, as addresses need 64 bits", name.text));
        }
        into.links.push((into.initial.len() as u64, link, offset));
        into.initial.extend_from_slice(&[0; 8]);
        Ok(())
    }

    fn finish(mut self, text: String) -> Result<Module, PtxError> {
        for function in self.functions.iter().filter(|f| f.defined) {
            for (call, place) in function.calls_with_places() {
                let Some(target) = call.function.and_then(|f| self.functions.get(f as usize)) else {
                    continue;
                };
                if !target.defined {
                    return Err(PtxError::Undeclared { line: place.line, name: target.name.clone() });
                }
            }
        }
        let common = self.shared_common;
        for kernel in &mut self.kernels {
            kernel.shared_own = aligned(common, SHARED_ALIGN);
            let start = if kernel.shared_bytes == 0 { common } else { kernel.shared_own };
            kernel.shared_bytes += start;
        }
        Ok(Module {
            text,
            functions: self.functions,
            kernels: self.kernels,
            globals: self.globals,
            dynamic_align: self.dynamic_align.max(16),
        })
    }
}
