//! Formulas: what they are worth, and where they stop being one.

use proptest::prelude::*;

use super::*;

/// The worth of a formula of `ctr` 0.25, `cvr` 0.5 and `bid` 8.
fn worth(text: &str) -> f64 {
    let utility = Utility::parse(text).unwrap();
    let columns: Vec<_> = utility
        .names()
        .iter()
        .map(|name| match name.as_str() {
            "ctr" => Column::Each(&[0.25]),
            "cvr/head" => Column::Each(&[0.5]),
            _ => Column::One(8.0),
        })
        .collect();
    utility.eval(1, &columns)[0]
}

#[test]
fn formulas_are_worth_what_arithmetic_says() {
    for (text, expected) in [
        ("ctr * bid", 2.0),
        ("1 - 2 - 3", -4.0),
        ("8 / 2 / 2", 2.0),
        ("1 + 2 * 3", 7.0),
        ("(1 + 2) * 3", 9.0),
        ("--2 - -1", 3.0),
        ("-ctr * -bid", 2.0),
        ("2e1 + .5 + 1.", 21.5),
        ("min(3, 1, 2) + max(3, 4)", 5.0),
        ("pow(2, 10)", 1024.0),
        ("log(exp(2))", 2.0),
        ("sigmoid(0)", 0.5),
        ("clamp(bid, 0, 5) + clamp(-1, 0, 5)", 5.0),
        ("ctr * `cvr/head` * bid", 1.0),
        (" ctr\n+ctr ", 0.5),
    ] {
        assert_eq!(worth(text), expected, "{text}");
    }
    for text in ["0 / 0", "log(-1)", "min(1, 0 / 0)", "min(0 / 0, 1)", "max(0/0, 1)", "clamp(0/0, 0, 1)"] {
        assert!(worth(text).is_nan(), "{text}");
    }
    let parsed = Utility::parse(" ctr * bid + ctr ").unwrap();
    assert_eq!(
        (parsed.text(), parsed.names()),
        ("ctr * bid + ctr", &["ctr".to_owned(), "bid".to_owned()][..])
    );
}

#[test]
fn what_is_computed_alike_is_written_alike() {
    for (text, expected) in [
        ("ctr*bid", "ctr * bid"),
        (" ( (`ctr`) * bid ) ", "ctr * bid"),
        ("1 - (2 - 3) - 4e0", "1.0 - (2.0 - 3.0) - 4.0"),
        ("(a + b) * c / (d * e)", "(a + b) * c / (d * e)"),
        ("-(a * b) + --c", "-(a * b) + --c"),
        ("-a*b", "-a * b"),
        ("min(a,b+1,c)", "min(min(a, b + 1.0), c)"),
        ("clamp(x, 0, 1)", "min(max(x, 0.0), 1.0)"),
        ("pow(`cvr/head`, sigmoid(log(exp(x))))", "pow(`cvr/head`, sigmoid(log(exp(x))))"),
    ] {
        let utility = Utility::parse(text).unwrap();
        assert_eq!(utility.canonical(), expected, "{text}");
        let again = Utility::parse(&utility.canonical()).unwrap();
        assert_eq!((again.canonical(), &again.ops), (utility.canonical(), &utility.ops), "{text}");
    }
}

#[test]
fn problems_say_where() {
    for (text, expected) in [
        ("", "column 1: a number, a name or \"(\" is wanted, not the end"),
        ("ctr *", "column 6: a number, a name or \"(\" is wanted, not the end"),
        ("ctr bid", "column 5: 'b' is not expected here"),
        ("ctr ** bid", "column 6: a number, a name or \"(\" is wanted, not '*'"),
        ("(ctr", "column 5: ')' is wanted here"),
        (
            "цена * sqrt(2)",
            "column 8: there is no function \"sqrt\": min, max, log, exp, pow, sigmoid and clamp are known",
        ),
        ("1 + pow(2)", "column 5: pow is of 2, 1 are given"),
        ("min(1)", "column 1: min is of 2 or more, 1 are given"),
        ("exp(1, 2)", "column 1: exp is of 1, 2 are given"),
        ("1.2.3", "column 1: \"1.2.3\" is no finite number"),
        ("1e999", "column 1: \"1e999\" is no finite number"),
        ("`ctr", "column 1: the backquote is not closed"),
    ] {
        assert_eq!(Utility::parse(text).unwrap_err().to_string(), expected, "{text}");
    }
}

#[test]
fn depth_and_length_are_bounded() {
    let nested = |depth: usize| Utility::parse(&format!("{}1{}", "(".repeat(depth), ")".repeat(depth)));
    assert!(nested(Utility::MAX_DEPTH).is_ok());
    assert!(nested(Utility::MAX_DEPTH + 1).unwrap_err().problem.contains("64 levels"));
    assert!(Utility::parse(&"-".repeat(4000)).unwrap_err().problem.contains("64 levels"));
    assert!(Utility::parse(&"1+".repeat(2100)).unwrap_err().problem.contains("4096"));
    let many = format!("max({}1)", "1, ".repeat(1000));
    assert_eq!(Utility::parse(&many).unwrap().eval(1, &[]), [1.0]);
}

#[test]
fn many_rows_are_each_row_alone() {
    let utility = Utility::parse("a * b - 1").unwrap();
    let rows = 2 * CHUNK + 7;
    let a: Vec<f64> = (0..rows).map(|row| row as f64).collect();
    let all = utility.eval(rows, &[Column::Each(&a), Column::One(3.0)]);
    assert!(all.len() == rows && all.iter().enumerate().all(|(row, worth)| *worth == row as f64 * 3.0 - 1.0));
    assert!(utility.eval(2, &[Column::Each(&[1.0])]).iter().all(|worth| worth.is_nan()), "what is missing");
    assert!(utility.eval(0, &[]).is_empty());
}

proptest! {
    #[test]
    fn no_text_panics(text in "[-+*/(),.0-9a-z` ]{0,60}") {
        if let Ok(utility) = Utility::parse(&text) {
            prop_assert_eq!(utility.eval(3, &[]).len(), 3);
            prop_assert_eq!(Utility::parse(utility.text()), Ok(utility));
        }
    }

    #[test]
    fn sums_and_products_are_those_of_f64(a in -1e6..1e6f64, b in -1e6..1e6f64, c in 1e-3..1e6f64) {
        let utility = Utility::parse("(a - b) * a / c + -b").unwrap();
        let columns = [Column::One(a), Column::One(b), Column::One(c)];
        prop_assert_eq!(utility.eval(1, &columns)[0].to_bits(), ((a - b) * a / c + -b).to_bits());
    }
}
