#!/usr/bin/env python3
"""Compares `histokern info` and `histokern region` with OpenSlide, tifffile and exact pictures.

    slides.py BINARY DATA [--regions N]

DATA is a folder with the public test slides CMU-1-Small-Region.svs, osp_*, histolab-broken.svs and
wsic/. Needs the PyPI packages openslide-python, openslide-bin, tifffile, imagecodecs, numpy, pillow.

OpenSlide blends a region at sub-pixel positions below level 0, so levels above 0 are compared with
tifffile, which gives whole pixels.
"""
import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

import numpy as np
import openslide
import tifffile
from PIL import Image

Image.MAX_IMAGE_PIXELS = None
CHECKS = []


def check(name, good, detail=""):
    CHECKS.append(good)
    if not good:
        print(f"FAIL {name} {detail}")


def command(binary, *args):
    return subprocess.run([binary, *map(str, args)], capture_output=True, text=True)


def info(binary, path, *args):
    done = command(binary, "info", path, "--json", *args)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def region(binary, path, x=0, y=0, width=0, height=0, level=0, associated=None):
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.png")
        what = ["--associated", associated] if associated else [
            "--level", level, "--x", x, "--y", y, "--width", width, "--height", height]
        done = command(binary, "region", path, *what, "-o", out)
        assert done.returncode == 0, done.stderr
        assert os.listdir(folder) == ["out.png"], os.listdir(folder)
        return np.asarray(Image.open(out)).astype(int)


def white(rgba):
    """OpenSlide's premultiplied RGBA on white."""
    rgba = np.asarray(rgba).astype(int)
    return np.where(rgba[..., 3:] == 0, 255, rgba[..., :3])


def same(name, ours, theirs, most, mean=None):
    if ours.shape != theirs.shape:
        return check(name, False, f"{ours.shape} {theirs.shape}")
    difference = np.abs(ours - theirs)
    good = difference.max() <= most and (mean is None or difference.mean() <= mean)
    check(name, good, f"max {difference.max()} mean {difference.mean():.4f}")


def cmu(binary, data, regions):
    path = os.path.join(data, "CMU-1-Small-Region.svs")
    slide = openslide.OpenSlide(path)
    found = info(binary, path)
    keys = "path format levels mpp objective_power associated icc_profile_bytes properties".split()
    check("info keys", list(found) == keys, list(found))
    check("format", found["format"] == "aperio-svs")
    check("levels", found["levels"] == [{"width": 2220, "height": 2967, "downsample": 1.0, "tile_width": 240,
                                         "tile_height": 240, "compression": "jpeg"}], found["levels"])
    check("mpp", found["mpp"] == {"x": 0.499, "y": 0.499, "source": "ImageDescription"}, found["mpp"])
    check("objective", found["objective_power"] == 20)
    check("associated", found["associated"] == sorted(slide.associated_images))
    check("icc", found["icc_profile_bytes"] is None)
    for key, value in slide.properties.items():
        if key.startswith("aperio."):
            check(key, found["properties"].get(key) == value, found["properties"].get(key))
    for key in ["tiff.ImageDescription", "tiff.ResolutionUnit"]:
        check(key, found["properties"].get(key) == slide.properties.get(key), found["properties"].get(key))
    override = info(binary, path, "--mpp-override", 0.25)["mpp"]
    check("override", override == {"x": 0.25, "y": 0.25, "source": "Override"}, override)

    w, h = slide.dimensions
    same("CMU whole", region(binary, path, 0, 0, w, h), white(slide.read_region((0, 0), 0, (w, h))), 0)
    r = random.Random(1)
    for k in range(regions):
        size = r.choice([(1, 1), (224, 224), (240, 240), (256, 512), (511, 3), (700, 700)])
        x, y = r.randint(-300, w + 60), r.randint(-300, h + 60)
        if k % 4 == 0:
            x, y = r.choice([(-10, -10), (w - 5, h - 5), (w, 0), (0, h), (-size[0], 7), (239, 240)])
        theirs = white(slide.read_region((x, y), 0, size))
        same(f"CMU {x} {y} {size}", region(binary, path, x, y, *size), theirs, 0)
    for name, picture in slide.associated_images.items():
        same(f"CMU {name}", region(binary, path, associated=name), white(picture), 0)


def others(binary, data):
    wsic = os.path.join(data, "wsic")
    truth = np.asarray(Image.open(os.path.join(wsic, "XYC.png")).convert("RGB")).astype(int)
    for name in sorted(os.listdir(wsic)):
        path = os.path.join(wsic, name)
        if name.startswith("XYC_"):
            lossless = "zlib" in name
            with tifffile.TiffFile(path) as file:
                theirs = file.pages[0].asarray().astype(int)
            ours = region(binary, path, 0, 0, 512, 512)
            same(name, ours, theirs, 0 if lossless else 1)
            same(name + " truth", ours, truth, 0 if lossless else 120, 0 if lossless else 8)
            check(name, info(binary, path)["format"] == "ome-tiff")
    svs = openslide.OpenSlide(os.path.join(data, "CMU-1-Small-Region.svs"))
    w, h = svs.dimensions
    whole = white(svs.read_region((0, 0), 0, (w, h)))
    for name, most, mean in [("jp2", 60, 4), ("jpeg", 120, 8)]:
        path = os.path.join(wsic, f"CMU-1-Small-Region.{name}.tiff")
        ours = region(binary, path, 0, 0, w, h)
        with tifffile.TiffFile(path) as file:
            same(f"{name} tifffile", ours, file.pages[0].asarray().astype(int), 0 if name == "jpeg" else 1, 0.5)
        same(f"{name} svs", ours, whole, most, mean)
        check(f"{name} mpp", info(binary, path)["mpp"] is None)

    path = os.path.join(data, "osp_boxes.tiff")
    slide, found = openslide.OpenSlide(path), info(binary, path)
    check("boxes levels", [(v["width"], v["height"]) for v in found["levels"]] == list(slide.level_dimensions))
    check("boxes downsamples", np.allclose([v["downsample"] for v in found["levels"]], slide.level_downsamples))
    with tifffile.TiffFile(path) as file:
        check("boxes icc", found["icc_profile_bytes"] == len(file.pages[0].tags[34675].value))
        for level, page in enumerate(file.pages):
            w, h = slide.level_dimensions[level]
            same(f"boxes {level}", region(binary, path, 0, 0, w, h, level), page.asarray().astype(int)[..., :3], 0)
    same("boxes openslide", region(binary, path, -7, 11, 400, 300), white(slide.read_region((-7, 11), 0, (400, 300))), 0)


def refused(binary, data):
    for name, words in [("osp_unopenable.tiff", ["directory 0", "259 Compression", "52479"]),
                        ("histolab-broken.svs", ["neither a TIFF"])]:
        done = command(binary, "info", os.path.join(data, name))
        check(name, done.returncode == 1 and name in done.stderr and all(w in done.stderr for w in words), done.stderr)
    path = os.path.join(data, "osp_unreadable.svs")
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.png")
        done = command(binary, "region", path, "--width", 16, "--height", 16, "-o", out)
        words = ["osp_unreadable.svs", "level 0", "tile (0, 0)", "quantisation table"]
        check("unreadable", done.returncode == 1 and all(w in done.stderr for w in words), done.stderr)
        check("no half-written file", os.listdir(folder) == [])
        small = os.path.join(data, "CMU-1-Small-Region.svs")
        done = command(binary, "region", small, "--width", 40000, "--height", 40000, "-o", out)
        check("too large", done.returncode == 1 and "1 GiB" in done.stderr, done.stderr)
        done = command(binary, "region", small, "--level", 3, "--width", 4, "--height", 4, "-o", out)
        check("no level", done.returncode == 2 and "level 3" in done.stderr, done.stderr)
        done = command(binary, "region", small, "--associated", "overview", "-o", out)
        check("no image", done.returncode == 2 and "label, macro, thumbnail" in done.stderr, done.stderr)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("data")
    parser.add_argument("--regions", type=int, default=60)
    args = parser.parse_args()
    cmu(args.binary, args.data, args.regions)
    others(args.binary, args.data)
    refused(args.binary, args.data)
    print(f"{len(CHECKS)} checks, {CHECKS.count(False)} failed")
    sys.exit(CHECKS.count(False) > 0)


if __name__ == "__main__":
    main()
