//! The embedding node: maps partitions, answers lookups
