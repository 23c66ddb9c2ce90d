//! Partition files and layouts: build, verify, map, id to row
