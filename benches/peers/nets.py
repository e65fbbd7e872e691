"""nets.py: the networks that are compared, as PyTorch modules, as packages and as ONNX.

Needs what requirements.txt lists. Weights are random from a seed, batch norm is calibrated on
pictures, and matrices are rounded to FP16, which is what a package holds: everyone computes the same
function.
"""
import json
import os
import shutil
import sys

import numpy as np
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "weights"))
import export  # noqa: E402
import families  # noqa: E402

# Side of the pictures.
SIDES = {"vgg16_bn": 224, "resnet50": 224, "densenet121": 224, "unet": 256, "vit_s16": 224,
         "vit_b16": 224, "resnet18": 224, "inception_v3": 299, "vit_l16": 224}
VITS = {"vit_s16": ("vit_small_patch16_224", 6), "vit_b16": ("vit_base_patch16_224", 12),
        "vit_l16": ("vit_large_patch16_224", 16)}


def build(name):
    torch.manual_seed(1)
    if name in VITS:
        import timm
        model = timm.create_model(VITS[name][0], pretrained=False, num_classes=0)
        with torch.no_grad():
            for key, p in model.named_parameters():
                if "norm" in key and key.endswith("weight"):
                    p.uniform_(0.5, 1.5)
    elif families.is_segmenter(name):
        model = families.segmenter_of(name)
    else:
        model = families.encoder_of(name)
    export.calibrate(model, export.pictures("calibration", 4, SIDES[name]))
    for p in model.parameters():
        p.requires_grad_(False)
        if p.ndim >= 2:
            p.data = p.data.half().float()
    return model.eval()


def pictures(name, count):
    """[count, side, side, 3] u8."""
    return export.pictures("peers", count, SIDES[name])


def write_package(model, name, folder):
    if name in VITS:
        temporary = folder + ".new"
        shutil.rmtree(temporary, ignore_errors=True)
        os.makedirs(temporary)
        export.save(export.arrays_of(model), os.path.join(temporary, "encoder.safetensors"))
        more = f'\n[encoder.vit]\nheads = {VITS[name][1]}\npool = "class"\n'
        with open(os.path.join(temporary, "recipe.toml"), "w") as f:
            f.write(export.RECIPE.format(
                name=name, model=name, family="vit", more=more, licence="CC0-1.0",
                source="random weights", side=SIDES[name], mpp=0.5,
                normalisation=export.NORMALISATION))
        os.rename(temporary, folder)
        return
    output = "logits" if families.is_segmenter(name) else None
    export.write_package(folder, name, name, export.arrays_of(model), "CC0-1.0", "random weights",
                         SIDES[name], output=output)
    # The published smallest area leaves nothing of small slides.
    with open(os.path.join(folder, "recipe.toml"), "a") as f:
        f.write('\n[tissue]\nmethod = "clam"\nmin_area = 1.0\n')


def prepare(name, folder):
    """Everything about a network in `folder`, unless it is there."""
    if os.path.exists(os.path.join(folder, "facts.json")):
        return
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    model = build(name)
    write_package(model, name, os.path.join(folder, "package"))
    x = export.normalise(pictures(name, 2))
    with torch.no_grad():
        y = model(x)
    # Channels last and flat, as the program puts them out.
    y = y.permute(0, 2, 3, 1) if y.ndim == 4 and families.is_segmenter(name) else y.flatten(1)
    np.save(os.path.join(folder, "want.npy"), np.ascontiguousarray(y.numpy()))
    torch.save(model, os.path.join(folder, "model.pt"))
    torch.onnx.export(model, (x,), os.path.join(folder, "model.onnx"), input_names=["x"],
                      output_names=["y"], dynamo=True, external_data=False, verbose=False,
                      dynamic_shapes=({0: torch.export.Dim("batch")},))
    from torch.utils.flop_counter import FlopCounterMode
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        model(x[:1])
    with open(os.path.join(folder, "facts.json"), "w") as f:
        json.dump({"gflop": counter.get_total_flops() / 1e9, "side": SIDES[name]}, f)


if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2])
