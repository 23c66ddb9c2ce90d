//! A CUDA driver that runs on the CPU and checks what it is asked for, for tests of the `cuda` engine.
