//! Matmuls against plain loops, and what is refused.

use super::{
    Compute, Scalar, Status,
    compute::{gelu, rounded},
};
use crate::{Code, Driver, Settings};

const ONE: [Scalar; 2] = [Scalar::Host(1.0), Scalar::Host(0.0)];

struct Blas {
    driver: Driver,
    handle: u64,
    preference: u64,
}

impl Blas {
    fn new() -> Self {
        let driver = Driver::new(Settings::default());
        driver.init().unwrap();
        driver.set_current(driver.retain(0).unwrap()).unwrap();
        let handle = driver.create_library().unwrap();
        let preference = driver.create_preference().unwrap();
        for attribute in 5..=8 {
            driver.set_preference(preference, attribute, &4_u32.to_le_bytes()).unwrap();
        }
        Self { driver, handle, preference }
    }

    /// Device memory with these numbers.
    fn upload(&self, values: &[f32], element: u32) -> u64 {
        let bytes: Vec<u8> = values.iter().flat_map(|v| encode(*v, element)).collect();
        let at = self.driver.allocate(bytes.len() as u64).unwrap();
        for (index, byte) in bytes.iter().enumerate() {
            self.driver.fill(at + index as u64, &[*byte], 1, 0).unwrap();
        }
        at
    }

    fn download(&self, at: u64, count: usize, element: u32) -> Vec<f32> {
        let size = if element == 0 { 4 } else { 2 };
        let range = self.driver.allocate_pinned(count * size).unwrap();
        self.driver.copy_out(range.clone(), at, 0).unwrap();
        self.driver.synchronize().unwrap();
        range.read().chunks(size).map(|b| decode(b, element)).collect()
    }

    fn describe(&self, compute: u32, attributes: &[(u32, u64)]) -> u64 {
        let matmul = self.driver.create_description(compute, 0).unwrap();
        for (attribute, value) in attributes {
            let bytes = value.to_le_bytes();
            let length = if matches!(attribute, 8 | 10) { 8 } else { 4 };
            self.driver.set_description(matmul, *attribute, &bytes[..length]).unwrap();
        }
        matmul
    }

    fn layout(&self, element: u32, rows: u64, columns: u64, leading: i64) -> u64 {
        self.driver.create_layout(element, rows, columns, leading).unwrap()
    }

    fn run(&self, matmul: u64, scalars: [Scalar; 2], layouts: [u64; 4], at: [u64; 4]) -> Result<(), Status> {
        let algorithm = self.driver.heuristic(self.handle, matmul, layouts, self.preference)?;
        self.driver.matmul(self.handle, matmul, scalars, layouts, at, Some(algorithm), (0, 0), 0)
    }
}

fn encode(value: f32, element: u32) -> Vec<u8> {
    match element {
        0 => value.to_le_bytes().to_vec(),
        2 => half::f16::from_f32(value).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(value).to_le_bytes().to_vec(),
    }
}

fn decode(bytes: &[u8], element: u32) -> f32 {
    match element {
        0 => f32::from_le_bytes(bytes.try_into().unwrap()),
        2 => half::f16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
        _ => half::bf16::from_le_bytes(bytes.try_into().unwrap()).to_f32(),
    }
}

/// Small numbers that f16 and bf16 hold exactly.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + 3) % 13) as f32 * 0.25 - 1.5).collect()
}

/// The product of column-major matrices, by the definition.
fn product(a: &[f32], b: &[f32], (m, n, k): (usize, usize, usize), turned: [bool; 2]) -> Vec<f32> {
    let at = |x: &[f32], row, column, rows, columns, turned| {
        if turned { x[row * columns + column] } else { x[column * rows + row] }
    };
    let mut out = Vec::new();
    for column in 0..n {
        for row in 0..m {
            let terms = (0..k).map(|i| at(a, row, i, m, k, turned[0]) * at(b, i, column, k, n, turned[1]));
            out.push(terms.sum());
        }
    }
    out
}

#[test]
fn products_of_all_orientations_types_and_epilogues() {
    let (m, n, k) = (5, 7, 19);
    let blas = Blas::new();
    let (a, b, bias) = (numbers(m * k), numbers(k * n), numbers(m));
    for (element, out) in [(0, 0), (2, 2), (14, 14), (14, 0), (2, 0)] {
        let (at_a, at_b, at_bias) =
            (blas.upload(&a, element), blas.upload(&b, element), blas.upload(&bias, out));
        for turned in [[false, false], [true, false], [false, true], [true, true]] {
            for epilogue in [1, 2, 4, 6, 32, 36_u64] {
                let at_d = blas.upload(&vec![0.0; m * n], out);
                let turn = |is: bool| u64::from(is);
                let set = [(3, turn(turned[0])), (4, turn(turned[1])), (7, epilogue), (8, at_bias)];
                let matmul = blas.describe(68, &set);
                let sides = |rows: usize, columns: usize, turned| {
                    let (rows, columns) = if turned { (columns, rows) } else { (rows, columns) };
                    blas.layout(element, rows as u64, columns as u64, rows as i64)
                };
                let d = blas.layout(out, m as u64, n as u64, m as i64);
                let layouts = [sides(m, k, turned[0]), sides(k, n, turned[1]), d, d];
                blas.run(matmul, ONE, layouts, [at_a, at_b, at_d, at_d]).unwrap();
                let mut expected = product(&a, &b, (m, n, k), turned);
                for (index, value) in expected.iter_mut().enumerate() {
                    *value += if epilogue & 4 != 0 { bias[index % m] } else { 0.0 };
                    *value = if epilogue & 2 != 0 { value.max(0.0) } else { *value };
                    *value = if epilogue & 32 != 0 { gelu(*value) } else { *value };
                }
                let found = blas.download(at_d, m * n, out);
                let unit = if out == 0 {
                    1e-6
                } else if out == 2 {
                    1e-3
                } else {
                    1e-2
                };
                for (found, expected) in found.iter().zip(&expected) {
                    let off = (found - expected).abs();
                    assert!(
                        off <= unit * expected.abs().max(1.0),
                        "{found} {expected}: {element} {turned:?} {epilogue}"
                    );
                }
            }
        }
    }
}

#[test]
fn batches_leading_dimensions_and_sums_into_what_is_there() {
    let (m, n, k, batch) = (3, 2, 4, 3);
    let blas = Blas::new();
    // Lines are one longer than they need to be; the same B for all of the batch.
    let (a, b, c) = (numbers((m + 1) * k * batch), numbers(k * n), numbers(m * n * batch));
    let (at_a, at_b, at_d) = (blas.upload(&a, 0), blas.upload(&b, 0), blas.upload(&c, 0));
    let batched = |layout: u64, stride: usize| {
        blas.driver.set_layout(layout, 5, &(batch as u32).to_le_bytes()).unwrap();
        blas.driver.set_layout(layout, 6, &(stride as u64).to_le_bytes()).unwrap();
        layout
    };
    let of_a = batched(blas.layout(0, 3, 4, 4), (m + 1) * k);
    let of_b = batched(blas.layout(0, 4, 2, 4), 0);
    let of_d = batched(blas.layout(0, 3, 2, 3), m * n);
    let matmul = blas.describe(68, &[]);
    let scalars = [Scalar::Host(2.0), Scalar::Host(0.5)];
    blas.run(matmul, scalars, [of_a, of_b, of_d, of_d], [at_a, at_b, at_d, at_d]).unwrap();
    let found = blas.download(at_d, m * n * batch, 0);
    for of in 0..batch {
        let own: Vec<f32> =
            a[of * (m + 1) * k..][..(m + 1) * k].chunks(m + 1).flat_map(|l| l[..m].to_vec()).collect();
        for (index, product) in product(&own, &b, (m, n, k), [false; 2]).iter().enumerate() {
            let at = of * m * n + index;
            assert!((found[at] - (2.0 * product + 0.5 * c[at])).abs() < 1e-5, "{of} {index}");
        }
    }
}

#[test]
fn inputs_are_rounded_as_the_compute_type_says() {
    // 1 + 2^-11 is between two numbers of tf32, and goes to the even one.
    let values = [(1.0 + 2.0_f32.powi(-11), 1.0), (1.0 + 3.0 * 2.0_f32.powi(-11), 1.0 + 2.0_f32.powi(-9))];
    for (value, expected) in values {
        assert_eq!(rounded(Compute::Tf32, value), expected);
        assert_eq!(rounded(Compute::F32, value), value);
    }
    assert_eq!(rounded(Compute::FastBf16, 1.0 + 2.0_f32.powi(-10)), 1.0);
    let blas = Blas::new();
    let one = |compute| {
        let (at_a, at_b, at_d) =
            (blas.upload(&[1.0 + 2.0_f32.powi(-11)], 0), blas.upload(&[1.0], 0), blas.upload(&[0.0], 0));
        let layout = blas.layout(0, 1, 1, 1);
        let matmul = blas.describe(compute, &[]);
        blas.run(matmul, ONE, [layout; 4], [at_a, at_b, at_d, at_d]).unwrap();
        blas.download(at_d, 1, 0)[0]
    };
    assert_eq!((one(68), one(77)), (1.0 + 2.0_f32.powi(-11), 1.0));
}

#[test]
fn poison_spreads_to_what_depends_on_it_and_no_further() {
    let blas = Blas::new();
    let a = blas.driver.allocate(16).unwrap();
    blas.driver.fill(a, &0_u32.to_le_bytes(), 1, 0).unwrap();
    blas.driver.fill(a + 8, &0_u32.to_le_bytes(), 1, 0).unwrap();
    let (b, d) = (blas.upload(&[1.0; 2], 0), blas.driver.allocate(8).unwrap());
    let layouts = [blas.layout(0, 2, 2, 2), blas.layout(0, 2, 1, 2), blas.layout(0, 2, 1, 2)];
    let matmul = blas.describe(68, &[]);
    blas.run(matmul, ONE, [layouts[0], layouts[1], layouts[2], layouts[2]], [a, b, d, d]).unwrap();
    assert_eq!(blas.download(d, 2, 0)[0], 0.0);
    assert_eq!(blas.driver.counters().poison_copied_out, 4, "the second row was never written");
}

#[test]
fn what_does_not_fit_is_refused_and_what_is_beyond_memory_is_found() {
    let blas = Blas::new();
    let at = blas.upload(&[0.0; 12], 0);
    let square = |leading| blas.layout(0, 3, 3, leading);
    let matmul = blas.describe(68, &[]);
    let invalid = Err(Status::InvalidValue);
    assert_eq!(blas.run(matmul, ONE, [square(2), square(3), square(3), square(3)], [at; 4]), invalid);
    assert_eq!(
        blas.run(matmul, ONE, [blas.layout(0, 3, 2, 3), square(3), square(3), square(3)], [at; 4]),
        invalid
    );
    assert_eq!(blas.run(matmul, ONE, [square(3); 4], [at + 2, at, at, at]), invalid);
    assert!(blas.driver.last_fault().contains("not aligned"), "{}", blas.driver.last_fault());
    assert_eq!(blas.driver.create_description(70, 1), Err(Status::NotSupported));
    assert_eq!(blas.driver.set_description(matmul, 7, &152_u32.to_le_bytes()), Err(Status::NotSupported));
    // Twelve numbers are there, and lines that are five apart need thirteen.
    blas.run(matmul, ONE, [square(5), square(3), square(3), square(3)], [at; 4]).unwrap();
    assert_eq!(blas.driver.synchronize(), Err(Code::ILLEGAL_ADDRESS));
    assert!(blas.driver.last_fault().contains("A: 52 bytes"), "{}", blas.driver.last_fault());
}

#[test]
fn a_workspace_must_be_as_large_as_the_algorithm_asks() {
    let blas = Blas::new();
    blas.driver.set_preference(blas.preference, 1, &4096_u64.to_le_bytes()).unwrap();
    let (layout, matmul) = (blas.layout(0, 1, 1, 1), blas.describe(68, &[]));
    let at = blas.upload(&[1.0], 0);
    let algorithm = blas.driver.heuristic(blas.handle, matmul, [layout; 4], blas.preference).unwrap();
    let run = |workspace| {
        blas.driver.matmul(blas.handle, matmul, ONE, [layout; 4], [at; 4], Some(algorithm), workspace, 0)
    };
    assert_eq!(run((0, 0)), Err(Status::InvalidValue));
    let workspace = blas.driver.allocate(4096).unwrap();
    assert_eq!(run((workspace, 4096)), Ok(()));
    blas.driver.synchronize().unwrap();
}
