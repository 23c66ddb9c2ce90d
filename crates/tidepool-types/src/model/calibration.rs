//! Calibration: what a model says of a surface, made into what happens there.

use super::read::{Fields, Problems, number};

/// The curve of one output on one surface.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Index of the output.
    pub output: usize,
    /// The surface that a request names; empty: every one that has no curve of its own.
    pub surface: String,
    /// The curve.
    pub curve: Curve,
}

/// A curve. None falls anywhere, so calibrating an output never reverses its order.
#[derive(Clone, Debug, PartialEq)]
pub enum Curve {
    /// `sigmoid(a * logit(p) + b)`, of a probability.
    Platt {
        /// Above 0.
        a: f64,
        /// Any number.
        b: f64,
    },
    /// `a * x + b`.
    Linear {
        /// Above 0.
        a: f64,
        /// Any number.
        b: f64,
    },
    /// Straight lines between points, and level beyond the first and the last.
    Isotonic {
        /// `x` and `y`; `x` ascends, `y` never falls.
        points: Vec<(f64, f64)>,
    },
}

#[derive(Clone, Copy)]
enum Kind {
    Platt,
    Linear,
    Isotonic,
}

impl Curve {
    /// The most points.
    pub const MAX_POINTS: usize = 4096;

    /// The word of its kind.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Platt { .. } => "platt",
            Self::Linear { .. } => "linear",
            Self::Isotonic { .. } => "isotonic",
        }
    }

    /// Of one value. NaN gives NaN, and so does a Platt curve of what is no probability.
    #[must_use]
    pub fn at(&self, x: f64) -> f64 {
        match self {
            Self::Platt { a, b } => sigmoid(a * (x.ln() - (-x).ln_1p()) + b),
            Self::Linear { a, b } => a * x + b,
            Self::Isotonic { points } => along(points, x),
        }
    }
}

/// `1 / (1 + exp(-x))`.
pub(super) fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn along(points: &[(f64, f64)], x: f64) -> f64 {
    if x.is_nan() {
        return x;
    }
    let above = points.partition_point(|point| point.0 <= x);
    match (above.checked_sub(1).and_then(|below| points.get(below)), points.get(above)) {
        (Some(below), Some(above)) => {
            let part = (x - below.0) / (above.0 - below.0);
            // Rounding must not let it rise above the next point, or the curve would fall there.
            (below.1 + part * (above.1 - below.1)).min(above.1)
        }
        (Some(end), None) | (None, Some(end)) => end.1,
        (None, None) => f64::NAN,
    }
}

impl Calibration {
    /// The longest name of a surface, in bytes.
    pub const MAX_SURFACE_BYTES: usize = 100;

    /// One of `[[calibrations]]`; `outputs` are the names of the contract's outputs.
    pub(super) fn read(
        entry: &mut Fields<'_>,
        outputs: &[String],
        problems: &mut Problems<'_>,
    ) -> Option<Self> {
        entry.need(problems, "output");
        entry.need(problems, "kind");
        let name = entry.text(problems, "output");
        let output = name.and_then(|name| outputs.iter().position(|output| output == name));
        if let (Some(name), None) = (name, output) {
            entry.problem_of(problems, "output", format!("{name:?} is not one of the outputs"));
        }
        let surface = entry.text(problems, "surface").unwrap_or_default();
        if surface.len() > Self::MAX_SURFACE_BYTES {
            let most = Self::MAX_SURFACE_BYTES;
            entry.problem_of(problems, "surface", format!("{} bytes, it may have {most}", surface.len()));
        }
        let kinds = [("platt", Kind::Platt), ("linear", Kind::Linear), ("isotonic", Kind::Isotonic)];
        let Some(kind) = entry.word(problems, "kind", &kinds) else {
            entry.let_pass(&["a", "b", "points"]);
            return None;
        };
        let curve = match kind {
            Kind::Isotonic => {
                entry.need(problems, "points");
                Curve::Isotonic { points: points(entry, problems)? }
            }
            line => {
                entry.need(problems, "a");
                entry.need(problems, "b");
                let (a, b) = (entry.number(problems, "a"), entry.number(problems, "b"));
                if a.is_some_and(|a| a <= 0.0) {
                    entry.problem_of(
                        problems,
                        "a",
                        "it must be above 0, or the curve would reverse the order",
                    );
                }
                match line {
                    Kind::Platt => Curve::Platt { a: a?, b: b? },
                    _ => Curve::Linear { a: a?, b: b? },
                }
            }
        };
        Some(Self { output: output?, surface: surface.to_owned(), curve })
    }
}

fn points(entry: &mut Fields<'_>, problems: &mut Problems<'_>) -> Option<Vec<(f64, f64)>> {
    let pairs = entry.list(problems, "points", Curve::MAX_POINTS)?;
    let pair = |value: &toml::Spanned<toml::de::DeValue<'_>>| match &value.get_ref().as_array()?[..] {
        [x, y] => Some((number(x.get_ref())?, number(y.get_ref())?)),
        _ => None,
    };
    let points: Option<Vec<_>> = pairs.iter().map(pair).collect();
    let rises = |points: &[(f64, f64)]| points.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1);
    match points {
        Some(points) if points.len() >= 2 && rises(&points) => Some(points),
        Some(points) if points.len() < 2 => {
            entry.problem_of(problems, "points", "at least 2 points are wanted");
            None
        }
        Some(_) => {
            entry.problem_of(problems, "points", "x must ascend from point to point, and y must not fall");
            None
        }
        None => {
            entry.problem_of(problems, "points", "a list of [x, y], finite numbers, is wanted");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn curves_are_what_they_are_said_to_be() {
        let platt = Curve::Platt { a: 1.0, b: 0.0 };
        for p in [0.0, 1e-9, 0.25, 0.5, 0.999, 1.0] {
            assert!((platt.at(p) - p).abs() < 1e-12, "{p}: {}", platt.at(p));
        }
        // logit(0.8) = ln 4; 1.1 ln 4 - 0.2 = 1.32492...
        let moved = Curve::Platt { a: 1.1, b: -0.2 }.at(0.8);
        assert!((moved - 0.789_999_731_654_68).abs() < 1e-12, "{moved}");
        assert!(platt.at(1.5).is_nan() && platt.at(-0.5).is_nan() && platt.at(f64::NAN).is_nan());
        assert_eq!(Curve::Linear { a: 2.0, b: -1.0 }.at(0.75), 0.5);
        let steps = Curve::Isotonic { points: vec![(0.1, 0.2), (0.5, 0.2), (0.6, 1.0)] };
        let at = [-9.0, 0.1, 0.3, 0.5, 0.55, 0.6, 7.0].map(|x| steps.at(x));
        assert_eq!(at[..4], [0.2; 4]);
        assert!((at[4] - 0.6).abs() < 1e-9 && at[5..] == [1.0, 1.0], "{at:?}");
        assert!(steps.at(f64::NAN).is_nan());
    }

    proptest! {
        #[test]
        fn no_curve_reverses_an_order(
            a in 1e-3..10.0f64, b in -5.0..5.0f64, x in 0.0..=1.0f64, y in 0.0..=1.0f64,
            steps in prop::collection::vec((1e-6..0.2f64, 0.0..0.3f64), 2..9),
        ) {
            let mut end = (0.0, 0.0);
            let points = steps.iter().map(|step| { end = (end.0 + step.0, end.1 + step.1); end }).collect();
            let (low, high) = (x.min(y), x.max(y));
            for curve in [Curve::Platt { a, b }, Curve::Linear { a, b }, Curve::Isotonic { points }] {
                prop_assert!(curve.at(low) <= curve.at(high), "{curve:?} of {low} and {high}");
            }
        }
    }
}
