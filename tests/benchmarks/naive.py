"""A typical PyTorch training program, for comparison: CaffeNet as a module, with a DataLoader.

    python -m benchmarks.naive --net caffenet --batch 64 --frozen 3 --seconds 10 [--data DATABASE --mean FILE] [--gpu 0]

Prints the seconds per iteration, one number per line, averaged over --every iterations. Layers, sizes and the update
are those of the prototxt. The program has no optimisations for speed.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from transfer_caffe.engine.precision import PRECISIONS
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.proto import read_mean

# filters of conv1 to conv5; kernel, stride and pad of conv1; kernel of conv2; units of fc6 and fc7; crop
NETS = {
    "caffenet": ((96, 256, 384, 384, 256), (11, 4, 0), 5, 4096, 227),
    "mini": ((12, 24, 32, 32, 24), (5, 2, 0), 3, 64, 28),
    "small": ((16, 32, 48, 48, 32), (5, 1, 2), 3, 64, 28),
}


def build(name: str, outputs: int, frozen: int) -> nn.Sequential:
    """Build the network, with its first ``frozen`` layers without gradients."""
    (c1, c2, c3, c4, c5), (kernel, stride, pad), second, units, crop = NETS[name]

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    def norm() -> nn.Module:
        return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1)

    features = nn.Sequential(
        nn.Conv2d(3, c1, kernel, stride, pad), nn.ReLU(), pool(), norm(),
        nn.Conv2d(c1, c2, second, padding=second // 2, groups=2), nn.ReLU(), pool(), norm(),
        nn.Conv2d(c2, c3, 3, padding=1), nn.ReLU(),
        nn.Conv2d(c3, c4, 3, padding=1, groups=2), nn.ReLU(),
        nn.Conv2d(c4, c5, 3, padding=1, groups=2), nn.ReLU(), pool(), nn.Flatten(),
    )  # fmt: skip
    inputs = features(torch.zeros(1, 3, crop, crop)).shape[1]
    net = nn.Sequential(
        features, nn.Linear(inputs, units), nn.ReLU(), nn.Dropout(), nn.Linear(units, units), nn.ReLU(), nn.Dropout(),
        nn.Linear(units, outputs),
    )  # fmt: skip
    weighted = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module in weighted[:frozen]:
        module.requires_grad_(False)
    return net


class Records(torch.utils.data.Dataset):
    """Records of a database, randomly cropped and mirrored, with the mean subtracted."""

    def __init__(self, path: str, mean: str, crop: int) -> None:
        """Store the arguments; each worker opens the database itself."""
        self.path, self.crop, self.mean = path, crop, read_mean(mean)
        self.database: Database | None = None
        self.count = len(Database(path))

    def __len__(self) -> int:
        """Return the number of records."""
        return self.count

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Return an image (channels, height, width) and its label."""
        if self.database is None:
            self.database = Database(self.path)
        image, label = self.database.record(index)
        top, left = (int(torch.randint(0, side - self.crop + 1, ())) for side in image.shape[1:])
        window = np.s_[:, top : top + self.crop, left : left + self.crop]
        image = image[window].astype(np.float32) - self.mean[window]
        return (image[:, :, ::-1] if torch.rand(()) < 0.5 else image).copy(), label


def batches(options: argparse.Namespace, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images and labels without end, from a database, or always the same ones."""
    crop = NETS[options.net][-1]
    if not options.data:
        images = torch.randn(options.batch, 3, crop, crop, device=device)  # constant images are computed faster
        labels = torch.zeros(options.batch, dtype=torch.long, device=device)
        while True:
            yield images, labels
    loader = torch.utils.data.DataLoader(
        Records(options.data, options.mean, crop), options.batch, drop_last=True, num_workers=options.workers,
        persistent_workers=True, pin_memory=device.type == "cuda",
    )  # fmt: skip
    while True:
        for images, labels in loader:
            yield images.to(device, non_blocking=True), labels.to(device, non_blocking=True)


def use(precision: str, device: torch.device) -> Callable[[], contextlib.AbstractContextManager]:
    """Set PyTorch's flags for a precision, and return the context in which the forward pass runs.

    By default PyTorch computes convolutions in TF32, but no other products.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if precision == "bf16":
        return lambda: torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext


def main() -> None:
    """Run the command line: train, and print the seconds per iteration."""
    parser = argparse.ArgumentParser(description="Train a net in plain PyTorch and print the seconds per iteration.")
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--batch", type=int, required=True, help="mini-batch size")
    parser.add_argument("--frozen", type=int, default=0, help="number of frozen layers (default: 0)")
    parser.add_argument("--outputs", type=int, default=1000, help="number of outputs (default: 1000)")
    parser.add_argument("--seconds", type=float, required=True, help="training time")
    parser.add_argument("--every", type=int, default=1, help="iterations per printed number (default: 1)")
    parser.add_argument("--workers", type=int, default=2, help="workers of the DataLoader (default: 2)")
    parser.add_argument("--data", default="", help="LMDB with the images (default: constant images)")
    parser.add_argument("--mean", default="", help="mean file, with --data")
    parser.add_argument("--gpu", default="", help="number of the GPU to train on (default: the CPU)")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS, help="precision of products (default: fp32)")
    options = parser.parse_args()
    device = torch.device("cuda", int(options.gpu)) if options.gpu else torch.device("cpu")
    low = use(options.precision, device)
    net = build(options.net, options.outputs, options.frozen).to(device)
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learned, lr=1e-6, momentum=0.9, weight_decay=0.0005)
    source, loss_of = batches(options, device), nn.CrossEntropyLoss()
    end, runs, loss = 0.0, 0, torch.zeros(())
    while runs < 4 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(options.every):
            images, labels = next(source)
            optimizer.zero_grad()
            with low():
                loss = loss_of(net(images), labels)
            loss.backward()
            optimizer.step()
        loss.item()
        if runs:  # the first run includes initialisation
            print((time.perf_counter() - start) / options.every, flush=True)
        else:
            end = time.perf_counter() + options.seconds
        runs += 1


if __name__ == "__main__":
    main()
