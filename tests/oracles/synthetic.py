"""Reads what `histokern synth` writes with OpenSlide and tifffile.

    python tests/oracles/synthetic.py target/debug/histokern

Needs numpy, openslide-python, openslide-bin, tifffile and imagecodecs from PyPI. Exits 1 at the
first difference. Lossless files must agree with each other byte for byte in every layout and in
both readers; JPEG files must be near them; JPEG files must look the same to both readers.
"""

import subprocess
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import openslide
import tifffile

WIDTH, HEIGHT, MPP = 1300, 1045, 0.5
LOSSLESS = ["none", "packbits", "lzw", "lzw-predictor", "deflate", "deflate-predictor"]
# Largest and mean difference from the lossless file.
JPEG = {"jpeg-rgb": (70, 5.0), "jpeg-ycc": (90, 6.0), "jpeg422": (160, 9.0), "jpeg420": (190, 11.0)}


def check(condition, what):
    if not condition:
        sys.exit(f"FAILED: {what}")


def make(binary, folder, layout, codec, *options):
    path = folder / f"{layout}-{codec}{''.join(options)}.{'svs' if layout == 'aperio' else 'tif'}"
    subprocess.run(
        [binary, "synth", "-o", path, "--seed", "3", "--width", str(WIDTH), "--height", str(HEIGHT),
         "--mpp", str(MPP), "--layout", layout, "--codec", codec, "--quiet", *options],
        check=True,
    )
    return path


def near(got, want, codec, what):
    difference = np.abs(got.astype(int) - want.astype(int))
    worst, mean = JPEG[codec]
    check(got.shape == want.shape, f"{what}: shape {got.shape}")
    check(difference.max() <= worst and difference.mean() <= mean,
          f"{what}: off by {difference.max()}, mean {difference.mean():.2f}")


def compare(levels, want, codec, what):
    for k in range(2):
        if codec in JPEG:
            near(levels[k], want[k], codec, f"{what} level {k}")
        else:
            check(np.array_equal(levels[k], want[k]), f"{what}: level {k} differs")
    print("ok", what)


def open_slide(path, level):
    with openslide.OpenSlide(str(path)) as slide:
        size = slide.level_dimensions[level]
        return np.asarray(slide.read_region((0, 0), level, size))[..., :3]


def pyramid(path):
    """Levels as tifffile sees them."""
    with tifffile.TiffFile(path) as tiff:
        series = tiff.series[0]
        return [np.asarray(level.asarray()) for level in series.levels]


def aperio(binary, folder):
    want = None
    for codec in LOSSLESS + list(JPEG):
        for options in [(), ("--bigtiff",)] if codec in ("lzw", "jpeg-rgb") else [()]:
            path = make(binary, folder, "aperio", codec, *options)
            what = path.name
            with openslide.OpenSlide(str(path)) as slide:
                check(slide.properties["openslide.vendor"] == "aperio", f"{what}: vendor")
                check(float(slide.properties["openslide.mpp-x"]) == MPP, f"{what}: mpp")
                check(slide.properties["openslide.objective-power"] == "20", f"{what}: power")
                check(slide.level_dimensions == ((1300, 1045), (325, 261)), f"{what}: levels")
                sizes = {n: i.size for n, i in slide.associated_images.items()}
                check(sizes == {"label": (400, 380), "macro": (1280, 440), "thumbnail": (325, 261)},
                      f"{what}: associated {sizes}")
                label = np.asarray(slide.associated_images["label"])[..., :3]
            with tifffile.TiffFile(path) as tiff:
                check(tiff.is_svs and tiff.is_bigtiff == bool(options), f"{what}: kind")
                pages = [page.asarray() for page in tiff.pages]
                kinds = [page.subfiletype for page in tiff.pages]
                check(kinds == [0, 0, 0, 1, 9], f"{what}: subfile types {kinds}")
                check([page.is_tiled for page in tiff.pages] == [True, False, True, False, False],
                      f"{what}: tiled")
                check(tiff.pages[0].description.startswith("Aperio "), f"{what}: description")
            check(np.array_equal(pages[3], label), f"{what}: label")
            levels = [pages[0], pages[2]]
            for k in range(2):
                seen = open_slide(path, k).astype(int)
                off = np.abs(seen - levels[k].astype(int)).max()
                check(off <= 1, f"{what}: the readers disagree by {off} at level {k}")
            want = want or levels
            compare(levels, want, codec, what)
            if codec in LOSSLESS:
                check(np.array_equal(pages[1], want[1]), f"{what}: thumbnail")
    box = want[0][:1044].astype(int).reshape(261, 4, 325, 4, 3).sum((1, 3))
    check(np.array_equal((box + 8) // 16, want[1]), "level 1 is the box average of level 0")
    return want


def generic(binary, folder, want):
    for codec in ["lzw-predictor", "deflate", "jpeg420", "jpeg-rgb"]:
        for options in [(), ("--big-endian",), ("--bigtiff",), ("--bigtiff", "--big-endian")]:
            path = make(binary, folder, "generic", codec, *options)
            what = path.name
            with tifffile.TiffFile(path) as tiff:
                check(tiff.byteorder == (">" if "--big-endian" in options else "<"), f"{what}: order")
                levels = [page.asarray() for page in tiff.pages]
                check([p.subfiletype for p in tiff.pages] == [0, 1], f"{what}: subfile types")
                check(tiff.pages[0].resolutionunit == 3, f"{what}: unit")
                top, bottom = tiff.pages[0].tags["XResolution"].value
                check(top / bottom == 10_000 / MPP, f"{what}: resolution {top}/{bottom}")
            # OpenSlide 4.0 opens no big-endian classic TIFF, whoever wrote it.
            readable = options != ("--big-endian",)
            with openslide.OpenSlide(str(path)) if readable else nullcontext() as slide:
                if not readable:
                    compare(levels, want, codec, what)
                    continue
                check(slide.properties["openslide.vendor"] == "generic-tiff", f"{what}: vendor")
                check(slide.level_count == 2, f"{what}: levels")
                check(abs(float(slide.properties["openslide.mpp-x"]) - MPP) < 1e-9, f"{what}: mpp")
            for k in range(2):
                off = np.abs(open_slide(path, k).astype(int) - levels[k].astype(int)).max()
                check(off <= 1, f"{what}: the readers disagree by {off} at level {k}")
            compare(levels, want, codec, what)


def ome(binary, folder, want):
    for codec in ["deflate", "jpeg-ycc"]:
        for options in [(), ("--bigtiff", "--big-endian")]:
            path = make(binary, folder, "ome", codec, *options)
            what = path.name
            with tifffile.TiffFile(path) as tiff:
                check(tiff.is_ome and len(tiff.pages) == 1, f"{what}: kind")
                root = ElementTree.fromstring(tiff.ome_metadata)
                pixels = root.find(".//{*}Pixels")
                check(float(pixels.get("PhysicalSizeX")) == MPP, f"{what}: physical size")
            levels = pyramid(path)
            check(len(levels) == 2, f"{what}: levels")
            compare(levels, want, codec, what)


def gray(binary, folder, want):
    path = make(binary, folder, "generic", "jpeg-gray")
    got = tifffile.imread(path, key=0).astype(int)
    luma = (want[0].astype(int) @ [77, 150, 29] + 128) >> 8
    check(np.abs(got - luma).mean() < 4, f"{path.name}: grey")
    print("ok", path.name)


def main():
    binary = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        want = aperio(binary, folder)
        generic(binary, folder, want)
        ome(binary, folder, want)
        gray(binary, folder, want)


if __name__ == "__main__":
    main()
