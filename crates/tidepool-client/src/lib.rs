//! The lookup client: split, fan out, fall back, merge
