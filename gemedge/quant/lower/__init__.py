"""ONNX nodes into integer operators: one file for each family, and `lowering` for what they share."""
