//! Quantizers and gather-and-pool over embedding rows, scalar and SIMD
