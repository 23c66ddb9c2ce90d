//! The client against fake nodes and fake controllers, over real sockets on the loopback interface.

mod fake;
mod lookups;
mod maps;
