"""What runs in the child process: the only code here that imports Paddle and paddle2onnx."""
