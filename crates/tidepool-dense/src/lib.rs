//! The dense engine: an ONNX model, checked against its contract and run
