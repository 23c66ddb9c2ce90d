//! Golden files: the format does not change.
