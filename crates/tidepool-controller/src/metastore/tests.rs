//! Crashes of the file metastore.
