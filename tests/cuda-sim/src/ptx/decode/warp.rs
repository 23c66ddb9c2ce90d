//! Operations among the lanes of a warp: `a` and `b` are operands, `c` is the mask of lanes, `e` the
//! clamp of a shuffle; `d` is the result, `extra` the slot of a second result (or below zero).

use super::{
    super::{
        body::Body,
        code::{Code, Inst, Two, Warp},
        error::PtxError,
        operand::Operand,
        types::{Kind, Type},
    },
    PREDICATE, U32, destination, predicate, source,
};

const B32: Type = Type { kind: Kind::Bits, bits: 32 };

/// A warp operation whose opcode and modifiers are `parts`.
pub(super) fn instruction<'a>(
    body: &mut Body<'a, '_>,
    parts: &[&str],
    operands: &[Operand<'a>],
) -> Result<(), PtxError> {
    match *parts {
        ["activemask", "b32"] => {
            let [d] = body.exactly(operands)?;
            let (d, _) = destination(body, d, B32, false)?;
            body.push(Inst { d, ..Inst::new(Code::ActiveMask) });
            Ok(())
        }
        ["shfl", "sync", mode, "b32"] => {
            let kind = match mode {
                "up" => Warp::Up,
                "down" => Warp::Down,
                "bfly" => Warp::Butterfly,
                "idx" => Warp::Index,
                _ => return Err(body.unsupported()),
            };
            let [to, a, b, clamp, mask] = body.exactly(operands)?;
            let a = source(body, a, B32, false)?;
            let b = source(body, b, U32, false)?;
            let e = source(body, clamp, U32, false)?;
            let c = source(body, mask, U32, false)?;
            let (d, extra) = results(body, to, B32)?;
            body.push(Inst { d, a, b, c, e, extra, ..Inst::new(Code::Warp(kind)) });
            Ok(())
        }
        ["vote", "sync", mode, suffix @ ("pred" | "b32")] => {
            let (kind, ty) = match (mode, suffix) {
                ("ballot", "b32") => (Warp::Ballot, B32),
                ("any", "pred") => (Warp::Any, PREDICATE),
                ("all", "pred") => (Warp::All, PREDICATE),
                ("uni", "pred") => (Warp::Uniform, PREDICATE),
                _ => return Err(body.unsupported()),
            };
            let [to, a, mask] = body.exactly(operands)?;
            let (a, negated) = predicate(body, a)?;
            let c = source(body, mask, U32, false)?;
            let (d, _) = destination(body, to, ty, false)?;
            // The second operand says whether the predicate is negated.
            let b = body.constant(super::Slot::Value(negated.into()))?;
            body.push(Inst { d, a, b, c, extra: -1, ..Inst::new(Code::Warp(kind)) });
            Ok(())
        }
        ["match", mode @ ("any" | "all"), "sync", suffix @ ("b32" | "b64")] => {
            let bits = if suffix == "b64" { 64 } else { 32 };
            let kind = if mode == "any" { Warp::MatchAny { bits } } else { Warp::MatchAll { bits } };
            let [to, a, mask] = body.exactly(operands)?;
            let a = source(body, a, Type { kind: Kind::Bits, bits }, false)?;
            let c = source(body, mask, U32, false)?;
            let (d, extra) = results(body, to, B32)?;
            if mode == "any" && extra >= 0 {
                return Err(body.misfit("a second result"));
            }
            body.push(Inst { d, a, c, extra, ..Inst::new(Code::Warp(kind)) });
            Ok(())
        }
        ["redux", "sync", operation, suffix] => {
            let f: Two = match (operation, suffix) {
                ("add", "u32" | "s32") => |a, b| u64::from((a as u32).wrapping_add(b as u32)),
                ("min", "u32") => |a, b| a.min(b),
                ("max", "u32") => |a, b| a.max(b),
                ("min", "s32") => |a, b| u64::from((a as i32).min(b as i32) as u32),
                ("max", "s32") => |a, b| u64::from((a as i32).max(b as i32) as u32),
                ("and", "b32") => |a, b| a & b,
                ("or", "b32") => |a, b| a | b,
                ("xor", "b32") => |a, b| a ^ b,
                _ => return Err(body.unsupported()),
            };
            let [to, a, mask] = body.exactly(operands)?;
            let a = source(body, a, B32, false)?;
            let c = source(body, mask, U32, false)?;
            let (d, _) = destination(body, to, B32, false)?;
            body.push(Inst { d, a, c, extra: -1, ..Inst::new(Code::Warp(Warp::Reduce(f))) });
            Ok(())
        }
        _ => Err(body.unsupported()),
    }
}

/// A result, or a result and a predicate.
fn results<'a>(body: &mut Body<'a, '_>, operand: &Operand<'a>, ty: Type) -> Result<(u16, i32), PtxError> {
    let Operand::Pair(first, second) = *operand else {
        return Ok((destination(body, operand, ty, false)?.0, -1));
    };
    let name = |token| Operand::Name { token, offset: 0, negated: false };
    let (d, _) = destination(body, &name(first), ty, false)?;
    let (p, _) = destination(body, &name(second), PREDICATE, false)?;
    Ok((d, p.into()))
}
