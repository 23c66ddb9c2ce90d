//! The wire: generated gRPC and its conversions
