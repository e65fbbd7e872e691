#!/usr/bin/env python3
"""parity.py BINARY: every family and head on every device against live PyTorch.

Needs what requirements-parity.txt lists (PyPI); scripts/parity installs it. A row is a network with
random weights from a seed and calibrated batch norm, written as a package and run by
`histokern run`. Its distance from PyTorch in f32 stands beside the distance of PyTorch itself with
weights and activations rounded to FP16 (to bf16 for devices that compute in it). Exit code 1 when a
row lies above 1.5 times that, or when two instruction sets of a processor differ in a bit.

A device is `reference`, `cpu`, `cuda` or `cuda-sim`, with an instruction set or a precision behind
colons where another than the usual is wanted: cpu:bf16, cpu:avx2, cpu:portable:f32.

The reference evaluates every op from its definition, and `cuda-sim` is CUDA on the stand-in driver of
tests/gpu-sim: both get small pictures and narrow networks; other devices the usual sizes, small ones
too with --small. Vision transformers are two blocks deep. A new row is a line in ENCODERS, SEGMENTERS,
HEADS or vits.LAYOUTS, or a function that returns a Case, in `rows`.
"""
import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib

os.environ.setdefault("KERAS_BACKEND", "torch")

import numpy as np
import torch
from safetensors.numpy import load_file, save_file

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "weights"))
import export  # noqa: E402
import families  # noqa: E402
import networks  # noqa: E402
from vits import LAYOUTS, build as build_vit  # noqa: E402

LIMIT = 1.5
# Bags a head is given, one after the other: the few logits of one say little of an error.
BAGS = 6

PRECISIONS = {"fp16": torch.float16, "bf16": torch.bfloat16}
INSTRUCTION_SETS = "amx", "avx512", "avx2", "neon", "portable"

# A package, the part of it to run, tensors to give it run by run, the output to compare, what that
# should be, and what PyTorch makes of it in each of PRECISIONS.
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

# Name, recipe of the head, and the module for features of the usual width (0) or few (1).
CLASSES = {1: "", 2: 'classes = ["a", "b"]\n', 3: 'classes = ["a", "b", "c"]\n'}
AGGREGATES = {"percentile": "{ percentile = 0.75 }", "mean": '"mean"', "max": '"max"'}
CLAM = {"size": (1024, 512, 256)}, {"size": (96, 64, 32)}
HEADS = [
    ("clam-sb", 1024, 96, CLASSES[2], lambda few, d: networks.Clam(2, instances=False, **CLAM[few])),
    ("clam-mb", 1024, 96, CLASSES[3],
     lambda few, d: networks.Clam(3, True, dropout=True, instances=False, **CLAM[few])),
    ("clam-sb-pool", 1024, 96, "",
     lambda few, d: networks.Clam(1, pooled=True, instances=False, **CLAM[few])),
    ("abmil", 1024, 96, "", lambda few, d: networks.Abmil(d, 128 >> few)),
    ("abmil gated", 1024, 96, CLASSES[2], lambda few, d: networks.Abmil(d, 128 >> few, 2, gated=True)),
    ("balnmp", 25088, 392, CLASSES[2], lambda few, d: networks.BalnmpHead(d)),
    ("balnmp clinical", 25088, 392, CLASSES[3], lambda few, d: networks.BalnmpHead(d, 3, clinical=5)),
    *((f"{family} {how}", 2048, 96, f"aggregate = {text}\n",
       lambda few, d, a=(how, family == "pool-linear"): networks.LastLayer(d, 1, *a))
      for family in ("tile-linear", "pool-linear") for how, text in AGGREGATES.items()
      if (family, how) != ("pool-linear", "percentile")),
]
CLINICAL = "".join(f'[[head.clinical]]\ncolumn = "{c}"\nmean = 0.0\nsd = 1.0\n' for c in "abcde")


def outputs(model, u8):
    """f32 and emulated narrower numbers, channels last."""
    def run(model):
        with torch.no_grad():
            y = model(export.normalise(u8)).double()
        return (y.permute(0, 2, 3, 1) if y.ndim == 4 else y.flatten(1)).numpy()
    return run(model), narrow(model, run)


def narrow(model, run):
    """What a model makes of the same in each of PRECISIONS."""
    made = {}
    for name, dtype in PRECISIONS.items():
        with export.emulated(model, dtype):
            made[name] = run(model)
    return made


def case(model, name, folder, side, stage=None, output=None, part="encoder", out="features"):
    """A model as a package, and what PyTorch makes of two pictures."""
    export.calibrate(model, export.pictures("calibration", 8, max(side, 96)))
    package = os.path.join(folder, "package")
    export.write_package(package, name, name, export.arrays_of(model), "CC0-1.0", "random weights",
                         side, truncate=stage, output=output)
    u8 = export.pictures("parity", 2, side)
    want, emulated = outputs(model, u8)
    return Case(package, part, [{"pixels": u8}], out, want, emulated)


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
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def run(twin):
        with torch.no_grad():
            return twin(x).double().numpy()

    emulated = narrow(twin.eval(), run)
    return Case(package, "encoder", [{"pixels": u8}], "features", want, emulated)


def vit(binary, name, small, folder):
    """A vision transformer through the import of its publisher's keys."""
    try:
        with open(os.path.join(ROOT, "weights", name, "recipe.toml"), "rb") as f:
            settings = tomllib.load(f)["encoder"]["vit"]
    except FileNotFoundError:
        settings = {"pool": "mean"}
    model, state, settings["heads"], side = build_vit(name, settings.get("pool", "class"), small)
    template, package = os.path.join(folder, "template"), os.path.join(folder, "package")
    os.mkdir(template)
    section = "[encoder.vit]\n" + "".join(f"{k} = {json.dumps(v)}\n" for k, v in settings.items())
    with open(os.path.join(template, "recipe.toml"), "w") as f:
        f.write(export.RECIPE.format(name=name, model=name, family="vit", more=section, side=side,
                                     licence="CC0-1.0", source="random weights", mpp=0.5,
                                     normalisation=export.NORMALISATION))
    checkpoint = os.path.join(folder, "model.safetensors")
    save_file({key: value.numpy() for key, value in state.items()}, checkpoint)
    subprocess.run([binary, "import", checkpoint, "--family", "vit", "--package", template, "-o",
                    package, "--quiet"], check=True)
    u8 = export.pictures("parity", 2, side)
    return Case(package, "encoder", [{"pixels": u8}], "features", *outputs(model, u8))


def exact(numbers):
    return numbers.bfloat16().half().float()


def head(name, text, d, build, output, folder):
    """A head as a package, and what PyTorch makes of a few bags."""
    model = build(d).eval()
    package = os.path.join(folder, "package")
    os.mkdir(package)
    export.save(export.arrays_of(model), os.path.join(package, "head.safetensors"))
    more = f'\n[[head]]\nname = "h"\nfamily = "{name.split()[0]}"\n{text}'
    with open(os.path.join(package, "recipe.toml"), "w") as f:
        f.write(export.RECIPE.format(name="h", model="h", family="none", more=more, side=224,
                                     licence="CC0-1.0", source="random weights", mpp=0.5,
                                     normalisation=export.NORMALISATION))
    clinical = "clinical" in name
    bags = []
    for n in range(BAGS):
        # Features as behind a ReLU, and numbers that both FP16 and bf16 have: nobody rounds them.
        bag = {"features": torch.relu(exact(torch.randn(23 + 7 * n, d))).numpy()}
        if clinical:
            bag["clinical"] = exact(torch.randn(5)).numpy()
        bags.append(bag)

    def run(model):
        with torch.no_grad():
            made = [model(*(torch.from_numpy(v) for v in bag.values())) for bag in bags]
        return torch.cat([m[output == "scores"].double() for m in made]).numpy()

    return Case(package, "head:h", bags, output, run(model), narrow(model, run))


def rows(binary):
    """Name and a function from (small, folder) to a Case."""
    for family, stage, side, small in ENCODERS:
        name = f"{family}/{stage}" if stage else family
        yield name, (lambda few, folder, a=(family, stage), s=(side, small):
                     encoder(*a, s[few], folder))
    yield "inception_v3_keras", lambda few, folder: keras_inception(binary, (299, 75)[few], folder)
    for family, side, small in SEGMENTERS:
        yield family, (lambda few, folder, a=family, s=(side, small): segmenter(a, s[few], folder))
    for name in LAYOUTS:
        yield name, lambda few, folder, name=name: vit(binary, name, few, folder)
    for name, *widths, text, build in HEADS:
        text += CLINICAL if "clinical" in name else ""
        for output in ("logits", "scores"):
            yield f"{name} {output}", (
                lambda few, folder, a=(name, text), d=widths, b=build, output=output:
                head(*a, d[few], lambda d: b(few, d), output, folder))


def distance(a, b):
    norm = np.linalg.norm
    return float(norm(a - b) / norm(b)), float((a * b).sum() / norm(a) / norm(b))


def machine():
    """The instruction set that is used where none is named, if it is that of tile registers."""
    with open("/proc/cpuinfo") as f:
        return "amx" if " amx_bf16" in f.read() else None


class Device:
    """A name of --device in its parts."""

    def __init__(self, name):
        self.name = name
        kind, *more = name.split(":")
        self.kind, self.is_simulated = kind.removesuffix("-sim"), kind.endswith("-sim")
        self.is_small = kind in ("reference", "cuda-sim")
        self.isa = next((m for m in more if m in INSTRUCTION_SETS), None)
        self.precision = next((m for m in more if m in (*PRECISIONS, "f32")), "fp16")
        # Tile registers sum in an order of their own; f32 does not go through them.
        self.has_tiles = (self.isa or machine()) == "amx" and self.precision != "f32"
        if unknown := [m for m in more if m not in (self.isa, self.precision)]:
            sys.exit(f"{name}: neither an instruction set nor a precision: {unknown[0]}")

    def environment(self, simulator):
        environment = dict(os.environ)
        if self.is_simulated:
            # The clock of the stand-in times an interpreter: tuning by it is of no use.
            environment.update(LD_LIBRARY_PATH=simulator, HISTOKERN_TUNE="off")
        if self.isa:
            environment["HISTOKERN_CPU"] = self.isa
        return environment


def execute(binary, it, device, folder, simulator):
    """The output of every run, one after the other."""
    given, out = os.path.join(folder, "in"), os.path.join(folder, "out")
    made = []
    for inputs in it.inputs:
        save_file(inputs, given)
        subprocess.run([binary, "run", it.package, "--part", it.part, "--input", given, "-o", out,
                        "--device", device.kind, "--precision", device.precision, "--quiet"],
                       check=True, env=device.environment(simulator))
        value = load_file(out)[it.output].astype(np.float64)
        made.append(value[None] if it.output == "logits" else value)
    return np.concatenate(made)


def compare(binary, name, it, device, folder, simulator, bits):
    """A row; `bits` keeps what the instruction sets gave before, by precision and order of sums."""
    start = time.monotonic()
    got = execute(binary, it, device, folder, simulator)
    seconds = time.monotonic() - start
    if got.shape != it.want.shape:
        sys.exit(f"{name}: shape {got.shape}, needed {it.want.shape}")
    key = device.precision, device.has_tiles
    same = device.kind != "cpu" or np.array_equal(bits.setdefault(key, got), got)
    error, cosine = distance(got, it.want)
    # f32 of FP16 weights is held to FP16's error.
    emulated = it.emulated.get(device.precision, it.emulated["fp16"])
    own, own_cosine = distance(emulated, it.want)
    size = next(iter(it.inputs[0].values())).shape[1]
    return {"family": name, "device": device.name, "size": size, "error": error, "cosine": cosine,
            "pytorch": own, "pytorch_cosine": own_cosine, "ratio": error / own, "seconds": seconds,
            "same_bits": same, "good": bool(same and error <= LIMIT * own)}


def summary(done, devices):
    """One line a family: the error on every device, in units of PyTorch's in FP16."""
    width = max(10, *(len(device) for device in devices))
    print(f"\n{'error / error of PyTorch':30} " + " ".join(f"{d:>{width}}" for d in devices))
    for family in dict.fromkeys(row["family"] for row in done):
        of = {row["device"]: row["ratio"] for row in done if row["family"] == family}
        print(f"{family:30} " + " ".join(
            f"{of[device]:{width}.2f}" if device in of else " " * width for device in devices))


def say(row):
    remark = "" if row["good"] else f"  ABOVE {LIMIT}" if row["same_bits"] else "  OTHER BITS"
    print(f"{row['family']:30} {row['device']:18} {row['size']:5} {row['error']:9.2e} "
          f"{row['cosine']:10.7f} {row['pytorch']:9.2e} {row['pytorch_cosine']:10.7f} "
          f"{row['ratio']:6.2f}{remark}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the histokern command")
    parser.add_argument("--device", default="reference,cpu,cuda-sim",
                        help="devices, with commas between [default: %(default)s]")
    parser.add_argument("--simulator", help="folder with the stand-in libcuda.so.1, for cuda-sim")
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--small", action="store_true", help="small pictures on every device")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the table to")
    args = parser.parse_args()
    table = list(rows(args.binary))
    unknown = set(args.only or ()) - {name for name, _ in table}
    if unknown:
        sys.exit(f"no row {', '.join(sorted(unknown))}")
    devices = [Device(name) for name in args.device.split(",")]
    if any(device.is_simulated for device in devices) and not args.simulator:
        sys.exit("cuda-sim: say where the stand-in driver is with --simulator")
    print(f"{'family':30} {'device':18} {'size':>5} {'rel. L2':>9} {'cosine':>10} "
          f"{'PyTorch':>9} {'cosine':>10} {'ratio':>6}")
    done = []
    for name, make in table:
        if args.only and name not in args.only:
            continue
        for small in (False, True):
            of_size = [device for device in devices if (args.small or device.is_small) == small]
            if not of_size:
                continue
            bits = {}
            with tempfile.TemporaryDirectory() as folder:
                torch.manual_seed(args.seed)
                it = make(small, folder)
                for device in of_size:
                    row = compare(args.binary, name, it, device, folder, args.simulator, bits)
                    done.append(row)
                    say(row)
    summary(done, [device.name for device in devices])
    if args.json:
        with open(args.json, "w") as f:
            json.dump(done, f, indent=1)
    bad = [row for row in done if not row["good"]]
    print(f"{len(done)} rows, {len(bad)} above {LIMIT} times the error of PyTorch or of other bits")
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
