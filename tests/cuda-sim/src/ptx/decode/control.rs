//! Branches, calls and barriers.

use super::{
    super::{
        body::{Body, Local},
        code::{Argument, BarrierKind, Call, Code, Inst, NONE},
        error::PtxError,
        operand::Operand,
        text::Token,
        types::{Kind, Type},
    },
    PREDICATE, U32, destination, predicate, source,
};

/// A control instruction whose opcode and modifiers are `parts`.
pub(super) fn instruction<'a>(
    body: &mut Body<'a, '_>,
    parts: &[&str],
    operands: &[Operand<'a>],
) -> Result<(), PtxError> {
    match *parts {
        ["bra"] | ["bra", "uni"] => {
            let [Operand::Name { token, offset: 0, negated: false }] = *operands else {
                return Err(body.misfit("no label"));
            };
            body.jump(token);
            body.push(Inst::new(Code::Branch(0)));
            Ok(())
        }
        ["brx", "idx"] | ["brx", "idx", "uni"] => {
            let [ref index, Operand::Name { token, offset: 0, negated: false }] = *operands else {
                return Err(body.misfit("no index and table"));
            };
            let a = source(body, index, U32, false)?;
            body.jump_by_table(token);
            body.push(Inst { a, ..Inst::new(Code::BranchTable) });
            Ok(())
        }
        ["call"] | ["call", "uni"] => call(body, operands),
        ["ret"] | ["ret", "uni"] => plain(body, Code::Return, operands),
        ["exit"] => plain(body, Code::Exit, operands),
        ["trap"] | ["brkpt"] => plain(body, Code::Trap, operands),
        // Every access is done in order, and threads between two barriers run one after the other.
        ["membar", "cta" | "gl" | "sys"] => plain(body, Code::Nop, operands),
        ["fence", ref rest @ ..] if fence(rest) => plain(body, Code::Nop, operands),
        ["nanosleep", "u32"] => {
            let [time] = body.exactly(operands)?;
            source(body, time, U32, false)?;
            body.push(Inst::new(Code::Nop));
            Ok(())
        }
        ["bar", "warp", "sync"] => {
            let [mask] = body.exactly(operands)?;
            let c = source(body, mask, U32, false)?;
            body.push(Inst { c, ..Inst::new(Code::Warp(super::super::code::Warp::Sync)) });
            Ok(())
        }
        ["bar", ref rest @ ..] => {
            let rest = rest.strip_prefix(&["cta"]).unwrap_or(rest);
            barrier(body, rest, true, operands)
        }
        ["barrier", ref rest @ ..] => {
            let rest: Vec<_> = rest.strip_prefix(&["cta"]).unwrap_or(rest).to_vec();
            let aligned = rest.contains(&"aligned");
            let rest: Vec<_> = rest.into_iter().filter(|&part| part != "aligned").collect();
            barrier(body, &rest, aligned, operands)
        }
        _ => Err(body.unsupported()),
    }
}

fn fence(modifiers: &[&str]) -> bool {
    let scope = |s: &str| matches!(s, "cta" | "cluster" | "gpu" | "sys");
    match *modifiers {
        [s] => scope(s),
        ["acq_rel" | "sc" | "acquire" | "release", s] => scope(s),
        _ => false,
    }
}

fn plain<'a>(body: &mut Body<'a, '_>, code: Code, operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let [] = body.exactly(operands)?;
    body.push(Inst::new(code));
    Ok(())
}

fn barrier<'a>(
    body: &mut Body<'a, '_>,
    parts: &[&str],
    aligned: bool,
    operands: &[Operand<'a>],
) -> Result<(), PtxError> {
    let (kind, results, predicates) = match *parts {
        ["sync"] => (BarrierKind::Sync, 0, 0),
        ["arrive"] => (BarrierKind::Arrive, 0, 0),
        ["red", "popc", "u32"] => (BarrierKind::Count, 1, 1),
        ["red", "and", "pred"] => (BarrierKind::And, 1, 1),
        ["red", "or", "pred"] => (BarrierKind::Or, 1, 1),
        _ => return Err(body.unsupported()),
    };
    let fixed = results + 1 + predicates;
    let counted = operands.len() == fixed + 1;
    if operands.len() != fixed && !counted {
        return Err(body.misfit(format!("{} operands", operands.len())));
    }
    if kind == BarrierKind::Arrive && !counted {
        return Err(body.misfit("no number of threads"));
    }
    let mut inst = Inst::new(Code::Barrier { kind, aligned });
    if results == 1 {
        let ty = if kind == BarrierKind::Count { U32 } else { PREDICATE };
        inst.d = destination(body, &operands[0], ty, false)?.0;
    }
    inst.a = source(body, &operands[results], U32, false)?;
    if counted {
        inst.b = source(body, &operands[results + 1], U32, false)?;
    }
    if predicates == 1 {
        let (slot, negated) = predicate(body, &operands[operands.len() - 1])?;
        inst.c = slot;
        inst.extra = i32::from(negated);
    }
    body.push(inst);
    Ok(())
}

/// `call (results), function, (arguments), prototype;`, where everything but the function may lack.
fn call<'a>(body: &mut Body<'a, '_>, operands: &[Operand<'a>]) -> Result<(), PtxError> {
    let (outputs, rest) = match operands {
        [Operand::List(outputs), rest @ ..] => (outputs.as_slice(), rest),
        rest => (&[][..], rest),
    };
    let [Operand::Name { token, offset: 0, negated: false }, rest @ ..] = rest else {
        return Err(body.misfit("no function"));
    };
    let (inputs, prototype) = match rest {
        [] => (&[][..], false),
        [Operand::List(inputs)] => (inputs.as_slice(), false),
        [Operand::List(inputs), Operand::Name { .. }] => (inputs.as_slice(), true),
        _ => return Err(body.misfit("operands after the arguments")),
    };
    let outputs: Vec<_> = outputs.iter().map(|o| argument(body, o, true)).collect::<Result<_, _>>()?;
    let inputs: Vec<_> = inputs.iter().map(|o| argument(body, o, false)).collect::<Result<_, _>>()?;
    let function = match body.lookup(*token)? {
        Some(Local::Register(..)) if prototype => None,
        Some(_) => return Err(body.misfit("a function that is none")),
        None => Some(function(body, *token, &inputs, &outputs)?),
    };
    let a = match function {
        Some(_) => NONE,
        None => body.register(*token, Type { kind: Kind::Bits, bits: 64 })?,
    };
    let index = body.function.calls.len();
    body.function.calls.push(Call { function, inputs, outputs });
    body.push(Inst { a, extra: index as i32, ..Inst::new(Code::Call) });
    Ok(())
}

fn function<'a>(
    body: &Body<'a, '_>,
    token: Token<'a>,
    inputs: &[Argument],
    outputs: &[Argument],
) -> Result<u32, PtxError> {
    let undeclared = || PtxError::Undeclared { line: token.line, name: token.text.to_owned() };
    let index = body.function_index(token.text).ok_or_else(undeclared)?;
    // A kernel that is being read is not in the list yet, and cannot be called.
    let callee = body.module.functions.get(index as usize).ok_or_else(undeclared)?;
    if !super::super::thread::arguments_fit(callee, inputs, outputs) {
        return Err(body.misfit("arguments that do not fit the function"));
    }
    Ok(index)
}

fn argument<'a>(body: &mut Body<'a, '_>, operand: &Operand<'a>, result: bool) -> Result<Argument, PtxError> {
    match *operand {
        Operand::Name { token, offset: 0, negated: false } => match body.lookup(token)? {
            Some(Local::Param(param)) => Ok(Argument::Param(param)),
            Some(Local::Register(slot, ty)) if ty.bits >= 8 => Ok(Argument::Register(slot, ty)),
            Some(_) => Err(body.misfit(format!("{} is no argument", token.text))),
            None => Err(PtxError::Undeclared { line: token.line, name: token.text.to_owned() }),
        },
        Operand::Number { .. } if !result => {
            let ty = Type { kind: Kind::Bits, bits: 32 };
            Ok(Argument::Register(source(body, operand, ty, false)?, ty))
        }
        _ => Err(body.misfit("an argument of the wrong kind")),
    }
}
