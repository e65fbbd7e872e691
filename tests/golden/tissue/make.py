#!/usr/bin/env python3
"""Golden data for tests/tissue.rs, from OpenCV and tiling.py beside it.

Needs: numpy pillow opencv-python-headless openslide-python openslide-bin. Run in this folder as
`make.py CMU-1-Small-Region.svs` (OpenSlide's public test slide); writes contours.json,
slide.png, slide.json, regions.json and cmu.json.
"""
import hashlib
import json
import pathlib
import sys

import cv2
import numpy as np
from PIL import Image

import tiling


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def dump(name, value):
    with open(name, "w") as file:
        json.dump(value, file, separators=(",", ":"))
        file.write("\n")


def points(ring):
    return [[int(x), int(y)] for x, y in np.asarray(ring).reshape(-1, 2)]


def components(mask):
    """[[outer, hole, ..], ..] in findContours' order."""
    contours, hierarchy = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    found = {i: [points(contours[i])] for i in range(len(contours)) if hierarchy[0][i][3] == -1}
    for i in range(len(contours)):
        if hierarchy[0][i][3] != -1:
            found[hierarchy[0][i][3]].append(points(contours[i]))
    return [found[i] for i in sorted(found)]


def text(mask):
    return ["".join(".#"[v] for v in row) for row in mask]


HAND = [
    ["#"], ["."], ["###", "#.#", "###"],
    ["#####", "#...#", "#.#.#", "#...#", "#####"],
    ["#######", "#.....#", "#.###.#", "#.#.#.#", "#.###.#", "#.....#", "#######"],
    ["#..#..#", ".##.##.", "..#.#..", "##...##", "..#.#..", ".##.##.", "#..#..#"],
    ["######", "......", "#.#.#.", "######"],
    [".#.", "#.#", ".#."],
    ["###.###", "#.###.#", "###.###", "..###..", "#######"],
    ["#########"], ["#", "#", "#", "#"],
    ["####....", "#..#.##.", "#..####.", "#......#", "########"],
]


def contour_cases():
    rng = np.random.default_rng(3)
    masks = [np.array([[c == "#" for c in row] for row in rows], np.uint8) for rows in HAND]
    for i in range(28):
        h, w = (int(v) for v in rng.integers(3, 40, 2))
        mask = (rng.random((h, w)) < rng.choice([0.2, 0.4, 0.5, 0.6, 0.8, 0.95])).astype(np.uint8)
        if i % 3 == 0:
            mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8))
        masks.append(mask)
    cases = []
    for mask in masks:
        found = components(mask)
        areas = [[cv2.contourArea(np.array(r, np.int32)) for r in c] for c in found]
        written = json.dumps(found, separators=(",", ":")).encode()
        cases.append({"mask": text(mask), "sha256": hashlib.sha256(written).hexdigest(), "areas": areas})
    return cases


def side_cases():
    """Sign of pointPolygonTest on a grid of half pixels, as one letter a point."""
    rng = np.random.default_rng(5)
    cases = []
    rings = [[[1, 1], [9, 1], [9, 9], [1, 9]], [[2, 2]], [[1, 1], [8, 5]], [[0, 0], [8, 8], [8, 0], [0, 8]],
             [[1, 1], [5, 1], [9, 1], [9, 5], [9, 9], [5, 5], [1, 9]]]
    rings += [rng.integers(0, 11, (int(rng.integers(3, 12)), 2)).tolist() for _ in range(20)]
    for ring in rings:
        contour = np.array(ring, np.int32)[:, None]
        rows = []
        for y in np.arange(-1, 12, 0.5):
            signs = [cv2.pointPolygonTest(contour, (float(x), float(y)), False) for x in np.arange(-1, 12, 0.5)]
            rows.append("".join("o" if s < 0 else "b" if s == 0 else "i" for s in signs))
        cases.append({"ring": ring, "sides": rows})
    return cases


def synthetic(width, height, seed):
    """Stained blobs with holes, fat and specks on a bright ground."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    field = cv2.GaussianBlur(rng.normal(0, 1, (height, width)), (0, 0), 14)
    field /= field.std()
    tissue = field > -0.2
    for _ in range(26):
        cx, cy, r = rng.integers(0, width), rng.integers(0, height), rng.integers(3, 13)
        tissue &= (x - cx) ** 2 + (y - cy) ** 2 > r * r
    for _ in range(12):
        cx, cy, r = rng.integers(0, width), rng.integers(0, height), rng.integers(2, 5)
        tissue |= (x - cx) ** 2 + (y - cy) ** 2 < r * r
    image = np.full((height, width, 3), 243.0)
    image[tissue] = (196, 120, 178)
    image = cv2.GaussianBlur(image, (0, 0), 1.2)
    image += rng.normal(0, 1, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def segmented(rgb, level0, params, select, size=256, step=256):
    mask, threshold, contours = tiling.segment(rgb, level0, **params)
    coords, dropped = tiling.coordinates(contours, size, step, select)
    small = [max(1, level0[0] // 32), max(1, level0[1] // 32)]
    down = [level0[0] / small[0], level0[1] / small[1]]
    return {
        "params": params, "select": select, "size": size, "step": step, "level0": list(level0), "threshold": threshold, "mask": sha(mask),
        "contours": [[len(o), *[len(h) for h in holes]] for o, holes in contours],
        "vertices": sha(np.concatenate([np.concatenate([o, *holes]) for o, holes in contours]).astype("<i4"))
        if contours else sha(np.zeros(0)),
        "coords": coords, "dropped": dropped,
        "heatmap_size": small, "heatmap": sha(tiling.heatmap_mask(contours, small, down)),
    }


dump("contours.json", {"contours": contour_cases(), "sides": side_cases()})
slide = synthetic(300, 220, 4)
Image.fromarray(slide).save("slide.png")
# The picture stands for a level of 300 x 220 px of a larger slide, whose sizes do not divide.
holes = {"min_area": 0.05, "min_hole": 0.1}
cases = [segmented(slide, (9623, 7045), params, "four-point") for params in
         [{}, {"min_area": 1}, holes, {"min_area": 1, "min_hole": 0, "max_holes": 2}, {"min_area": 1, "min_hole": 0},
          {"threshold": 30, "close": 0, "median": 3, "min_area": 1}]]
cases += [segmented(slide, (9623, 7045), holes, select, size, step)
          for select, size, step in [("center", 256, 256), ("center", 301, 290), ("four-point", 301, 290),
                                     ("four-point", 1, 1000), ("four-point", 1024, 512)]]
# The same picture as level 0, where half a pixel decides.
fine = {"min_area": 0.0005, "min_hole": 0.0002}
cases += [segmented(slide, (300, 220), fine, select, 15, 13) for select in ["center", "four-point"]]
cases += [segmented(slide, (300, 220), fine, "center", 5, 11)]
dump("slide.json", cases)

vertices = [[20, 15], [180, 5], [290, 120], [150, 210], [60, 180], [90, 100]]
tiles = tiling.region_tiles(slide, vertices, size=64, max_white=0.3)
dump("regions.json", {"vertices": vertices, "size": 64, "max_white": 0.3,
                      "tiles": [{**t, "tile": sha(t["tile"])} for t in tiles]})

import openslide

reader = openslide.OpenSlide(sys.argv[1])
rgb = np.asarray(reader.read_region((0, 0), 0, reader.dimensions))[..., :3]
if len(sys.argv) > 2:
    Image.fromarray(rgb).save(sys.argv[2])
dump("cmu.json", [segmented(rgb, reader.dimensions, params, "four-point") for params in
                  [{}, {"min_area": 1, "min_hole": 0.1}, {"min_area": 0.1, "min_hole": 0.02}]])
