"""system_parts.py: what the recomputations of the published systems share: checks, slides read by
OpenSlide and Pillow, networks fitted to tiles, and what histokern writes.
"""
import json
import os
import subprocess
import sys

import numpy as np
import openslide
import pandas
import torch
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "weights"), os.path.join(ROOT, "tests/golden/tissue")]
import export  # noqa: E402
import tiling  # noqa: E402

CLOSE = 1e-3
# A score that hardly differs between tiles or bags could not show a mistake.
TELLING = 20 * CLOSE
IMAGENET = torch.tensor(export.MEAN).view(3, 1, 1), torch.tensor(export.STD).view(3, 1, 1)
CHECKS = []


def check(name, good, detail=""):
    CHECKS.append(bool(good))
    print(f"{'ok  ' if good else 'FAIL'} {name}: {detail}", flush=True)


def equal(name, got, want):
    same = len(got) == len(want) and all(np.array_equal(a, b) for a, b in zip(got, want))
    check(name, same, f"{len(got)} of {len(want)}" + ("" if same else ", not equal"))


def close(name, got, want, telling=True, unbounded=False):
    """Every number within CLOSE, or if they have no unit of their own within a fiftieth of how far
    they spread; `telling` numbers must differ among each other."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return check(name, False, f"shape {got.shape}, not {want.shape}")
    off, spread = float(np.abs(got - want).max()), float(np.ptp(want))
    allowed = spread / 50 if unbounded else CLOSE
    good = off <= allowed and (not telling or spread >= TELLING)
    check(name, good, f"{want.size} numbers off by {off:.1e}, allowed {allowed:.1e}, spread {spread:.3f}")


def cosines(name, got, want):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return check(name, False, f"shape {got.shape}, not {want.shape}")
    norm = np.linalg.norm
    least = float(((got * want).sum(1) / norm(got, axis=1) / norm(want, axis=1)).min())
    check(name, least >= 0.9999, f"{got.shape[0]} x {got.shape[1]}, least cosine {least:.7f}")


class Command:
    def __init__(self, binary, threads):
        self.binary, self.threads = binary, str(threads)

    def __call__(self, verb, *args, code=0):
        args = [str(a) for a in args]
        done = subprocess.run([self.binary, verb, *args, "--threads", self.threads, "--quiet"],
                              capture_output=True, text=True)
        if done.returncode != code:
            sys.exit(f"histokern {verb} {' '.join(args)}: exit code {done.returncode}\n{done.stderr}")
        return done


class Picture:
    """A slide by OpenSlide, or a flat picture by Pillow."""

    def __init__(self, path):
        self.path, self.name = path, os.path.splitext(os.path.basename(path))[0]
        if path.endswith(".svs"):
            self.slide = openslide.OpenSlide(path)
            self.sizes = self.slide.level_dimensions
            self.mpp = float(self.slide.properties["openslide.mpp-x"])
        else:
            self.slide = None
            self.flat = np.asarray(Image.open(path).convert("RGB"))
            self.sizes = [(self.flat.shape[1], self.flat.shape[0])]

    def level(self, index):
        """All pixels of one level, [H, W, 3]."""
        if self.slide is None:
            return self.flat
        rgba = np.asarray(self.slide.read_region((0, 0), index, self.sizes[index]))
        return np.where(rgba[..., 3:] == 0, 255, rgba[..., :3]).astype(np.uint8)

    def level_for(self, downsample):
        return self.slide.get_best_level_for_downsample(downsample)

    def tile(self, x, y, side, outside=255):
        """A square of level 0."""
        rgba = np.asarray(self.slide.read_region((int(x), int(y)), 0, (side, side)))
        return np.where(rgba[..., 3:] == 0, outside, rgba[..., :3]).astype(np.uint8)


def tensor(tiles):
    x = torch.from_numpy(np.stack(tiles).transpose(0, 3, 1, 2).astype(np.float32)) / 255
    return (x - IMAGENET[0]) / IMAGENET[1]


@torch.no_grad()
def encoded(model, tiles, batch=8):
    parts = [tiles[i:i + batch] for i in range(0, len(tiles), batch)]
    return torch.cat([model(tensor(part)).flatten(1) for part in parts])


def fitted(model, tiles):
    """Weights as a package stores them, and running statistics of batch norm from some tiles."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(parameter.half())
    export.calibrate(model, np.stack(tiles[:: max(1, len(tiles) // 12)]))
    return model.eval()


@torch.no_grad()
def spread(layer, x, deviation, mean=0.0):
    """Shifts and scales a linear layer so that its outputs have this mean and deviation over `x`."""
    y = x @ layer.weight.T
    layer.weight.copy_((layer.weight * deviation / (y - y.mean(0)).std()).half())
    layer.bias.copy_(mean - (x @ layer.weight.T).mean(0))
    return layer(x)


@torch.no_grad()
def spread_clam(head, features, logits=1.0, mean=0.0):
    head.eval()
    h = torch.relu(spread(head.attention_net[0], features, 1.0))
    gate = head.attention_net[-1]
    for part in (gate.attention_a[0], gate.attention_b[0]):
        spread(part, h, 1.0)
    spread(gate.attention_c, gate.attention_a(h) * gate.attention_b(h), 1.0)
    spread(head.classifiers, h, logits, mean)
    return head


def save(folder, name, state):
    path = os.path.join(folder, name)
    torch.save(state, path)
    return path


def edit(package, *changes):
    """Replaces lines of a package's recipe, as its user would."""
    path = os.path.join(package, "recipe.toml")
    with open(path) as f:
        text = f.read()
    for old, new in changes:
        assert text.count(old) == 1, f"{path}: {old!r}"
        text = text.replace(old, new)
    with open(path, "w") as f:
        f.write(text)


def result(out, name):
    with open(os.path.join(out, name, "result.json")) as f:
        return json.load(f)


def table(out, name, file):
    return pandas.read_csv(os.path.join(out, name, file))


def rings(out, name):
    """Outlines and holes of the tissue in tiles.geojson, each [V, 2] without the repeated end."""
    with open(os.path.join(out, name, "tiles.geojson")) as f:
        features = json.load(f)["features"]
    found = [f["geometry"]["coordinates"] for f in features
             if f["properties"]["objectType"] == "annotation"]
    return [np.array(ring[:-1]) for rings in found for ring in rings]


def tissue_checks(what, slide, out, contours):
    # RFC 7946 says which way a ring runs, OpenCV another.
    got, want = rings(out, slide.name), [ring for outer, holes in contours for ring in (outer, *holes)]
    same = len(got) == len(want) and all(
        np.array_equal(a, b) or np.array_equal(a[::-1], b) for a, b in zip(got, want))
    check(f"{what} tissue outlines", same,
          f"{len(contours)} with {len(want) - len(contours)} holes, {sum(map(len, want))} vertices")
    got = np.asarray(Image.open(os.path.join(out, slide.name, "mask.png")).convert("L"))
    size = got.shape[::-1]
    down = [slide.sizes[0][axis] / size[axis] for axis in (0, 1)]
    want = tiling.heatmap_mask(contours, size, down)
    check(f"{what} mask", np.array_equal(got > 0, want > 0), f"{size[0]} x {size[1]} px, "
          f"{np.mean(want > 0):.3f} tissue, {np.sum((got > 0) != (want > 0))} px differ")
