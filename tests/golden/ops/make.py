"""Writes ops.safetensors: inputs, weights and outputs of PyTorch's own ops.

Needs the PyPI packages torch, numpy and safetensors. Run it in this folder.

Each case is a set of tensors `<case>.<name>` in PyTorch's layouts (NCHW maps, KCRS weights) and an
entry of the file's metadata that says in JSON which op made `<case>.y` and with what arguments.
Inputs and weights are FP16 values held as f32; sums run in f64, so that the outputs are exact to f32.
"""

import json

import numpy as np
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

activations = {"none": lambda x: x, "relu": torch.relu, "tanh": torch.tanh,
               "sigmoid": torch.sigmoid, "gelu": F.gelu, "silu": F.silu}
for act, apply in activations.items():
    x, w, b, r = numbers(6, 10), numbers(8, 10, gain=0.4), numbers(8), numbers(6, 8)
    y = apply(F.linear(x, w, b) + r)
    case(f"linear_{act}", "linear", y, {"act": act}, x=x, w=w, b=b, r=r)

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


# From here on ops of transformers, dense blocks and segmentation networks. The patches of a side
# give with a 1x1 convolution what a convolution of that kernel and stride gives.
pixels = torch.randint(0, 256, (2, 3, 8, 12)).double()
unit = (pixels / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
patches = unit.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 4, 5, 1, 2, 3).reshape(2, 48, 2, 3)
w = numbers(5, 3, 4, 4)
torch.testing.assert_close(F.conv2d(unit, w, stride=4),
                           F.conv2d(patches, w.permute(0, 2, 3, 1).reshape(5, 48, 1, 1)))
case("patches", "patches", patches, {"mean": mean, "std": std, "side": 4}, x=pixels)

# Quarters, so that the activation before the product is exact in FP16.
x, s, b = torch.randint(-9, 9, (2, 6, 4, 5)) / 4, 2.0 ** torch.randint(-1, 3, (6,)), numbers(6)
x, s, b = x.double(), s.double(), (b * 4).round() / 4
w, r = numbers(7, 6, gain=0.4), numbers(2, 7, 4, 5)
y = F.conv2d(F.relu(x * s.view(6, 1, 1) + b.view(6, 1, 1)), w.view(7, 6, 1, 1)) + r
case("preact", "preact_conv1x1", y, x=x, s=s, b=b, w=w, r=r)

# PyTorch keeps weights of transposed convolutions as [C, K, R, S].
for i, (c, k, h, w) in enumerate([(5, 3, 4, 6), (4, 9, 1, 1)]):
    x, w, b = numbers(2, c, h, w), numbers(c, k, 2, 2, gain=0.4), numbers(k)
    y = F.conv_transpose2d(x, w, b, stride=2)
    case(f"transposed{i}", "conv_transpose2d", y, x=x, w=w.transpose(0, 1), b=b)

for act in ("silu", "gelu", "none"):
    x, w, b = numbers(2, 4, 10), numbers(14, 10, gain=0.4), numbers(14)
    gate, value = F.linear(x, w, b).chunk(2, dim=-1)
    case(f"gated_{act}", "gated_linear", activations[act](gate) * value, {"act": act},
         x=x, w=w, b=b)

for act in ("relu", "gelu"):
    x, s, b = numbers(2, 6, 3, 4), numbers(6), numbers(6)
    y = activations[act](x * s.view(6, 1, 1) + b.view(6, 1, 1))
    case(f"affine_{act}", "affine", y, {"act": act}, x=x, s=s, b=b)

for i, (size, window) in enumerate([
    ((9, 7), windows((2, 2), (2, 2))),
    ((8, 9), windows((3, 3), (2, 2))),
    ((8, 9), windows((3, 3), (2, 2), (1, 1))),
    # The last window would start in the far padding, or beyond the map.
    ((5, 7), windows((2, 2), (2, 2), (1, 1))),
    ((4, 6), windows((1, 1), (2, 2))),
]):
    x = numbers(2, 3, *size)
    args = (window["kernel"], window["stride"], window["pad"], window["dilation"])
    y = F.max_pool2d(x, *args, ceil_mode=True)
    case(f"ceil{i}", "max_pool2d", y, {**window, "ceil_mode": True}, x=x)

for i, (size, to) in enumerate([
    ((7, 5), (14, 10)), ((8, 9), (3, 4)), ((7, 9), (16, 13)), ((1, 1), (4, 3)), ((6, 4), (1, 1)),
]):
    x = numbers(2, 3, *size)
    case(f"nearest{i}", "interpolate", F.interpolate(x, size=to, mode="nearest"),
         {"size": to, "mode": "nearest"}, x=x)
    for corners in (False, True):
        y = F.interpolate(x, size=to, mode="bilinear", align_corners=corners)
        args = {"size": to, "mode": "bilinear", "align_corners": corners}
        case(f"bilinear{i}{int(corners)}", "interpolate", y, args, x=x)

for i, (c, groups, bias, shift) in enumerate([(30, 1, True, 0), (24, 3, False, 0), (40, 1, True, 90)]):
    x, w, b = numbers(2, 5, c) + shift, numbers(c // groups), numbers(c // groups)
    x = x.half().double()
    grouped = x.view(2, 5, groups, c // groups)
    y = F.layer_norm(grouped, w.shape, w, b if bias else None, eps=1e-6).reshape(x.shape)
    args = {"eps": 1e-6, "groups": groups}
    case(f"layer_norm{i}", "layer_norm", y, args, x=x, w=w, **({"b": b} if bias else {}))
    y = F.rms_norm(grouped, w.shape, w, eps=1e-5).reshape(x.shape)
    case(f"rms_norm{i}", "rms_norm", y, {"eps": 1e-5, "groups": groups}, x=x, w=w)

# Queries, keys and values side by side, each `heads` runs of d.
def split(x, heads):
    return x.view(*x.shape[:-1], heads, -1).transpose(-2, -3)


for i, (t, heads, d, gain) in enumerate([(1, 2, 4, 1), (19, 3, 6, 1), (40, 2, 16, 2.5)]):
    x = numbers(2, t, 3 * heads * d, gain=gain)
    q, k, v = (split(part, heads) for part in x.chunk(3, dim=-1))
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    case(f"attention{i}", "attention", y, {"heads": heads}, x=x)

for i, (t, heads, d, queries) in enumerate([(7, 2, 6, 1), (12, 3, 5, 4)]):
    x, q = numbers(2, t, 2 * heads * d), numbers(queries, heads * d)
    k, v = (split(part, heads) for part in x.chunk(2, dim=-1))
    y = F.scaled_dot_product_attention(split(q, heads).expand(2, -1, -1, -1), k, v)
    case(f"queries{i}", "attention", y.transpose(1, 2).flatten(2), {"heads": heads}, x=x, q=q)

for i, prefix in enumerate((0, 1, 3)):
    x, position, tokens = numbers(2, 5, 3, 4), numbers(12, 5), numbers(max(prefix, 1), 5)
    y = x.flatten(2).transpose(1, 2) + position
    if prefix:
        y = torch.cat([tokens.expand(2, -1, -1), y], dim=1)
    case(f"embed{i}", "embed", y, x=x, position=position, **({"prefix": tokens} if prefix else {}))

x = numbers(2, 9, 7)
case("tokens0", "token_mean", x[:, :1], {"start": 0, "count": 1}, x=x)
case("tokens1", "token_mean", x[:, 1:].mean(1, keepdim=True), {"start": 1, "count": 8}, x=x)

for i, x in enumerate((numbers(2, 2, 4, 3), numbers(3, 50, gain=5))):
    case(f"softmax{i}", "softmax", torch.softmax(x, dim=1), x=x)

for rows in (1, 2, 33):
    # Few values, so that many are equal.
    x = numbers(rows, 6, gain=0.3).mul(8).round().div(8)
    case(f"mean{rows}", "bag_reduce", x.mean(0, keepdim=True), {"reduce": "mean"}, x=x)
    case(f"largest{rows}", "bag_reduce", x.amax(0, keepdim=True), {"reduce": "max"}, x=x)
    for q in (0.0, 0.25, 0.5, 0.9, 1.0):
        # The fraction as the graph holds it.
        y = torch.from_numpy(np.quantile(x.numpy(), float(np.float32(q)), axis=0, keepdims=True))
        case(f"quantile{rows}_{q}", "bag_reduce", y, {"reduce": "percentile", "q": q}, x=x)

save_file(tensors, "ops.safetensors", metadata)
