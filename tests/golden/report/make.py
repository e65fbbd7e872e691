"""Makes the heatmap goldens beside this file, and the tables of src/report/colormap.rs.

    python tests/golden/report/make.py

The steps are those of CLAM's visHeatmap with numpy, scipy, matplotlib and OpenCV doing the
arithmetic. Needs: matplotlib numpy opencv-python-headless pillow scipy
"""

import json
import re
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from PIL import Image
from scipy.stats import percentileofscore, rankdata

HERE = Path(__file__).resolve().parent
TABLES = HERE.parents[2] / "src/report/colormap.rs"
CASES = {
    "plain": {"percentile": True, "colormap": "coolwarm", "alpha": 0.4, "blur": False,
              "overlap": 0.0, "blank_canvas": False},
    "overlap": {"percentile": True, "colormap": "viridis", "alpha": 0.55, "blur": False,
                "overlap": 0.5, "blank_canvas": False},
    "blur": {"percentile": True, "colormap": "jet", "alpha": 0.4, "blur": True,
             "overlap": 0.5, "blank_canvas": False},
    "raw": {"percentile": False, "colormap": "jet", "alpha": 1.0, "blur": False,
            "overlap": 0.0, "blank_canvas": True},
}
SIDE, DOWNSAMPLE = 256, (32.0, 31.937)


def heatmap(image, mask, coords, scores, percentile, colormap, alpha, blur, overlap, blank_canvas):
    height, width = mask.shape
    scale = 1 / np.array(DOWNSAMPLE)
    patch = np.ceil(np.array([SIDE, SIDE]) * scale).astype(int)
    corners = np.ceil(coords * scale).astype(int)
    if percentile:
        scores = rankdata(scores, "average") / len(scores) * 100
    scores = scores / 100
    blocks = [np.s_[y:y + patch[1], x:x + patch[0]] for x, y in corners]
    total, count = np.zeros((height, width)), np.zeros((height, width), np.uint16)
    for block, score in zip(blocks, scores):
        total[block] += max(score, 0.0)
        count[block] += 1
    total[count > 0] /= count[count > 0]
    if blur:
        kernel = (patch * (1 - overlap)).astype(int) * 2 + 1
        total = cv2.GaussianBlur(total, tuple(int(k) for k in kernel), 0)
    canvas = np.full_like(image, 255) if blank_canvas else image
    painted = canvas.copy()
    for block, score in zip(blocks, scores):
        if score >= 0:
            colours = (matplotlib.colormaps[colormap](total[block]) * 255)[:, :, :3].astype(np.uint8)
            painted[block][mask[block]] = colours[mask[block]]
    if alpha < 1:
        painted = cv2.addWeighted(painted, alpha, canvas, 1 - alpha, 0)
    return painted


def tables():
    text = ""
    for name in ("coolwarm", "jet", "viridis"):
        colours = (matplotlib.colormaps[name](np.arange(256)) * 255)[:, :3].astype(np.uint8)
        words = [f"0x{r:02x}{g:02x}{b:02x}," for r, g, b in colours]
        rows = [" ".join(words[i:i + 9]) for i in range(0, 256, 9)]
        text += f"#[rustfmt::skip]\nconst {name.upper()}: [u32; 256] = [\n    "
        text += "\n    ".join(rows) + "\n];\n"
    source = TABLES.read_text()
    begin, end = "// Tables begin.\n", "// Tables end."
    TABLES.write_text(re.sub(f"{begin}.*?{end}", lambda _: begin + text + end, source, flags=re.S))


def main():
    random = np.random.default_rng(20)
    height, width = 90, 120
    rows, columns = np.mgrid[:height, :width]
    waves = np.stack([200 + 40 * np.sin(columns / 9 + k) * np.cos(rows / (7 + k)) for k in range(3)], 2)
    image = waves.astype(np.uint8)
    mask = ((columns - 60) / 52.0) ** 2 + ((rows - 44) / 40.0) ** 2 < 1
    mask &= ((columns - 70) / 10.0) ** 2 + ((rows - 40) / 8.0) ** 2 > 1
    Image.fromarray(image).save(HERE / "canvas.png", optimize=True)
    Image.fromarray(mask).save(HERE / "mask.png", optimize=True)

    out = {"side": SIDE, "downsample": DOWNSAMPLE, "cases": {}}
    for name, options in CASES.items():
        step = SIDE * (1 - options["overlap"])
        # 3900 and 2900 reach over the right and lower edge
        xs, ys = np.arange(13, 3900, step), np.arange(101, 2900, step)
        coords = np.array([(x, y) for y in ys for x in xs])
        scores = random.normal(0, 3, len(coords))
        scores[5:40:7] = scores[5]  # ties
        if not options["percentile"]:
            scores = scores * 20 + 40  # some below 0, some above 100
        scores = np.round(scores, 4)
        picture = heatmap(image, mask, coords, scores, **options)
        Image.fromarray(picture).save(HERE / f"heatmap_{name}.png", optimize=True)
        out["cases"][name] = {"options": options, "coords": coords.tolist(),
                              "scores": scores.tolist()}

    reference = np.round(random.normal(0, 1, 40), 2)
    reference[3:9] = 0.25
    probes = np.concatenate([random.normal(0, 1, 20).round(2), [0.25, -9, 9], reference[:5]])
    out["ranks"] = {
        "reference": reference.tolist(), "probes": probes.tolist(),
        "percentiles": (rankdata(reference, "average") / len(reference) * 100).tolist(),
        "of_score": [percentileofscore(reference, p) for p in probes],
    }
    (HERE / "heatmap.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
    tables()


if __name__ == "__main__":
    main()
