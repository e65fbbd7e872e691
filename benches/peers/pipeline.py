"""pipeline.py SLIDE CORNERS SIDE OUT_SIDE NETWORK PRECISION THREADS OUTPUT

Features of the tiles of a slide as a careful user would make them in Python: OpenSlide reads and Pillow
resamples on threads ahead of OpenVINO, which runs in its throughput mode with batches of 16. The
corners of the tiles are given, so no time goes into finding tissue. Prints the seconds from opening
the slide to the file of features, without imports and without compiling the network.

Needs what requirements.txt lists.
"""
import collections
import concurrent.futures
import json
import os
import sys
import time

import numpy as np
import openslide
import openvino as ov
from PIL import Image

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
BATCH = 16


def main():
    slide, corners, side, to, folder, precision, threads, output = sys.argv[1:]
    side, to, threads = int(side), int(to), int(threads)
    with open(corners) as f:
        places = [tuple(map(int, line.split())) for line in f]
    core = ov.Core()
    model = core.read_model(os.path.join(folder, "model.onnx"))
    model.reshape([BATCH, 3, to, to])
    compiled = core.compile_model(model, "CPU", {
        "PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision})
    requests = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
    queue = ov.AsyncInferQueue(compiled, requests)
    width = compiled.output(0).partial_shape[1].get_length()
    scale, shift = np.float32(1) / (255 * STD), MEAN / STD

    start = time.perf_counter()
    it = openslide.OpenSlide(slide)
    features = np.empty((len(places), width), np.float32)

    def keep(request, first):
        rows = features[first:first + BATCH]
        rows[:] = request.get_output_tensor().data[:len(rows)]
    queue.set_callback(keep)

    def batch(first):
        x = np.zeros((BATCH, to, to, 3), np.float32)
        for row, place in zip(x, places[first:first + BATCH]):
            seen = it.read_region(place, 0, (side, side))
            # Outside the slide OpenSlide is transparent; ours is white there.
            tile = Image.new("RGB", seen.size, "white")
            tile.paste(seen, mask=seen.getchannel("A"))
            if side != to:
                tile = tile.resize((to, to), Image.Resampling.BILINEAR)
            np.subtract(np.asarray(tile, np.float32) * scale, shift, out=row)
        return first, np.ascontiguousarray(x.transpose(0, 3, 1, 2))

    ahead = collections.deque()
    firsts = iter(range(0, len(places), BATCH))
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        for _ in range(2 * threads):
            first = next(firsts, None)
            if first is not None:
                ahead.append(pool.submit(batch, first))
        while ahead:
            first, x = ahead.popleft().result()
            following = next(firsts, None)
            if following is not None:
                ahead.append(pool.submit(batch, following))
            queue.start_async({0: x}, first)
        queue.wait_all()
    np.save(output, features)
    print(json.dumps({"seconds": time.perf_counter() - start, "tiles": len(places),
                      "version": f"openslide {openslide.__library_version__} + openvino "
                                 f"{ov.__version__.split('-')[0]}"}))


if __name__ == "__main__":
    main()
