#!/usr/bin/env python3
"""shapes.py: writes shapes.tsv.gz, names and shapes of the tensors of published networks.

Needs torch, torchvision, timm and segmentation_models_pytorch (PyPI). Networks are built without
weights. One line a tensor: network, tensor, shape.
"""
import gzip
import os
import sys

import timm
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "weights"))
import families  # noqa: E402

ENCODERS = ["vgg11", "vgg16_bn", "resnet18", "resnet50", "alexnet", "densenet121", "densenet161",
            "googlenet", "inception_v3", "inception_v3_keras"]
SEGMENTERS = ["unet", "nested-unet", "smp-unet-resnet18", "smp-unet-resnet50", "smp-unet-densenet121",
              "smp-unetplusplus-resnet34", "smp-unetplusplus-densenet121", "smp-deeplabv3-resnet18",
              "deeplabv3_resnet50"]
SWIGLU = dict(mlp_layer=timm.layers.SwiGLUPacked, act_layer=torch.nn.SiLU, init_values=1e-5)
# The arguments of timm.create_model that the publishers give.
TRANSFORMERS = {
    "vit_s16": ("vit_small_patch16_224", {}),
    "vit_s8": ("vit_small_patch8_224", {}),
    "vit_b16": ("vit_base_patch16_224", {}),
    "vit_l16": ("vit_large_patch16_224", {}),
    "vit_l14": ("vit_large_patch14_reg4_dinov2", dict(img_size=224)),
    "vit_h14": ("vit_huge_patch14_224", dict(
        **SWIGLU, mlp_ratio=5.3375, reg_tokens=4, no_embed_class=True)),
    "vit_g14": ("vit_giant_patch14_224", dict(
        **SWIGLU, mlp_ratio=2.66667 * 2, depth=24, num_heads=24, embed_dim=1536, reg_tokens=8,
        no_embed_class=True)),
}


def main():
    lines = []

    def record(network, state):
        for key, tensor in sorted(state.items()):
            if not key.endswith("num_batches_tracked"):
                lines.append(f"{network}\t{key}\t{','.join(map(str, tensor.shape))}\n")

    with torch.device("meta"):
        for name in ENCODERS:
            model = families.encoder_of(name)
            record(name, families.state_of(model))
        for name in SEGMENTERS:
            record(name, families.state_of(families.segmenter_of(name)))
        for name, (arch, arguments) in TRANSFORMERS.items():
            model = timm.create_model(arch, num_classes=0, **arguments)
            record(name, model.state_dict())
    path = os.path.join(HERE, "shapes.tsv.gz")
    with open(path, "wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as out:
        out.write("".join(lines).encode())
    print(f"{len(lines)} tensors, {os.path.getsize(path)} bytes")


if __name__ == "__main__":
    main()
