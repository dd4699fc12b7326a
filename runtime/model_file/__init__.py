"""An .onnx file, read and checked before ONNX Runtime makes a session from it."""
