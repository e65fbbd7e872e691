#!/usr/bin/env python3
"""Golden data for tests/image.rs, from Pillow and OpenCV.

Needs: numpy pillow opencv-python-headless. Run in this folder; writes picture.png, values.json
and polygons.json. Pixels are recorded as SHA-256 of the raw bytes.
"""
import hashlib
import json

import cv2
import numpy as np
from PIL import Image

cv2.setNumThreads(1)


def sha(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def picture(width, height, seed):
    """Smooth blobs on a bright ground, fine texture, saturated and white spots."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    image = np.full((height, width, 3), 235.0)
    for _ in range(14):
        cx, cy, r = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(3, 18)
        weight = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / r**2)[..., None]
        image -= weight * rng.uniform(20, 160, 3)
    image += rng.normal(0, 6, image.shape)
    image[5:9, 60:75] = 255
    image[40:42, :] = (255, 0, 10)
    image[:, 20] = 0
    return np.clip(image, 0, 255).astype(np.uint8)


def waves(width, height):
    """The picture that the test computes again: no file needed for large inputs."""
    y, x = np.mgrid[0:height, 0:width].astype(np.uint32)
    planes = [(x * x * 3 + y * 7 + c * 91 + ((x ^ (y * 5)) * (c + 3))) % 256 for c in range(3)]
    return np.stack(planes, -1).astype(np.uint8)


def resize(image, size, code, box=None):
    """Image.resize with rows first, then columns.

    That is the order of every Pillow release for equal factors on both axes, and of all before 13
    for any; 13 swaps the passes for some pictures whose axes are scaled differently.
    """
    image = Image.fromarray(image)
    left, top, right, bottom = box or (0, 0, *image.size)
    rows = image.resize((size[0], image.height), code, box=(left, 0, right, image.height))
    out = rows.resize(size, code, box=(0, top, size[0], bottom))
    if box is None and image.width * size[1] == image.height * size[0]:
        assert np.array_equal(out, image.resize(size, code))
    return np.asarray(out)


FILTERS = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC, "nearest": Image.NEAREST}
rgb = picture(97, 71, 1)
Image.fromarray(rgb).save("picture.png")
cases = []
for name, code in FILTERS.items():
    for size in [(97, 71), (96, 70), (97, 35), (40, 71), (64, 48), (13, 9), (1, 1), (1, 71), (97, 1),
                 (200, 150), (131, 40), (33, 211), (98, 72), (388, 284), (194, 142)]:
        out = resize(rgb, size, code)
        cases.append({"input": "picture", "filter": name, "size": size, "sha256": sha(out)})
    for box, size in [((0.5, 0.25, 80.75, 60.1), (50, 40)), ((10, 20, 42, 52), (32, 32)),
                      ((3.3, 7.7, 5.1, 9.2), (24, 24)), ((0, 0, 97, 70.5), (97, 71)),
                      ((90.2, 64.4, 97, 71), (5, 9))]:
        out = resize(rgb, size, code, box)
        cases.append({"input": "picture", "filter": name, "size": size, "box": box, "sha256": sha(out)})
    for (w, h), size in [((256, 256), (224, 224)), ((598, 598), (299, 299)), ((512, 512), (224, 224)),
                         ((1, 300), (7, 40)), ((300, 1), (40, 7)), ((1193, 1193), (299, 299)),
                         ((1, 1), (5, 3))]:
        out = resize(waves(w, h), size, code)
        cases.append({"input": [w, h], "filter": name, "size": size, "sha256": sha(out)})

# Every pair of largest channel and channel range that exists.
top, span = np.meshgrid(np.arange(256), np.arange(256), indexing="ij")
low = np.maximum(top - span, 0)
every = np.stack([top, low, low], -1).astype(np.uint8)
hsv = cv2.cvtColor(every, cv2.COLOR_RGB2HSV)
saturation = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV)[..., 1].copy()
gray = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
noise = waves(256, 256)
close = {}
for size in [2, 3, 4, 5, 9]:
    _, mask = cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)
    close[size] = [sha(cv2.morphologyEx(image, cv2.MORPH_CLOSE, np.ones((size, size), np.uint8)))
                   for image in (mask, gray)]
sharp = {}
for name, image in [("picture", gray), ("row", gray[:1]), ("column", gray[:, :1].copy())]:
    sharp[name] = float(cv2.Laplacian(image, cv2.CV_64F).var())
values = {
    "resize": cases,
    "saturation": sha(saturation),
    "saturation_every": sha(hsv[..., 1]),
    "gray": sha(gray),
    "gray_noise": sha(cv2.cvtColor(noise, cv2.COLOR_RGB2GRAY)),
    "pil": sha(np.asarray(Image.fromarray(rgb).convert("L"))),
    "pil_noise": sha(np.asarray(Image.fromarray(noise).convert("L"))),
    "median": {k: sha(cv2.medianBlur(gray, k)) for k in [3, 5, 7, 9, 21, 61, 255]},
    "otsu": {
        "saturation": int(cv2.threshold(saturation, 0, 255, cv2.THRESH_OTSU)[0]),
        "gray": int(cv2.threshold(gray, 0, 255, cv2.THRESH_OTSU)[0]),
        "noise": int(cv2.threshold(noise[..., 0].copy(), 0, 255, cv2.THRESH_OTSU)[0]),
    },
    "close": close,
    "laplacian_variance": sharp,
    "white_fraction": float(np.sum(rgb == 255) / 3 / (rgb.shape[0] * rgb.shape[1])),
}
with open("values.json", "w") as file:
    json.dump(values, file, indent=0)

rng = np.random.default_rng(7)
polygons = []
for i in range(160):
    w, h = (int(v) for v in rng.integers(1, 48, 2))
    rings = []
    for _ in range(1 if i % 4 else 2):
        # Even cases stay on the canvas, odd ones leave it.
        margin = 0 if i % 2 == 0 else int(rng.integers(0, 40))
        n = int(rng.integers(1, 9))
        xs = rng.integers(-margin, w + margin + i % 2, n)
        ys = rng.integers(-margin, h + margin + i % 2, n)
        rings.append([[int(x), int(y)] for x, y in zip(xs, ys)])
    mask = np.zeros((h, w), np.uint8)
    cv2.fillPoly(mask, [np.array(r, np.int32) for r in rings], 255)
    polygons.append({"size": [w, h], "rings": rings, "sha256": sha(mask)[:16]})
with open("polygons.json", "w") as file:
    file.write("[\n" + ",\n".join(json.dumps(p, separators=(",", ":")) for p in polygons) + "\n]\n")
