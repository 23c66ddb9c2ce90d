//! What an instruction means: its opcode, modifiers and operands become one decoded instruction. What
//! is not known here is an error of the whole module.

mod bits;
mod compare;
mod control;
mod convert;
mod float;
mod form;
mod half;
mod integer;
mod memory;
mod warp;

use super::{
    body::{Body, Local},
    code::{Code, Inst, Join, Slot, Special, Yes},
    error::PtxError,
    operand::{Number, Operand},
    text::Token,
    types::{Kind, Type},
};

const PREDICATE: Type = Type { kind: Kind::Predicate, bits: 1 };
const U32: Type = Type { kind: Kind::Unsigned, bits: 32 };

/// Decodes one instruction and appends it to the body.
pub(super) fn instruction<'a>(
    body: &mut Body<'a, '_>,
    opcode: &'a str,
    operands: &[Operand<'a>],
) -> Result<(), PtxError> {
    let parts: Vec<&str> = opcode.split('.').collect();
    match parts[0] {
        "setp" => return setp(body, &parts, operands),
        "set" => return set(body, &parts, operands),
        "mov" if mov(body, &parts, operands)? => return Ok(()),
        "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "prefetch" | "prefetchu"
        | "applypriority" | "discard" => {
            return memory::instruction(body, &parts, operands);
        }
        "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "brkpt" | "bar" | "barrier" | "membar"
        | "fence" | "nanosleep" => {
            return control::instruction(body, &parts, operands);
        }
        "shfl" | "vote" | "match" | "redux" | "activemask" => {
            return warp::instruction(body, &parts, operands);
        }
        _ => {}
    }
    let form = bits::form(&parts)
        .or_else(|| integer::form(&parts))
        .or_else(|| integer::pairs(&parts))
        .or_else(|| integer::carry(&parts))
        .or_else(|| float::form(&parts))
        .or_else(|| half::form(&parts))
        .or_else(|| convert::form(&parts));
    let form = form.ok_or_else(|| body.unsupported())?;
    let wanted = 1 + form.from.iter().flatten().count();
    if operands.len() != wanted {
        return Err(body.misfit(format!("{} operands instead of {wanted}", operands.len())));
    }
    let mut code = form.code;
    let (d, width) = destination(body, &operands[0], form.to, form.wider)?;
    if let (Code::One(f), true) = (code, form.wider) {
        code = Code::Cut(f, width);
    }
    let mut inst = Inst { d, ..Inst::new(code) };
    let places = [&mut inst.a, &mut inst.b, &mut inst.c, &mut inst.e];
    for ((place, ty), operand) in places.into_iter().zip(form.from).zip(&operands[1..]) {
        if let Some(ty) = ty {
            *place = source(body, operand, ty, form.wider)?;
        }
    }
    body.push(inst);
    Ok(())
}

/// The slot that an operand is read from.
fn source<'a>(
    body: &mut Body<'a, '_>,
    operand: &Operand<'a>,
    ty: Type,
    wider: bool,
) -> Result<u16, PtxError> {
    match *operand {
        Operand::Number { value, negative } => {
            let bits = if ty.kind == Kind::Predicate {
                matches!(value, Number::Integer(0 | 1)).then_some(value).and_then(|v| v.bits(ty, false))
            } else {
                value.bits(ty, negative)
            };
            let bits = bits.ok_or_else(|| body.misfit("a number that does not fit its type"))?;
            body.constant(Slot::Value(bits))
        }
        Operand::Name { token, offset, negated: false } => named(body, token, offset, ty, wider),
        _ => Err(body.misfit("an operand of the wrong kind")),
    }
}

fn named<'a>(
    body: &mut Body<'a, '_>,
    token: Token<'a>,
    offset: i64,
    ty: Type,
    wider: bool,
) -> Result<u16, PtxError> {
    match body.lookup(token)? {
        Some(Local::Register(slot, found)) if offset == 0 => {
            let predicates = (ty.kind == Kind::Predicate) == (found.kind == Kind::Predicate);
            let fits = if wider { found.bits >= ty.bits } else { found.bits == ty.bits };
            if predicates && fits {
                return Ok(slot);
            }
            Err(body.misfit(format!("{} has {} bits instead of {}", token.text, found.bits, ty.bits)))
        }
        Some(Local::Register(..)) => Err(body.misfit("a register plus a number")),
        Some(_) | None if ty.bits < 32 => Err(body.misfit(format!("{} is no register", token.text))),
        Some(local) => {
            let slot = variable(local, offset)
                .ok_or_else(|| body.misfit(format!("{} has no address", token.text)))?;
            body.constant(slot)
        }
        None => {
            if let Some(special) = special(token.text) {
                return body.constant(Slot::Special(special));
            }
            let slot = body.module_address(token.text, offset);
            let slot =
                slot.ok_or_else(|| PtxError::Undeclared { line: token.line, name: token.text.to_owned() })?;
            body.constant(slot)
        }
    }
}

/// Where a variable of a body lies, in its own state space.
fn variable(local: Local, offset: i64) -> Option<Slot> {
    Some(match local {
        Local::Register(..) => return None,
        Local::Param(param) => Slot::Value(i64::from(param.offset).wrapping_add(offset) as u64),
        Local::Depot(at) => Slot::Local(i64::from(at).wrapping_add(offset)),
        Local::SharedOwn(at) => Slot::SharedOwn(i64::from(at).wrapping_add(offset)),
        Local::SharedCommon(at) => Slot::SharedCommon(i64::from(at).wrapping_add(offset)),
    })
}

/// The slot that an operand is written to, and the width of its register.
fn destination<'a>(
    body: &mut Body<'a, '_>,
    operand: &Operand<'a>,
    ty: Type,
    wider: bool,
) -> Result<(u16, u8), PtxError> {
    let Operand::Name { token, offset: 0, negated: false } = *operand else {
        return Err(body.misfit("a destination that is no register"));
    };
    if token.text == "_" {
        return Ok((body.sink()?, 64));
    }
    let found = body.lookup(token)?;
    match found {
        Some(Local::Register(slot, found)) => {
            let predicates = (ty.kind == Kind::Predicate) == (found.kind == Kind::Predicate);
            let fits = if wider { found.bits >= ty.bits } else { found.bits == ty.bits };
            if predicates && fits {
                return Ok((slot, found.bits));
            }
            Err(body.misfit(format!("{} has {} bits instead of {}", token.text, found.bits, ty.bits)))
        }
        Some(_) => Err(body.misfit(format!("{} is no register", token.text))),
        None => Err(PtxError::Undeclared { line: token.line, name: token.text.to_owned() }),
    }
}

/// A predicate to be read, and whether it is negated.
fn predicate<'a>(body: &mut Body<'a, '_>, operand: &Operand<'a>) -> Result<(u16, bool), PtxError> {
    match *operand {
        Operand::Name { token, offset: 0, negated } => {
            Ok((named(body, token, 0, PREDICATE, false)?, negated))
        }
        Operand::Number { .. } => Ok((source(body, operand, PREDICATE, false)?, false)),
        _ => Err(body.misfit("an operand that is no predicate")),
    }
}

fn special(name: &str) -> Option<Special> {
    let axis = |suffix: &str| match suffix {
        ".x" => Some(0),
        ".y" => Some(1),
        ".z" => Some(2),
        _ => None,
    };
    for (prefix, make) in [
        ("%tid", Special::Thread as fn(u8) -> Special),
        ("%ntid", Special::BlockSize),
        ("%ctaid", Special::Block),
        ("%nctaid", Special::GridSize),
    ] {
        if let Some(axis) = name.strip_prefix(prefix).and_then(axis) {
            return Some(make(axis));
        }
    }
    Some(match name {
        "%laneid" => Special::Lane,
        "%warpid" => Special::WarpIndex,
        "%nwarpid" => Special::Warps,
        "%smid" | "%gridid" => Special::Zero,
        "%nsmid" => Special::OneSm,
        "%lanemask_eq" => Special::MaskEqual,
        "%lanemask_le" => Special::MaskLessEqual,
        "%lanemask_lt" => Special::MaskLess,
        "%lanemask_ge" => Special::MaskGreaterEqual,
        "%lanemask_gt" => Special::MaskGreater,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "WARP_SZ" => Special::WarpSize,
        _ => return None,
    })
}

/// Moves that are no plain copy: of a clock, into and out of vectors. False when this is none of them.
fn mov<'a>(body: &mut Body<'a, '_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<bool, PtxError> {
    let [_, suffix] = *parts else { return Ok(false) };
    let Some(ty) = Type::parse(suffix).filter(|t| t.bits >= 16) else { return Ok(false) };
    let [to, from] = operands else { return Ok(false) };
    match (to, from) {
        (_, Operand::Name { token, .. })
            if matches!(
                token.text,
                "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo"
            ) =>
        {
            let (d, _) = destination(body, to, ty, false)?;
            body.push(Inst { d, ..Inst::new(Code::Clock) });
        }
        (_, Operand::Vector(from)) => {
            let part = part_type(body, ty, from.len())?;
            let slots = from.iter().map(|o| source(body, o, part, false)).collect::<Result<_, _>>()?;
            let (d, _) = destination(body, to, ty, false)?;
            let e = body.list(slots)?;
            body.push(Inst { d, e, ..Inst::new(Code::Pack { bits: part.bits }) });
        }
        (Operand::Vector(to), _) => {
            let part = part_type(body, ty, to.len())?;
            let a = source(body, from, ty, false)?;
            let slots = to
                .iter()
                .map(|o| Ok(destination(body, o, part, false)?.0))
                .collect::<Result<_, PtxError>>()?;
            let e = body.list(slots)?;
            body.push(Inst { a, e, ..Inst::new(Code::Unpack { bits: part.bits }) });
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn part_type(body: &Body<'_, '_>, whole: Type, count: usize) -> Result<Type, PtxError> {
    if !matches!(count, 2 | 4) || usize::from(whole.bits) / count < 8 {
        return Err(body.misfit(format!("a vector of {count} parts")));
    }
    Ok(Type { kind: Kind::Bits, bits: whole.bits / count as u8 })
}

fn join(name: &str) -> Option<Join> {
    Some(match name {
        "and" => Join::And,
        "or" => Join::Or,
        "xor" => Join::Xor,
        _ => return None,
    })
}

/// Operator, how to join with a predicate, and flushing, of a comparison's modifiers.
fn comparison<'p>(modifiers: &[&'p str]) -> Option<(&'p str, Join, bool)> {
    let (flush, rest) = match modifiers.split_last() {
        Some((&"ftz", rest)) => (true, rest),
        _ => (false, modifiers),
    };
    match *rest {
        [operator] => Some((operator, Join::None, flush)),
        [operator, how] => Some((operator, join(how)?, flush)),
        _ => None,
    }
}

fn setp<'a>(body: &mut Body<'a, '_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let [_, modifiers @ .., suffix] = parts else { return Err(body.unsupported()) };
    let known = Type::parse(suffix).and_then(|ty| {
        let (operator, join, flush) = comparison(modifiers)?;
        Some((ty, compare::test(operator, ty, flush)?, join))
    });
    let (ty, test, join) = known.ok_or_else(|| body.unsupported())?;
    let wanted = if join == Join::None { 3 } else { 4 };
    if operands.len() != wanted {
        return Err(body.misfit(format!("{} operands instead of {wanted}", operands.len())));
    }
    let a = source(body, &operands[1], ty, false)?;
    let b = source(body, &operands[2], ty, false)?;
    let (c, negate) = match operands.get(3) {
        Some(operand) => predicate(body, operand)?,
        None => (super::code::NONE, false),
    };
    let name = |token| Operand::Name { token, offset: 0, negated: false };
    let (d, e) = match operands[0] {
        Operand::Pair(p, q) => {
            let (d, _) = destination(body, &name(p), PREDICATE, false)?;
            (d, destination(body, &name(q), PREDICATE, false)?.0)
        }
        ref operand => (destination(body, operand, PREDICATE, false)?.0, super::code::NONE),
    };
    body.push(Inst { d, a, b, c, e, ..Inst::new(Code::Compare { test, join, negate }) });
    Ok(())
}

/// `set` without a joined predicate: what NVRTC and cuda_fp16.h make.
fn set<'a>(body: &mut Body<'a, '_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let [_, modifiers @ .., to, from] = parts else { return Err(body.unsupported()) };
    let known = Type::parse(from).zip(Type::parse(to)).and_then(|(from, to)| {
        let (operator, join, flush) = comparison(modifiers)?;
        let yes = match (to.kind, to.bits) {
            (Kind::Signed | Kind::Unsigned, 32) => Yes::Ones32,
            (Kind::Signed | Kind::Unsigned, 16) => Yes::Ones16,
            (Kind::Float, 32) => Yes::OneF32,
            (Kind::Float, 16) => Yes::OneF16,
            (Kind::Brain, 16) => Yes::OneBf16,
            _ => return None,
        };
        (join == Join::None).then_some(())?;
        Some((from, to, compare::test(operator, from, flush)?, yes))
    });
    let (from, to, test, yes) = known.ok_or_else(|| body.unsupported())?;
    let [d, a, b] = body.exactly(operands)?;
    let (d, _) = destination(body, d, to, false)?;
    let (a, b) = (source(body, a, from, false)?, source(body, b, from, false)?);
    body.push(Inst { d, a, b, ..Inst::new(Code::Set { test, yes }) });
    Ok(())
}
