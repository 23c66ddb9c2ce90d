//! Pretrain and fine-tune tables and a dense model, and write a release
