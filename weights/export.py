#!/usr/bin/env python3
"""export.py: packages and golden outputs from PyTorch models.

    export.py export resnet50 --seed 1 -o PKG            random weights, calibrated batch norm
    export.py export vgg16_bn --checkpoint FILE -o PKG   a state dict of torchvision's layout
    export.py export smp-unet-resnet34 --seed 1 -o PKG   a segmenter
    export.py golden -o tests/golden/models              what tests/models.rs compares with

Needs numpy, torch, torchvision and safetensors (PyPI); timm (PyPI) for `--source timm`,
segmentation_models_pytorch (PyPI) for the families called smp-*.
A package made here is for testing and for encoders of one's own; published checkpoints are imported
by `histokern import`, which needs none of this.
"""
import argparse
import contextlib
import os
import sys
import tempfile

import numpy as np
import torch
from safetensors.numpy import save_file

import families

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)

# ---------------------------------------------------------------------------------------------
# Numbers from a formula, the same bits here and in tests/models.rs, so that no weights are stored.

GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    """SplitMix64's output function on an array of u64 (Steele, Lea & Flood 2014)."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def fnv1a(text):
    """64-bit FNV-1a of UTF-8 text."""
    h = 0xCBF29CE484222325
    for byte in text.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def uniform(name, n):
    """n numbers in [-1, 1), multiples of 2^-23, from a name."""
    with np.errstate(over="ignore"):
        i = np.arange(1, n + 1, dtype=np.uint64)
        bits = mix(np.uint64(fnv1a(name)) + i * np.uint64(GOLDEN)) >> np.uint64(40)
    return bits.astype(np.float32) * np.float32(2.0**-23) - np.float32(1)


def formula(name, shape):
    """A weight, bias or batch-norm parameter; He's variance for whatever has a fan-in.

    The last norm of a bottleneck is small, as training leaves it: random branches of full size
    amplify every rounding from block to block, which no trained network does.
    """
    n = int(np.prod(shape))
    u = uniform(name, n)
    if len(shape) >= 2:
        bound = np.float32(np.sqrt(6.0 / (n // shape[0])))
        values = u * bound
    elif name.endswith("bn3.weight"):
        values = np.float32(0.25) + np.float32(0.0625) * u
    elif name.endswith(".weight"):
        values = np.float32(1) + np.float32(0.25) * u
    elif name.endswith("running_var"):
        values = np.float32(1) + np.float32(0.75) * u
    else:
        values = np.float32(0.1) * u
    return values.reshape(shape)


def pictures(name, count, side):
    """[count, side, side, 3] u8: coloured blocks of 32, 8 and 2 pixels, one over the other."""
    seed = np.uint64(fnv1a(name))
    t, y, x, c = np.meshgrid(np.arange(count, dtype=np.uint64), np.arange(side, dtype=np.uint64),
                             np.arange(side, dtype=np.uint64), np.arange(3, dtype=np.uint64),
                             indexing="ij")
    total = np.zeros(t.shape, np.uint64)
    with np.errstate(over="ignore"):
        for shift, weight in ((5, 3), (3, 2), (1, 1)):
            s = np.uint64(shift)
            index = (((t * np.uint64(3) + c) * np.uint64(8) + s) * np.uint64(1024) + (y >> s)) \
                * np.uint64(1024) + (x >> s)
            total += np.uint64(weight) * (mix(seed + index * np.uint64(GOLDEN)) >> np.uint64(56))
    return (total // np.uint64(6)).astype(np.uint8)


# ---------------------------------------------------------------------------------------------
# Models

def encoder_of(name, source="torchvision", weights=None, stage=None):
    """The network without its classifier: NCHW pictures in, features out."""
    if source == "timm":
        import timm
        return timm.create_model(name, pretrained=False, num_classes=0)
    return families.encoder_of(name, stage, weights=weights)


def normalise(u8):
    """[N, H, W, 3] u8 to the NCHW f32 a torchvision model takes."""
    x = (u8.astype(np.float32) / np.float32(255) - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def calibrate(model, u8):
    """Sets running statistics to those of `u8`, rounded to FP16, which is how they are stored."""
    for m in families.norms(model):
        m.reset_running_stats()
        m.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(normalise(u8))
    for m in families.norms(model):
        m.running_mean.copy_(m.running_mean.half().float())
        m.running_var.copy_(m.running_var.half().float().clamp_min(2.0**-14))
    model.eval()


def save(arrays, path):
    """save_file makes files only their owner can read."""
    save_file(arrays, path)
    os.chmod(path, 0o644)


def arrays_of(model):
    """State dict as a package stores it: FP16 from two dimensions up, f32 for vectors."""
    out = {}
    for name, tensor in families.state_of(model).items():
        value = tensor.detach().cpu().numpy()
        out[name] = value.astype(np.float16) if value.ndim >= 2 else value.astype(np.float32)
        if not np.isfinite(out[name]).all():
            sys.exit(f"{name}: not finite in FP16")
    return out


def emulate(model, dtype=torch.float16):
    """Rounds the weights, and what every module puts out, to FP16 or bf16; sums stay f32."""
    rounded(model, dtype)
    return model


@contextlib.contextmanager
def emulated(model, dtype):
    """As `emulate`, for a while."""
    exact = rounded(model, dtype)
    try:
        yield
    finally:
        exact()


def rounded(model, dtype):
    """Rounds, and returns what takes it back."""
    weights = [(p, p.data) for p in model.parameters() if p.ndim >= 2]
    for p, data in weights:
        # A package holds FP16, whatever is made of that.
        p.data = data.half().to(dtype).float()
    hooks = [m.register_forward_hook(lambda _m, _i, out: out.to(dtype).float())
             for m in model.modules() if not list(m.children())]

    def exact():
        for p, data in weights:
            p.data = data
        for hook in hooks:
            hook.remove()

    return exact


# ---------------------------------------------------------------------------------------------
# export

RECIPE = """schema = 1
name = "{name}"
title = "Features of {model}"
licence = "{licence}"
source = "{source}"

[tiles]
size_px = {side}
mpp = {mpp}

[preprocess]
{normalisation}

[encoder]
family = "{family}"
{more}"""

NORMALISATION = "mean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]"

SEGMENTER = """
[[segmenter]]
name = "{model}"
family = "{model}"
weights = "segmenter.safetensors"
output = "{output}"

[segmenter.preprocess]
{normalisation}
"""


def write_package(folder, model, name, arrays, licence, source, side, mpp=0.5, truncate=None,
                  output=None):
    """A package of arrays under the keys of the family `model`; a segmenter's if `output` says what
    its map holds."""
    if os.path.exists(folder):
        sys.exit(f"{folder}: already exists")
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, exist_ok=True)
    temporary = tempfile.mkdtemp(dir=parent)
    os.chmod(temporary, 0o755)
    file = "segmenter.safetensors" if output else "encoder.safetensors"
    save(arrays, os.path.join(temporary, file))
    more = f'truncate = "{truncate}"\n' if truncate else ""
    if output:
        more = SEGMENTER.format(model=model, output=output, normalisation=NORMALISATION)
    with open(os.path.join(temporary, "recipe.toml"), "w") as f:
        f.write(RECIPE.format(name=name, model=model, family="none" if output else model, more=more,
                              licence=licence, source=source, side=side, mpp=mpp,
                              normalisation=NORMALISATION))
    os.rename(temporary, folder)


def export(args):
    torch.manual_seed(args.seed)
    segmenter = families.is_segmenter(args.model)
    if segmenter:
        model = families.segmenter_of(args.model)
    else:
        model = encoder_of(args.model, args.source, stage=args.truncate)
    if args.checkpoint:
        state = torch.load(args.checkpoint, map_location="cpu", weights_only=True)
        for wrapper in ("state_dict", "model_state_dict", "model"):
            if isinstance(state.get(wrapper), dict):
                state = state[wrapper]
        state = {k.replace("module.", ""): v for k, v in state.items()}
        missing, _ = model.load_state_dict(state, strict=False)
        if missing:
            sys.exit(f"{args.checkpoint}: no {', '.join(missing[:5])}")
        model.eval()
        source, licence = os.path.basename(args.checkpoint), "of the checkpoint"
    else:
        calibrate(model, pictures("calibration", 8, args.side))
        source = f"{args.source} {args.model}, random weights, seed {args.seed}: for tests only"
        licence = "CC0-1.0"
    write_package(args.output, args.model, os.path.basename(args.output.rstrip("/")),
                  arrays_of(model), licence, source, args.side, args.mpp, args.truncate,
                  "sigmoid" if segmenter else None)


# ---------------------------------------------------------------------------------------------
# golden

ENCODERS = [
    # file, model, truncation, side, tiles, batch statistics, every n-th feature is kept
    ("vgg16_bn", "vgg16_bn", None, 224, 2, False, 25),
    ("vgg16_bn_batch", "vgg16_bn", None, 224, 10, True, 97),
    ("resnet18", "resnet18", None, 224, 2, False, 1),
    ("resnet50", "resnet50", None, 224, 2, False, 1),
    ("resnet50_layer3", "resnet50", "layer3", 256, 2, False, 1),
]


def golden_encoder(output, file, name, stage, side, tiles, batch, step):
    def build():
        model = encoder_of(name, stage=stage)
        state = model.state_dict()
        for key, tensor in state.items():
            if tensor.ndim and "running_" not in key:
                tensor.copy_(torch.from_numpy(formula(key, tuple(tensor.shape))))
        model.load_state_dict(state)
        return model

    u8 = pictures(f"{name} tiles", tiles, side)
    model = build()
    calibrate(model, pictures(f"{name} calibration", 4, side))
    statistics = {k: v.numpy().astype(np.float16) for k, v in model.state_dict().items()
                  if k.endswith(("running_mean", "running_var"))}
    shapes = [(k, v.shape) for k, v in model.state_dict().items()
              if v.ndim and "running_" not in k]

    def run(m):
        m.train(batch)
        with torch.no_grad():
            return m(normalise(u8)).double().flatten(1).numpy()

    features = run(model)
    again = build()
    again.load_state_dict(model.state_dict())
    emulated = run(emulate(again))
    error = np.linalg.norm(emulated - features) / np.linalg.norm(features)
    print(f"{file}: {features.shape} FP16 emulation error {error:.2e}")
    contents = {} if batch else statistics
    contents["features"] = np.ascontiguousarray(features[:, ::step].astype(np.float32))
    contents["emulation_error"] = np.array([error], np.float32)
    save(contents, os.path.join(output, f"{file}.safetensors"))
    with open(os.path.join(output, f"{file}.tsv"), "w") as f:
        for key, shape in shapes:
            f.write(f"{key}\t{','.join(map(str, shape))}\n")


def dense(name, k, c):
    return [(f"{name}.weight", (k, c)), (f"{name}.bias", (k,))]


def balnmp_shapes(clinical):
    a = "attention_aggregator."
    return (dense(a + "fc1.0", 256, 25088) + dense(a + "attention.0", 1, 256)
            + dense(a + "attention.3", 1, 1) + dense("classifier.0", 64, 256 + 10 * clinical)
            + dense("classifier.2", 2, 64))


def clam_shapes(branches, classifiers):
    g = "attention_net.2."
    return (dense("attention_net.0", 512, 1024) + dense(g + "attention_a.0", 256, 512)
            + dense(g + "attention_b.0", 256, 512) + dense(g + "attention_c", branches, 256)
            + classifiers)


HEADS = [
    ("balnmp", balnmp_shapes(0), 10, 25088, 0),
    ("balnmp_c", balnmp_shapes(5), 10, 25088, 5),
    ("clam_sb", clam_shapes(1, dense("classifiers", 2, 512)), 157, 1024, 0),
    ("clam_mb", clam_shapes(3, sum((dense(f"classifiers.{c}", 1, 512) for c in range(3)), [])),
     157, 1024, 0),
]


def golden_head(output, file, shapes, n, d, clinical):
    """The published forward pass in f64, weights and features rounded to FP16 as they are stored."""
    w = {}
    for key, shape in shapes:
        value = formula(key, shape)
        w[key] = torch.from_numpy(value.astype(np.float16) if value.ndim > 1 else value).double()
    # Features behind a ReLU. The scale spreads the attention over more than a nearly even split.
    f = np.maximum(uniform(f"{file} features", n * d), 0).astype(np.float16).reshape(n, d)
    f = torch.from_numpy(f).double()
    linear = lambda x, name: torch.nn.functional.linear(x, w[name + ".weight"], w[name + ".bias"])
    if file.startswith("balnmp"):
        a = "attention_aggregator."
        h = torch.relu(linear(f, a + "fc1.0"))
        scores = linear(torch.tanh(linear(h, a + "attention.0")), a + "attention.3")
        m = torch.softmax(scores.T, dim=1) @ h
        if clinical:
            values = torch.from_numpy(uniform(f"{file} clinical", clinical).astype(np.float16))
            m = torch.cat([m, values.double().reshape(1, -1).repeat(1, 10)], dim=1)
        logits = linear(torch.relu(linear(m, "classifier.0")), "classifier.2")
    else:
        g = "attention_net.2."
        h = torch.relu(linear(f, "attention_net.0"))
        gate = torch.tanh(linear(h, g + "attention_a.0")) \
            * torch.sigmoid(linear(h, g + "attention_b.0"))
        scores = linear(gate, g + "attention_c")
        m = torch.softmax(scores.T, dim=1) @ h
        if file == "clam_mb":
            logits = torch.stack([linear(m[c], f"classifiers.{c}")[0] for c in range(3)])[None]
        else:
            logits = linear(m, "classifiers")
    attention = torch.softmax(scores, dim=0)
    print(f"{file}: logits {logits.numpy().round(4)} largest attention {float(attention.max()):.3f}")
    save({"logits": logits.float().numpy(), "scores": scores.float().numpy()},
         os.path.join(output, f"{file}.safetensors"))
    with open(os.path.join(output, f"{file}.tsv"), "w") as t:
        for key, shape in shapes:
            t.write(f"{key}\t{','.join(map(str, shape))}\n")


def golden(args):
    os.makedirs(args.output, exist_ok=True)
    for row in HEADS:
        if not args.only or row[0] in args.only:
            golden_head(args.output, *row)
    for row in ENCODERS:
        if not args.only or row[0] in args.only:
            golden_encoder(args.output, *row)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(required=True)
    p = verbs.add_parser("export", help="a torchvision, timm or segmentation model as a package")
    p.add_argument("model", help="vgg16_bn, densenet121, unet, smp-unet-resnet34, ...")
    p.add_argument("-o", "--output", required=True, help="folder to write")
    p.add_argument("--source", choices=["torchvision", "timm"], default="torchvision")
    p.add_argument("--checkpoint", help="state dict; without it, random weights")
    p.add_argument("--seed", type=int, default=0, help="of the random weights")
    p.add_argument("--truncate", choices=["layer1", "layer2", "layer3", "features"],
                   help="last ResNet stage; features: a DenseNet's, as BALNMP takes them")
    p.add_argument("--side", type=int, default=224, help="input size in pixels")
    p.add_argument("--mpp", type=float, default=0.5, help="micrometres per pixel of the recipe")
    p.set_defaults(run=export)
    p = verbs.add_parser("golden", help="outputs of formula-made networks, for tests/models.rs")
    p.add_argument("-o", "--output", required=True, help="folder to write")
    p.add_argument("--only", nargs="*", help="names of goldens to make")
    p.set_defaults(run=golden)
    args = parser.parse_args()
    torch.set_num_threads(2)
    args.run(args)


if __name__ == "__main__":
    main()
