//! What is staged and read back, and what the twin makes of outputs.

use tidepool_types::ModelSpec;

use super::*;

fn spec() -> ModelSpec {
    ModelSpec::from_toml(
        r#"schema_version = 1
        model = "ads"
        score = "utility"
        utility = "ctr * bid * rate"
        utility_inputs = [{ name = "rate", side = "user" }, { name = "bid", side = "candidate" }]
        inputs = [{ name = "x", side = "candidate", width = 1 }]
        outputs = [{ name = "cvr" }, { name = "ctr" }]
        calibrations = [
            { output = "ctr", kind = "linear", a = 0.5, b = 0 },
            { output = "ctr", surface = "home", kind = "platt", a = 1.1, b = 0.1 },
            { output = "cvr", surface = "home", kind = "linear", a = 2, b = 1 },
        ]"#,
    )
    .unwrap()
}

fn layout(rows: u32, requests: u32) -> SelectLayout {
    SelectLayout::new(Selection::new(&spec()), SelectRoom { rows, requests, samples: 4 }).unwrap()
}

fn request<'a>(rows: u32, numbers: &'a [Vec<f32>]) -> SelectRequest<'a> {
    SelectRequest { rows, surface: "", outputs: &[], utility_inputs: numbers, top_k: 0 }
}

fn words(bytes: &[u8], at: usize, count: usize) -> Vec<u32> {
    bytes[at..at + 4 * count].chunks(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

#[test]
fn a_batch_is_staged_as_it_was() {
    let layout = layout(100, 10);
    let places = layout.places(10, 100, 2, 48);
    let arrays =
        [places.starts, places.winners, places.columns, places.curves, places.users, places.candidates];
    assert_eq!((arrays, places.end), ([48, 96, 144, 160, 288, 336], 736));
    assert_eq!((layout.bytes(), layout.row_bits()), (736, 7));
    let first = [vec![0.5], vec![1.0, 2.0, 3.0]];
    let second = [vec![0.25], vec![4.0]];
    let requests = [
        SelectRequest { surface: "home", outputs: &[1], top_k: 2, ..request(3, &first) },
        SelectRequest { surface: "feed", outputs: &[0, 1], ..request(2, &second) },
    ];
    let mut staging = vec![0xee; layout.most(64)];
    let (wanted, end) = layout.write(&mut staging, [16, 64], &requests).unwrap();
    let head = [2, 5, 2, 4, 4, 5, 6, 7, 9, 10, 0, 0];
    assert_eq!((words(&staging, 16, 12), end), (head.to_vec(), 192), "places are in units of 16 bytes");
    assert_eq!(words(&staging, 64, 3), [0, 3, 5]);
    assert_eq!(words(&staging, 80, 3), [0, 2, 4]);
    assert_eq!(words(&staging, 96, 2), [1, 0]);
    // The formula's ctr, then ctr and cvr, of each request.
    assert_eq!(words(&staging, 112, 6), [2, 2, 3, 1, 1, 0]);
    assert_eq!(words(&staging, 144, 2), [0.5f32, 0.25].map(f32::to_bits));
    let bids = words(&staging, 160, 5);
    assert_eq!(bids[..4], [1.0f32, 2.0, 3.0, 4.0].map(f32::to_bits));
    assert!(f32::from_bits(bids[4]).is_nan(), "what is missing is no number");
    assert_eq!(layout.answer_bytes(&wanted), 8 + 2 * 4 * 8 + 2 * 4 * 4 + 4 * (2 + 2) * 4);
    assert!(layout.answer_bytes(&wanted) <= layout.answer_room());
}

#[test]
fn an_answer_is_read_as_the_kernels_write_it() {
    let layout = layout(100, 10);
    let numbers = [vec![1.0], vec![1.0; 5]];
    let requests = [
        SelectRequest { outputs: &[0], top_k: 1, ..request(5, &numbers) },
        SelectRequest { outputs: &[0], top_k: 2, ..request(2, &numbers) },
    ];
    let (wanted, _) = layout.write(&mut vec![0; layout.bytes()], [0, 48], &requests).unwrap();
    let float = |value: f32| value.to_bits();
    let mut answer = vec![3, 0];
    // Of each request ctr, cvr and the utility.
    answer.extend([u32::MAX, 0, u32::MAX, 0, u32::MAX, 0]);
    answer.extend([1, float(f32::NAN), u32::MAX, 0, 0, float(f32::INFINITY)]);
    answer.extend([0.1, 0.2, 0.3, 0.0, 0.4, 0.5, 0.0, 0.0].map(float));
    answer.extend([4, 1, 0]);
    answer.extend([9.0, 8.0, 7.0].map(float));
    answer.extend([0.6, 0.7, 0.8].map(float));
    let bytes: Vec<u8> = answer.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (lost, selected) = layout.read(&wanted, &bytes);
    assert_eq!((lost, selected.len()), (3, 2));
    let [first, second] = &selected[..] else { panic!("two requests") };
    assert_eq!(
        (&first.not_finite, &first.ranked, &first.outputs),
        (&None, &vec![(4, 9.0)], &vec![vec![0.6]])
    );
    assert_eq!(first.samples, [0.1, 0.2, 0.3], "rows 0, 2 and 4");
    assert_eq!(second.ranked, [(1, 8.0), (0, 7.0)]);
    assert_eq!(second.samples, [0.4, 0.5]);
    // The output that the utility has its number from is named rather than the utility.
    let bad = second.not_finite.unwrap();
    assert!(bad.output == Some(1) && bad.candidate == 1 && bad.value.is_nan(), "{bad:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let layout = layout(4, 2);
    let mut staging = vec![0; layout.bytes()];
    let mut said = |requests: &[SelectRequest<'_>]| {
        layout.write(&mut staging, [0, 48], requests).unwrap_err().to_string()
    };
    assert_eq!(said(&[request(1, &[]); 3]), "there is room for 2 requests, the batch has 3");
    assert_eq!(said(&[request(5, &[])]), "there is room for 4 rows, the batch has 5");
    let third = SelectRequest { outputs: &[2], ..request(1, &[]) };
    assert_eq!(said(&[third]), "the selection cannot be made: output 2 is wanted, the model has 2");
    let room = SelectRoom { rows: 1 << 20, requests: 1 << 13, samples: 0 };
    assert!(matches!(SelectLayout::new(Selection::new(&spec()), room), Err(SelectError::Wanted(_))));
}

#[test]
fn the_twin_does_what_the_ranker_does() {
    let spec = spec();
    let numbers = [vec![10.0], vec![1.0, 8.0, 2.0]];
    let outputs = [vec![0.1, 0.2, 0.3], vec![0.5, 0.25, 0.5]];
    let wanted = SelectRequest { outputs: &[1], top_k: 2, ..request(3, &numbers) };
    let made = select(&spec, &wanted, &outputs, 16);
    assert_eq!(made.ranked, [(1, 10.0), (2, 5.0)]);
    assert_eq!(made.outputs, [vec![0.125, 0.25]]);
    assert_eq!((made.samples, made.not_finite), (vec![0.25, 0.125, 0.25], None));
    let ties = [vec![0.0; 3], vec![0.5, 0.0, -0.0]];
    assert_eq!(select(&spec, &request(3, &[vec![1.0], vec![0.0; 3]]), &ties, 0).ranked[0].0, 0);
    let mut broken = outputs.clone();
    broken[1][2] = f32::NAN;
    let bad = select(&spec, &wanted, &broken, 16).not_finite.unwrap();
    assert!(bad.output == Some(1) && bad.candidate == 2 && bad.value.is_nan() && bad.of_ranking);
    let mut unused = outputs.clone();
    unused[0][0] = f32::INFINITY;
    assert_eq!(select(&spec, &wanted, &unused, 16).not_finite, None);
    let chosen = SelectRequest { outputs: &[0], ..wanted };
    let expected = NotFinite { output: Some(0), candidate: 0, value: f32::INFINITY, of_ranking: false };
    assert_eq!(select(&spec, &chosen, &unused, 16).not_finite, Some(expected));
}
