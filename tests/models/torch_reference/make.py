"""Makes reference.npz: what PyTorch answers for each pair in cases.json.

python3 -m venv venv && venv/bin/pip install torch==2.13.0 numpy
venv/bin/python tests/models/torch_reference/make.py
"""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).parent


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class SelfAttention(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.attention = attention

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class BasicBlock(nn.Module):
    """The block of torchvision's residual networks, with its names."""

    def __init__(self, size_in, size_out):
        super().__init__()
        self.conv1 = nn.Conv2d(size_in, size_out, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(size_out)
        self.conv2 = nn.Conv2d(size_out, size_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(size_out)
        self.downsample = nn.Sequential(
            nn.Conv2d(size_in, size_out, 1, stride=2, bias=False), nn.BatchNorm2d(size_out)
        )

    def forward(self, x):
        inner = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))


class FNN(nn.Module):
    """Dense layers in a list, as DeepXDE keeps them."""

    def __init__(self, sizes, last):
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.last = last

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = torch.tanh(linear(x))
        return self.last(self.linears[-1](x))


class DeepONet(nn.Module):
    def __init__(self, branch, trunk):
        super().__init__()
        self.branch, self.trunk = FNN(branch, nn.Identity()), FNN(trunk, torch.tanh)
        self.bias = nn.Parameter(torch.tensor(0.0))

    def forward(self, sensors, y):
        return (self.branch(sensors) * self.trunk(y)).sum(-1) + self.bias


def reference(case, number):
    """Arrays by name: the state dict, inputs, and answers with the gradients of sum(sin(answer))."""
    torch.manual_seed(number)
    module = eval(case["torch"], {**globals()}).double().eval()
    with torch.no_grad():
        for leaf in (*module.parameters(), *module.buffers()):
            if leaf.is_floating_point():  # also what begins as zeros or ones
                leaf.add_(0.2 * torch.rand_like(leaf))
    if "tokens" in case:
        inputs = [torch.randint(case["tokens"], shape) for shape in case["inputs"]]
    else:
        inputs = [torch.randn(shape, requires_grad=True) for shape in case["inputs"]]
    prefix = case.get("prefix", "")
    arrays = {f"state_dict/{prefix}{name}": leaf.clone() for name, leaf in module.state_dict().items()}
    arrays |= {f"input/{place}": x for place, x in enumerate(inputs)}
    for mode in ("eval", "train")[: 1 + case.get("train", False)]:
        module.train(mode == "train")
        y = module(*inputs)
        arrays[f"{mode}/output"] = y
        wrt = {f"input/{place}": x for place, x in enumerate(inputs) if x.requires_grad}
        wrt |= {f"params/{prefix}{name}": leaf for name, leaf in module.named_parameters()}
        gradients = torch.autograd.grad(torch.sin(y).sum(), list(wrt.values()))
        arrays |= {f"{mode}/gradient/{name}": leaf for name, leaf in zip(wrt, gradients, strict=True)}
    if case.get("train"):
        arrays |= {f"train/state/{prefix}{name}": leaf for name, leaf in module.named_buffers()}
    return {name: array.detach().numpy() for name, array in arrays.items()}


torch.set_default_dtype(torch.float64)
cases = json.loads((HERE / "cases.json").read_text())
np.savez_compressed(
    HERE / "reference.npz",
    **{
        f"{name}/{key}": array
        for number, (name, case) in enumerate(cases.items())
        for key, array in reference(case, number).items()
    },
)
