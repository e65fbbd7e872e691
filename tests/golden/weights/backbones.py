#!/usr/bin/env python3
"""backbones.py: writes balnmp-backbones.tsv.gz, what tests/weights.rs imports, into its own folder.

Needs torch, torchvision and numpy (PyPI). Lines of `backbone<TAB>key<TAB>shape<TAB>D`: the state dict of
BALNMP's image_feature_extractor for each backbone that its authors select, a sixteenth of the channels,
and the width of its features on pictures of 224 px.
"""
import gzip
import os
import sys

import torch
import torchvision
from torch import nn

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "weights"))
import families  # noqa: E402

BACKBONES = """vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn resnet18 resnet34 resnet50 resnet101
resnet152 densenet121 densenet161 densenet169 densenet201 googlenet inception_v3 alexnet""".split()


def extractor(name):
    """All children but the last, in order; the Inceptions keep their names and lose what classifies."""
    if name in ("googlenet", "inception_v3"):
        net = getattr(torchvision.models, name)(weights=None, aux_logits=False, init_weights=False)
        net.fc = nn.Identity()
        return net
    return nn.Sequential(*list(getattr(torchvision.models, name)(weights=None).children())[:-1])


lines = []
for name in BACKBONES:
    holder = nn.Module()
    holder.extractor = families.narrow(extractor(name), 16).eval()
    with torch.no_grad():
        width = holder.extractor(torch.zeros(1, 3, 224, 224)).flatten(1).shape[1]
    for key, value in holder.state_dict().items():
        if not key.endswith("num_batches_tracked"):
            shape = ",".join(map(str, value.shape))
            lines.append(f"{name}\timage_feature_extractor.{key}\t{shape}\t{width}\n")
    print(name, width, flush=True)
with open(os.path.join(HERE, "balnmp-backbones.tsv.gz"), "wb") as f:
    f.write(gzip.compress("".join(lines).encode(), 9, mtime=0))
