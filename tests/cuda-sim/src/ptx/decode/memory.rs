//! Loads, stores, atomics and addresses.

use super::{
    super::{
        body::{Body, Local},
        code::{Access, Code, Inst, NONE, Slot, Space, Three},
        error::PtxError,
        operand::Operand,
        types::{Kind, Type},
    },
    destination, source, variable,
};

const ADDRESS: Type = Type { kind: Kind::Bits, bits: 64 };

/// A memory instruction whose opcode and modifiers are `parts`.
pub(super) fn instruction<'a>(
    body: &mut Body<'a, '_>,
    parts: &[&str],
    operands: &[Operand<'a>],
) -> Result<(), PtxError> {
    match *parts {
        ["ld" | "ldu", ..] => load(body, parts, operands),
        ["st", ..] => store(body, parts, operands),
        ["atom" | "red", ..] => atomic(body, parts, operands),
        ["cvta", ref rest @ ..] => {
            let (to, rest) = match rest {
                ["to", rest @ ..] => (true, rest),
                _ => (false, rest),
            };
            let [name, suffix] = rest else { return Err(body.unsupported()) };
            let space =
                space(name).filter(|_| matches!(*suffix, "u64" | "u32")).ok_or_else(|| body.unsupported())?;
            let ty = Type::parse(suffix).ok_or_else(|| body.unsupported())?;
            if ty.bits != 64 {
                return Err(body.unsupported());
            }
            let [d, a] = body.exactly(operands)?;
            let a = source(body, a, ty, false)?;
            let (d, _) = destination(body, d, ty, false)?;
            let code = if to { Code::FromGeneric(space) } else { Code::ToGeneric(space) };
            body.push(Inst { d, a, ..Inst::new(code) });
            Ok(())
        }
        ["isspacep", name] => {
            let space = space(name).ok_or_else(|| body.unsupported())?;
            let [d, a] = body.exactly(operands)?;
            let a = source(body, a, ADDRESS, false)?;
            let (d, _) = destination(body, d, super::PREDICATE, false)?;
            body.push(Inst { d, a, ..Inst::new(Code::IsSpace(space)) });
            Ok(())
        }
        // Hints for caches, which there are none of here.
        ["prefetch" | "prefetchu" | "applypriority", ..] => {
            body.push(Inst::new(Code::Nop));
            Ok(())
        }
        _ => Err(body.unsupported()),
    }
}

fn space(name: &str) -> Option<Space> {
    Some(match name {
        "global" => Space::Global,
        "const" => Space::Const,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

/// What stands between an opcode and its type.
struct Modifiers<'p> {
    space: Space,
    strong: bool,
    count: u8,
    ty: Type,
    /// What is no modifier of every memory instruction.
    rest: Vec<&'p str>,
}

fn modifiers<'p>(body: &Body<'_, '_>, parts: &[&'p str]) -> Result<Modifiers<'p>, PtxError> {
    let [_, middle @ .., suffix] = parts else { return Err(body.unsupported()) };
    let ty = Type::parse(suffix).filter(|t| t.bits >= 8).ok_or_else(|| body.unsupported())?;
    let mut all = Modifiers { space: Space::Generic, strong: false, count: 1, ty, rest: Vec::new() };
    for part in middle {
        match *part {
            "volatile" | "relaxed" | "acquire" | "release" | "acq_rel" | "mmio" => all.strong = true,
            // The scope, and hints for caches.
            "weak" | "cta" | "cluster" | "gpu" | "sys" => {}
            "v2" => all.count = 2,
            "v4" => all.count = 4,
            "v8" => all.count = 8,
            name => match space(name) {
                Some(space) if all.space == Space::Generic => all.space = space,
                _ if hint(name) => {}
                _ => all.rest.push(name),
            },
        }
    }
    Ok(all)
}

/// Hints for caches: none of them changes what is read or written.
fn hint(name: &str) -> bool {
    matches!(name, "nc" | "ca" | "cg" | "cs" | "lu" | "cv" | "wb" | "wt" | "unified")
        || name.starts_with("L1::")
        || matches!(
            name,
            "L2::64B" | "L2::128B" | "L2::256B" | "L2::evict_first" | "L2::evict_last" | "L2::evict_normal"
        )
}

/// The slot of an address, and the offset that is added to it.
fn address<'a>(body: &mut Body<'a, '_>, operand: &Operand<'a>, space: Space) -> Result<(u16, i32), PtxError> {
    let Operand::Address { base, offset } = *operand else {
        return Err(body.misfit("an operand that is no address"));
    };
    let Some(token) = base else {
        return Ok((body.constant(Slot::Value(offset as u64))?, 0));
    };
    let wrong_space = |body: &Body<'_, '_>| body.misfit(format!("{} is in another state space", token.text));
    match body.lookup(token)? {
        Some(Local::Register(slot, ty)) => {
            let offset = i32::try_from(offset).map_err(|_| body.misfit("an offset of more than 31 bits"))?;
            if ty.bits < 32 {
                return Err(body.misfit(format!("{} is too narrow for an address", token.text)));
            }
            Ok((slot, offset))
        }
        Some(local) => {
            let fits = match local {
                Local::Param(_) => space == Space::Param,
                Local::Depot(_) => space == Space::Local,
                _ => space == Space::Shared,
            };
            let slot = variable(local, offset).filter(|_| fits).ok_or_else(|| wrong_space(body))?;
            Ok((body.constant(slot)?, 0))
        }
        None => {
            let slot = body.module_address(token.text, offset);
            let slot =
                slot.ok_or_else(|| PtxError::Undeclared { line: token.line, name: token.text.to_owned() })?;
            let fits = match slot {
                Slot::Global(..) => matches!(space, Space::Global | Space::Const | Space::Generic),
                Slot::SharedCommon(_) | Slot::SharedDynamic(_) => space == Space::Shared,
                _ => false,
            };
            if !fits {
                return Err(wrong_space(body));
            }
            Ok((body.constant(slot)?, 0))
        }
    }
}

fn access(body: &Body<'_, '_>, m: &Modifiers<'_>) -> Result<Access, PtxError> {
    if !m.rest.is_empty() {
        return Err(body.unsupported());
    }
    let bytes = m.ty.bytes() as u8;
    if u32::from(bytes) * u32::from(m.count) > 32 {
        return Err(body.misfit("a vector of more than 32 bytes"));
    }
    Ok(Access {
        space: m.space,
        bytes,
        count: m.count,
        signed: m.ty.signed(),
        register_bits: m.ty.bits,
        strong: m.strong,
    })
}

fn load<'a>(body: &mut Body<'a, '_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let m = modifiers(body, parts)?;
    let mut access = access(body, &m)?;
    let [to, from] = body.exactly(operands)?;
    let (a, extra) = address(body, from, m.space)?;
    let (mut d, mut e) = (NONE, NONE);
    if m.count == 1 {
        (d, access.register_bits) = destination(body, to, m.ty, true)?;
    } else {
        let Operand::Vector(to) = to else { return Err(body.misfit("a destination that is no vector")) };
        if to.len() != usize::from(m.count) {
            return Err(body.misfit(format!("a vector of {} parts", to.len())));
        }
        let mut slots = Vec::with_capacity(to.len());
        access.register_bits = 64;
        for operand in to {
            let (slot, bits) = destination(body, operand, m.ty, true)?;
            access.register_bits = access.register_bits.min(bits);
            slots.push(slot);
        }
        e = body.list(slots)?;
    }
    body.push(Inst { d, a, e, extra, ..Inst::new(Code::Load(access)) });
    Ok(())
}

fn store<'a>(body: &mut Body<'a, '_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let m = modifiers(body, parts)?;
    let access = access(body, &m)?;
    if m.space == Space::Const {
        return Err(body.misfit("a store to constant memory"));
    }
    let [to, from] = body.exactly(operands)?;
    let (a, extra) = address(body, to, m.space)?;
    let (mut b, mut e) = (NONE, NONE);
    if m.count == 1 {
        b = source(body, from, m.ty, true)?;
    } else {
        let Operand::Vector(from) = from else { return Err(body.misfit("a source that is no vector")) };
        if from.len() != usize::from(m.count) {
            return Err(body.misfit(format!("a vector of {} parts", from.len())));
        }
        let slots = from.iter().map(|o| source(body, o, m.ty, true)).collect::<Result<_, _>>()?;
        e = body.list(slots)?;
    }
    body.push(Inst { a, b, e, extra, ..Inst::new(Code::Store(access)) });
    Ok(())
}

fn atomic<'a>(body: &mut Body<'a, '_>, parts: &[&str], operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let m = modifiers(body, parts)?;
    let rest: Vec<_> = m.rest.iter().copied().filter(|&part| part != "noftz").collect();
    let ([operation], 1) = (rest.as_slice(), m.count) else { return Err(body.unsupported()) };
    if !matches!(m.space, Space::Generic | Space::Global | Space::Shared) {
        return Err(body.unsupported());
    }
    let change = change(operation, m.ty).ok_or_else(|| body.unsupported())?;
    let returns = parts[0] == "atom";
    let swaps = *operation == "cas";
    let wanted = 2 + usize::from(returns) + usize::from(swaps);
    if operands.len() != wanted || (!returns && matches!(*operation, "cas" | "exch")) {
        return Err(body.misfit(format!("{} operands instead of {wanted}", operands.len())));
    }
    let (to, rest) = operands.split_at(usize::from(returns));
    let d = match to.first() {
        Some(operand) => destination(body, operand, m.ty, false)?.0,
        None => NONE,
    };
    let (a, extra) = address(body, &rest[0], m.space)?;
    let b = source(body, &rest[1], m.ty, false)?;
    let c = if swaps { source(body, &rest[2], m.ty, false)? } else { b };
    let bytes = m.ty.bytes() as u8;
    body.push(Inst { d, a, b, c, extra, ..Inst::new(Code::Atomic { change, space: m.space, bytes }) });
    Ok(())
}

/// The new value of an atomic operation, from the old one and its operands.
fn change(operation: &str, ty: Type) -> Option<Three> {
    fn add(parts: &[&str]) -> Option<super::super::code::Two> {
        let form = super::float::form(parts).or_else(|| super::half::form(parts))?;
        match form.code {
            Code::Two(f) => Some(f),
            _ => None,
        }
    }
    let wide = matches!(ty.bits, 32 | 64);
    Some(match (operation, ty.kind, ty.bits) {
        ("cas", Kind::Bits, 16 | 32 | 64) => |old, b, c| if old == b { c } else { old },
        ("exch", Kind::Bits, 32 | 64) => |_, b, _| b,
        ("and", Kind::Bits, 32 | 64) => |old, b, _| old & b,
        ("or", Kind::Bits, 32 | 64) => |old, b, _| old | b,
        ("xor", Kind::Bits, 32 | 64) => |old, b, _| old ^ b,
        ("add", Kind::Unsigned | Kind::Signed, 32) => {
            |old, b, _| u64::from((old as u32).wrapping_add(b as u32))
        }
        ("add", Kind::Unsigned | Kind::Signed, 64) => |old, b, _| old.wrapping_add(b),
        ("min", Kind::Unsigned, _) if wide => |old, b, _| old.min(b),
        ("max", Kind::Unsigned, _) if wide => |old, b, _| old.max(b),
        ("min", Kind::Signed, 32) => |old, b, _| u64::from((old as i32).min(b as i32) as u32),
        ("max", Kind::Signed, 32) => |old, b, _| u64::from((old as i32).max(b as i32) as u32),
        ("min", Kind::Signed, 64) => |old, b, _| (old as i64).min(b as i64) as u64,
        ("max", Kind::Signed, 64) => |old, b, _| (old as i64).max(b as i64) as u64,
        ("inc", Kind::Unsigned, 32) => |old, b, _| if old >= b { 0 } else { old + 1 },
        ("dec", Kind::Unsigned, 32) => |old, b, _| if old == 0 || old > b { b } else { old - 1 },
        // Adding floats in memory flushes subnormals on a device only in f32 and only there; kept here.
        ("add", Kind::Float, 32) => |old, b, _| float_sum::<32>(old, b),
        ("add", Kind::Float, 64) => |old, b, _| float_sum::<64>(old, b),
        ("add", Kind::Float, 16) => |old, b, _| add(&["add", "f16"]).map_or(0, |f| f(old, b)),
        ("add", Kind::Halves, 32) => |old, b, _| add(&["add", "f16x2"]).map_or(0, |f| f(old, b)),
        ("add", Kind::Brain, 16) => |old, b, _| add(&["add", "bf16"]).map_or(0, |f| f(old, b)),
        ("add", Kind::Brain, 32) => |old, b, _| add(&["add", "bf16x2"]).map_or(0, |f| f(old, b)),
        _ => return None,
    })
}

fn float_sum<const BITS: u8>(a: u64, b: u64) -> u64 {
    if BITS == 32 {
        let sum = f32::from_bits(a as u32) + f32::from_bits(b as u32);
        return if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits().into() };
    }
    let sum = f64::from_bits(a) + f64::from_bits(b);
    if sum.is_nan() { 0x7ff8_0000_0000_0000 } else { sum.to_bits() }
}
