//! The functions of `libcublasLt` that cudarc and this project call.
#![expect(unsafe_code, reason = "symbols have the names by which the real library is loaded")]
#![allow(non_snake_case, clippy::too_many_arguments, reason = "names and arguments are NVIDIA's")]

use super::{
    DRIVER,
    pointers::{In, Out},
};
use crate::blas::{Algorithm, Scalar, Status};

/// CUDA 12.4's.
const VERSION: usize = 120_402;
/// The first word of an algorithm that the heuristic of the stand-in made.
const MARK: u64 = 0x6c6f_6f70_6564_6974;

macro_rules! calls {
    ($(fn $name:ident($($argument:ident: $of:ty),* $(,)?) $body:block)*) => {
        $(#[unsafe(no_mangle)] extern "C" fn $name($($argument: $of),*) -> u32 $body)*
    };
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy)]
#[repr(C)]
struct HeuristicResult {
    algorithm: [u64; 8],
    workspace: usize,
    state: u32,
    waves: f32,
    reserved: [i32; 4],
}

fn number(answer: Result<(), Status>) -> u32 {
    answer.map_or_else(|status| status as u32, |()| 0)
}

fn give<T>(to: &Out<T>, answer: Result<T, Status>) -> u32 {
    match answer {
        Ok(_) if to.is_null() => Status::InvalidValue as u32,
        Ok(value) => {
            to.set(value);
            0
        }
        Err(status) => status as u32,
    }
}

/// Bytes of an attribute.
fn attribute(value: In<u8>, bytes: usize) -> Result<Vec<u8>, Status> {
    if bytes > 64 { None } else { value.bytes(bytes) }.ok_or(Status::InvalidValue)
}

fn packed(of: Algorithm) -> [u64; 8] {
    let [a, b, c, d] = of.alignment.map(u64::from);
    [MARK, of.workspace, a | b << 32, c | d << 32, 0, 0, 0, 0]
}

/// The algorithm that a caller brings; null lets the library choose.
fn unpacked(of: In<[u64; 8]>) -> Result<Option<Algorithm>, Status> {
    let Ok(words) = of.at(0) else { return Ok(None) };
    if words[0] != MARK {
        return Err(Status::InvalidValue);
    }
    let parts = [words[2] as u32, (words[2] >> 32) as u32, words[3] as u32, (words[3] >> 32) as u32];
    Ok(Some(Algorithm { workspace: words[1], alignment: parts }))
}

/// Alpha or beta: a number of the host, or an address of the device.
fn scalar(at: In<f32>, on_device: bool) -> Result<Scalar, Status> {
    if on_device {
        return Ok(Scalar::Device(at.address()));
    }
    at.at(0).map(Scalar::Host).map_err(|_| Status::InvalidValue)
}

/// What a matmul's pointers say: alpha and beta, and the algorithm.
fn chosen(
    matmul: u64,
    [alpha, beta]: [In<f32>; 2],
    algorithm: In<[u64; 8]>,
) -> Result<([Scalar; 2], Option<Algorithm>), Status> {
    let on_device = DRIVER.scalars_on_device(matmul)?;
    Ok(([scalar(alpha, on_device)?, scalar(beta, on_device)?], unpacked(algorithm)?))
}

calls! {
    fn cublasLtCreate(handle: Out<u64>) { give(&handle, DRIVER.create_library()) }
    fn cublasLtDestroy(handle: u64) { number(DRIVER.destroy_library(handle)) }
    fn cublasLtMatmulDescCreate(matmul: Out<u64>, compute: u32, scale: u32) {
        give(&matmul, DRIVER.create_description(compute, scale))
    }
    fn cublasLtMatmulDescDestroy(matmul: u64) { number(DRIVER.destroy_description(matmul)) }
    fn cublasLtMatmulDescSetAttribute(matmul: u64, which: u32, value: In<u8>, bytes: usize) {
        number(attribute(value, bytes).and_then(|value| DRIVER.set_description(matmul, which, &value)))
    }
    fn cublasLtMatrixLayoutCreate(layout: Out<u64>, element: u32, rows: u64, columns: u64, leading: i64) {
        give(&layout, DRIVER.create_layout(element, rows, columns, leading))
    }
    fn cublasLtMatrixLayoutDestroy(layout: u64) { number(DRIVER.destroy_layout(layout)) }
    fn cublasLtMatrixLayoutSetAttribute(layout: u64, which: u32, value: In<u8>, bytes: usize) {
        number(attribute(value, bytes).and_then(|value| DRIVER.set_layout(layout, which, &value)))
    }
    fn cublasLtMatmulPreferenceCreate(preference: Out<u64>) { give(&preference, DRIVER.create_preference()) }
    fn cublasLtMatmulPreferenceDestroy(preference: u64) { number(DRIVER.destroy_preference(preference)) }
    fn cublasLtMatmulPreferenceSetAttribute(preference: u64, which: u32, value: In<u8>, bytes: usize) {
        number(attribute(value, bytes).and_then(|value| DRIVER.set_preference(preference, which, &value)))
    }
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: u64, matmul: u64, a: u64, b: u64, c: u64, d: u64, preference: u64, wanted: i32,
        results: Out<HeuristicResult>, count: Out<i32>,
    ) {
        if wanted < 1 || results.is_null() {
            return Status::InvalidValue as u32;
        }
        match DRIVER.heuristic(handle, matmul, [a, b, c, d], preference) {
            Ok(of) => {
                let workspace = of.workspace as usize;
                let algorithm = packed(of);
                results.set(HeuristicResult { algorithm, workspace, state: 0, waves: 1.0, reserved: [0; 4] });
                count.set(1);
                0
            }
            Err(status) => {
                count.set(0);
                status as u32
            }
        }
    }
    fn cublasLtMatmul(
        handle: u64, matmul: u64, alpha: In<f32>, a: u64, of_a: u64, b: u64, of_b: u64, beta: In<f32>, c: u64,
        of_c: u64, d: u64, of_d: u64, algorithm: In<[u64; 8]>, workspace: u64, workspace_bytes: usize, stream: u64,
    ) {
        let (layouts, addresses) = ([of_a, of_b, of_c, of_d], [a, b, c, d]);
        let workspace = (workspace, workspace_bytes as u64);
        number(chosen(matmul, [alpha, beta], algorithm).and_then(|(scalars, algorithm)| {
            DRIVER.matmul(handle, matmul, scalars, layouts, addresses, algorithm, workspace, stream)
        }))
    }
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetVersion() -> usize {
    VERSION
}

#[unsafe(no_mangle)]
extern "C" fn cublasLtGetCudartVersion() -> usize {
    12_040
}
