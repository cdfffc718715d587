"""Packaging: `pip install .` gives the package transfer_caffe and the command transfer-caffe, nothing else.

All code is in transfer_caffe. The templates are at the top of the repository, where they are easy to find, and are
installed as transfer_caffe.prototxt_templates. The folders tools and data_prep at the top contain short wrappers for
transfer_caffe.tools and transfer_caffe.data_prep. They are not installed, because their names are too common.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "transfer_caffe" / "__init__.py").read_text())
assert VERSION

setup(
    name="transfer_caffe",
    version=VERSION[1],
    description="How transferable are the features of a network? Yosinski et al. (2014) on Caffe's files, today",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[*find_packages(include=["transfer_caffe", "transfer_caffe.*"]), "transfer_caffe.prototxt_templates"],
    package_dir={"transfer_caffe.prototxt_templates": "prototxt_templates"},
    package_data={
        "transfer_caffe.report": ["templates/*"],
        "transfer_caffe.caffe": ["imagenet/*.npy"],
        "transfer_caffe.data_prep": ["*.csv"],
        "transfer_caffe.prototxt_templates": ["*.j2", "*/*.j2"],
        "transfer_caffe.formats.proto": ["*.proto", "*.pyi"],
        "transfer_caffe.recipes": ["*.yaml"],
        "transfer_caffe.results.reference": ["*.csv", "*.md"],
    },
    install_requires=[
        "numpy>=1.26",
        "protobuf>=5.26,<8",
        "lmdb>=1.4",
        "pyyaml>=6",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "torch>=2.11",
        "opencv-python-headless>=4.9",
        "h5py>=3.10",
        "rich>=13",
        "scipy>=1.11",
    ],
    extras_require={
        "leveldb": ["plyvel>=1.5"],
        "demo": ["scikit-image>=0.22", "scikit-learn>=1.4"],
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "safetensors>=0.4.3"],
        "dev": ["pytest", "playwright", "hypothesis", "ruff", "pyright"],
    },
    entry_points={"console_scripts": ["transfer-caffe = transfer_caffe.cli:main"]},
)
