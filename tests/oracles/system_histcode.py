"""system_histcode.py: HistCode recomputed: CLAM's tissue and grid, truncated ResNet-50, gated attention, one
regression a gene.
"""
import os

import h5py
import numpy as np
import pandas
import torch

from system_parts import (check, equal, close, cosines, encoded, fitted, spread_clam, save, edit,
                          result, table, tissue_checks)
import networks
import tiling


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
            tiles += [slide.tile(x, y, 256, outside=0) for x, y in coords]
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
