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
import io
import json
import os
import subprocess
import sys
import tempfile
import time

try:
    import cv2
    import h5py
    import numpy as np
    import openslide
    import pandas
    import torch
    import torchvision
    from PIL import Image
    from safetensors.numpy import load_file, save_file
except ImportError as missing:
    sys.exit(f"{missing}: pip install -r tests/oracles/requirements-systems.txt")

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path[:0] = [os.path.join(ROOT, "weights"), os.path.join(ROOT, "tests/golden/tissue")]
import export  # noqa: E402
import networks  # noqa: E402
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
    """A slide by OpenSlide, or a flat picture by Pillow; what lies outside is white."""

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

    def tile(self, x, y, side):
        """A square of level 0."""
        rgba = np.asarray(self.slide.read_region((int(x), int(y)), 0, (side, side)))
        # CLAM makes black of what lies outside the slide; here it is white (docs/histcode.md).
        return np.where(rgba[..., 3:] == 0, 255, rgba[..., :3]).astype(np.uint8)


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


# ---------------------------------------------------------------------------------------------
# HistCode: CLAM's tissue and grid, truncated ResNet-50, gated attention, one regression a gene.

class Histcode:
    # Holes smaller than HistCode's 3 squares of 512 px count, so that these slides have any.
    AREAS = {"min_area": 1.0, "min_hole": 0.02}

    def __init__(self, slides):
        self.slides, self.tissue, self.coords, self.rows, tiles = slides, [], [], [], []
        for slide in slides:
            level = slide.level_for(64)
            _, _, contours = tiling.segment(slide.level(level), slide.sizes[0], **self.AREAS)
            coords, _ = tiling.coordinates(contours)
            self.tissue.append(contours)
            self.coords.append(coords)
            self.rows.append(slice(len(tiles), len(tiles) + len(coords)))
            tiles += [slide.tile(x, y, 256) for x, y in coords]
        self.encoder = networks.resnet50_layer3()
        with torch.no_grad():
            # Random residual branches of full size amplify every rounding; trained ones do not.
            for name, parameter in self.encoder.named_parameters():
                if name.endswith("bn3.weight"):
                    parameter *= 0.1
        fitted(self.encoder, tiles)
        self.features = f = encoded(self.encoder, tiles)
        self.tumour = spread_clam(networks.Clam(2), f)
        self.genes = {"ERBB2": spread_clam(networks.Clam(1, dropout=True), f, 0.03, 0.4),
                      "MKI67": spread_clam(networks.Clam(1, instances=False), f, 0.03, 0.3)}

    def packages(self, run, folder):
        adco = save(folder, "adco_breast_not_sym.pth.tar", networks.adco(self.encoder))
        made = []
        for recipe, heads in (("histcode-diagnosis", {"tumour": self.tumour}),
                              ("histcode-gene", self.genes)):
            package = os.path.join(folder, recipe)
            run("import", adco, "--family", "histcode-encoder", "--recipe", recipe, "-o", package)
            for name, head in heads.items():
                file = save(folder, f"{name}_fold1.pt", head.state_dict())
                run("import", file, "--family", "clam-sb", "--head", name, "--package", package,
                    "-o", package)
            made.append(package)
        return made

    def gene(self, name, features):
        with torch.no_grad():
            return 10 ** self.genes[name](features)[0].item() - 1


def histcode(run, slides, folder):
    want = Histcode(slides)
    diagnosis, genes = want.packages(run, folder)
    paths = [slide.path for slide in slides]
    out, gene_out, feature_out = (os.path.join(folder, n) for n in ("out", "genes", "features"))
    # Nothing on these slides is as large as the published 100 squares.
    small = run("predict", *paths, "--package", diagnosis, "--out", out + "-100", code=3)
    check("histcode min_area 100", "min_area = 100" in small.stderr, small.stderr.splitlines()[0])
    for package in (diagnosis, genes):
        edit(package, ("min_area = 100.0", "min_area = 1.0"), ("min_hole = 3.0", "min_hole = 0.02"))
    run("predict", *paths, "--package", diagnosis, "--out", out)
    run("features", *paths, "--package", genes, "--out", feature_out, "--format", "clam")
    files = [os.path.join(feature_out, "h5_files", f"{slide.name}.h5") for slide in slides]
    run("predict", "--features", *files, "--package", genes, "--out", gene_out)
    values = []
    for i, slide in enumerate(slides):
        what, features = f"histcode {slide.name}", want.features[want.rows[i]]
        tissue_checks(what, slide, out, want.tissue[i])
        attention = table(out, slide.name, "attention.csv")
        equal(f"{what} coordinates", attention[["x", "y"]].to_numpy(), want.coords[i])
        with h5py.File(files[i]) as h5:
            equal(f"{what} coordinates in HDF5", h5["coords"][:], want.coords[i])
            cosines(f"{what} features", h5["features"][:], features)
        with torch.no_grad():
            logits, scores = want.tumour(features)
        close(f"{what} raw attention", attention["raw"], scores[:, 0], unbounded=True)
        close(f"{what} attention weights", attention["softmax"], torch.softmax(scores[:, 0], 0))
        got = result(out, slide.name)["predictions"][0]["probabilities"]
        close(f"{what} tumour", got, torch.softmax(logits[0], 0))
        for got in result(gene_out, slide.name)["predictions"]:
            values.append((got["value"], want.gene(got["head"], features)))
    close("histcode genes", *zip(*values))
    # The map of a gene set: every head on single tiles, standardised by head, averaged (assumed).
    run("explain", "tiles", paths[0], "--package", genes, "--heads", "ERBB2,MKI67", "-o", out + "-map")
    got = pandas.read_csv(os.path.join(out + "-map", "tiles.csv"))
    alone = {g: np.array([want.gene(g, f[None]) for f in want.features[want.rows[0]]])
             for g in want.genes}
    for gene, value in alone.items():
        close(f"histcode map {gene}", got[gene], value, unbounded=True)
    close("histcode map mean", got["mean"],
          np.mean([(v - v.mean()) / v.std() for v in alone.values()], axis=0), unbounded=True)


# ---------------------------------------------------------------------------------------------
# BALNMP: polygons, regions, patches, bags of ten, VGG16_BN, attention, clinical values.

COLUMNS = ["Patient ID", "Age(years)", "Tumour Size(cm)", "ER", "PR", "HER2"]
# Mean and deviation of age and size of the training patients of experiment 0.
CONSTANTS = 57.836508, 12.445064, 2.230952, 0.845686


def polygons(width, height):
    """An annotation file: a concave region, one that leaves the picture, and one to be ignored."""
    at = lambda *points: [[round(x * width), round(y * height)] for x, y in points]
    return {"positive": [
        {"name": "Annotation 0", "vertices": at((.3, .15), (.8, .2), (.85, .6), (.55, .5), (.5, .98),
                                                (.2, .8))},
        {"name": "Annotation 1", "vertices": at((.6, .65), (1.1, .6), (.9, 1.2), (.65, .9))}],
        "negative": [{"name": "n", "vertices": at((.1, .1), (.9, .1), (.9, .9))}]}


def patches(rgb, annotation):
    """(region, x, y, pixels) of the patches that are kept, in the order cut, and how many are not."""
    height, width = rgb.shape[:2]
    kept, white = [], 0
    for region, item in enumerate(annotation["positive"]):
        vertices = np.array(item["vertices"])
        # The original crops nothing or crashes beyond the picture; here boxes end at its border.
        low, high = vertices.min(0).clip(0), vertices.max(0).clip(None, [width, height])
        crop = rgb[low[1]:high[1], low[0]:high[0]].copy()
        inside = np.zeros(crop.shape[:2], np.uint8)
        cv2.fillPoly(inside, [(vertices - low).astype(np.int32)], 1)
        crop[inside == 0] = 255
        rows, columns = (-(-n // 256) * 256 for n in crop.shape[:2])
        padded = np.full((rows, columns, 3), 255, np.uint8)
        padded[:crop.shape[0], :crop.shape[1]] = crop
        for y in range(0, rows, 256):
            for x in range(0, columns, 256):
                patch = padded[y:y + 256, x:x + 256]
                if np.sum(patch == 255) / 3 / 256**2 >= 0.3:
                    white += 1
                else:
                    kept.append((region, int(low[0]) + x, int(low[1]) + y, patch))
    return kept, white


def shuffled(n, seed):
    """The recipe's own order, as the original's was not released: Fisher and Yates's shuffle by
    SplitMix64 (Steele, Lea & Flood 2014)."""
    order, state, mask = list(range(n)), seed, 2**64 - 1
    for i in range(n - 1, 0, -1):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ z >> 27) * 0x94D049BB133111EB) & mask
        j = (z ^ z >> 31) * (i + 1) >> 64
        order[i], order[j] = order[j], order[i]
    return order


def network_input(patch):
    return np.asarray(Image.fromarray(patch).resize((224, 224), Image.Resampling.BILINEAR))


class Patient:
    """Bags of patches, and a row of the clinical table as published."""

    def __init__(self, name, tiles, bags, age, size, er, pr, her2):
        self.name, self.bags = name, [[tiles[i] for i in bag] for bag in bags]
        self.row = dict(zip(COLUMNS, (name, age, size, er, pr, her2)))
        # Standardised by the training patients of experiment 0; the flags say "negative".
        age_mean, age_sd, size_mean, size_sd = CONSTANTS
        self.clinical = torch.tensor([(age - age_mean) / age_sd, (size - size_mean) / size_sd,
                                      *(float(r == "Negative") for r in (er, pr, her2))])


class Balnmp:
    """DL-CNB and DL-CNB+C on one backbone."""

    def __init__(self, patients):
        self.extractor = networks.vgg16_bn()
        fitted(self.extractor, [tile for p in patients for bag in p.bags for tile in bag])
        for norm in export.families.norms(self.extractor):
            norm.momentum = 0.0
        features = {p.name: self.features(p) for p in patients}
        every = torch.cat([f for bags in features.values() for f in bags])
        self.image, self.clinical = networks.BalnmpHead(), networks.BalnmpHead(clinical=5)
        for head in (self.image, self.clinical):
            # What tiles share is taken out, so that bags differ.
            attention, fc1 = head.attention_aggregator.attention, head.attention_aggregator.fc1
            h = torch.relu(spread(fc1[0], every, 1.0))
            spread(attention[-1], torch.tanh(spread(attention[0], h, 1.0)), 0.1)
            head.eval()
            beside = torch.randn(len(h), head.classifier[0].in_features - 256)
            h = torch.relu(spread(head.classifier[0], torch.cat([h, beside], 1), 1.0))
            spread(head.classifier[2], h, 0.4)

    def features(self, patient, running=False):
        """The published evaluation never left training mode: every bag has its own batch norm."""
        self.extractor.train(not running)
        return [encoded(self.extractor, bag, len(bag)) for bag in patient.bags]

    @torch.no_grad()
    def predict(self, head, patient, running=False):
        """Probabilities of the patient, then raw attention and its softmax bag by bag."""
        clinical = [patient.clinical] if head is self.clinical else []
        out = [head(f, *clinical) for f in self.features(patient, running)]
        probabilities = torch.stack([torch.softmax(logits[0], 0) for logits, _ in out])
        raw = [scores[:, 0] for _, scores in out]
        return probabilities, raw, [torch.softmax(r, 0) for r in raw]


def annotated(run, pictures, folder):
    """Patients whose polygons are cut, and what becomes of their patches."""
    made = []
    for picture, values in zip(pictures, [(45, 2.6, "Negative", "Positive", "Negative"),
                                          (67, 1.4, "Positive", "Negative", "Positive")]):
        rgb = picture.level(0)
        annotation = polygons(rgb.shape[1], rgb.shape[0])
        with open(os.path.join(folder, "annotations", picture.name + ".json"), "w") as f:
            json.dump(annotation, f)
        kept, white = patches(rgb, annotation)
        order = shuffled(len(kept), 0)
        bags = [order[i:i + 10] for i in range(0, len(order) - 9, 10)]
        tiles = [network_input(patch) for *_, patch in kept]
        made.append((Patient(picture.name, tiles, bags, *values), kept, white, bags))
    return made


def listed(kept, folder):
    """A patient by the authors' own list of bags: patches went through two JPEG files."""
    os.makedirs(os.path.join(folder, "dataset/patches/7"))
    paths, tiles = [], []
    for region, x, y, patch in kept[:20]:
        for _ in range(2):
            file = io.BytesIO()
            Image.fromarray(patch).save(file, "JPEG", quality=100)
            patch = np.asarray(Image.open(file))
        paths.append(f"patches/7/7_{region}_{x}_{y}.jpg")
        with open(os.path.join(folder, "dataset", paths[-1]), "wb") as f:
            f.write(file.getvalue())
        tiles.append(network_input(np.asarray(Image.open(file))))
    bags = [list(range(0, 20, 2)), list(range(1, 20, 2))]
    entries = [{"id": "7", "label": "1", "patch_paths": [paths[i] for i in bag]} for bag in bags]
    with open(os.path.join(folder, "test-type-0.json"), "w") as f:
        json.dump(entries, f)
    return Patient("7", tiles, bags, 50, 2.0, "Positive", "Positive", "Positive")


def balnmp(run, pictures, folder):
    os.makedirs(os.path.join(folder, "annotations"))
    made = annotated(run, pictures, folder)
    want = Balnmp([patient for patient, *_ in made])
    clinical = os.path.join(folder, "patient-clinical-data.csv")
    pandas.DataFrame([patient.row for patient, *_ in made]).to_csv(clinical, index=False)
    with_clinical, image = (os.path.join(folder, n) for n in ("dl-cnb-c", "dl-cnb"))
    for package, recipe, head, original in ((with_clinical, "balnmp-dl-cnb-c", want.clinical, True),
                                            (image, "balnmp-dl-cnb", want.image, False)):
        file = save(folder, "best.pth", networks.balnmp(want.extractor, head, original))
        run("import", file, "--family", "balnmp", "--recipe", recipe, "-o", package)
    out = os.path.join(folder, "out")
    run("predict", *(p.path for p in pictures), "--package", with_clinical, "--out", out, "--regions",
        os.path.join(folder, "annotations"), "--clinical", clinical, "--clinical-id", COLUMNS[0])
    scores = []
    for patient, kept, white, bags in made:
        what, used = f"balnmp {patient.name}", [kept[i][1:3] for bag in bags for i in bag]
        probabilities, raw, weights = want.predict(want.clinical, patient)
        attention, got = table(out, patient.name, "attention.csv"), result(out, patient.name)
        dropped = {"white": white, "incomplete bag": len(kept) - len(used)}
        check(f"{what} patches dropped", got["tiles"]["dropped"] == dropped, dropped)
        # The bags are in their order, one after the other.
        equal(f"{what} patches", attention[["x", "y"]].to_numpy(), used)
        close(f"{what} raw attention", attention["raw"], torch.cat(raw), unbounded=True)
        close(f"{what} attention weights", attention["softmax"], torch.cat(weights))
        got = got["predictions"][0]
        close(f"{what} bags", [bag["probabilities"] for bag in got["bags"]], probabilities)
        scores.append((got["probabilities"], probabilities.mean(0).tolist()))
    close("balnmp patients", *zip(*scores))
    balnmp_bags(run, want, made[0][0], listed(made[0][1], folder), image, folder)


def balnmp_bags(run, want, patient, by_list, package, folder):
    """The authors' bags, with batch norm of each bag and with running statistics; features."""
    pixels, features = os.path.join(folder, "pixels"), os.path.join(folder, "features")
    save_file({"pixels": np.stack(patient.bags[0])}, pixels)
    run("run", package, "--input", pixels, "-o", features)
    cosines("balnmp features of a bag", load_file(features)["features"], want.features(patient)[0])
    for mode in ("batch", "running"):
        if mode == "running":
            edit(package, ('bn_mode = "batch"', 'bn_mode = "running"'))
        out = os.path.join(folder, mode)
        run("predict", "--bags", os.path.join(folder, "test-type-0.json"), "--images",
            os.path.join(folder, "dataset"), "--package", package, "--out", out)
        probabilities, raw, _ = want.predict(want.image, by_list, mode == "running")
        close(f"balnmp bag list, {mode}, raw attention", table(out, "7", "attention.csv")["raw"],
              torch.cat(raw), unbounded=True)
        got = result(out, "7")["predictions"][0]
        close(f"balnmp bag list, {mode}, bags", [bag["probabilities"] for bag in got["bags"]],
              probabilities)
        close(f"balnmp bag list, {mode}, patient", got["probabilities"], probabilities.mean(0))


# ---------------------------------------------------------------------------------------------
# Ekholm et al.: tiles of 271 um, Macenko, Inception V3, the 75th percentile.

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


# ---------------------------------------------------------------------------------------------

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
