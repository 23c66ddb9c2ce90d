//! The utility: a formula over calibrated outputs and numbers of the request, such as `ctr * bid`.
//!
//! ```text
//! sum    = product { ("+" | "-") product }
//! product = factor { ("*" | "/") factor }
//! factor = "-" factor | number | name | function "(" sum { "," sum } ")" | "(" sum ")"
//! ```
//! The functions are `min` and `max` (of two or more), `log`, `exp`, `pow`, `sigmoid` and `clamp(x, low, high)`. A
//! name that is not made of letters, digits and `_` alone stands between backquotes.
//!
//! It is computed in f64, column by column, and only the result is rounded to the f32 that candidates are ranked by:
//! so a training script that says the same in numpy gets the same but for that rounding, and products of small
//! probabilities and large bids lose nothing on the way. What is no number stays none, also through `min` and `max`.

use thiserror::Error;

use super::calibration::sigmoid;

/// A formula, read and ready.
#[derive(Clone, Debug, PartialEq)]
pub struct Utility {
    text: String,
    names: Vec<String>,
    ops: Vec<Op>,
}

/// Why a text is no formula.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("column {column}: {problem}")]
pub struct UtilityError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What is wrong there.
    pub problem: String,
}

/// What stands for a name in the formula.
#[derive(Clone, Copy, Debug)]
pub enum Column<'a> {
    /// The same for every candidate.
    One(f64),
    /// One for each candidate.
    Each(&'a [f64]),
}

/// One step of the evaluation, which works on a stack of columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Op {
    /// Pushes a number.
    Number(f64),
    /// Pushes the column of the name at this place of [`Utility::names`].
    Name(usize),
    /// Of the column on top, as are `Log`, `Exp` and `Sigmoid`.
    Negate,
    /// The one below and the one on top become their sum, and so on with what follows.
    Add,
    /// The one below less the one on top.
    Subtract,
    /// Their product.
    Multiply,
    /// The one below by the one on top.
    Divide,
    /// The lesser; NaN when one of them is.
    Min,
    /// The greater; NaN when one of them is.
    Max,
    /// The natural logarithm.
    Log,
    /// The power of e.
    Exp,
    /// The one below to the power of the one on top.
    Pow,
    /// `1 / (1 + exp(-x))`.
    Sigmoid,
}

impl Op {
    /// Its sign, or the name of its function.
    const fn word(self) -> &'static str {
        match self {
            Self::Number(_) | Self::Name(_) => "",
            Self::Negate | Self::Subtract => "-",
            Self::Add => "+",
            Self::Multiply => "*",
            Self::Divide => "/",
            Self::Min => "min",
            Self::Max => "max",
            Self::Log => "log",
            Self::Exp => "exp",
            Self::Pow => "pow",
            Self::Sigmoid => "sigmoid",
        }
    }
}

/// A name as a formula has it.
fn quoted(name: &str) -> String {
    let plain = name.starts_with(|c: char| c.is_alphabetic() || c == '_')
        && name.chars().all(|c| c.is_alphanumeric() || c == '_');
    if plain { name.to_owned() } else { format!("`{name}`") }
}

/// Candidates that are worked on together: their columns stay in a near cache.
const CHUNK: usize = 1024;

impl Utility {
    /// The longest formula, in bytes.
    pub const MAX_BYTES: usize = 4096;
    /// How deeply parentheses, functions and signs may stand in each other.
    pub const MAX_DEPTH: usize = 64;

    /// Reads a formula.
    ///
    /// # Errors
    /// [`UtilityError`] says where it stops being one.
    pub fn parse(text: &str) -> Result<Self, UtilityError> {
        if text.len() > Self::MAX_BYTES {
            let problem = format!("the formula has {} bytes, it may have {}", text.len(), Self::MAX_BYTES);
            return Err(UtilityError { column: 1, problem });
        }
        let mut parser = Parser { text, at: 0, depth: 0, names: Vec::new(), ops: Vec::new() };
        parser.sum()?;
        parser.space();
        if let Some(next) = parser.peek() {
            return Err(parser.error(format!("{next:?} is not expected here")));
        }
        Ok(Self { text: text.trim().to_owned(), names: parser.names, ops: parser.ops })
    }

    /// The formula as it was written.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The formula written from its steps: the same for two texts that are computed alike, whatever their spaces,
    /// parentheses and numbers look like.
    #[must_use]
    pub(super) fn canonical(&self) -> String {
        // What stands on the stack, and how tightly it holds together: sums 1, products 2, all else 3.
        let mut stack: Vec<(String, u8)> = Vec::new();
        let within = |(text, tight): (String, u8), least: u8| {
            if tight < least { format!("({text})") } else { text }
        };
        for op in &self.ops {
            let (sign, tight) = match op {
                Op::Number(number) => {
                    stack.push((format!("{number:?}"), 3));
                    continue;
                }
                Op::Name(at) => {
                    stack.push((self.names.get(*at).map_or_else(String::new, |name| quoted(name)), 3));
                    continue;
                }
                Op::Negate => {
                    let of = stack.pop().unwrap_or_default();
                    stack.push((format!("-{}", within(of, 3)), 3));
                    continue;
                }
                Op::Log | Op::Exp | Op::Sigmoid => {
                    let (of, _) = stack.pop().unwrap_or_default();
                    stack.push((format!("{}({of})", op.word()), 3));
                    continue;
                }
                Op::Add | Op::Subtract => (op.word(), 1),
                Op::Multiply | Op::Divide => (op.word(), 2),
                Op::Min | Op::Max | Op::Pow => (op.word(), 3),
            };
            let (right, left) = (stack.pop().unwrap_or_default(), stack.pop().unwrap_or_default());
            let text = if tight == 3 {
                format!("{sign}({}, {})", left.0, right.0)
            } else {
                // Sums and products are computed from the left: what stands to the right holds more tightly.
                format!("{} {sign} {}", within(left, tight), within(right, tight + 1))
            };
            stack.push((text, tight));
        }
        stack.pop().map_or_else(String::new, |(text, _)| text)
    }

    /// What it speaks of, each name once, in the order of their first use.
    #[must_use]
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The steps of its evaluation, for who evaluates it elsewhere: each takes what it needs from the top of a stack and
    /// pushes its result, and the last leaves the utility alone there.
    #[must_use]
    pub fn ops(&self) -> &[Op] {
        &self.ops
    }

    /// The utility of each of `rows` candidates. `columns` are those of [`names`](Self::names), in that order; what is
    /// missing in them is NaN.
    #[must_use]
    pub fn eval(&self, rows: usize, columns: &[Column<'_>]) -> Vec<f64> {
        let mut result = Vec::with_capacity(rows);
        let mut stack = Stack::default();
        for start in (0..rows).step_by(CHUNK) {
            let range = start..rows.min(start + CHUNK);
            for op in &self.ops {
                stack.step(*op, range.clone(), columns);
            }
            result.extend_from_slice(stack.top());
            stack.clear();
        }
        result
    }
}

/// Columns of at most [`CHUNK`] candidates; those that were used up are used again.
#[derive(Default)]
struct Stack {
    columns: Vec<Vec<f64>>,
    used: usize,
}

impl Stack {
    fn push(&mut self, values: impl Iterator<Item = f64>) {
        if self.used == self.columns.len() {
            self.columns.push(Vec::with_capacity(CHUNK));
        }
        let column = &mut self.columns[self.used];
        column.clear();
        column.extend(values);
        self.used += 1;
    }

    fn top(&self) -> &[f64] {
        self.used.checked_sub(1).map_or(&[], |top| &self.columns[top])
    }

    fn clear(&mut self) {
        self.used = 0;
    }

    fn one(&mut self, of: impl Fn(f64) -> f64) {
        if let Some(column) = self.columns[..self.used].last_mut() {
            column.iter_mut().for_each(|value| *value = of(*value));
        }
    }

    fn two(&mut self, of: impl Fn(f64, f64) -> f64) {
        if let [.., left, right] = &mut self.columns[..self.used] {
            left.iter_mut().zip(right).for_each(|(left, right)| *left = of(*left, *right));
            self.used -= 1;
        }
    }

    fn step(&mut self, op: Op, range: std::ops::Range<usize>, columns: &[Column<'_>]) {
        match op {
            Op::Number(number) => self.push(range.map(|_| number)),
            Op::Name(name) => match columns.get(name) {
                Some(Column::Each(values)) => {
                    self.push(range.map(|row| values.get(row).copied().unwrap_or(f64::NAN)));
                }
                Some(Column::One(value)) => self.push(range.map(|_| *value)),
                None => self.push(range.map(|_| f64::NAN)),
            },
            Op::Negate => self.one(|x| -x),
            Op::Log => self.one(f64::ln),
            Op::Exp => self.one(f64::exp),
            Op::Sigmoid => self.one(sigmoid),
            Op::Add => self.two(|x, y| x + y),
            Op::Subtract => self.two(|x, y| x - y),
            Op::Multiply => self.two(|x, y| x * y),
            Op::Divide => self.two(|x, y| x / y),
            Op::Pow => self.two(f64::powf),
            Op::Min => self.two(|x, y| if x <= y || x.is_nan() { x } else { y }),
            Op::Max => self.two(|x, y| if x >= y || x.is_nan() { x } else { y }),
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    names: Vec<String>,
    ops: Vec<Op>,
}

impl<'t> Parser<'t> {
    fn error(&self, problem: impl Into<String>) -> UtilityError {
        let column = 1 + self.text[..self.at].chars().count();
        UtilityError { column, problem: problem.into() }
    }

    fn peek(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    /// Takes one of `signs`, if it is next.
    fn sign(&mut self, signs: &[char]) -> Option<char> {
        self.space();
        let next = self.peek().filter(|next| signs.contains(next))?;
        self.at += next.len_utf8();
        Some(next)
    }

    fn expect(&mut self, sign: char) -> Result<(), UtilityError> {
        match self.sign(&[sign]) {
            Some(_) => Ok(()),
            None => Err(self.error(format!("{sign:?} is wanted here"))),
        }
    }

    fn deeper<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, UtilityError>,
    ) -> Result<T, UtilityError> {
        if self.depth == Utility::MAX_DEPTH {
            return Err(self.error(format!("more than {} levels deep", Utility::MAX_DEPTH)));
        }
        self.depth += 1;
        let read = read(self);
        self.depth -= 1;
        read
    }

    fn sum(&mut self) -> Result<(), UtilityError> {
        self.product()?;
        while let Some(sign) = self.sign(&['+', '-']) {
            self.product()?;
            self.ops.push(if sign == '+' { Op::Add } else { Op::Subtract });
        }
        Ok(())
    }

    fn product(&mut self) -> Result<(), UtilityError> {
        self.factor()?;
        while let Some(sign) = self.sign(&['*', '/']) {
            self.factor()?;
            self.ops.push(if sign == '*' { Op::Multiply } else { Op::Divide });
        }
        Ok(())
    }

    fn factor(&mut self) -> Result<(), UtilityError> {
        if self.sign(&['-']).is_some() {
            self.deeper(Self::factor)?;
            self.ops.push(Op::Negate);
            return Ok(());
        }
        if self.sign(&['(']).is_some() {
            self.deeper(Self::sum)?;
            return self.expect(')');
        }
        self.space();
        match self.peek() {
            Some(c) if c.is_ascii_digit() || c == '.' => self.number(),
            Some('`') => {
                let rest = &self.text[self.at + 1..];
                let Some(end) = rest.find('`') else {
                    return Err(self.error("the backquote is not closed"));
                };
                self.at += end + 2;
                self.name(&rest[..end]);
                Ok(())
            }
            Some(c) if c.is_alphabetic() || c == '_' => self.word(),
            Some(c) => Err(self.error(format!("a number, a name or \"(\" is wanted, not {c:?}"))),
            None => Err(self.error("a number, a name or \"(\" is wanted, not the end")),
        }
    }

    /// Takes what `taken` says is part of it.
    fn while_is(&mut self, taken: impl Fn(char) -> bool) -> &'t str {
        let rest = &self.text[self.at..];
        let end = rest.find(|c| !taken(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn number(&mut self) -> Result<(), UtilityError> {
        let start = self.at;
        self.while_is(|c| c.is_ascii_digit() || c == '.');
        if let Some('e' | 'E') = self.peek() {
            self.at += 1;
            if let Some('+' | '-') = self.peek() {
                self.at += 1;
            }
            self.while_is(|c| c.is_ascii_digit());
        }
        let text = &self.text[start..self.at];
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => {
                self.ops.push(Op::Number(number));
                Ok(())
            }
            _ => {
                self.at = start;
                Err(self.error(format!("{text:?} is no finite number")))
            }
        }
    }

    fn name(&mut self, name: &str) {
        let known = self.names.iter().position(|known| known == name);
        let at = known.unwrap_or_else(|| {
            self.names.push(name.to_owned());
            self.names.len() - 1
        });
        self.ops.push(Op::Name(at));
    }

    /// A name, or a function and what it is of.
    fn word(&mut self) -> Result<(), UtilityError> {
        let start = self.at;
        let word = self.while_is(|c| c.is_alphanumeric() || c == '_');
        if self.sign(&['(']).is_none() {
            self.name(word);
            return Ok(());
        }
        let (least, most) = match word {
            "log" | "exp" | "sigmoid" => (1, 1),
            "pow" => (2, 2),
            "clamp" => (3, 3),
            "min" | "max" => (2, usize::MAX),
            _ => {
                self.at = start;
                let known = "min, max, log, exp, pow, sigmoid and clamp";
                return Err(self.error(format!("there is no function {word:?}: {known} are known")));
            }
        };
        let mut given = 0;
        loop {
            self.deeper(Self::sum)?;
            given += 1;
            match (word, given) {
                // Each after the first is folded into what is there, so that many need no deep stack.
                ("min", 2..) | ("clamp", 3) => self.ops.push(Op::Min),
                ("max", 2..) | ("clamp", 2) => self.ops.push(Op::Max),
                ("pow", 2) => self.ops.push(Op::Pow),
                ("log", 1) => self.ops.push(Op::Log),
                ("exp", 1) => self.ops.push(Op::Exp),
                ("sigmoid", 1) => self.ops.push(Op::Sigmoid),
                _ => {}
            }
            if self.sign(&[',']).is_none() {
                break;
            }
        }
        self.expect(')')?;
        if given < least || given > most {
            self.at = start;
            let wanted = if most == usize::MAX { "2 or more".to_owned() } else { least.to_string() };
            return Err(self.error(format!("{word} is of {wanted}, {given} are given")));
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "utility_tests.rs"]
mod tests;
