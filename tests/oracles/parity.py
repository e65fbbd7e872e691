#!/usr/bin/env python3
"""parity.py BINARY: every family on every device against live PyTorch.

Needs what requirements-parity.txt lists (PyPI); scripts/parity installs it. A row is a network with
random weights from a seed and calibrated batch norm, written as a package and run by
`histokern run`. Its distance from PyTorch in f32 stands beside the distance of PyTorch itself with
weights and activations rounded to FP16. Exit code 1 when a row lies above 1.5 times that.

The reference evaluates every op from its definition and gets small pictures; other devices get
pictures of the usual size, small ones too with --small. A new row is a line in ENCODERS or
SEGMENTERS, or a function that returns a Case, in `rows`.
"""
import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "weights"))
import export  # noqa: E402
import families  # noqa: E402

LIMIT = 1.5

# A package, the part of it to run, tensors to give it, the output to compare, what that should be,
# and what PyTorch makes of it in FP16.
Case = collections.namedtuple("Case", "package part inputs output want emulated")

ENCODERS = [
    # family, stage, side, small side
    ("alexnet", None, 224, 95), ("vgg11", None, 224, 48), ("vgg13", None, 224, 48),
    ("vgg16", None, 224, 48), ("vgg19", None, 224, 48), ("vgg11_bn", None, 224, 48),
    ("vgg13_bn", None, 224, 48), ("vgg16_bn", None, 224, 48), ("vgg19_bn", None, 224, 48),
    ("resnet18", None, 224, 64), ("resnet34", None, 224, 64), ("resnet50", None, 224, 64),
    ("resnet50", "layer3", 256, 64), ("resnet101", None, 224, 64), ("resnet152", None, 224, 64),
    ("densenet121", None, 224, 64), ("densenet121", "features", 224, 64),
    ("densenet161", None, 224, 64), ("densenet169", None, 224, 64),
    ("densenet201", None, 224, 64), ("googlenet", None, 224, 64), ("inception_v3", None, 299, 75),
]

SEGMENTERS = [
    # family, side, small side
    ("unet", 256, 32), ("nested-unet", 256, 32),
    *((f"smp-{decoder}-{encoder}", 256, 64)
      for decoder in ("unet", "unetplusplus")
      for encoder in ("resnet18", "resnet34", "resnet50", "resnet101", "densenet121")),
    *((f"smp-deeplabv3-{encoder}", 256, 64)
      for encoder in ("resnet18", "resnet34", "resnet50", "resnet101")),
    ("deeplabv3_resnet50", 256, 64), ("deeplabv3_resnet101", 256, 64),
]


def outputs(model, u8):
    """f32 and emulated FP16, channels last."""
    def run():
        with torch.no_grad():
            y = model(export.normalise(u8)).double()
        return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y.flatten(1)).numpy()
    want = run()
    export.emulate_fp16(model)
    return want, run()


def case(model, name, folder, side, stage=None, output=None, part="encoder", out="features"):
    """A model as a package, and what PyTorch makes of two pictures."""
    export.calibrate(model, export.pictures("calibration", 8, max(side, 96)))
    package = os.path.join(folder, "package")
    export.write_package(package, name, name, export.arrays_of(model), "CC0-1.0", "random weights",
                         side, truncate=stage, output=output)
    u8 = export.pictures("parity", 2, side)
    want, emulated = outputs(model, u8)
    return Case(package, part, {"pixels": u8}, out, want, emulated)


def encoder(family, stage, side, folder):
    return case(families.encoder_of(family, stage), family, folder, side, stage)


def segmenter(family, side, folder):
    return case(families.segmenter_of(family), family, folder, side, output="logits",
                part=f"segmenter:{family}", out="map")


def keras_inception(binary, side, folder):
    """Keras's Inception V3 through Keras's own file and the import; its rounding error is that of the
    same network in PyTorch."""
    import keras
    keras.utils.set_random_seed(1)
    net = keras.applications.InceptionV3(weights=None, include_top=False, pooling="avg",
                                         input_shape=(side, side, 3))
    u8 = export.pictures("parity", 2, side)
    pixels = u8.astype(np.float32) / np.float32(127.5) - np.float32(1)
    want = np.asarray(net.predict(pixels, verbose=0), np.float64)
    file, package = os.path.join(folder, "keras.h5"), os.path.join(folder, "package")
    net.save(file)
    subprocess.run([binary, "import", file, "--family", "inception_v3_keras", "-o", package,
                    "--quiet"], check=True)
    recipe = os.path.join(package, "recipe.toml")
    with open(recipe) as f:
        text = f.read()
    with open(recipe, "w") as f:
        f.write(text.replace("size_px = 299", f"size_px = {side}"))
    twin = families.encoder_of("inception_v3_keras")
    state = {k: torch.from_numpy(v.astype(np.float32))
             for k, v in load_file(os.path.join(package, "encoder.safetensors")).items()}
    twin.load_state_dict(state, strict=False)
    export.emulate_fp16(twin.eval())
    with torch.no_grad():
        emulated = twin(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())).double().numpy()
    return Case(package, "encoder", {"pixels": u8}, "features", want, emulated)


def rows(binary):
    """Name and a function from (small, folder) to a Case."""
    for family, stage, side, small in ENCODERS:
        name = f"{family}/{stage}" if stage else family
        yield name, (lambda few, folder, a=(family, stage), s=(side, small):
                     encoder(*a, s[few], folder))
    yield "inception_v3_keras", lambda few, folder: keras_inception(binary, (299, 75)[few], folder)
    for family, side, small in SEGMENTERS:
        yield family, (lambda few, folder, a=family, s=(side, small): segmenter(a, s[few], folder))


def distance(a, b):
    norm = np.linalg.norm
    return float(norm(a - b) / norm(b)), float((a * b).sum() / norm(a) / norm(b))


def compare(binary, name, make, device, small, seed):
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(seed)
        it = make(small, folder)
        given, out = os.path.join(folder, "in"), os.path.join(folder, "out")
        save_file(it.inputs, given)
        start = time.monotonic()
        subprocess.run([binary, "run", it.package, "--part", it.part, "--input", given, "-o", out,
                        "--device", device, "--quiet"], check=True)
        seconds = time.monotonic() - start
        got = load_file(out)[it.output].astype(np.float64)
    if got.shape != it.want.shape:
        sys.exit(f"{name}: shape {got.shape}, needed {it.want.shape}")
    error, cosine = distance(got, it.want)
    fp16, fp16_cosine = distance(it.emulated, it.want)
    side = next(iter(it.inputs.values())).shape[1]
    return {"family": name, "device": device, "side": side, "error": error, "cosine": cosine,
            "fp16": fp16, "fp16_cosine": fp16_cosine, "ratio": error / fp16, "seconds": seconds,
            "good": bool(error <= LIMIT * fp16)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the histokern command")
    parser.add_argument("--device", default="reference,cpu", help="devices, with commas between")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--small", action="store_true", help="small pictures on every device")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the table to")
    args = parser.parse_args()
    table = list(rows(args.binary))
    unknown = set(args.only or ()) - {name for name, _ in table}
    if unknown:
        sys.exit(f"no row {', '.join(sorted(unknown))}")
    print(f"{'family':30} {'device':10} {'px':>4} {'rel. L2':>9} {'cosine':>10} "
          f"{'FP16 L2':>9} {'cosine':>10} {'ratio':>6}")
    done = []
    for name, make in table:
        for device in args.device.split(",") if not args.only or name in args.only else ():
            small = args.small or device == "reference"
            row = compare(args.binary, name, make, device, small, args.seed)
            done.append(row)
            print(f"{name:30} {device:10} {row['side']:4} {row['error']:9.2e} {row['cosine']:10.7f} "
                  f"{row['fp16']:9.2e} {row['fp16_cosine']:10.7f} {row['ratio']:6.2f}"
                  f"{'' if row['good'] else '  ABOVE ' + str(LIMIT)}", flush=True)
    if args.json:
        with open(args.json, "w") as f:
            json.dump(done, f, indent=1)
    bad = [row for row in done if not row["good"]]
    print(f"{len(done)} rows, {len(bad)} above {LIMIT} times the FP16 error of PyTorch")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
