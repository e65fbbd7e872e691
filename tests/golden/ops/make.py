"""Writes ops.safetensors: inputs, weights and outputs of PyTorch's own ops.

Needs the PyPI packages torch, numpy and safetensors. Run it in this folder.

Each case is a set of tensors `<case>.<name>` in PyTorch's layouts (NCHW maps, KCRS weights) and an
entry of the file's metadata that says in JSON which op made `<case>.y` and with what arguments.
Inputs and weights are FP16 values held as f32; sums run in f64, so that the outputs are exact to f32.
"""

import json

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

torch.manual_seed(20)
tensors, metadata = {}, {}


def numbers(*shape, gain=1.0):
    return (torch.randn(*shape) * gain).half().double()


def case(name, op, y, args=None, **inputs):
    for key, value in {**inputs, "y": y}.items():
        tensors[f"{name}.{key}"] = value.float().contiguous()
    metadata[name] = json.dumps({"op": op, **(args or {})})


def windows(kernel, stride=(1, 1), pad=(0, 0), dilation=(1, 1)):
    return {"kernel": kernel, "stride": stride, "pad": pad, "dilation": dilation}


for i, (shape, k, window) in enumerate([
    ((2, 5, 9, 8), 7, windows((3, 3), (2, 2), (1, 1))),
    ((2, 4, 9, 11), 3, windows((3, 3), (1, 1), (2, 2), (2, 2))),
    ((1, 3, 7, 9), 5, windows((1, 7), (1, 1), (0, 3))),
    ((1, 3, 15, 14), 4, windows((7, 7), (2, 2), (3, 3))),
    ((1, 2, 10, 13), 3, windows((5, 3), (2, 3), (1, 0), (1, 2))),
]):
    x, w, b = numbers(*shape), numbers(k, shape[1], *window["kernel"], gain=0.3), numbers(k)
    y = F.conv2d(x, w, b, window["stride"], window["pad"], window["dilation"])
    case(f"conv{i}", "conv2d", y, window, x=x, w=w, b=b)

for i, window in enumerate([
    windows((3, 3), (2, 2), (1, 1)),
    windows((2, 2), (2, 2)),
    windows((3, 2), (1, 2), (1, 1), (2, 2)),
]):
    x = numbers(2, 3, 9, 10)
    args = (window["kernel"], window["stride"], window["pad"])
    case(f"max{i}", "max_pool2d", F.max_pool2d(x, *args, window["dilation"]), window, x=x)
    if window["dilation"] == (1, 1):
        for count in (False, True):
            y = F.avg_pool2d(x, *args, count_include_pad=count)
            case(f"avg{i}{int(count)}", "avg_pool2d", y, {**window, "count_include_pad": count}, x=x)

for i, size in enumerate([(1, 1), (3, 5), (7, 7), (12, 17)]):
    x = numbers(2, 3, 10, 13)
    case(f"adaptive{i}", "adaptive_avg_pool2d", F.adaptive_avg_pool2d(x, size), {"size": size}, x=x)

x, w, b = (numbers(3, 4, 5, 6) * 2 + 1).half().double(), numbers(4), numbers(4)
y = F.batch_norm(x, None, None, w, b, training=True, eps=1e-3)
case("norm", "batch_norm", y, {"eps": 1e-3}, x=x, w=w, b=b)

x = numbers(2, 3, 4, 5)
case("flatten", "flatten", torch.flatten(x, 1), x=x)

for act in ("none", "relu", "tanh", "sigmoid"):
    x, w, b, r = numbers(6, 10), numbers(8, 10, gain=0.4), numbers(8), numbers(6, 8)
    y = F.linear(x, w, b) + r
    case(f"linear_{act}", "linear", y if act == "none" else getattr(torch, act)(y), {"act": act},
         x=x, w=w, b=b, r=r)

# Gated attention over a bag of 20, two branches, one classifier for each.
h, v, bv, u, bu, w, bw = (numbers(20, 12), numbers(7, 12), numbers(7), numbers(7, 12), numbers(7),
                          numbers(2, 7), numbers(2))
scores = F.linear(torch.tanh(F.linear(h, v, bv)) * torch.sigmoid(F.linear(h, u, bu)), w, bw)
case("score", "attention_score", scores, x=h, v=v, bv=bv, u=u, bu=bu, w=w, bw=bw)
logits = numbers(20, 2, gain=3)
bag = torch.softmax(logits.T, dim=1) @ h
case("pool", "attention_pool", bag, x=logits, values=h)
bag, w, b = numbers(2, 12), numbers(2, 12), numbers(2)
case("row_dot", "row_dot", (bag * w).sum(1, keepdim=True).T + b, x=bag, w=w, b=b)

pixels = torch.randint(0, 256, (2, 3, 5, 4)).double()
mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
unit = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
case("normalize", "normalize", unit, {"mean": mean, "std": std}, x=pixels)

save_file(tensors, "ops.safetensors", metadata)
