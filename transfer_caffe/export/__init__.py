"""Nets and weights in the formats of other programs: ONNX, PyTorch modules, safetensors, PyTorch datasets.

    python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx

`inference` turns any net into one for inference; `onnx_file` and `operators` write it as ONNX, and `check` compares
that with the engine. `preprocessing` describes what is done to an image. docs/export.md has recipes.
"""


class Differs(Exception):
    """A blob of the ONNX file differs from the engine's; the text names the first one, in the order of the layers."""
