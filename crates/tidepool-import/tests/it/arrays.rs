//! NPZ and safetensors: arrays with names, several in a file.

use std::{
    collections::BTreeMap,
    io::{Cursor, Write},
    path::Path,
};

use half::{bf16, f16};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView, serialize};
use tidepool_import::{
    ArrayPath, ArraySource, ImportError, RowSource, StoredLayout, StoredSource, import_stored,
};
use tidepool_types::RowFormat;
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

use crate::{
    Files, all_rows, error_of,
    npy::{f32s, npy, u64s},
    through_a_table,
};

const SIX: [f32; 6] = [0.5, -0.25, 1.0, 2.0, -0.0, 240.0];

fn npz(method: CompressionMethod, members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = ZipWriter::new(Cursor::new(vec![]));
    for (name, bytes) in members {
        archive.start_file(*name, SimpleFileOptions::default().compression_method(method)).unwrap();
        archive.write_all(bytes).unwrap();
    }
    archive.finish().unwrap().into_inner()
}

fn six_in_an_npz(method: CompressionMethod) -> Vec<u8> {
    let vectors = npy(1, "<f4", "False", "(3, 2)", &f32s(&SIX));
    let ids = npy(1, "<u8", "False", "(3,)", &u64s(&[9, u64::MAX, 4]));
    npz(method, &[("vectors.npy", vectors), ("идентификаторы.npy", ids)])
}

fn member(file: &Path, member: &str) -> ArrayPath {
    ArrayPath::Npz { file: file.into(), member: member.into() }
}

fn tensor(file: &Path, tensor: &str) -> ArrayPath {
    ArrayPath::Safetensors { file: file.into(), tensor: tensor.into() }
}

fn safetensors(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views: BTreeMap<&str, TensorView<'_>> = tensors
        .iter()
        .map(|&(name, dtype, shape, bytes)| (name, TensorView::new(dtype, shape.to_vec(), bytes).unwrap()))
        .collect();
    serialize(views, None).unwrap()
}

fn expected(ids: [u64; 3]) -> Vec<(u64, Vec<f32>)> {
    ids.into_iter().zip(SIX.chunks(2).map(<[f32]>::to_vec)).collect()
}

#[test]
fn members_of_an_npz_come_through_stored_or_deflated() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let files = Files::new();
        let path = files.write("x.npz", six_in_an_npz(method));
        let (vectors, ids) = (member(&path, "vectors"), member(&path, "идентификаторы"));
        assert!(vectors.exists().unwrap() && !member(&path, "ids").exists().unwrap());
        let mut source = ArraySource::open(&vectors, Some(&ids)).unwrap();
        assert_eq!(source.rows_hint(), Some(3));
        assert_eq!(all_rows(&mut source), expected([9, u64::MAX, 4]));
        let back = through_a_table(&files, &mut ArraySource::open(&vectors, None).unwrap());
        assert_eq!(back, expected([0, 1, 2]));
    }
}

/// `numpy.savez_compressed(f, ids=numpy.array([3, 1], dtype=numpy.int64), vectors=numpy.array([[1, 2], [3, -4]],
/// dtype=numpy.float32))` of numpy 2.4.
#[test]
fn a_file_that_numpy_wrote_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/numpy.npz");
    let mut source = ArraySource::open(&member(&path, "vectors"), Some(&member(&path, "ids"))).unwrap();
    assert_eq!(all_rows(&mut source), [(3, vec![1.0, 2.0]), (1, vec![3.0, -4.0])]);
}

/// `safetensors.torch.save_file({"ids": torch.tensor([3, 1]), "emb.weight": torch.tensor([[1, 2], [3, -4]],
/// dtype=torch.bfloat16)}, f)` of safetensors 0.8 and torch 2.14.
#[test]
fn a_file_that_python_safetensors_wrote_is_read() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/python.safetensors");
    let mut source = ArraySource::open(&tensor(&path, "emb.weight"), Some(&tensor(&path, "ids"))).unwrap();
    assert_eq!(all_rows(&mut source), [(3, vec![1.0, 2.0]), (1, vec![3.0, -4.0])]);
}

#[test]
fn tensors_of_every_type_come_through() {
    let f16s: Vec<u8> = SIX.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
    let bf16s: Vec<u8> = SIX.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
    let f64s: Vec<u8> = SIX.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
    let ids = u64s(&[9, 1 << 62, 4]);
    for (dtype, bytes) in
        [(Dtype::F16, f16s), (Dtype::BF16, bf16s), (Dtype::F32, f32s(&SIX)), (Dtype::F64, f64s)]
    {
        for id_type in [Dtype::I64, Dtype::U64] {
            let files = Files::new();
            let file = safetensors(&[("/a.b", dtype, &[3, 2], &bytes), ("ids", id_type, &[3], &ids)]);
            let path = files.write("x.safetensors", file);
            let (vectors, ids) = (tensor(&path, "/a.b"), tensor(&path, "ids"));
            let mut source = ArraySource::open(&vectors, Some(&ids)).unwrap();
            assert_eq!(all_rows(&mut source), expected([9, 1 << 62, 4]), "{dtype:?}");
            let back = through_a_table(&files, &mut ArraySource::open(&vectors, None).unwrap());
            assert_eq!(back, expected([0, 1, 2]), "{dtype:?}");
        }
    }
}

#[test]
fn names_types_and_shapes_are_checked() {
    let files = Files::new();
    let z = files.write("x.npz", six_in_an_npz(CompressionMethod::Stored));
    let s = files.write(
        "x.safetensors",
        safetensors(&[
            ("flat", Dtype::F32, &[6], &f32s(&SIX)),
            ("ints", Dtype::I32, &[3, 2], &f32s(&SIX)),
            ("two", Dtype::U64, &[2], &u64s(&[1, 2])),
            ("vectors", Dtype::F32, &[3, 2], &f32s(&SIX)),
        ]),
    );
    match error_of(ArraySource::open(&member(&z, "embeddings"), None)) {
        ImportError::NoArray { name, found, .. } => {
            assert_eq!((name.as_str(), found.as_str()), ("embeddings", "vectors, идентификаторы"));
        }
        other => panic!("{other}"),
    }
    let error = error_of(ArraySource::open(&tensor(&s, "nothing"), None));
    assert!(error.to_string().contains("flat, ints") || error.to_string().contains("vectors"), "{error}");
    let error = error_of(ArraySource::open(&tensor(&s, "flat"), None));
    assert!(matches!(&error, ImportError::Shape { found, .. } if found == "(6,)"), "{error}");
    let error = error_of(ArraySource::open(&tensor(&s, "ints"), None));
    assert!(matches!(&error, ImportError::Dtype { found, .. } if found == "I32"), "{error}");
    assert!(error.to_string().contains("x.safetensors/ints"), "{error}");
    let error = error_of(ArraySource::open(&tensor(&s, "vectors"), Some(&tensor(&s, "two"))));
    assert!(matches!(error, ImportError::IdCount { found: 2, rows: 3, .. }), "{error}");
    // From two kinds of files.
    let mut both = ArraySource::open(&tensor(&s, "vectors"), Some(&member(&z, "идентификаторы"))).unwrap();
    assert_eq!(all_rows(&mut both), expected([9, u64::MAX, 4]));
}

#[test]
fn a_truncated_file_is_refused_at_every_length() {
    let files = Files::new();
    let whole = six_in_an_npz(CompressionMethod::Deflated);
    for length in 0..whole.len() {
        let path = files.write("x.npz", &whole[..length]);
        let error = error_of(ArraySource::open(&member(&path, "vectors"), None));
        assert!(error.to_string().contains("x.npz"), "{length}: {error}");
    }
    let whole = safetensors(&[("vectors", Dtype::F32, &[3, 2], &f32s(&SIX))]);
    for length in 0..whole.len() {
        let path = files.write("x.safetensors", &whole[..length]);
        let error = error_of(ArraySource::open(&tensor(&path, "vectors"), None));
        assert!(
            matches!(error, ImportError::Safetensors { .. } | ImportError::Length { .. }),
            "{length}: {error}"
        );
    }
    let mut longer = whole;
    longer.push(0);
    let path = files.write("x.safetensors", longer);
    let error = error_of(ArraySource::open(&tensor(&path, "vectors"), None));
    assert!(matches!(error, ImportError::Length { .. }), "{error}");
}

#[test]
fn a_flipped_bit_of_an_npz_is_found_by_its_checksum() {
    for method in [CompressionMethod::Stored, CompressionMethod::Deflated] {
        let files = Files::new();
        let mut bytes = six_in_an_npz(method);
        // Within the elements of the first member: behind its local header, name and NPY header.
        let at = 30 + "vectors.npy".len() + if method == CompressionMethod::Stored { 128 + 5 } else { 40 };
        bytes[at] ^= 1;
        let path = files.write("x.npz", bytes);
        let error = error_of(ArraySource::open(&member(&path, "vectors"), None));
        assert!(error.to_string().contains("x.npz/vectors"), "{method:?}: {error}");
    }
}

#[test]
fn stored_rows_come_from_archives_too() {
    let rows: Vec<u8> = (0..21).collect();
    let files = Files::new();
    let z = files.write(
        "x.npz",
        npz(CompressionMethod::Deflated, &[("q.npy", npy(1, "|u1", "False", "(3, 7)", &rows))]),
    );
    let s = files.write("x.safetensors", safetensors(&[("q", Dtype::U8, &[3, 7], &rows)]));
    for (at, path) in [member(&z, "q"), tensor(&s, "q")].iter().enumerate() {
        let source = StoredSource::open(path, None, StoredLayout::ours(RowFormat::Int4)).unwrap();
        assert_eq!((source.dim(), source.rows()), (6, 3));
        let mut spec = crate::builder(6).spec().clone();
        spec.format = RowFormat::Int4;
        let mut builder = tidepool_table::TableBuilder::new(spec).unwrap();
        import_stored(source, &mut builder, &mut |_| {}).unwrap();
        let dir = files.dir.path().join(format!("out{at}/v1"));
        builder.publish(&dir, &mut |_, _| {}).unwrap();
        let table = tidepool_table::LayoutReader::open(&dir).unwrap();
        assert!((0..3).all(|id| table.find(id) == Some(&rows[id as usize * 7..][..7])));
    }
}

proptest! {
    #[test]
    fn rows_come_back_as_they_were_written(
        rows in proptest::collection::vec((any::<u64>(), proptest::collection::vec(-1e30f32..1e30, 4)), 1..40),
        deflate in any::<bool>(),
    ) {
        let (ids, vectors): (Vec<u64>, Vec<Vec<f32>>) = rows.iter().cloned().unzip();
        let (count, vectors) = (rows.len(), f32s(&vectors.concat()));
        let files = Files::new();
        let file = safetensors(&[("v", Dtype::F32, &[count, 4], &vectors), ("i", Dtype::U64, &[count], &u64s(&ids))]);
        let path = files.write("x.safetensors", file);
        let mut source = ArraySource::open(&tensor(&path, "v"), Some(&tensor(&path, "i"))).unwrap();
        prop_assert_eq!(all_rows(&mut source), rows.clone());
        let method = if deflate { CompressionMethod::Deflated } else { CompressionMethod::Stored };
        let file = npz(method, &[
            ("v.npy", npy(1, "<f4", "False", &format!("({count}, 4)"), &vectors)),
            ("i.npy", npy(1, "<u8", "False", &format!("({count},)"), &u64s(&ids))),
        ]);
        let path = files.write("x.npz", file);
        let mut source = ArraySource::open(&member(&path, "v"), Some(&member(&path, "i"))).unwrap();
        prop_assert_eq!(all_rows(&mut source), rows);
    }

    #[test]
    fn files_with_damaged_bytes_never_panic(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let files = Files::new();
        let mut z = six_in_an_npz(CompressionMethod::Deflated);
        let mut s = safetensors(&[("vectors", Dtype::F32, &[3, 2], &f32s(&SIX))]);
        for (at, byte) in changes {
            let (in_z, in_s) = (at.index(z.len()), at.index(s.len()));
            (z[in_z], s[in_s]) = (byte, byte);
        }
        let (z, s) = (files.write("x.npz", z), files.write("x.safetensors", s));
        for path in [member(&z, "vectors"), tensor(&s, "vectors")] {
            if let Ok(mut source) = ArraySource::open(&path, None) {
                let mut values = vec![0.0; source.dim() as usize];
                while let Ok(Some(_)) = source.next_row(&mut values) {}
            }
        }
    }
}
