"""Goldens of src/stain from torchstain (numpy backend) and scikit-image.

Needs: numpy, pillow, scikit-image, torchstain==1.4.1; with --slide also openslide-python and
openslide-bin.

    make.py                  from the committed source.png and target.png
    make.py --slide FILE     cuts these two anew from CMU-1-Small-Region.svs (OpenSlide test data, CC0)

source.png is 96 x 96 px of the slide; target.png is another place of it whose optical densities are
multiplied by (1.25, 0.8, 1.1), which stands for another laboratory's stain.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.color import rgb2hed, separate_stains
from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer
from torchstain.numpy.utils.rgb2lab import rgb2lab
from torchstain.numpy.utils.split import lab_split

HERE = Path(__file__).parent


def cut(path):
    import openslide

    slide = openslide.OpenSlide(str(path))
    read = lambda x, y: np.asarray(slide.read_region((x, y), 0, (96, 96)).convert("RGB"))
    Image.fromarray(read(1160, 1400)).save(HERE / "source.png")
    density = -np.log(np.maximum(read(900, 1000), 1) / 255.0) * (1.25, 0.8, 1.1)
    target = np.clip(255 * np.exp(-density), 0, 255).round().astype(np.uint8)
    Image.fromarray(target).save(HERE / "target.png")


def fitted(image):
    normalizer = NumpyMacenkoNormalizer()
    normalizer.fit(image)
    return {
        "haematoxylin": normalizer.HERef[:, 0].tolist(),
        "eosin": normalizer.HERef[:, 1].tolist(),
        "max": normalizer.maxCRef.tolist(),
    }


def lab(image):
    channels = lab_split(rgb2lab(image.astype("float32") / 255))
    stats = [(float(np.mean(c, dtype=np.float64)), float(np.std(c, dtype=np.float64))) for c in channels]
    return {"mean": [m for m, _ in stats], "sd": [s for _, s in stats]}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--slide", type=Path)
    args = parser.parse_args()
    if args.slide:
        cut(args.slide)
    source, target = (np.asarray(Image.open(HERE / f"{n}.png")) for n in ("source", "target"))

    macenko = NumpyMacenkoNormalizer()
    default, _, _ = macenko.normalize(source, stains=False)
    Image.fromarray(default).save(HERE / "macenko_default.png")
    macenko.fit(target)
    to_target, _, _ = macenko.normalize(source, stains=False)
    Image.fromarray(to_target).save(HERE / "macenko_target.png")
    reinhard = NumpyReinhardNormalizer()
    reinhard.fit(target)
    Image.fromarray(reinhard.normalize(source)).save(HERE / "reinhard_target.png")

    # skimage divides densities by -ln(1e-6) and takes 0 for 1e-6; no value here is 0.
    pixels = np.array([[1, 1, 1], [255, 255, 255], [90, 60, 140], [210, 120, 180], [3, 200, 77]], np.uint8)
    h, e = np.array([0.5626, 0.7201, 0.4062]), np.array([0.2159, 0.8012, 0.5581])
    h, e = h / np.linalg.norm(h), e / np.linalg.norm(e)
    residual = np.cross(h, e)
    two = np.array([h, e, residual / np.linalg.norm(residual)])
    log = -np.log(1e-6)

    def unclipped(matrix):
        # separate_stains sets negative amounts to 0: the sign is kept by separating both signs.
        inverse = np.linalg.inv(matrix)
        return ((separate_stains(pixels, inverse) - separate_stains(pixels, -inverse)) * log).tolist()

    values = {
        "macenko": {"source": fitted(source), "target": fitted(target)},
        "lab": {"source": lab(source), "target": lab(target)},
        "pixels": pixels.tolist(),
        "hed_clipped": (rgb2hed(pixels) * log).tolist(),
        "hed": unclipped(np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])),
        "two": unclipped(two),
    }
    (HERE / "values.json").write_text(json.dumps(values, indent=1) + "\n")


main()
