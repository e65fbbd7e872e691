"""system_ekholm.py: Ekholm et al. 2024 recomputed: tiles of 271 um, Macenko, Inception V3, the 75th
percentile, WEEP.
"""
import os

import cv2
import h5py
import numpy as np
import pandas
import torch
import torchvision
from PIL import Image

from system_parts import (check, equal, close, cosines, encoded, fitted, spread, save, edit,
                          result, table)
import export
import tiling


def clipped_area(ring, x, y, side):
    """Area of a polygon within a square, by cutting it at the square's four sides."""
    points = np.asarray(ring, np.float64)
    for axis, limit, sign in ((0, x, 1), (0, x + side, -1), (1, y, 1), (1, y + side, -1)):
        if len(points) == 0:
            return 0.0
        after = np.roll(points, -1, axis=0)
        depth, next_depth = sign * (points[:, axis] - limit), sign * (after[:, axis] - limit)
        crosses = (depth >= 0) != (next_depth >= 0)
        share = np.where(crosses, depth / np.where(crosses, depth - next_depth, 1), 0)
        cut = points + share[:, None] * (after - points)
        both = np.stack([points, cut], 1).reshape(-1, 2)
        points = both[np.stack([depth >= 0, crosses], 1).ravel()]
    a, b = points, np.roll(points, -1, axis=0)
    return abs(np.sum(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0])) / 2


def half_tissue(contours, side):
    """Corners of squares of which at least half is tissue (assumed by the recipe): HistCode's grid
    with a step that is no whole number of pixels, each corner rounded by itself."""
    coords = []
    for outer, holes in contours:
        x0, y0, width, height = cv2.boundingRect(outer)
        steps = lambda length: np.floor(np.arange(0, length, side) + 0.5).astype(int)
        inside = lambda x, y: clipped_area(outer, x, y, side) - sum(
            clipped_area(hole, x, y, side) for hole in holes)
        kept = [(x0 + i, y0 + j) for i in steps(width) for j in steps(height)
                if inside(x0 + i, y0 + j) >= side * side / 2]
        coords += kept if len(kept) > 1 else []
    return coords


def macenko(pixels):
    """Macenko et al. 2009 with torchstain's constants: stain vectors [3, 2] and their maxima."""
    density = -np.log((pixels.astype(np.float64) + 1) / 240)
    stained = density[(density >= 0.15).all(1)]
    plane = np.linalg.eigh(np.cov(stained.T))[1][:, 1:]
    angle = np.arctan2(*(stained @ plane * np.where(plane.sum(0) < 0, -1, 1)).T[::-1])
    plane = plane * np.where(plane.sum(0) < 0, -1, 1)
    ends = [plane @ (np.cos(a), np.sin(a)) for a in np.percentile(angle, (1, 99))]
    stains = np.stack(sorted(ends, key=lambda v: -v[0]), 1)
    amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0]
    return stains, np.percentile(amounts, 99, axis=1)


TARGET = np.array([[0.5626, 0.2159], [0.7201, 0.8012], [0.4062, 0.5581]]), np.array([1.9705, 1.0308])


def normalised(tile, stains, largest):
    density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / 240)
    amounts = np.linalg.lstsq(stains, density.T, rcond=None)[0] * (TARGET[1] / largest)[:, None]
    light = 240 * np.exp(-(TARGET[0] @ amounts))
    return light.clip(0, 255).astype(np.uint8).T.reshape(tile.shape)


def tissue_pixels(slide, contours):
    """Where the slide's stain is fitted, by the recipe's own choice: the overview (at most 32 times
    smaller and about 1000 px wide), its tissue without light and a marker's ink, thinned evenly to
    a million pixels."""
    rgb = slide.level(slide.level_for(min(32, max(slide.sizes[0]) / 1000)))
    size = rgb.shape[1::-1]
    down = [slide.sizes[0][axis] / size[axis] for axis in (0, 1)]
    pixels = rgb[tiling.heatmap_mask(contours, size, down) > 0]
    ink = np.log(np.maximum(pixels[:, 1], 1) / np.maximum(pixels[:, 0], 1)) > 0.3
    pixels = pixels[~((pixels > 220).all(1) | ink)]
    return pixels[::-(-len(pixels) // 2**20)]


class Ekholm:
    # The assumed 500 would leave little of a synthetic slide.
    SHARP = 250

    def __init__(self, slides):
        self.slides, self.coords, self.stains, self.blurred, self.rows, tiles = slides, [], [], [], [], []
        resize = lambda tile, side: np.asarray(
            Image.fromarray(tile).resize((side, side), Image.Resampling.BILINEAR))
        for slide in slides:
            _, _, contours = tiling.segment(slide.level(slide.level_for(64)), slide.sizes[0], min_area=1.0)
            side = 598 * 0.4532 / slide.mpp
            kept, stain = [], macenko(tissue_pixels(slide, contours))
            candidates = half_tissue(contours, side)
            for x, y in candidates:
                tile = resize(slide.tile(x, y, round(side)), 598)
                grey = cv2.cvtColor(tile, cv2.COLOR_RGB2GRAY)
                if cv2.Laplacian(grey, cv2.CV_64F).var() >= self.SHARP:
                    kept.append((x, y))
                    tiles.append(resize(normalised(tile, *stain), 299))
            self.coords.append(kept)
            self.stains.append(stain)
            self.blurred.append(len(candidates) - len(kept))
            self.rows.append(slice(len(tiles) - len(kept), len(tiles)))
        self.network = torchvision.models.inception_v3(weights=None, init_weights=False, num_classes=1)
        encoder = export.families.encoder_of("inception_v3")
        state = {k: v for k, v in self.network.state_dict().items() if k in encoder.state_dict()}
        encoder.load_state_dict(state)
        for norm in export.families.norms(encoder):
            # Most numbers pass the ReLUs, so that rounding errors do not grow from layer to layer.
            torch.nn.init.ones_(norm.bias)
        fitted(encoder, tiles)
        self.network.load_state_dict(encoder.state_dict(), strict=False)
        self.features = encoded(encoder, tiles)
        self.predictions = spread(self.network.fc, self.features, 0.06, 1.0).detach().numpy()[:, 0]


def ekholm(run, slides, folder):
    want = Ekholm(slides)
    file, package = save(folder, "score.pth", want.network.state_dict()), os.path.join(folder, "score")
    run("import", file, "--family", "inception_v3", "--recipe", "ekholm-proliferation", "-o", package)
    run("import", file, "--family", "tile-linear", "--package", package, "-o", package)
    edit(package, ("min_sharpness = 500.0", f"min_sharpness = {want.SHARP}.0"))
    out, feature_out = (os.path.join(folder, n) for n in ("out", "features"))
    paths = [slide.path for slide in slides]
    run("predict", *paths, "--package", package, "--out", out)
    run("features", *paths, "--package", package, "--out", feature_out, "--format", "clam")
    scores = []
    for i, slide in enumerate(slides):
        what, predictions = f"ekholm {slide.name}", want.predictions[want.rows[i]]
        tiles, got = table(out, slide.name, "tiles.csv"), result(out, slide.name)
        dropped = {"blurred": want.blurred[i]} if want.blurred[i] else {}
        check(f"{what} tiles dropped", got["tiles"]["dropped"] == dropped, dropped)
        equal(f"{what} coordinates", tiles[["x", "y"]].to_numpy(), want.coords[i])
        stains, largest = want.stains[i]
        source = got["stain"]["source"]
        close(f"{what} stains", [source["haematoxylin"], source["eosin"]], stains.T)
        close(f"{what} amounts of stain", source["max"], largest)
        with h5py.File(os.path.join(feature_out, "h5_files", f"{slide.name}.h5")) as h5:
            cosines(f"{what} features", h5["features"][:], want.features[want.rows[i]])
        close(f"{what} predictions of tiles", tiles["prediction"], predictions)
        percentile = pandas.Series(predictions).quantile(0.75)
        scores.append((got["predictions"][0]["value"], percentile))
        weep(run, what, os.path.join(out, slide.name, "tiles.csv"), folder)
    close("ekholm slides, 75th percentile", *zip(*scores), telling=False)


def weep(run, what, tiles, folder):
    """Tiles leave from the top until the percentile of the rest falls below the threshold."""
    left = pandas.read_csv(tiles).sort_values("prediction", ascending=False, kind="stable")
    threshold, steps = left["prediction"].median(), []
    while len(left) > 1:
        top, left = left.iloc[0], left.iloc[1:]
        score = left["prediction"].quantile(0.75)
        steps.append([top["x"], top["y"], score, score >= threshold])
        if score < threshold:
            break
    out = os.path.join(folder, "weep")
    run("explain", "weep", tiles, f"--threshold={threshold}", "-o", out)
    got = pandas.read_csv(os.path.join(out, "weep.csv"))
    same = np.array_equal(got[["x", "y", "selected"]], np.array(steps)[:, [0, 1, 3]])
    check(f"{what} WEEP", same and np.allclose(got["slide_score"], [s[2] for s in steps]),
          f"{len(steps) - 1} of {len(pandas.read_csv(tiles))} tiles selected")
