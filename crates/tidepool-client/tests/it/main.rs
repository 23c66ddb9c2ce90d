//! The client against fake nodes and fake controllers, over real sockets on the loopback interface.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod fake;
mod lookups;
mod maps;
mod resilience;
mod rows;
mod streams;
