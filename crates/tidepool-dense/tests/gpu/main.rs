//! The CUDA engine, on a GPU or on the simulated driver.
