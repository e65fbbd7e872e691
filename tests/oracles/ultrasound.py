#!/usr/bin/env python3
"""ultrasound.py BINARY: the ultrasound system against a re-computation of its own.

Needs numpy, scipy, pillow, pydicom, torch, torchvision and segmentation_models_pytorch (PyPI). Pictures
of speckle with a dark tumour are drawn from a seed, U-Net, U-Net++ and DeepLabV3 are trained on such
pictures for a few steps, a ResNet-50 gets random weights and calibrated batch norm; all are saved as the
checkpoints users have (`{"model_state_dict": {"module....": ...}}`), imported and run by the program.
What it says is held to torch, Pillow and scipy.ndimage: masks pixel by pixel but where the probability is
within 0.001 of the threshold, boxes, Dice to 1e-6, the signature to 0.001, the combined model, Grad-CAM,
and every rule of fusion. Exit code 1 when something does not hold.
"""
import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import tomllib

import numpy as np
import pydicom
import segmentation_models_pytorch as smp
import torch
import torchvision
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian
from scipy import ndimage
from torch.nn import functional as F

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
LEARNT_SIDE = 128  # of the pictures the segmenters are trained on
RECIPE_SIDE, RECIPE_ENCODER = 512, "resnet34"
NETWORKS = {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus, "deeplabv3": smp.DeepLabV3}
# Encoder and input side of the segmenters.
SIZE = argparse.Namespace(encoder="resnet18", side=LEARNT_SIDE)
failures = []


def check(holds, what):
    print(f"{'ok  ' if holds else 'FAIL'} {what}", flush=True)
    if not holds:
        failures.append(what)


# ---------------------------------------------------------------------------------------------
# Pictures

def ultrasound(seed, height, width, tumour=True):
    """Layers of tissue under speckle, a dark ellipse with a brighter rim and a shadow below it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    layers = 0.45 + 0.15 * np.sin(y / height * 9 + 0.4 * np.sin(x / width * 5 + seed))
    layers *= 1 - 0.35 * y / height
    truth = np.zeros((height, width), bool)
    if tumour:
        cy, cx = rng.uniform(0.4, 0.6) * height, rng.uniform(0.35, 0.65) * width
        ry, rx = rng.uniform(0.14, 0.22) * height, rng.uniform(0.16, 0.26) * width
        tilt = rng.uniform(-0.5, 0.5)
        u = ((x - cx) * np.cos(tilt) + (y - cy) * np.sin(tilt)) / rx
        v = (-(x - cx) * np.sin(tilt) + (y - cy) * np.cos(tilt)) / ry
        lobes = 1 + 0.08 * np.sin(5 * np.arctan2(v, u) + seed)
        r = np.hypot(u, v) / lobes
        truth = r <= 1
        layers = np.where(truth, 0.12, layers)
        layers = np.where((r > 1) & (r < 1.12), layers + 0.15, layers)
        shadow = (np.abs(x - cx) < rx * 0.7) & (y > cy) & ~truth
        layers = np.where(shadow, layers * 0.75, layers)
    speckle = ndimage.gaussian_filter(rng.rayleigh(1.0, (height, width)), 0.8)
    image = np.clip(layers * speckle / speckle.mean() * 255, 0, 255).astype(np.uint8)
    return image, truth


def dicom(path, image):
    """The picture in 12 of 16 bits behind a rescale slope and a window; returns what is shown."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.6.1", "1.2.3"
    meta.ImplementationClassUID, meta.TransferSyntaxUID = "1.2.3", ExplicitVRLittleEndian
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.Rows, ds.Columns, ds.SamplesPerPixel = *image.shape, 1
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.RescaleSlope, ds.RescaleIntercept = "2", "-1000"
    ds.WindowCenter, ds.WindowWidth = "3000", "7001"
    stored = (image.astype(np.uint16) * 16 + 7).astype("<u2")
    ds.PixelData = stored.tobytes()
    ds.save_as(path, enforce_file_format=True)
    value = (stored.astype(np.float64) * 2 - 1000 - 2999.5) / 7000 + 0.5
    return np.floor(np.clip(value, 0, 1) * 255 + 0.5).astype(np.uint8)


def write_pictures(folder):
    """name -> (path, RGB, truth)."""
    out, truths = {}, os.path.join(folder, "truth")
    os.makedirs(truths)
    sizes = [(220, 300), (256, 256), (247, 331), (300, 210), (190, 400), (240, 240)]
    for seed, (height, width) in enumerate(sizes):
        name = f"patient{seed}"
        grey, truth = ultrasound(100 + seed, height, width, tumour=seed != 5)
        path = os.path.join(folder, name + (".png", ".png", ".jpg", ".dcm", ".png", ".png")[seed])
        if seed == 2:
            Image.fromarray(grey).save(path, quality=92)
            rgb = np.asarray(Image.open(path).convert("RGB"))
        elif seed == 3:
            rgb = np.repeat(dicom(path, grey)[..., None], 3, -1)
        elif seed == 4:
            rgb = np.stack([grey, (grey * 0.9).astype(np.uint8), grey // 2], -1)
            Image.fromarray(rgb).save(path)
        else:
            Image.fromarray(grey).save(path)
            rgb = np.repeat(grey[..., None], 3, -1)
        Image.fromarray(truth.astype(np.uint8) * 255).save(os.path.join(truths, name + ".png"))
        out[name] = (path, rgb, truth)
    broken = os.path.join(folder, "broken.dcm")
    with open(out["patient3"][0], "rb") as f, open(broken, "wb") as g:
        g.write(f.read()[:-5000])
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(os.path.join(truths, "broken.png"))
    return out, truths, broken


# ---------------------------------------------------------------------------------------------
# Networks

def resize(rgb, width, height, code):
    """Rows first, then columns: what every Pillow before 13 does, and 13 for most sizes."""
    image = Image.fromarray(rgb).resize((width, rgb.shape[0]), code)
    return np.asarray(image.resize((width, height), code))


def tensor(rgb):
    x = (rgb.astype(np.float32) / np.float32(255) - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))[None]


def halved(net):
    """Weights as a package stores them."""
    for p in net.parameters():
        if p.ndim >= 2:
            p.data = p.data.half().float()
    return net.eval()


def trained(name, steps):
    torch.manual_seed(sorted(NETWORKS).index(name))
    net = NETWORKS[name](SIZE.encoder, encoder_weights=None, classes=1)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for step in range(steps):
        batch = [ultrasound(5000 + 4 * step + i, LEARNT_SIDE, LEARNT_SIDE, tumour=i > 0)
                 for i in range(4)]
        x = torch.cat([tensor(np.repeat(g[..., None], 3, -1)) for g, _ in batch])
        y = torch.from_numpy(np.stack([t for _, t in batch]))[:, None].float()
        loss = F.binary_cross_entropy_with_logits(net(x), y)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print(f"     {name}: loss {loss.item():.3f} after {steps} steps", flush=True)
    return halved(net)


def classifier(crops):
    """Random weights; batch norm and the last layer fitted to the crops, for numbers of usual size."""
    torch.manual_seed(9)
    net = torchvision.models.resnet50(weights=None, num_classes=2)
    for key, module in net.named_modules():
        if key.endswith("bn3"):
            torch.nn.init.constant_(module.weight, 0.2)
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    x = torch.cat([tensor(resize(crop, 224, 224, Image.BILINEAR)) for crop in crops])
    with torch.no_grad():
        net.train()(x)
        features = torch.flatten(net.avgpool(trunk(net.eval(), x)), 1)
        # The direction in which the pictures differ most, so that their signatures do.
        _, _, v = torch.linalg.svd(features - features.mean(0))
        spread = (features @ v[0]).std()
        net.fc.weight.copy_(torch.stack([-v[0], v[0]]) / spread)
        middle = features.mean(0) @ net.fc.weight.T
        net.fc.bias.copy_(-middle + torch.tensor([0.1, -0.1]))
    return halved(net)


def trunk(net, x):
    x = net.maxpool(net.relu(net.bn1(net.conv1(x))))
    return net.layer4(net.layer3(net.layer2(net.layer1(x))))


def probability(net, rgb):
    """The map at the picture's size."""
    height, width = rgb.shape[:2]
    with torch.no_grad():
        p = torch.sigmoid(net(tensor(resize(rgb, SIZE.side, SIZE.side, Image.BILINEAR))))
        p = F.interpolate(p, size=(height, width), mode="bilinear", align_corners=False)
    return p[0, 0].numpy()


# ---------------------------------------------------------------------------------------------
# The system, once more

def clean(mask):
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count:
        sizes = np.bincount(labels.ravel())
        sizes[0] = 0
        mask = labels == sizes.argmax()
    return ndimage.binary_fill_holes(mask)


def fused(maps, rule):
    over = np.stack(maps) >= 0.5
    return {"mean": np.stack(maps).astype(np.float64).mean(0) >= 0.5,
            "vote": over.sum(0) * 2 > len(maps), "union": over.any(0),
            "intersection": over.all(0)}[rule]


def dice(a, b):
    total = a.sum() + b.sum()
    return 1.0 if total == 0 else float(2 * (a & b).sum() / total)


def box(mask):
    rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
    if not len(rows):
        return None
    return {"x": int(columns[0]), "y": int(rows[0]), "width": int(columns[-1] - columns[0] + 1),
            "height": int(rows[-1] - rows[0] + 1)}


def near(maps, rule):
    """Where rounding may decide: the mean, or for the other rules a map, is close to the threshold."""
    if rule == "mean":
        return np.abs(np.stack(maps).mean(0) - 0.5) < 1e-3
    return (np.abs(np.stack(maps) - 0.5) < 1e-3).any(0)


def compare_mask(got, want, borderline, what):
    differ = got != want
    check(not (differ & ~borderline).any(),
          f"{what}: {differ.sum()} of {differ.size} pixels differ, {(differ & borderline).sum()} of "
          f"them and {borderline.sum()} in all within 0.001 of the threshold")


# ---------------------------------------------------------------------------------------------
# The program

class Program:
    def __init__(self, binary, device):
        self.binary, self.device = binary, device

    def run(self, *args, codes=(0,)):
        done = subprocess.run([self.binary, *args, "--quiet"], capture_output=True, text=True)
        if done.returncode not in codes:
            sys.exit(f"histokern {' '.join(args)}: exit code {done.returncode}\n{done.stderr}")
        return done

    def on_device(self, *args, codes=(0,)):
        return self.run(*args, "--device", self.device, codes=codes)


def recipe_text():
    """The system's own recipe with segmenters of the size wanted."""
    with open(os.path.join(ROOT, "weights", "us-sln", "recipe.toml")) as f:
        text = f.read()
    encoder, side = f"-{RECIPE_ENCODER}\"", f"resize = {RECIPE_SIDE}"
    assert text.count(encoder) == 3 and text.count(side) == 3
    return text.replace(encoder, f"-{SIZE.encoder}\"").replace(side, f"resize = {SIZE.side}")


def package(program, folder, networks, net):
    out = os.path.join(folder, "us")
    os.makedirs(out)
    with open(os.path.join(out, "recipe.toml"), "w") as f:
        f.write(recipe_text())
    for name, segmenter in networks.items():
        path = os.path.join(folder, f"{name}.pth")
        torch.save(segmenter.state_dict(), path)
        program.run("import", path, "--family", f"smp-{name}-{SIZE.encoder}", "--package", out, "-o", out)
    path = os.path.join(folder, "BEST-training-params.pth")
    state = {f"module.{key}": value for key, value in net.state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 7}, path)
    for family in ("resnet50", "tile-linear"):
        program.run("import", path, "--family", family, "--package", out, "-o", out)
    return out


def edited(package_folder, folder, name, *changes):
    """The package with other words in its recipe."""
    out = os.path.join(folder, name)
    os.makedirs(out)
    for file in os.listdir(package_folder):
        if file != "recipe.toml":
            os.link(os.path.join(package_folder, file), os.path.join(out, file))
    text = recipe_text()
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    with open(os.path.join(out, "recipe.toml"), "w") as f:
        f.write(text)
    return out


def mask_of(path):
    return np.asarray(Image.open(path)).astype(bool)


def test_segment(program, pkg, pictures, truths, broken, maps, folder):
    out = os.path.join(folder, "segmented")
    paths = [path for path, _, _ in pictures.values()]
    done = program.on_device("segment", *paths, broken, "--package", pkg, "--out", out, "--truth",
                             truths, "--json", codes=(3,))
    records = {r["image"]["name"].split(".")[0]: r["segmentation"] for r in json.loads(done.stdout)}
    check(set(records) == set(pictures), "segment: every sound picture has a result")
    with open(os.path.join(out, "status.csv")) as f:
        status = {row["slide"]: row for row in csv.DictReader(f)}
    check(status["broken.dcm"]["status"] == "failed" and "PixelData" in status["broken.dcm"]["reason"],
          f"segment: broken.dcm: {status['broken.dcm']['reason']}")
    check(status["patient5.png"]["status"] == "empty", "segment: the picture without a tumour is listed as empty")
    for name, (_, rgb, truth) in pictures.items():
        record = records[name]
        wants = {"mask.png": (fused(maps[name], "mean"), near(maps[name], "mean"), record["fused"])}
        for i, network in enumerate(NETWORKS):
            wants[f"mask-{network}.png"] = (maps[name][i] >= 0.5, near([maps[name][i]], "mean"),
                                            record["segmenters"][i])
        for file, (raw, borderline, said) in wants.items():
            want = clean(raw)
            got = mask_of(os.path.join(out, name, file))
            compare_mask(got, want, borderline, f"{name}/{file}")
            check(said.get("bounds") == box(got) and said["area_px"] == got.sum(),
                  f"{name}/{file}: box and area are the mask's")
            if (got == want).all():
                check(said.get("bounds") == box(want), f"{name}/{file}: box {box(want)}")
            check(abs(said["dice"] - dice(got, truth)) < 1e-6, f"{name}/{file}: Dice {said['dice']:.6f}")
    check(records["patient5"]["fused"]["dice"] == 1.0, "two empty masks have a Dice of 1")
    return {name: mask_of(os.path.join(out, name, "mask.png")) for name in pictures}


def test_rules(program, pkg, pictures, maps, folder):
    for rule in ("vote", "union", "intersection"):
        other = edited(pkg, folder, f"us-{rule}", ('rule = "mean"', f'rule = "{rule}"'))
        out = os.path.join(folder, f"segmented-{rule}")
        names = ["patient0", "patient2"]
        program.on_device("segment", *(pictures[n][0] for n in names), "--package", other, "--out", out)
        for name in names:
            compare_mask(mask_of(os.path.join(out, name, "mask.png")), clean(fused(maps[name], rule)),
                         near(maps[name], rule), f"{name} by {rule}")


def signature(net, rgb):
    with torch.no_grad():
        return torch.softmax(net(tensor(rgb)).double(), 1)[0, 1].item()


def cut(rgb, b, margin=(0, 0)):
    x0, y0 = max(b["x"] - margin[0], 0), max(b["y"] - margin[1], 0)
    return rgb[y0:b["y"] + b["height"] + margin[1], x0:b["x"] + b["width"] + margin[0]]


def predictions(out):
    with open(os.path.join(out, "predictions.csv")) as f:
        return {(row["slide"], row["head"]): float(row["p_1"]) for row in csv.DictReader(f)}


def test_predict(program, pkg, pictures, broken, masks, net, folder):
    found = [name for name in pictures if masks[name].any()]
    rng = np.random.default_rng(3)
    age = {name: round(float(rng.uniform(30, 75)), 1) for name in [*pictures, "broken"]}
    clinical = os.path.join(folder, "clinical.csv")
    with open(clinical, "w") as f:
        f.write("patient,age\n" + "".join(f"{name},{value}\n" for name, value in age.items()))
    # A combined model of a cohort of its own.
    cohort = os.path.join(folder, "cohort.csv")
    with open(cohort, "w") as f:
        f.write("label,p_1,age\n")
        for _ in range(200):
            p, years = rng.uniform(), rng.uniform(30, 75)
            label = rng.uniform() < 1 / (1 + np.exp(-(3 * p - 1.5 + 0.04 * (years - 52))))
            f.write(f"{int(label)},{p:.6f},{years:.2f}\n")
    model = os.path.join(folder, "combined.toml")
    program.run("fit", "logistic", cohort, "--outcome", "label", "--features", "p_1,age", "-o", model)
    with open(model, "rb") as f:
        fitted = tomllib.load(f)
    beta = {c["name"]: c["coef"] for c in fitted["coefficient"]}

    out = os.path.join(folder, "predicted")
    paths = [path for path, _, _ in pictures.values()]
    command = ["predict", *paths, broken, "--package", pkg, "--clinical", clinical, "--model", model,
               "--out", out]
    program.on_device(*command, codes=(3,))
    said = predictions(out)
    check({slide for slide, _ in said} == set(found), f"predict: results for {', '.join(found)}")
    values = []
    for name in found:
        b = box(masks[name])
        crop = cut(pictures[name][1], b)
        with open(os.path.join(out, name, "result.json")) as f:
            result = json.load(f)
        check(result["segmentation"]["crop"] == b, f"{name}: crop {b}")
        check((np.asarray(Image.open(os.path.join(out, name, "crop.png"))) == crop).all(),
              f"{name}: crop.png holds the pixels of the original")
        want = signature(net, resize(crop, 224, 224, Image.BILINEAR))
        got = said[name, "sln"]
        values.append(want)
        check(abs(got - want) < 1e-3, f"{name}: signature {got:.5f}, torch {want:.5f}")
        lp = fitted["intercept"] + beta["p_1"] * got + beta["age"] * age[name]
        risk = 1 / (1 + np.exp(-lp))
        check(abs(said[name, "combined"] - risk) < 1e-9, f"{name}: combined {said[name, 'combined']:.6f}")
    check(max(values) - min(values) > 0.2, f"signatures differ: {min(values):.3f} to {max(values):.3f}")
    before = os.stat(os.path.join(out, found[0], "result.json")).st_mtime_ns
    program.on_device(*command, codes=(3,))
    check(os.stat(os.path.join(out, found[0], "result.json")).st_mtime_ns == before
          and predictions(out) == said, "predict: finished pictures are not done again")

    # Margins, nearest resizing, the short side, the whole picture where nothing was found.
    other = edited(pkg, folder, "us-other", ("margin_px = 0", "margin_px = 7"),
                   ("margin_fraction = 0.0", "margin_fraction = 0.1"), ('fit = "squash"', 'fit = "short-side"'),
                   ('empty_mask = "error"', 'empty_mask = "whole-image"'),
                   ('resize = 224\ninterpolation = "bilinear"', 'resize = 256\ncrop = 224\ninterpolation = "nearest"'))
    out = os.path.join(folder, "predicted-other")
    program.on_device("predict", pictures["patient1"][0], pictures["patient5"][0], "--package", other,
                      "--out", out)
    said = predictions(out)
    for name in ("patient1", "patient5"):
        rgb = pictures[name][1]
        if name == "patient5":
            crop = rgb
        else:
            b = box(masks[name])
            crop = cut(rgb, b, [7 + int(np.floor(0.1 * b[s] + 0.5)) for s in ("width", "height")])
        image = torchvision.transforms.Resize(256, Image.NEAREST)(Image.fromarray(crop))
        image = torchvision.transforms.CenterCrop(224)(image)
        want = signature(net, np.asarray(image))
        got = said[name, "sln"]
        check(abs(got - want) < 1e-3, f"{name} otherwise: signature {got:.5f}, torch {want:.5f}")


def test_gradcam(program, pkg, pictures, masks, net, folder):
    name = "patient2"
    out = os.path.join(folder, "gradcam")
    done = program.on_device("explain", "gradcam", pictures[name][0], "--package", pkg, "-o", out, "--json")
    said = json.loads(done.stdout)
    x = tensor(resize(cut(pictures[name][1], box(masks[name])), 224, 224, Image.BILINEAR))
    map_ = trunk(net, x)
    map_.retain_grad()
    logit = net.fc(torch.flatten(net.avgpool(map_), 1))[0, 1]
    logit.backward()
    cam = (map_.grad.mean((2, 3), keepdim=True) * map_).sum(1)[0].detach().numpy()
    with open(os.path.join(out, "gradcam.csv")) as f:
        got = np.array([float(row["signed"]) for row in csv.DictReader(f)]).reshape(cam.shape)
    error = np.abs(got - cam).max() / np.abs(cam).max()
    check(said["layer"] == "layer4" and error < 5e-3, f"Grad-CAM of {said['layer']}: error {error:.1e}")
    check(abs(said["logit"] - logit.item()) < 1e-2, f"Grad-CAM: logit {said['logit']:.4f}, {logit.item():.4f}")
    check(os.path.getsize(os.path.join(out, "gradcam.png")) > 1000, "Grad-CAM: gradcam.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("binary", help="the histokern command")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=40, help="training steps of each segmenter")
    parser.add_argument("--keep", metavar="DIR", help="work in this new folder and leave it there")
    parser.add_argument("--full", action="store_true",
                        help="segmenters of the recipe's size: ResNet-34, 512 px; minutes")
    args = parser.parse_args()
    if args.full:
        SIZE.encoder, SIZE.side = RECIPE_ENCODER, RECIPE_SIDE
    program = Program(args.binary, args.device)
    if args.keep:
        os.makedirs(args.keep)
    kept = contextlib.nullcontext(args.keep)
    with kept if args.keep else tempfile.TemporaryDirectory() as folder:
        pictures, truths, broken = write_pictures(folder)
        networks = {name: trained(name, args.steps) for name in NETWORKS}
        maps = {name: [probability(net, rgb) for net in networks.values()]
                for name, (_, rgb, _) in pictures.items()}
        crops = [cut(rgb, box(truth)) for _, rgb, truth in pictures.values() if truth.any()]
        net = classifier(crops)
        pkg = package(program, folder, networks, net)
        masks = test_segment(program, pkg, pictures, truths, broken, maps, folder)
        test_rules(program, pkg, pictures, maps, folder)
        test_predict(program, pkg, pictures, broken, masks, net, folder)
        test_gradcam(program, pkg, pictures, masks, net, folder)
    print(f"{len(failures)} failed" if failures else "all hold")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
