//! Contracts: read, written, and told what is wrong with them.

use proptest::prelude::*;

use super::*;
use crate::pooling::Pooling;

const GOOD: &str = r#"
schema_version = 1
model = "movielens"
score = "probability"
[[inputs]]
name = "user"
side = "user"
table = "user"
[[inputs]]
name = "genres"
side = "candidate"
table = "genre"
pooling = "mean"
[[inputs]]
name = "age"
side = "user"
width = 1
[[outputs]]
name = "probability"
"#;

const ADS: &str = r#"
schema_version = 1
model = "ads"
score = "utility"
utility = "ctr * bid"
top_k = 10
unknown_features = "ignore"
[[inputs]]
name = "item"
feature = "sku"
side = "candidate"
table = "item"
transform = [{ op = "hash", seed = 7 }, { op = "modulo", n = 1_000_000 }]
[[inputs]]
name = "item_2"
feature = "sku"
side = "candidate"
table = "small"
transform = [{ op = "hash", seed = 8 }, { op = "modulo", n = 1000 }]
[[inputs]]
name = "history"
side = "user"
table = "item"
sequence = 2000
mask = "history_mask"
[[inputs]]
name = "age"
side = "user"
table = "age"
transform = [
    { op = "bucketize", boundaries = [18, 25.5, 35] },
    { op = "default", id = 18446744073709551615 },
]
[[inputs]]
name = "price"
feature = "bid"
side = "candidate"
width = 1
[[utility_inputs]]
name = "bid"
side = "candidate"
[[outputs]]
name = "ctr"
[[outputs]]
name = "cvr"
[[calibrations]]
output = "ctr"
surface = "home"
kind = "platt"
a = 1.1
b = -0.2
[[calibrations]]
output = "ctr"
kind = "isotonic"
points = [[0, 0], [0.5, 0.25], [1, 1]]
"#;

fn problems(text: &str) -> Vec<String> {
    match ModelSpec::from_toml(text) {
        Err(ModelError::Problems(problems)) => problems,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_contract_comes_back_from_its_own_text() {
    for text in [GOOD, ADS] {
        let spec = ModelSpec::from_toml(text).unwrap();
        let written = spec.to_toml();
        assert_eq!(ModelSpec::from_toml(&written), Ok(spec.clone()), "{written}");
        assert_eq!(ModelSpec::from_toml(&written).unwrap().to_toml(), written);
    }
    let spec = ModelSpec::from_toml(GOOD).unwrap();
    assert_eq!(spec.tables().map(Name::as_str).collect::<Vec<_>>(), ["user", "genre"]);
}

#[test]
fn a_whole_contract_is_understood() {
    let spec = ModelSpec::from_toml(ADS).unwrap();
    assert_eq!((spec.score, spec.score_name(), spec.top_k), (Score::Utility, "utility", 10));
    assert_eq!(spec.unknown_features, UnknownFeatures::Ignore);
    assert_eq!(spec.tables().map(Name::as_str).collect::<Vec<_>>(), ["item", "small", "age"]);
    let features: Vec<_> = spec
        .features()
        .into_iter()
        .map(|f| format!("{} {} {}: {}", f.side.as_str(), f.name, f.kind.words(), f.used_by.join(", ")))
        .collect();
    assert_eq!(
        features,
        [
            "candidate sku texts: item, item_2",
            "user history ids: history",
            "user age numbers: age",
            "candidate bid a number: price, utility",
        ]
    );
    assert_eq!(spec.calibrated(0, "search", &[0.25]), [0.125]);
    assert_eq!(spec.calibrated(1, "home", &[0.25]), [0.25]);
    let scores = spec.scores("search", 2, &[vec![0.25, 0.5], vec![0.0; 2]], &[vec![8.0, 2.0]]);
    assert_eq!(scores, [1.0, 0.5]);
    assert!((spec.scores("home", 1, &[vec![0.8], vec![0.0]], &[vec![2.0]])[0] - 1.579_999_5).abs() < 1e-6);
}

/// Clients keep this number: it must not change with a build.
#[test]
fn the_hash_of_a_contract_is_the_same_for_ever() {
    let spec = ModelSpec::from_toml(ADS).unwrap();
    let commented = ADS.replace("top_k = 10", "# at most a page\ntop_k = 0x0a");
    assert_eq!(ModelSpec::from_toml(&commented).unwrap().schema_hash(), spec.schema_hash());
    assert_ne!(ModelSpec::from_toml(GOOD).unwrap().schema_hash(), spec.schema_hash());
    let hash = |text: &str| ModelSpec::from_toml(text).unwrap().schema_hash();
    for (from, to) in
        [("ctr * bid", "(ctr*`bid`)"), ("[18, 25.5", "[18.0, 2.55e1"), ("[[0, 0]", "[[-0.0, 0e1]")]
    {
        assert_eq!(hash(&ADS.replacen(from, to, 1)), spec.schema_hash(), "{to}");
    }
    assert_ne!(hash(&ADS.replacen("ctr * bid", "bid * ctr", 1)), spec.schema_hash());
    let (ctr, cvr) = ("[[outputs]]\nname = \"ctr\"\n", "[[outputs]]\nname = \"cvr\"\n");
    let turned = ADS.replacen(&format!("{ctr}{cvr}"), &format!("{cvr}{ctr}"), 1);
    assert_ne!(hash(&turned), spec.schema_hash());
    assert_eq!(spec.schema_hash(), 11_048_469_420_151_113_500, "{}", spec.to_toml());
}

#[test]
fn five_mistakes_are_listed_at_once_each_with_its_line() {
    let bad = r#"schema_version = 1
model = "m"
score = "ctv"
top_n = 5

[[inputs]]
name = "item"
side = "canditate"
table = "item"

[[inputs]]
name = "age"
side = "user"
width = "1"

[[inputs]]
name = "bucket"
side = "user"
table = "bucket"
transform = [{ op = "bucketize", boundaries = [3, 2] }]

[[outputs]]
name = "ctr"
"#;
    assert_eq!(
        problems(bad),
        [
            "line 3: score: \"ctv\" is not one of the outputs",
            "line 4: unknown key \"top_n\": schema_version, model, inputs, outputs, utility_inputs, utility, score, \
             top_k, unknown_features, calibrations are known",
            "line 8: inputs[0] \"item\": side: \"canditate\" is none of \"user\", \"candidate\"",
            "line 14: inputs[1] \"age\": width: it is a string, a whole number from 1 to 65536 is wanted",
            "line 20: inputs[2] \"bucket\": transform: step 0, bucketize: boundaries must be finite numbers, ascending, \
             none twice",
        ]
    );
}

#[test]
fn every_problem_is_listed_at_once() {
    let bad = r#"
        schema_version = 2
        model = "m"
        score = "missing"
        inputs = [
            { name = "a", side = "user", table = "t", width = 3 },
            { name = "a", side = "user", width = 0 },
            { name = "b", side = "candidate", table = "t", pooling = "none" },
        ]
        outputs = [ { name = "p" }, { name = "p" } ]
    "#;
    let found = problems(bad);
    assert_eq!(found.len(), 6, "{found:#?}");
}

/// What is said of the ads contract after a replacement.
fn said(from: &str, to: &str) -> String {
    assert!(ADS.contains(from), "{from}");
    let text = ADS.replacen(from, to, 1);
    problems(&text)
        .into_iter()
        .map(|p| p.split_once(": ").unwrap().1.to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn contradictions_are_named() {
    for (from, to, expected) in [
        (
            "feature = \"sku\"\nside = \"candidate\"\ntable = \"small\"",
            "feature = \"sku\"\nside = \"user\"\ntable = \"small\"",
            "input \"item_2\": feature \"sku\" is of the user side here, and of the candidate side for input \"item\"",
        ),
        (
            "{ op = \"hash\", seed = 8 }, ",
            "",
            "input \"item_2\": feature \"sku\" is ids here, and texts for input \"item\"",
        ),
        (
            "width = 1",
            "width = 2",
            "utility input \"bid\": input \"price\" takes the same feature as 2 numbers of the candidate side",
        ),
        ("mask = \"history_mask\"", "mask = \"item\"", "input \"item\" stands twice"),
        (
            "mask = \"history_mask\"",
            "mask = \"request_index\"",
            "input \"history\": the graph input \"request_index\" is filled by the ranker itself",
        ),
        (
            "sequence = 2000",
            "sequence = 2000\npooling = \"sum\"",
            "inputs[2] \"history\": pooling: a sequence has a vector for each id: they are not pooled",
        ),
        (
            "width = 1",
            "width = 1\ntransform = [{ op = \"modulo\", n = 2 }]",
            "inputs[4] \"price\": a transform makes ids, an input of a width takes numbers as they are",
        ),
        (
            "ctr * bid",
            "ctr * bit",
            "utility: \"bit\" is neither an output (ctr, cvr) nor a utility input (bid)\nutility: the utility input \"bid\" is not in it",
        ),
        ("ctr * bid", "ctr bid", "utility: column 5: 'b' is not expected here"),
        (
            "utility = \"ctr * bid\"\n",
            "",
            "score: \"utility\" is not one of the outputs\nutility_inputs: there is no utility that would take them",
        ),
        (
            "score = \"utility\"",
            "score = \"ctr\"",
            "score: it is \"ctr\", and there is a utility: rank by \"utility\", or leave it out",
        ),
        (
            "name = \"bid\"",
            "name = \"cvr\"",
            "utility: \"bid\" is neither an output (ctr, cvr) nor a utility input (cvr)\nutility: the utility input \"cvr\" is not in it\nutility input \"cvr\": an output has the same name",
        ),
        (
            "a = 1.1",
            "a = -1.1",
            "calibrations[0]: a: it must be above 0, or the curve would reverse the order",
        ),
        ("surface = \"home\"\n", "", "calibrations[1]: output \"ctr\" has a curve for surface \"\" already"),
        (
            "[0.5, 0.25]",
            "[0, 0.25]",
            "calibrations[1]: points: x must ascend from point to point, and y must not fall",
        ),
        ("[0.5, 0.25]", "[0.5]", "calibrations[1]: points: a list of [x, y], finite numbers, is wanted"),
        (
            "seed = 7",
            "seed = 18446744073709551616",
            "inputs[0] \"item\": transform[0]: seed: it is 18446744073709551616, a whole number from 0 to 18446744073709551615 is wanted",
        ),
        (
            "op = \"hash\", seed = 7",
            "op = \"hash\", sead = 7",
            "inputs[0] \"item\": transform[0]: unknown key \"sead\": op, of, seed are known",
        ),
    ] {
        assert_eq!(said(from, to), expected);
    }
}

#[test]
fn what_is_no_toml_is_told_with_its_place() {
    let Err(ModelError::Syntax(told)) = ModelSpec::from_toml("model = \nscore = 1 2\n") else { panic!() };
    assert!(told.contains("line 1") && told.contains("line 2"), "{told}");
}

#[test]
fn of_very_many_syntax_errors_some_are_told_in_few_words() {
    for commas in [100_000, 1_000_000] {
        let Err(ModelError::Syntax(told)) = ModelSpec::from_toml(&",".repeat(commas)) else { panic!() };
        assert!(told.len() < 10_000 && told.starts_with("line 1: "), "{commas}: {} bytes", told.len());
    }
    let Err(ModelError::Syntax(told)) = ModelSpec::from_toml(&"a = \n".repeat(50)) else { panic!() };
    assert!(told.contains("; line 2: ") && told.ends_with(" more"), "{told}");
    let long = "#".repeat(ModelSpec::MAX_BYTES + 1);
    assert!(problems(&long)[0].contains("4194305 bytes"));
}

#[test]
fn golden_vectors_are_frozen_and_checked() {
    let spec = ModelSpec::from_toml(ADS).unwrap();
    let samples = r#"{"schema_version": 1,
        "inputs": {"item": [{"raw": ["sku-1", "sku-2"], "weights": [1, 0.5]}],
                   "age": [{"raw": [17, 25.5]}, {"raw": []}, {"raw": [40]}]},
        "scores": [{"surface": "home", "outputs": {"ctr": 0.8}, "inputs": {"bid": 2.5}}]}"#;
    let mut golden: Golden = serde_json::from_str(samples).unwrap();
    assert_eq!((golden.cases(), golden.check(&spec).len()), (5, 5));
    golden.freeze(&spec).unwrap();
    assert_eq!(golden.check(&spec), [""; 0]);
    let text = serde_json::to_string(&golden).unwrap();
    for part in [
        "[658016,624634]",
        "\"id_weights\":[1.0,0.5]",
        "\"ids\":[0,2]",
        "\"ids\":[18446744073709551615]",
        "\"ids\":[3]",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    golden.inputs.get_mut("item").unwrap()[0].ids = Some(vec![658_016, 624_635]);
    golden.scores[0].score = Some(2.0);
    golden.inputs.insert("price".into(), Vec::new());
    assert_eq!(
        golden.check(&spec),
        [
            "input \"item\", case 0: [\"sku-1\", \"sku-2\"] gives ids [658016, 624634], training gave [658016, 624635]",
            "model.toml has no input \"price\" that takes ids",
            "scores, case 0: the utility is 1.9749993085861206, training gave 2",
        ]
    );
    golden.scores[0].inputs.clear();
    assert!(golden.check(&spec)[2].contains("the utility is NaN"));
}

#[test]
fn lists_are_bounded() {
    let output = |at: usize| format!("[[outputs]]\nname = \"o{at}\"\n");
    let text = |outputs: usize| format!("{GOOD}{}", (1..outputs).map(output).collect::<String>());
    assert_eq!(ModelSpec::from_toml(&text(ModelSpec::MAX_ENTRIES)).unwrap().outputs.len(), 1_000);
    let told = problems(&text(ModelSpec::MAX_ENTRIES + 1));
    assert!(
        told.iter().any(|problem| problem.ends_with("outputs: 1001 entries, there may be 1000")),
        "{told:?}"
    );
    let of_nothing = text(30).replace("model =", "utility = \"x\"\nmodel =");
    let told = problems(&of_nothing).join("\n");
    assert!(told.contains("o18, o19 and 10 more) nor a utility input ()"), "{told}");
}

#[test]
fn the_work_of_golden_vectors_is_bounded() {
    let spec = ModelSpec::from_toml(ADS).unwrap();
    let score = |surface: &str| GoldenScore {
        surface: surface.to_owned(),
        outputs: BTreeMap::from([("ctr".to_owned(), 0.5)]),
        inputs: BTreeMap::new(),
        score: Some(1.0),
    };
    let golden = |cases: usize| Golden {
        schema_version: Golden::SCHEMA_VERSION,
        inputs: BTreeMap::new(),
        scores: vec![score("home"); cases],
    };
    let told = golden(1_000).check(&spec);
    assert_eq!((told.len(), told[10].as_str()), (11, "990 more cases were not computed"));
    let told = ["it has 100001 cases, it may have 100000"];
    let mut golden = golden(Golden::MAX_CASES + 1);
    assert_eq!(golden.check(&spec), told);
    assert_eq!(golden.freeze(&spec).unwrap_err(), told);
    golden.scores.truncate(Golden::MAX_CASES);
    // Every score looks at all curves.
    let calibrations = vec![spec.calibrations[0].clone(); 6_000];
    let spec = ModelSpec { calibrations, ..spec };
    assert!(golden.check(&spec)[0].starts_with("it has 100000 scores, "));
}

fn stages() -> impl Strategy<Value = Transform> {
    let ids = prop_oneof![
        any::<u64>().prop_map(|seed| Stage::Hash { of: Hashed::Ids, seed }),
        (1..=u64::MAX).prop_map(|n| Stage::Modulo { n }),
        (1..=u32::MAX).prop_map(|n| Stage::Last { n }),
        any::<u64>().prop_map(|id| Stage::Default { id }),
    ];
    let boundaries = prop::collection::btree_set(any::<i32>(), 1..20).prop_map(|bits| {
        let mut numbers: Vec<_> = bits.into_iter().map(|bits| f32::from_bits(bits as u32)).collect();
        numbers.retain(|number| number.is_finite());
        numbers.push(0.1);
        numbers.sort_unstable_by(f32::total_cmp);
        numbers.dedup();
        Stage::Bucketize { boundaries: numbers }
    });
    let text = any::<u64>().prop_map(|seed| Stage::Hash { of: Hashed::Text, seed });
    let first = prop_oneof![Just(None), text.prop_map(Some), boundaries.prop_map(Some)];
    (first, prop::collection::vec(ids, 0..4))
        .prop_map(|(first, rest)| Transform::new(first.into_iter().chain(rest).collect()).unwrap())
}

fn input() -> impl Strategy<Value = InputSpec> {
    let table = Name::new("t").unwrap();
    let side = prop_oneof![Just(Side::User), Just(Side::Candidate)];
    let pooled = Just(InputSource::Pooled { table: table.clone(), pooling: Pooling::Mean });
    let sequence = (1..=InputSpec::MAX_WIDTH).prop_map(move |max_len| InputSource::Sequence {
        table: table.clone(),
        max_len,
        mask: None,
    });
    let dense = (1..=InputSpec::MAX_WIDTH).prop_map(|width| InputSource::Dense { width });
    ("\\PC{1,9}|[\"\\\\\n\u{7f}a]{1,5}", side, prop_oneof![pooled, sequence, dense], stages()).prop_map(
        |(name, side, source, transform)| {
            let transform = if source.table().is_some() { transform } else { Transform::default() };
            InputSpec { transform, ..InputSpec::new(name, side, source) }
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        mut inputs in prop::collection::vec(input(), 1..6), top_k: u32, a in 1e-9..1e9f64, b: i32, surface in "\\PC{0,9}",
    ) {
        let mut seen = BTreeSet::new();
        inputs.retain(|input| seen.insert(input.name.clone()));
        let outputs = vec![OutputSpec { name: "p".into() }];
        let curve = Curve::Platt { a, b: f64::from(b) };
        let spec = ModelSpec {
            top_k,
            calibrations: vec![Calibration { output: 0, surface, curve }],
            ..ModelSpec::new(Name::new("m").unwrap(), inputs, outputs)
        };
        prop_assert_eq!(ModelSpec::from_toml(&spec.to_toml()), Ok(spec));
    }

    #[test]
    fn no_text_panics(text in "\\PC{0,80}", at in 0..ADS.len()) {
        let text = ADS.get(..at).map_or(text.clone(), |head| format!("{head}{text}"));
        let _any = ModelSpec::from_toml(&text);
    }
}
