#!/usr/bin/env python3
"""make.py: writes gate.safetensors, what tests/gate.rs compares with, into its own folder.

Needs numpy, torch, torchvision and safetensors (PyPI). Two Inception V3 of full depth and an eighth of
the channels classify pictures into two classes; one of one output does the same by a sigmoid. Weights
come from the formula of weights/export.py under the names of ../families/inception_v3_transform.tsv.gz
with the classifier's own name in front.
"""
import os
import sys

import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "weights"))
import export  # noqa: E402
import families  # noqa: E402

SIDE, TILES, WIDTH = 75, 6, 256


def numbers(name, shape):
    return torch.from_numpy(export.formula(name, shape))


def logits(name, outputs, pixels):
    net = families.narrow(families.encoder_of("inception_v3", None, False), 8).eval()
    own, state = net.state_dict(), families.state_of(net)
    for key, tensor in state.items():
        tensor.copy_(numbers(f"{name} {key}", tuple(tensor.shape)))
    net.load_state_dict(own)
    weight = numbers(f"{name} fc.weight", (outputs, WIDTH))
    bias = numbers(f"{name} fc.bias", (outputs,))
    with torch.no_grad():
        return torch.nn.functional.linear(net(pixels), weight, bias).double()


u8 = export.pictures("gate tiles", TILES, SIDE)
pixels = export.normalise(u8)
two = [torch.softmax(logits(name, 2, pixels), 1)[:, 1] for name in ("first", "second")]
contents = {"first": two[0], "second": two[1], "mean": (two[0] + two[1]) / 2,
            "sigmoid": torch.sigmoid(logits("third", 1, pixels))[:, 0]}
for name, p in contents.items():
    print(name, p.tolist())
export.save({name: p.float().numpy() for name, p in contents.items()},
            os.path.join(HERE, "gate.safetensors"))
