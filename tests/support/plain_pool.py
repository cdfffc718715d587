"""A stand-in for the GPU's pooling kernel on machines without a GPU."""

import torch
import torch.nn.functional as F

from transfer_caffe.engine.layers import vision


class PlainPool(torch.autograd.Function):
    """What `FusedPool` computes, by PyTorch's operations."""

    @staticmethod
    def apply(x, bias, kernel, stride, pad, size, relu, norm, keep):
        # in this order as in the kernel: rounding x + bias makes other maxima equal, and then another element gets the
        # gradient (in bf16, 2,715 of 4.6 million)
        y = F.max_pool2d(x, kernel, stride, pad, ceil_mode=True)
        y = y if bias is None else y + bias[None, :, None, None]
        y = y.relu() if relu else y
        return vision._LRNAcrossChannels.apply(y, *norm, None) if norm else y
