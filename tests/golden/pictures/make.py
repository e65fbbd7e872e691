#!/usr/bin/env python3
"""make.py: writes what tests/pictures.rs compares with into its own folder.

Needs numpy, scipy, pillow, pydicom, torch and torchvision (PyPI). DICOM files and what pydicom and
Pillow (libjpeg-turbo) read from them; masks and what scipy.ndimage makes of them; fused probability
maps by numpy; Grad-CAM by PyTorch's autograd on networks of full depth, a fraction of the channels and
weights from the formula of weights/export.py.
"""
import gzip
import hashlib
import io
import json
import os
import sys

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_windowing, convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import (ExplicitVRLittleEndian, ImplicitVRLittleEndian, JPEG2000Lossless,
                         JPEGBaseline8Bit)
from scipy import ndimage

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "..", "..", "weights"))
H, W = 20, 26


# ---------------------------------------------------------------------------------------------
# DICOM

def dataset(syntax, photometric, samples, allocated=8, stored=None, signed=0, **more):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    meta.ImplementationClassUID = "1.2.3"
    meta.TransferSyntaxUID = syntax
    ds = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID = "US", "synthetic"
    ds.Rows, ds.Columns, ds.SamplesPerPixel = H, W, samples
    ds.PhotometricInterpretation = photometric
    ds.BitsAllocated, ds.BitsStored = allocated, stored or allocated
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, signed
    if samples == 3:
        ds.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(ds, name, value)
    return ds


def grey_samples(stored, signed, seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:H, 0:W]
    smooth = (np.sin(x / 5.0) * np.cos(y / 4.0) + 1) / 2
    values = (smooth * 0.8 + rng.uniform(0, 0.2, (H, W))) * (2**stored - 1)
    return (values - (2 ** (stored - 1) if signed else 0)).astype(np.int32)


def colour_samples(seed):
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:H, 0:W]
    planes = [128 + 100 * np.sin(x / (4.0 + c)) * np.cos(y / (5.0 - c)) for c in range(3)]
    return np.clip(np.stack(planes, -1) + rng.normal(0, 8, (H, W, 3)), 0, 255).astype(np.uint8)


def shown(ds, array):
    """Grey as 8-bit RGB: rescaled, windowed or over the range of the stored bits, inverted."""
    signed = ds.PixelRepresentation == 1
    ends = np.array([-(2 ** (ds.BitsStored - 1)), 2 ** (ds.BitsStored - 1) - 1] if signed
                    else [0, 2**ds.BitsStored - 1], np.float64)
    ends = np.sort(ends * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0)))
    values = apply_modality_lut(array, ds).astype(np.float64)
    if "WindowCenter" in ds:
        values = apply_windowing(values, ds)
    grey = np.floor((values - ends[0]) / (ends[1] - ends[0]) * 255 + 0.5).clip(0, 255)
    grey = grey.astype(np.uint8)
    if ds.PhotometricInterpretation == "MONOCHROME1":
        grey = 255 - grey
    return np.repeat(grey[..., None], 3, -1)


def jpeg(array, **options):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "JPEG", quality=90, **options)
    return stream.getvalue()


def unmarked(stream):
    """A JPEG of R, G and B that says so nowhere: no Adobe marker, components numbered."""
    out, at = bytearray(stream[:2]), 2
    while stream[at + 1] != 0xda:
        length = int.from_bytes(stream[at + 2:at + 4], "big") + 2
        segment = bytearray(stream[at:at + length])
        if segment[1] == 0xc0:
            for c in range(3):
                assert segment[10 + 3 * c] == b"RGB"[c]
                segment[10 + 3 * c] = c + 1
        if segment[1] not in (0xe0, 0xee):
            out += segment
        at += length
    tail = bytearray(stream[at:])
    for c in range(3):
        tail[5 + 2 * c] = c + 1
    return bytes(out + tail)


def frame(stream):
    return encapsulate([stream], has_bot=True)


def pixels_in_fragments(stream):
    """The same frame in fragments of 300 bytes."""
    return encapsulate([stream], fragments_per_frame=-(-len(stream) // 300), has_bot=False)


def dicom():
    expected, good, bad = {}, {}, {}
    explicit, implicit = ExplicitVRLittleEndian, ImplicitVRLittleEndian
    window = {"WindowCenter": [900, 400], "WindowWidth": [1500, 300]}
    rescale = {"RescaleSlope": "0.5", "RescaleIntercept": "-100", "RescaleType": "US"}
    for seed, (name, syntax, photometric, allocated, stored, signed, more) in enumerate([
            ("mono2_8", explicit, "MONOCHROME2", 8, 8, 0, {}),
            ("mono1_8_implicit", implicit, "MONOCHROME1", 8, 8, 0, {}),
            ("mono2_12_range", implicit, "MONOCHROME2", 16, 12, 0, {}),
            ("mono2_12_window", explicit, "MONOCHROME2", 16, 12, 0, {**window, **rescale}),
            ("mono1_16_exact", explicit, "MONOCHROME1", 16, 16, 1,
             {"WindowCenter": "100.5", "WindowWidth": "30000", "VOILUTFunction": "LINEAR_EXACT"}),
            ("mono2_16_sigmoid", implicit, "MONOCHROME2", 16, 16, 1,
             {"WindowCenter": "-500", "WindowWidth": "20000", "VOILUTFunction": "SIGMOID",
              "RescaleSlope": "2", "RescaleIntercept": "10"})]):
        ds = dataset(syntax, photometric, 1, allocated, stored, signed, **more)
        array = grey_samples(stored, signed, seed)
        kind = f"{'i' if signed else 'u'}{allocated // 8}"
        ds.PixelData = array.astype("<" + kind).tobytes()
        good[name] = (ds, shown(ds, array))
    # Bits above those stored hold something else.
    ds, want = dataset(explicit, "MONOCHROME2", 1, 16, 12), good["mono2_12_range"][1]
    ds.PixelData = (grey_samples(12, 0, 2) | 0x5000).astype("<u2").tobytes()
    good["mono2_12_overlay"] = (ds, want)

    rgb = colour_samples(10)
    ds = dataset(explicit, "RGB", 3)
    # Sequences on the way: defined and undefined lengths, one in another, an unknown type.
    inner, outer = Dataset(), Dataset()
    inner.PhysicalDeltaX = 0.01
    outer.RegionDataType = 1
    outer.SequenceOfUltrasoundRegions = Sequence([inner])
    ds.SequenceOfUltrasoundRegions = Sequence([outer, inner])
    ds["SequenceOfUltrasoundRegions"].is_undefined_length = True
    outer.is_undefined_length_sequence_item = True
    outer["SequenceOfUltrasoundRegions"].is_undefined_length = True
    ds.add_new((0x0029, 0x1010), "UN", b"something private")
    # A sequence whose type its writer did not know: implicit within.
    item = bytes.fromhex("feff00e0ffffffff" "18002c6008000000") + bytes(8) \
        + bytes.fromhex("feff0de000000000")
    ds.add_new((0x0029, 0x1011), "UN", item)
    ds[0x0029, 0x1011].is_undefined_length = True
    ds.PixelData = rgb.tobytes()
    good["rgb_sequences"] = (ds, rgb)
    ds = dataset(implicit, "RGB", 3, PlanarConfiguration=1)
    ds.PixelData = rgb.transpose(2, 0, 1).tobytes()
    good["rgb_planes"] = (ds, rgb)
    ybr = colour_samples(11)
    ds = dataset(explicit, "YBR_FULL", 3)
    ds.PixelData = ybr.tobytes()
    good["ybr_full"] = (ds, convert_color_space(ybr, "YBR_FULL", "RGB"))
    ds = dataset(explicit, "YBR_FULL_422", 3)
    pairs = ybr.reshape(H, W // 2, 2, 3)
    ds.PixelData = np.stack([pairs[:, :, 0, 0], pairs[:, :, 1, 0], pairs[:, :, 0, 1],
                             pairs[:, :, 0, 2]], -1).tobytes()
    shared = pairs.copy()
    shared[:, :, 1, 1:] = shared[:, :, 0, 1:]
    good["ybr_full_422"] = (ds, convert_color_space(shared.reshape(H, W, 3), "YBR_FULL", "RGB"))

    stream = jpeg(rgb, subsampling="4:2:2")
    ds = dataset(JPEGBaseline8Bit, "YBR_FULL_422", 3)
    ds.PixelData = pixels_in_fragments(stream)
    good["jpeg_422"] = (ds, np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")))
    stream = jpeg(rgb[..., 0])
    ds = dataset(JPEGBaseline8Bit, "MONOCHROME1", 1)
    ds.PixelData = frame(stream)
    good["jpeg_mono1"] = (ds, 255 - np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")))
    stream = jpeg(rgb, keep_rgb=True, subsampling="4:4:4")
    ds = dataset(JPEGBaseline8Bit, "RGB", 3)
    ds.PixelData = frame(unmarked(stream))
    good["jpeg_rgb_unmarked"] = (ds, np.asarray(Image.open(io.BytesIO(stream)).convert("RGB")))

    base = good["mono2_8"][0]

    def changed(syntax=None, **more):
        ds = dataset(syntax or explicit, "MONOCHROME2", 1)
        ds.PixelData = base.PixelData
        for key, value in more.items():
            setattr(ds, key, value)
        return ds

    ds = changed(NumberOfFrames=3)
    ds.PixelData = base.PixelData * 3
    bad["frames"] = (ds, "tag (0028,0008) NumberOfFrames: 3 frames")
    ds = changed(JPEG2000Lossless)
    ds.PixelData = frame(b"\xff\x4f\xff\x51" + bytes(60))
    bad["jpeg2000"] = (ds, "tag (0002,0010) TransferSyntaxUID: 1.2.840.10008.1.2.4.90")
    bad["big_endian"] = (changed(), "tag (0002,0010) TransferSyntaxUID: 1.2.840.10008.1.2.2")
    bad["palette"] = (changed(PhotometricInterpretation="PALETTE COLOR"),
                      "tag (0028,0004) PhotometricInterpretation: PALETTE COLOR")
    bad["short"] = (changed(PixelData=base.PixelData[:100]), "tag (7fe0,0010) PixelData: 100 bytes")
    ds = changed()
    del ds.Rows
    bad["no_rows"] = (ds, "tag (0028,0010) Rows: is missing")
    bad["high_bit"] = (changed(HighBit=6), "tag (0028,0102) HighBit: 6 for 8 bits")
    bad["window"] = (changed(WindowCenter="1", WindowWidth="0"), "tag (0028,1051) WindowWidth: 0")
    bad["samples"] = (changed(SamplesPerPixel=3, PlanarConfiguration=0),
                      "tag (0028,0002) SamplesPerPixel: 3 samples")
    bad["not_decimal"] = (changed(WindowCenter="1"), "tag (0028,1051) WindowWidth: is missing")

    for name, (ds, want) in good.items():
        ds.save_as(os.path.join(HERE, f"{name}.dcm"), enforce_file_format=True)
        read = pydicom.dcmread(os.path.join(HERE, f"{name}.dcm"))
        assert read.Rows == H
        expected[name] = {"sha256": hashlib.sha256(want.tobytes()).hexdigest(),
                          "first": want[0].ravel()[:24].tolist()}
    for name, (ds, message) in bad.items():
        path = os.path.join(HERE, f"bad_{name}.dcm")
        ds.save_as(path, enforce_file_format=True)
        if name == "big_endian":
            with open(path, "rb+") as f:
                data = f.read().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.2\0", 1)
                f.seek(0)
                f.write(data)
        expected[f"bad_{name}"] = {"error": message}
    return {"width": W, "height": H, "files": expected}


# ---------------------------------------------------------------------------------------------
# Masks

def text(mask):
    return ["".join("#" if v else "." for v in row) for row in mask]


def masks():
    rng = np.random.default_rng(5)
    cases = []
    for i, (h, w) in enumerate([(9, 13), (16, 11), (24, 30), (30, 24), (1, 17), (12, 1), (21, 21)]):
        noise = ndimage.gaussian_filter(rng.normal(size=(h, w)), [0.4, 0.8, 1.2][i % 3])
        mask = noise > np.quantile(noise, [0.45, 0.55, 0.4][i % 3])
        if i == 6:
            # Two components of one size; a hole that only a corner opens; one on the border.
            mask[:] = False
            mask[2:7, 2:7] = True
            mask[3:6, 3:6] = False
            mask[12:17, 12:17] = True
            mask[13:16, 13:16] = False
            mask[12, 12] = mask[2, 2] = False
        case = {"mask": text(mask), "filled": text(ndimage.binary_fill_holes(mask))}
        for neighbours, structure in ((4, None), (8, np.ones((3, 3)))):
            labels, count = ndimage.label(mask, structure)
            sizes = np.bincount(labels.ravel(), minlength=count + 1)
            sizes[0] = 0
            largest = (labels == sizes.argmax()) & mask
            clean = ndimage.binary_fill_holes(largest)
            rows, columns = ndimage.find_objects(clean.astype(int))[0]
            other = np.roll(mask, 1, axis=1)
            case[str(neighbours)] = {
                "largest": text(largest), "clean": text(clean),
                "box": [columns.start, rows.start, columns.stop - columns.start,
                        rows.stop - rows.start],
                "area": int(clean.sum()),
                "dice": float(2 * (clean & other).sum() / (clean.sum() + other.sum()))}
        case["other"] = text(np.roll(mask, 1, axis=1))
        cases.append(case)
    return cases


def fusions():
    rng = np.random.default_rng(6)
    cases = []
    for n, threshold in ((1, 0.5), (2, 0.5), (3, 0.5), (3, 0.375), (4, 0.5), (5, 0.625)):
        # Multiples of 1/16, so that many means and values lie on the threshold.
        maps = (rng.integers(0, 17, (n, 4, 10)) / 16).astype(np.float32)
        over = maps >= threshold
        votes = over.sum(0)
        cases.append({
            "threshold": threshold, "maps": maps.reshape(n, -1).tolist(), "width": 10,
            "mean": text(maps.astype(np.float64).mean(0) >= threshold),
            "vote": text(votes > n / 2), "union": text(over.any(0)),
            "intersection": text(over.all(0))})
    return cases


# ---------------------------------------------------------------------------------------------
# Grad-CAM

def gradcam():
    import torch
    import torchvision
    import export
    import families

    cases = []
    for file, name, layer, factor, side in (("gradcam_resnet50", "resnet50", "layer4", 8, 96),
                                            ("gradcam_densenet121", "densenet121", "features", 8, 96)):
        net = families.narrow(getattr(torchvision.models, name)(weights=None), factor)
        last = "fc" if hasattr(net, "fc") else "classifier"
        width = getattr(net, last).in_features // factor
        setattr(net, last, torch.nn.Linear(width, 2))
        state = families.state_of(net)
        for key, tensor in state.items():
            tensor.copy_(torch.from_numpy(export.formula(key, tuple(tensor.shape))))
        net.eval()
        u8 = export.pictures(f"{file} picture", 1, side)
        kept = {}
        pool = torch.nn.functional.adaptive_avg_pool2d

        def keep(_module, inputs, kept=kept):
            kept["map"] = inputs[0]
            kept["map"].retain_grad()

        x = export.normalise(u8)
        if name.startswith("resnet"):
            net.avgpool.register_forward_pre_hook(keep)
            logits = net(x)
        else:
            # DenseNet pools by a function: the same steps as its `forward`, the map in hand.
            keep(None, [torch.relu(net.features(x))])
            logits = net.classifier(pool(kept["map"], (1, 1)).flatten(1))
            assert torch.equal(logits, net(x))
        answers = []
        for k in range(2):
            net.zero_grad()
            kept["map"].grad = None
            logits[0, k].backward(retain_graph=True)
            weights = kept["map"].grad.mean((2, 3), keepdim=True)
            cam = (weights * kept["map"]).sum(1)[0]
            answers.append({"logit": logits[0, k].item(), "signed": cam.flatten().tolist()})
        lines = "".join(f"{key}\t{','.join(map(str, v.shape))}\n" for key, v in state.items())
        with open(os.path.join(HERE, f"{file}.tsv.gz"), "wb") as f:
            f.write(gzip.compress(lines.encode(), 9, mtime=0))
        print(file, list(kept["map"].shape), answers[1]["logit"], np.round(answers[1]["signed"], 3))
        cases.append({"file": file, "family": name, "layer": layer, "last": last, "side": side,
                      "shape": list(kept["map"].shape[2:]), "classes": answers})
    return cases


def main():
    values = {"dicom": dicom(), "masks": masks(), "fusions": fusions(), "gradcam": gradcam()}
    with open(os.path.join(HERE, "values.json"), "w") as f:
        json.dump(values, f, separators=(",", ":"))
        f.write("\n")


if __name__ == "__main__":
    main()
