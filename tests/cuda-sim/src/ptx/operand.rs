//! Operands as they are written, and numbers.

use super::{
    error::PtxError,
    module::Parser,
    text::{Token, syntax},
    types::{Kind, Type, keep},
};

/// The most operands of an instruction, and arguments of a call.
const MAX_OPERANDS: usize = 512;

/// A literal.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Number {
    Integer(u128),
    /// `0f` and eight hexadecimal digits.
    Single(u32),
    /// `0d` and sixteen hexadecimal digits.
    Double(u64),
    Decimal(f64),
}

/// Reads a literal without its sign.
pub(super) fn number(text: &str) -> Option<Number> {
    let lower = text.to_ascii_lowercase();
    let hex = |digits: &str, n: usize| (digits.len() == n).then(|| u64::from_str_radix(digits, 16).ok())?;
    if let Some(digits) = lower.strip_prefix("0f") {
        return hex(digits, 8).map(|bits| Number::Single(bits as u32));
    }
    if let Some(digits) = lower.strip_prefix("0d") {
        return hex(digits, 16).map(Number::Double);
    }
    let whole = lower.strip_suffix('u').unwrap_or(&lower);
    let integer = |digits, radix| u64::from_str_radix(digits, radix).ok().map(|n| Number::Integer(n.into()));
    if let Some(digits) = whole.strip_prefix("0x") {
        return integer(digits, 16);
    }
    if let Some(digits) = whole.strip_prefix("0b") {
        return integer(digits, 2);
    }
    if lower.contains(['.', 'e']) {
        return lower.parse().ok().map(Number::Decimal);
    }
    match whole.strip_prefix('0') {
        Some(digits) if !digits.is_empty() => integer(digits, 8),
        _ => integer(whole, 10),
    }
}

impl Number {
    /// Its bits as a value of `ty`, when it can be one.
    pub(super) fn bits(self, ty: Type, negative: bool) -> Option<u64> {
        let float = ty.kind == Kind::Float;
        let sign32 = u32::from(negative) << 31;
        let sign64 = u64::from(negative) << 63;
        match self {
            Self::Integer(n) if !float => {
                let n = n as u64;
                Some(keep(if negative { n.wrapping_neg() } else { n }, ty.bits))
            }
            Self::Single(bits) if ty.bits == 32 => Some((bits ^ sign32).into()),
            Self::Single(bits) if float && ty.bits == 64 => {
                Some(f64::from(f32::from_bits(bits ^ sign32)).to_bits())
            }
            Self::Double(bits) if ty.bits == 64 => Some(bits ^ sign64),
            Self::Double(bits) if float && ty.bits == 32 => {
                Some((f64::from_bits(bits ^ sign64) as f32).to_bits().into())
            }
            Self::Decimal(value) if float && ty.bits == 32 => {
                Some(((value as f32).to_bits() ^ sign32).into())
            }
            Self::Decimal(value) if float && ty.bits == 64 => Some(value.to_bits() ^ sign64),
            _ => None,
        }
    }
}

/// One operand.
#[derive(Debug, Clone)]
pub(super) enum Operand<'a> {
    /// A register, a special register, a label, a function, or a variable with an offset.
    Name {
        token: Token<'a>,
        offset: i64,
        negated: bool,
    },
    Number {
        value: Number,
        negative: bool,
    },
    /// `{a, b}`.
    Vector(Vec<Operand<'a>>),
    /// `a|b`.
    Pair(Token<'a>, Token<'a>),
    /// `[base+offset]`, or a bare number as an address.
    Address {
        base: Option<Token<'a>>,
        offset: i64,
    },
    /// `(a, b)`, of a call.
    List(Vec<Operand<'a>>),
}

/// Reads operands up to the semicolon, which is read too; gives where it stands.
pub(super) fn operands<'a>(parser: &mut Parser<'a>) -> Result<(Vec<Operand<'a>>, u32), PtxError> {
    let mut all = Vec::new();
    if !parser.peek_is(";") {
        loop {
            all.push(operand(parser, true)?);
            if all.len() > MAX_OPERANDS {
                return Err(too_many(parser));
            }
            if !parser.take(",") {
                break;
            }
        }
    }
    let end = parser.expect(";")?;
    Ok((all, end.at))
}

fn too_many(parser: &Parser<'_>) -> PtxError {
    PtxError::TooLarge { line: parser.line(), what: "the number of operands", limit: MAX_OPERANDS as u64 }
}

/// One operand; lists and vectors hold no lists and vectors.
fn operand<'a>(parser: &mut Parser<'a>, outer: bool) -> Result<Operand<'a>, PtxError> {
    let token = parser.next("an operand")?;
    match token.text {
        "{" if outer => Ok(Operand::Vector(list(parser, "}")?)),
        "(" if outer => Ok(Operand::List(list(parser, ")")?)),
        "[" if outer => {
            let address = address(parser)?;
            parser.expect("]")?;
            Ok(address)
        }
        "!" => {
            let token = parser.name("a predicate")?;
            Ok(Operand::Name { token, offset: 0, negated: true })
        }
        "-" => {
            let token = parser.next("a number")?;
            let value = number(token.text).ok_or_else(|| syntax(token.line, "a number", token.text))?;
            Ok(Operand::Number { value, negative: true })
        }
        _ if token.is_number() => {
            let value = number(token.text).ok_or_else(|| syntax(token.line, "a number", token.text))?;
            Ok(Operand::Number { value, negative: false })
        }
        _ if token.is_name() => {
            if parser.take("|") {
                return Ok(Operand::Pair(token, parser.name("a register")?));
            }
            Ok(Operand::Name { token, offset: offset(parser)?, negated: false })
        }
        _ => Err(syntax(token.line, "an operand", token.text)),
    }
}

fn list<'a>(parser: &mut Parser<'a>, close: &'static str) -> Result<Vec<Operand<'a>>, PtxError> {
    let mut all = Vec::new();
    if parser.take(close) {
        return Ok(all);
    }
    loop {
        all.push(operand(parser, false)?);
        if all.len() > MAX_OPERANDS {
            return Err(too_many(parser));
        }
        if !parser.take(",") {
            parser.expect(close)?;
            return Ok(all);
        }
    }
}

fn address<'a>(parser: &mut Parser<'a>) -> Result<Operand<'a>, PtxError> {
    let token = parser.peek().ok_or_else(|| syntax(parser.line(), "an address", "the end of the text"))?;
    if token.is_name() {
        parser.next("an address")?;
        return Ok(Operand::Address { base: Some(token), offset: offset(parser)? });
    }
    let at = parser.count("an address", i64::MAX as u64)?;
    Ok(Operand::Address { base: None, offset: at as i64 })
}

/// `+4`, `-4`, `+-4`, or nothing.
fn offset(parser: &mut Parser<'_>) -> Result<i64, PtxError> {
    let plus = parser.take("+");
    let minus = parser.take("-");
    if !plus && !minus {
        return Ok(0);
    }
    let n = parser.count("an offset", i64::MAX as u64)? as i64;
    Ok(if minus { -n } else { n })
}
