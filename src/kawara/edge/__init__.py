"""Leave torch: export, certificate, and the run times of others. The only door to onnx, onnxruntime and openvino."""
