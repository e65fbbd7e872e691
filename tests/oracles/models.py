#!/usr/bin/env python3
"""models.py BINARY: `histokern encode` against live PyTorch, with torchvision's own random weights.

Needs numpy, torch, torchvision, safetensors and pillow (PyPI). For each model: torchvision's default
initialisation from a seed, batch norm calibrated, exported as a package; the features of a few
pictures must be within 1.5 times the error PyTorch itself makes when weights and activations are
rounded to FP16. The cosine must be 0.9999, or what that error allows where it is below: random
residual branches of full size amplify every rounding. Exit code 1 when one does not hold.
"""
import argparse
import os
import subprocess
import sys
import tempfile

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "weights"))
import export as exporter  # noqa: E402

MODELS = [("vgg11", None, 224), ("vgg16_bn", None, 224), ("resnet18", None, 224),
          ("resnet34", None, 224), ("resnet50", None, 224), ("resnet50", "layer3", 256),
          ("resnet101", None, 224)]


def compare(binary, folder, name, stage, side, seed):
    package = os.path.join(folder, f"{name}-{stage or 'all'}")
    exporter.export(argparse.Namespace(model=name, source="torchvision", seed=seed, mpp=0.5,
                                       truncate=stage, checkpoint=None, side=side, output=package))
    torch.manual_seed(seed)
    model = exporter.encoder_of(name, stage=stage)
    exporter.calibrate(model, exporter.pictures("calibration", 8, side))
    u8 = exporter.pictures("oracle", 3, side)
    files = []
    for i, picture in enumerate(u8):
        files.append(os.path.join(folder, f"{side}-{i}.png"))
        Image.fromarray(picture).save(files[-1])
    output = package + ".safetensors"
    subprocess.run([binary, "encode", *files, "--package", package, "-o", output], check=True)
    got = load_file(output)["features"].astype(np.float64)

    def run():
        with torch.no_grad():
            return model(exporter.normalise(u8)).double().flatten(1).numpy()

    want = run()
    exporter.emulate(model)
    emulated = run()
    norm = np.linalg.norm
    cosine_to_want = lambda x: float((x * want).sum() / norm(x) / norm(want))
    if got.shape != want.shape:
        print(f"FAIL {name} {stage or ''} shape {got.shape}, needed {want.shape}")
        return False
    allowed = 1.5 * norm(emulated - want) / norm(want)
    least = min(0.9999, 1 - 1.5**2 * (1 - cosine_to_want(emulated)))
    error, cosine = norm(got - want) / norm(want), cosine_to_want(got)
    good = error <= allowed and cosine >= least
    print(f"{'ok  ' if good else 'FAIL'} {name} {stage or ''} error {error:.2e} "
          f"allowed {allowed:.2e} cosine {cosine:.7f}", flush=True)
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the histokern command")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = [compare(args.binary, folder, *row, args.seed) for row in MODELS]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
