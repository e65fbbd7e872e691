"""Goldens of src/nuclei from scikit-image and scipy.

Needs: numpy, scipy, scikit-image==0.26.0.

labels.png    160 x 120 px, 16 bit: blobs, some touching, lines, single pixels, rings, text-like shapes
shapes.json   regionprops of every label, with the intensity rule (7 * x + 13 * y + x * y) % 101 / 10
filters.json  scipy.ndimage filters, distance and the basins of a seeded landscape
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage as ndi
from skimage.measure import label, regionprops
from skimage.morphology import h_maxima
from skimage.segmentation import watershed

HERE = Path(__file__).parent


def make_labels():
    random = np.random.default_rng(7)
    field = ndi.gaussian_filter(random.normal(size=(120, 160)), 2.2)
    labels = label(field > 0.06, connectivity=1)
    next_label = labels.max() + 1
    canvas = np.zeros_like(labels)
    y, x = np.mgrid[:120, :160]
    rotated = lambda cx, cy, a, b, t: (
        (((x - cx) * np.cos(t) + (y - cy) * np.sin(t)) / a) ** 2
        + ((-(x - cx) * np.sin(t) + (y - cy) * np.cos(t)) / b) ** 2
        <= 1
    )
    shapes = [rotated(30, 30, 11, 5, 0.4), rotated(70, 25, 9, 9, 0), rotated(120, 30, 14, 3, 1.2)]
    shapes += [rotated(35, 80, 12, 8, 2.5) & ~rotated(35, 80, 6, 3, 2.5)]
    shapes += [(y == 100) & (x >= 60) & (x < 80), (x == 90) & (y >= 60) & (y < 75)]
    shapes += [(y == 70) & (x == 110), (abs(x - 130) == y - 80) & (y < 100)]
    shapes += [(x - y == 20) & (y > 95) & (y < 110), (x >= 150) & (y >= 112)]
    for shape in shapes:
        ring = ndi.binary_dilation(shape, iterations=2)
        labels[ring] = 0
        canvas[shape] = next_label
        next_label += 1
    labels[canvas > 0] = canvas[canvas > 0]
    return labels


def main():
    labels = make_labels()
    height, width = labels.shape
    y, x = np.mgrid[:height, :width]
    intensity = (7 * x + 13 * y + x * y) % 101 / 10
    Image.fromarray(labels.astype(np.uint16)).save(HERE / "labels.png")
    shapes = []
    for p in regionprops(labels, intensity_image=intensity):
        a, b, _, c = np.asarray(p.inertia_tensor).ravel()
        shapes.append(
            {
                "label": int(p.label),
                "area": int(p.area),
                "centroid": [float(p.centroid[1]), float(p.centroid[0])],
                "perimeter": float(p.perimeter),
                "axes": [float(p.axis_major_length), float(p.axis_minor_length)],
                # Without a long axis the direction is one of rounding.
                "orientation": None if abs(a - c) < 1e-9 and abs(b) < 1e-9 else float(p.orientation),
                "eccentricity": float(p.eccentricity),
                "convex_area": int(p.area_convex),
                "solidity": float(p.solidity),
                "intensity": float(p.intensity_mean),
            }
        )
    (HERE / "shapes.json").write_text(json.dumps(shapes) + "\n")

    random = np.random.default_rng(3)
    plane = random.integers(0, 256, (23, 31)).astype(float)
    mask = random.random((40, 50)) < 0.93
    mask[5:30, 8:40] |= random.random((25, 32)) < 0.9
    yy, xx = np.mgrid[-2:3, -2:3]
    round_ = yy * yy + xx * xx <= 2.3**2
    opened = lambda m: ndi.grey_dilation(ndi.grey_erosion(m, 7, mode="nearest"), 7, mode="nearest")
    land = ndi.gaussian_filter(random.normal(size=(90, 110)), 3.0).astype(np.float32)
    # What is stored is what is divided.
    quantised = np.round(land / np.abs(land).max() * 32767).astype(np.int32)
    land = quantised.astype(np.float32) / np.float32(32767)
    land_mask = land > -0.25
    depth = np.float32(0.12)
    # Maxima with dynamics of at least the depth, and the flooding from them.
    markers = label(h_maxima(land, depth).astype(bool) & land_mask, connectivity=2)
    basins = watershed(-land, markers, mask=land_mask)
    out = {
        "plane": plane.astype(int).tolist(),
        "gaussian": ndi.gaussian_filter(plane, 1.3, mode="nearest").round(9).tolist(),
        "mean": ndi.uniform_filter(plane, 7, mode="nearest").round(9).tolist(),
        "open": opened(plane).tolist(),
        "mask": ["".join("01"[v] for v in row) for row in mask.astype(int)],
        "opened": ["".join("01"[v] for v in row) for row in ndi.binary_opening(mask, round_).astype(int)],
        "distance_squared": np.round(ndi.distance_transform_edt(mask) ** 2).astype(int).tolist(),
        "seeds": int(markers.max()),
        "depth": float(depth),
    }
    (HERE / "filters.json").write_text(json.dumps(out) + "\n")
    stacked = np.stack([(quantised + 32768).astype(np.uint16), basins.astype(np.uint16)])
    Image.fromarray(stacked.reshape(180, 110)).save(HERE / "land.png")


main()
