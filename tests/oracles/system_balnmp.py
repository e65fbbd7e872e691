"""system_balnmp.py: BALNMP recomputed: polygons, regions, patches, bags of ten, VGG16_BN, attention, clinical
values.
"""
import io
import json
import os

import cv2
import numpy as np
import pandas
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from system_parts import (check, equal, close, cosines, encoded, fitted, spread, save,
                          edit, result, table)
import export
import networks


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
