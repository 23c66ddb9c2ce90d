//! The ranker: fetch pooled vectors, run the dense model, rank
