#!/usr/bin/env python3
"""systems.py BINARY [SLIDES]: three published systems end to end, recomputed independently.

Needs what requirements-systems.txt lists (PyPI): torch, torchvision, opencv-python-headless, pandas and
the packages of the other oracles. SLIDES is a folder with OpenSlide's public CMU-1-Small-Region.svs.

Each system gets a checkpoint under its authors' keys (random weights from a seed; batch norm and heads
fitted to the tiles, so that activations stay in range and tiles differ), which goes through `histokern
import` and `predict` on a synthetic slide and on the real one. The same is computed here from the
description of the system with OpenSlide, OpenCV, Pillow, NumPy, pandas and PyTorch in f32. Contours,
coordinates and which tiles are dropped must be equal, scores agree to 1e-3. Where a description leaves
a choice open the recipe's own is taken, and a comment says so. Exit code 1 when a check fails.
"""
import argparse
import os
import sys
import tempfile
import time

try:
    import cv2
    import torch
    from PIL import Image
    from system_parts import CHECKS, Command, Picture
    from system_balnmp import balnmp
    from system_ekholm import ekholm
    from system_histcode import histcode
except ImportError as missing:
    sys.exit(f"{missing}: pip install -r tests/oracles/requirements-systems.txt")


def synthetic(run, folder, width, height, mpp):
    path = os.path.join(folder, f"synthetic-{width}.svs")
    run("synth", "--seed", 7, "--width", width, "--height", height, "--mpp", mpp, "-o", path)
    return Picture(path)


def biopsy(slide):
    """A flat JPEG, as BALNMP's slides are."""
    path = os.path.join(os.path.dirname(slide.path), "biopsy.jpg")
    Image.fromarray(slide.level(0)[1000:2900, 1250:3250]).save(path, quality=95)
    return Picture(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the histokern command")
    parser.add_argument("slides", nargs="?", help="folder with CMU-1-Small-Region.svs")
    parser.add_argument("--only", nargs="*", choices=["histcode", "balnmp", "ekholm"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(args.threads)
    run = Command(args.binary, args.threads)
    with tempfile.TemporaryDirectory() as folder:
        large = synthetic(run, folder, 4096, 4096, 0.4)
        for system, made in ((histcode, synthetic(run, folder, 2304, 2048, 0.5)),
                             (balnmp, biopsy(large)), (ekholm, large)):
            inputs = [made]
            if args.slides:
                inputs.append(Picture(os.path.join(args.slides, "CMU-1-Small-Region.svs")))
            if not args.only or system.__name__ in args.only:
                torch.manual_seed(args.seed)
                own = os.path.join(folder, system.__name__)
                os.mkdir(own)
                start = time.monotonic()
                system(run, inputs, own)
                print(f"{system.__name__}: {time.monotonic() - start:.0f} s")
    print(f"{len(CHECKS)} checks, {CHECKS.count(False)} failed")
    sys.exit(CHECKS.count(False) > 0)


if __name__ == "__main__":
    main()
