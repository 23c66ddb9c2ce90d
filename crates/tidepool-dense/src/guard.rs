//! The wall around the library that reads and runs graphs: its panics become errors.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use crate::DenseError;

/// The longest description that is taken over from the library; it may print whole tensors.
const MAX_PROBLEM_CHARS: usize = 2_000;

/// Runs `work`; a panic in it is [`DenseError::Panicked`]. What `work` was building is dropped with it, so
/// no half-made value is ever seen.
pub(crate) fn guarded<T>(
    path: &Path,
    doing: &'static str,
    work: impl FnOnce() -> Result<T, DenseError>,
) -> Result<T, DenseError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        Err(DenseError::Panicked { path: path.to_path_buf(), doing, problem: words_of(&*panic) })
    })
}

/// A library error's text, with its causes, cut to a readable length.
pub(crate) fn brief(error: &dyn std::fmt::Display) -> String {
    let text = format!("{error:#}");
    match text.char_indices().nth(MAX_PROBLEM_CHARS) {
        Some((at, _)) => format!("{} ...", &text[..at]),
        None => text,
    }
}

pub(crate) fn words_of(panic: &(dyn Any + Send)) -> String {
    let words = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&'static str>().copied());
    brief(&words.unwrap_or("no message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_an_error_that_names_the_file() {
        let broken = guarded::<()>(Path::new("m.onnx"), "read the graph", || panic!("index {}", 7));
        let Err(DenseError::Panicked { path, problem, .. }) = broken else { panic!("{broken:?}") };
        assert_eq!((path.to_str(), problem.as_str()), (Some("m.onnx"), "index 7"));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let text = brief(&"é".repeat(5_000));
        assert_eq!(text.chars().count(), MAX_PROBLEM_CHARS + 4);
    }
}
