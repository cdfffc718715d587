"""Image layers: Convolution, Deconvolution, Im2col, Pooling, SPP, LRN (caffe/layers/conv_layer.cpp and others)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine.kernels import usable
from transfer_caffe.engine.layers.base import Buffer, Layer, Shape, spatial
from transfer_caffe.engine.layers.convolve import Method, channels_last, convolve, convolve_transposed, unfolded
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, LRNParameter
from transfer_caffe.formats.proto.caffe_pb2 import PoolingParameter as Pool
from transfer_caffe.formats.shapes import convolution_blobs, convolution_sides, pooled_side

WAYS = ("native", "halves", "dense", "blocks")
"""How a convolution is computed: by the library's own operation; in groups, as one convolution per group, or as one
without groups whose other weights are zero; with a stride, without one over blocks of pixels (`by_blocks`).
`iteration.ways` chooses on a GPU."""
FEW = 8
"""A GPU's matrix units multiply at least this number of channels at once: with fewer, as in images, most are idle."""


class Convolution(Layer):
    """Convolution with group, pad, stride and dilation over any number of axes. Weights: out, in/group, kernel.

    With several bottoms of the same shape, the same weights are applied to each, one top per bottom.
    """

    bottoms = (1, None)
    tops = (1, None)
    precision = "low"
    functions: ClassVar[dict[int, Callable[..., Tensor]]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
    """PyTorch's operations by number of spatial axes."""
    way = "native"
    """How groups are computed; one of `WAYS`."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.convolution_param, shapes[0]
        self.require_same_shape(shapes)
        if len(self.top) != len(shapes):
            raise self.error(f"needs one top per bottom: {len(shapes)} tops, not {len(self.top)}")
        self.channel_axis = self.axis(param.axis, shape)
        axes = len(shape) - self.channel_axis - 1
        if not param.kernel_size and not param.HasField("kernel_h"):
            raise self.error("convolution_param has no kernel_size")
        self.stride, self.pad = spatial(self, param, "stride", 1, axes), spatial(self, param, "pad", 0, axes)
        self.dilation, self.group = spatial(self, param, "dilation", 1, axes), param.group
        self.kernel = spatial(self, param, "kernel_size", None, axes)
        channels, outputs = shape[self.channel_axis], param.num_output
        if min((1, *self.kernel, *self.stride, *self.dilation)) < 1 or outputs < 1:
            raise self.error("num_output, kernel_size, stride and dilation must be positive")
        if self.group < 1 or channels % self.group or outputs % self.group:
            raise self.error(f"group {self.group} must divide both {channels} channels and num_output {outputs}")
        if min((1, *self.sizes(shape[self.channel_axis + 1 :]))) < 1:
            raise self.error(f"the kernel {list(self.kernel)} is larger than the padded bottom {list(shape)}")
        for blob, filler in zip(self.blob_shapes(channels), (param.weight_filler, param.bias_filler), strict=False):
            self.add_blob(blob, filler)
        windows = math.prod(shape[: self.channel_axis]) * math.prod(self.sizes(shape[self.channel_axis + 1 :]))
        places = (self.stride, self.pad, self.dilation, self.group)
        self.method = Method(self.blobs[0].data.shape, windows, *places) if axes == 2 else None
        """How two axes are convolved on a CPU."""

    def sizes(self, sides: Shape) -> list[int]:
        """Return the spatial sizes of the tops."""
        return convolution_sides(sides, self.kernel, self.stride, self.pad, self.dilation)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        axis, outputs = self.channel_axis, self.param.convolution_param.num_output
        return [(*shape[:axis], outputs, *self.sizes(shape[axis + 1 :])) for shape in shapes]

    def blob_shapes(self, channels: int) -> tuple[Shape, ...]:
        """Return the shapes of weights and bias."""
        return convolution_blobs(self.param.convolution_param, channels, self.kernel)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [self.over_images(bottom) for bottom in bottoms]

    @property
    def bias_can_wait(self) -> bool:
        """Whether there is one top with a bias of its channels, which a pooling of images could add."""
        return len(self.blobs) == 2 and len(self.top) == 1 and self.channel_axis == 1 and len(self.kernel) == 2

    def without_bias(self, bottoms: list[Tensor]) -> list[Tensor]:
        """Return the tops without the bias."""
        return [self.over_images(bottom, bias=False) for bottom in bottoms]

    def over_images(self, bottom: Tensor, bias: bool = True) -> Tensor:
        """Convolve one bottom; like Caffe, treat all axes before ``axis`` as the batch."""
        images = bottom if self.channel_axis == 1 else bottom.reshape(-1, *bottom.shape[self.channel_axis :])
        weight, *added = (blob.in_type(images.dtype) for blob in self.blobs[: 2 if bias else 1])
        top = self.convolve(images, weight, added[0] if added else None)
        return top if self.channel_axis == 1 else top.reshape(*bottom.shape[: self.channel_axis], *top.shape[1:])

    def convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve (num, channels, spatial axes) to (num, num_output, spatial axes)."""
        if self.method and self.method.special and images.device.type == "cpu" and images.dtype == torch.float32:
            return self.method.apply(images, weight, bias)
        if images.ndim == 4:
            # from here on use the channels-last memory format: pooling then takes a third of the time
            images = channels_last(images)
        function = self.functions.get(len(self.kernel), convolve)
        settings = (self.stride, self.pad, self.dilation)
        if self.way == "halves":
            pairs = zip(images.chunk(self.group, 1), weight.chunk(self.group), strict=True)
            biases = [None] * self.group if bias is None else bias.chunk(self.group)
            parts = [function(x, w, b, *settings) for (x, w), b in zip(pairs, biases, strict=True)]
            return torch.cat(parts, 1)
        if self.way == "dense":
            return function(images, block_diagonal(weight, self.group), bias, *settings)
        if self.way == "blocks":
            return by_blocks(images, weight, bias, self.stride, self.pad)
        return function(images, weight, bias, *settings, self.group)

    @property
    def ways(self) -> tuple[str, ...]:
        """The `WAYS` in which this convolution can be computed, native first; there are several for images only."""
        if type(self) is not Convolution or len(self.kernel) != 2:
            return WAYS[:1]
        if self.group > 1:
            return WAYS[:3]
        few = self.blobs[0].data.shape[1] < FEW and self.dilation == (1, 1)
        return ("native", "blocks") if few and max(self.stride) > 1 else WAYS[:1]


def by_blocks(
    images: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad: Sequence[int]
) -> Tensor:  # fmt: skip
    """Convolve with a stride by a convolution without one: each block of stride x stride pixels becomes one pixel.

    The pixels of a block are channels then (space to depth), and the kernel, filled up with zeros to whole blocks, is
    rearranged alike: for a CaffeNet's conv1, 11 x 11 over 3 channels with stride 4 becomes 3 x 3 over 48 channels. The
    results are the same up to rounding.
    """
    (batch, channels, *sides), (filters, _, *kernel) = images.shape, weight.shape
    spans = [-(-k // s) for k, s in zip(kernel, stride, strict=True)]  # of the kernel, in blocks
    tops = [(side + 2 * p - k) // s + 1 for side, k, s, p in zip(sides, kernel, stride, pad, strict=True)]
    rows, columns = (top + span - 1 for top, span in zip(tops, spans, strict=True))
    # pixels that no window reaches are cut off
    ends = [count * s - side - p for count, s, side, p in zip((rows, columns), stride, sides, pad, strict=True)]
    x = F.pad(images, (pad[1], ends[1], pad[0], ends[0])).permute(0, 2, 3, 1)
    x = x.reshape(batch, rows, stride[0], columns, stride[1], channels).permute(0, 1, 3, 2, 4, 5)
    x = x.reshape(batch, rows, columns, stride[0] * stride[1] * channels).permute(0, 3, 1, 2)
    more = [span * s - k for span, s, k in zip(spans, stride, kernel, strict=True)]
    w = F.pad(weight, (0, more[1], 0, more[0])).reshape(filters, channels, spans[0], stride[0], spans[1], stride[1])
    w = w.permute(0, 3, 5, 1, 2, 4).reshape(filters, -1, *spans)
    return F.conv2d(x, w.contiguous(memory_format=torch.channels_last), bias)


def block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """Return the weights (out, in, kernel) of a convolution without groups that equals one with ``groups``."""
    rows = []
    for index, part in enumerate(weight.chunk(groups)):
        before, after = index * part.shape[1], (groups - 1 - index) * part.shape[1]
        rows.append(F.pad(part, (0, 0, 0, 0, before, after)))
    return torch.cat(rows)


class Deconvolution(Convolution):
    """Transposed convolution: its forward pass is Convolution's backward pass. Weights: in, out/group, kernel."""

    functions: ClassVar[dict[int, Callable[..., Tensor]]] = {
        1: F.conv_transpose1d,
        2: F.conv_transpose2d,
        3: F.conv_transpose3d,
    }

    def sizes(self, sides: Shape) -> list[int]:
        zipped = zip(sides, self.kernel, self.stride, self.pad, self.dilation, strict=True)
        return [stride * (size - 1) + dilation * (k - 1) + 1 - 2 * pad for size, k, stride, pad, dilation in zipped]

    def blob_shapes(self, channels: int) -> tuple[Shape, ...]:
        param = self.param.convolution_param
        weights = (channels, param.num_output // self.group, *self.kernel)
        return (weights, (param.num_output,)) if param.bias_term else (weights,)

    def convolve(self, images: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        function = self.functions.get(len(self.kernel))
        if function is None:
            return convolve_transposed(images, weight, bias, self.stride, self.pad, self.dilation, self.group)
        return function(images, weight, bias, self.stride, self.pad, 0, self.group, self.dilation)


class Im2col(Layer):
    """The windows of a convolution as channels (caffe/layers/im2col_layer.cpp): channels x places of the kernel."""

    precision = "given"

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.convolution_param, shapes[0]
        self.channel_axis = self.axis(param.axis, shape)
        axes = len(shape) - self.channel_axis - 1
        if not param.kernel_size and not param.HasField("kernel_h"):
            raise self.error("convolution_param has no kernel_size")
        self.stride, self.pad = spatial(self, param, "stride", 1, axes), spatial(self, param, "pad", 0, axes)
        self.dilation, self.kernel = (
            spatial(self, param, "dilation", 1, axes),
            spatial(self, param, "kernel_size", None, axes),
        )
        if min((1, *self.kernel, *self.stride, *self.dilation)) < 1:
            raise self.error("kernel_size, stride and dilation must be positive")
        sides = shape[self.channel_axis + 1 :]
        self.sizes = convolution_sides(sides, self.kernel, self.stride, self.pad, self.dilation)
        if min((1, *self.sizes)) < 1:
            raise self.error(f"the kernel {list(self.kernel)} is larger than the padded bottom {list(shape)}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        axis = self.channel_axis
        return [(*shapes[0][:axis], shapes[0][axis] * math.prod(self.kernel), *self.sizes)]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        images = bottoms[0].reshape(-1, *bottoms[0].shape[self.channel_axis :])
        top = unfolded(images, self.kernel, self.stride, self.pad, self.dilation)
        return [top.reshape(self.top_shapes([tuple(bottoms[0].shape)])[0])]


class Pooling(Layer):
    """MAX and AVE pooling (caffe/layers/pooling_layer.cpp).

    Output sizes round up, and a window that would start beyond the image, in the padding, is dropped. AVE divides by
    the size of the window clipped to the padded image. PyTorch's ceil_mode follows the same rules. A second top of MAX
    holds the index of each maximum within its channel's plane. MAX ignores NaN; a window without any number gives
    -FLT_MAX.
    """

    tops = (1, 2)
    precision = "given"
    relu_postponed = False
    """Whether the net applies a ReLU of the bottom to the top instead (`passes.relus_to_postpone`)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.pooling_param, shapes[0]
        if len(shape) != 4:
            raise self.error(f"needs a bottom of 4 axes (num, channels, height, width), not {list(shape)}")
        if param.pool not in (Pool.MAX, Pool.AVE):
            raise self.error("only MAX and AVE pooling are supported, not STOCHASTIC")
        if len(self.top) > 1 and param.pool != Pool.MAX:
            raise self.error("a second top, the indices of the maxima, is supported for MAX pooling only")
        self.kernel = shape[2:] if param.global_pooling else spatial(self, param, "kernel_size", None)
        self.stride, self.pad = spatial(self, param, "stride", 1), spatial(self, param, "pad", 0)
        if param.global_pooling:
            if any(param.HasField(name) for name in ("kernel_size", "kernel_h", "kernel_w")):
                raise self.error("give kernel_size or global_pooling, not both")
            if self.pad != (0, 0) or self.stride != (1, 1):
                raise self.error("with global_pooling, pad must be 0 and stride 1")
        if min(*self.kernel, *self.stride) < 1:
            raise self.error("kernel_size and stride must be positive (or set global_pooling)")
        if any(pad >= k for pad, k in zip(self.pad, self.kernel, strict=True)):
            raise self.error(f"pad {list(self.pad)} must be smaller than the kernel {list(self.kernel)}")
        self.ceil = param.round_mode == Pool.CEIL
        sides = list(zip(shape[2:], self.kernel, self.stride, self.pad, strict=True))
        self.size = [pooled_side(*side, self.ceil, any(self.pad)) for side in sides]
        if min(self.size) < 1:
            raise self.error(f"the kernel {list(self.kernel)} is larger than the padded bottom {list(shape)}")
        # PyTorch also drops a last window outside the image without padding, and allows pad up to half the kernel only
        self.native = all(2 * pad <= k for pad, k in zip(self.pad, self.kernel, strict=True)) and self.size == [
            pooled_side(*side, self.ceil, True) for side in sides
        ]

    @property
    def is_plain_maximum(self) -> bool:
        """Whether this is MAX pooling without indices that PyTorch's operation supports."""
        return self.native and len(self.top) == 1 and self.param.pooling_param.pool == Pool.MAX

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][:2], *self.size)] * len(self.top)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x, param = bottoms[0], self.param.pooling_param
        if self.native and param.pool == Pool.AVE:
            return [F.avg_pool2d(x, self.kernel, self.stride, self.pad, ceil_mode=self.ceil)]
        if self.is_plain_maximum:
            settings = self.kernel, self.stride, self.pad, 1, self.ceil
            top = F.max_pool2d(x, *settings)
            if self.lacks_numbers(top):
                top = self.without_nan(F.max_pool2d(self.numbers(x), *settings))
            return [top]
        # pad explicitly, at the end as much as the last window needs
        ends = [
            (n - 1) * s + k - p - side
            for n, s, k, p, side in zip(self.size, self.stride, self.kernel, self.pad, x.shape[2:], strict=True)
        ]
        edges = (self.pad[1], max(ends[1], 0), self.pad[0], max(ends[0], 0))
        x = x[:, :, : x.shape[2] + min(ends[0], 0), : x.shape[3] + min(ends[1], 0)]
        if param.pool == Pool.AVE:
            sums = F.avg_pool2d(F.pad(x, edges), self.kernel, self.stride, divisor_override=1)
            return [sums / self._areas(bottoms[0])]
        x = F.pad(x, edges, value=-torch.finfo(x.dtype).max)
        top, places = F.max_pool2d(x, self.kernel, self.stride, return_indices=True)
        if self.lacks_numbers(top):
            top, places = F.max_pool2d(self.numbers(x), self.kernel, self.stride, return_indices=True)
            top = self.without_nan(top)
        rows, columns = places // x.shape[3] - self.pad[0], places % x.shape[3] - self.pad[1]
        height, width = bottoms[0].shape[2:]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        inside &= top.detach() > -torch.finfo(x.dtype).max
        return [top, torch.where(inside, rows * width + columns, -1).to(torch.float32)][: len(self.top)]

    @staticmethod
    def lacks_numbers(top: Tensor) -> bool:
        """Return whether the maxima that PyTorch has found may differ from Caffe's, because of NaN or -inf.

        Caffe's maximum starts at -FLT_MAX and takes what is larger, which NaN never is; PyTorch passes NaN on. Only the
        top is read (0.3% of the demo's training). On a GPU the host would wait for it, so there NaN is passed on.
        """
        return top.device.type == "cpu" and not math.isfinite(float(top.detach().sum()))

    @staticmethod
    def numbers(x: Tensor) -> Tensor:
        """Return the bottom with the least number instead of NaN and -inf, which get no gradient."""
        least = -torch.finfo(x.dtype).max
        return torch.where(x > least, x, least)

    def without_nan(self, top: Tensor) -> Tensor:
        """Return the maxima of `numbers`. A postponed ReLU would change the least number to 0: then it becomes NaN."""
        return torch.where(top > -torch.finfo(top.dtype).max, top, math.nan) if self.relu_postponed else top

    @property
    def can_be_fused(self) -> bool:
        """Whether `fused` can compute this layer: a plain maximum of a small window.

        The kernels' loops over a window are unrolled: for 15 x 15 they take minutes to compile. A byte numbers the
        places of a window.
        """
        return self.is_plain_maximum and math.prod(self.kernel) <= 25

    def fused(
        self, function: Any, x: Tensor, bias: Tensor | None, relu: bool,
        norm: tuple[int, float, float, float] | None = None,
    ) -> Tensor:  # fmt: skip
        """Return relu(pool(x + bias)), then normalised if there are ``norm``, settings of an LRN.

        ``function``, which `fused_pool` returns, computes it.
        """
        windows = (tuple(self.kernel), tuple(self.stride), tuple(self.pad), tuple(self.size))
        return _fused(function, x, bias, windows, relu, norm)

    def _areas(self, x: Tensor) -> Tensor:
        """Return the area of each window, clipped to the padded image; the shape is (height, width)."""
        sides = []
        for n, stride, kernel, pad, side in zip(
            self.size, self.stride, self.kernel, self.pad, x.shape[2:], strict=True
        ):
            starts = torch.arange(n, device=x.device) * stride - pad
            sides.append((starts + kernel).clamp(max=side + pad) - starts)
        return (sides[0][:, None] * sides[1][None, :]).to(x.dtype)


class SPP(Layer):
    """Spatial pyramid pooling (caffe/layers/spp_layer.cpp): level i pools each channel into 2^i x 2^i windows.

    The top is (num, windows of all levels and channels), or, with one level only, (num, channels, 1, 1).
    """

    precision = "given"

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.spp_param, shapes[0]
        if len(shape) != 4:
            raise self.error(f"needs a bottom of 4 axes (num, channels, height, width), not {list(shape)}")
        if param.pyramid_height < 1:
            raise self.error("spp_param has no pyramid_height")
        self.levels = [self._level(2**level, shape[2:]) for level in range(param.pyramid_height)]
        for level in self.levels:
            level.setup(shapes)

    def _level(self, bins: int, sides: Shape) -> Pooling:
        layer = LayerParameter(name=self.name, type=self.type, bottom=self.param.bottom, top=self.param.top)
        param = layer.pooling_param
        param.pool = self.param.spp_param.pool  # pyright: ignore[reportAttributeAccessIssue] - the same values
        param.kernel_h, param.kernel_w = param.stride_h, param.stride_w = [-(-side // bins) for side in sides]
        rest = [kernel * bins - side for kernel, side in zip((param.kernel_h, param.kernel_w), sides, strict=True)]
        param.pad_h, param.pad_w = ((each + 1) // 2 for each in rest)
        return Pooling(layer, self.context)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        num, channels = shapes[0][:2]
        if len(self.levels) == 1:
            return [(num, channels, 1, 1)]
        return [(num, channels * sum(math.prod(level.size) for level in self.levels))]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        pooled = [level.forward(bottoms, batch)[0] for level in self.levels]
        return pooled if len(pooled) == 1 else [torch.cat([each.flatten(1) for each in pooled], 1)]


class _LRNAcrossChannels(torch.autograd.Function):
    """y = x * scale^-beta, scale = k + alpha / size * (sum of x^2 over size neighbouring channels); see lrn_layer.cpp.

    Computed in float32, whatever the type of x.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float, buffer: Buffer | None) -> Tensor:
        values = x.float()
        scale, power = lrn_scale(values, size, alpha, beta, k)
        ctx.save_for_backward(x, scale, power)
        ctx.settings, ctx.buffer = (size, alpha, beta), buffer
        return (values * power).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, power = ctx.saved_tensors
        top = None if ctx.buffer is None else ctx.buffer.content
        size, alpha, beta = ctx.settings
        below = lrn_gradient(grad_outputs[0].float(), x.float(), scale, power, size, alpha, beta, top)
        return below.to(x.dtype), None, None, None, None, None


def lrn_scale(x: Tensor, size: int, alpha: float, beta: float, k: float) -> tuple[Tensor, Tensor]:
    """Return the scale of LRN across channels and scale^-beta, the factor of x; all are float32 of the same shape."""
    scale = _channel_sums(x * x, size, alpha / size, k)
    return scale, _negative_power(scale, beta)


def lrn_gradient(
    gradient: Tensor, x: Tensor, scale: Tensor, power: Tensor, size: int, alpha: float, beta: float,
    top: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Return the gradient of LRN's bottom x; ``top`` is the top's buffer if an in-place layer has overwritten it."""
    weighted = gradient * power
    # Caffe computes gradient * top, which differs from gradient * x * power if the top was overwritten
    by_top = weighted * x if top is None else gradient * top
    sums = _channel_sums(by_top.div_(scale), size, 2 * alpha * beta / size)
    return weighted.addcmul_(sums, x, value=-1)


FEW_CHANNELS = 32
"""Up to this number of channels, sums over channels are faster as a matrix product than as shifted sums: LRN takes 0.61
and 0.88 times as long with 16 and 32 channels, but 1.15 times as long with 64."""


def _channel_sums(x: Tensor, size: int, factor: float, constant: float = 0.0) -> Tensor:
    """Return ``constant`` + ``factor`` * the sum over the ``size`` channels around each channel (size is odd)."""
    count, reach = x.shape[1], size // 2
    if count <= FEW_CHANNELS:
        band = _band(count, reach, factor, x.device)
        rows = x.permute(0, 2, 3, 1)  # usually the memory layout already
        sums = torch.addmm(x.new_full((1,), constant), rows.reshape(-1, count), band) if constant else rows @ band
        return sums.reshape(rows.shape).permute(0, 3, 1, 2)
    sums = x.clone()
    for shift in range(1, min(reach, count - 1) + 1):
        sums[:, shift:] += x[:, :-shift]
        sums[:, :-shift] += x[:, shift:]
    sums.mul_(factor)
    return sums.add_(constant) if constant else sums


@functools.cache  # a CUDA graph may still read an older one
def _band(count: int, reach: int, factor: float, device: torch.device) -> Tensor:
    """Return a (count, count) band matrix: ``factor`` up to ``reach`` from the diagonal, 0 elsewhere.

    It is cached; callers must not modify it.
    """
    places = torch.arange(count, device=device)
    return ((places[:, None] - places).abs() <= reach).float().mul_(factor)


def _negative_power(x: Tensor, beta: float) -> Tensor:
    if beta != 0.75:
        return x.pow(-beta)
    root = x.rsqrt()  # much faster than pow() for 0.75, which every CaffeNet uses
    return root.sqrt().mul_(root)


@functools.lru_cache(maxsize=1)
def _fused_lrn() -> type[torch.autograd.Function] | None:
    """Return the Triton implementation for GPUs; None if it cannot be used."""

    def probe() -> type[torch.autograd.Function]:
        from transfer_caffe.engine.layers.lrn_triton import FusedLRN

        one = torch.ones(1, 1, 1, 1, device="cuda", requires_grad=True)
        FusedLRN.apply(one, 1, 1.0, 0.75, 1.0, None).sum().backward()
        return FusedLRN

    return usable("lrn_layer.cpp:0", "LRN runs without its Triton kernels", probe)


@functools.lru_cache(maxsize=1)
def fused_pool() -> type[torch.autograd.Function] | None:
    """Return bias, MAX pooling, ReLU and LRN as Triton kernels; None if they cannot be used."""

    def probe() -> type[torch.autograd.Function]:
        from transfer_caffe.engine.layers.pool_triton import FusedPool

        one, bias = (torch.ones(shape, device="cuda", requires_grad=True) for shape in ((1, 1, 1, 1), (1,)))
        windows = ((1, 1), (1, 1), (0, 0), (1, 1))
        for norm in (None, (5, 1e-4, 0.75, 1.0)):
            FusedPool.apply(one, bias, *windows, True, norm, True).sum().backward()
        return FusedPool

    return usable("pooling_layer.cpp:0", "Pooling runs without its Triton kernels", probe)


def rectified(function: Any, x: Tensor, bias: Tensor) -> Tensor:
    """Return relu(x + bias), computed by ``function``, which `fused_pool` returns."""
    return _fused(function, x, bias, ((1, 1), (1, 1), (0, 0), tuple(x.shape[2:])), True, None)


def _fused(
    function: Any, x: Tensor, bias: Tensor | None, windows: tuple[tuple[int, ...], ...], relu: bool,
    norm: tuple[int, float, float, float] | None,
) -> Tensor:  # fmt: skip
    keep = torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad))
    return function.apply(x, bias, *windows, relu, norm, keep)


MOST_JOINED = 1024
"""The largest number of channels of an LRN that `pool_triton` computes with the pooling."""


class LRN(Layer):
    """Local response normalisation (caffe/layers/lrn_layer.cpp); alpha is divided by local_size."""

    precision = "given"

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.lrn_param
        if len(shapes[0]) != 4:
            raise self.error(f"needs a bottom of 4 axes (num, channels, height, width), not {list(shapes[0])}")
        if param.local_size % 2 == 0:
            raise self.error(f"local_size must be odd, not {param.local_size}")
        self.channels = shapes[0][1]
        self.ignores_propagate_down = param.norm_region == LRNParameter.ACROSS_CHANNELS

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shapes[0]]

    @property
    def can_be_joined(self) -> bool:
        """Whether a pooling before it can compute it, too: across channels, few enough for one block of a kernel."""
        return self.param.lrn_param.norm_region == LRNParameter.ACROSS_CHANNELS and self.channels <= MOST_JOINED

    @property
    def settings(self) -> tuple[int, float, float, float]:
        """The size, alpha, beta and k of LRN across channels."""
        param = self.param.lrn_param
        return param.local_size, param.alpha, param.beta, param.k

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param, x = self.param.lrn_param, bottoms[0]
        if param.norm_region == LRNParameter.ACROSS_CHANNELS:
            function = (_fused_lrn() if x.is_cuda else None) or _LRNAcrossChannels
            y = function.apply(x, *self.settings, self.buffer)
            assert isinstance(y, Tensor)
            return [y]
        # within a channel Caffe averages x^2 over a padded square (thus dividing alpha by its area), and k is 1
        values = x.float()
        mean = F.avg_pool2d(values * values, param.local_size, 1, param.local_size // 2)
        return [(values * (1 + param.alpha * mean).pow(-param.beta)).to(x.dtype)]


LAYERS = (Convolution, Deconvolution, Im2col, Pooling, SPP, LRN)
