"""peer.py: a peer's side of `scripts/bench-peers`; the protocol is that of worker.rs.

    peer.py network ENGINE FOLDER BATCH,BATCH THREADS
    peer.py tiles|regions LIBRARY SLIDE THREADS [SIDE CORNERS]
    peer.py reduced openjpeg SLIDE THREADS HALVINGS
    peer.py resample LIBRARY IN OUT FILTER PIXELS
    peer.py tissue SLIDE

Needs what requirements.txt lists. `dump FILE` writes what one run puts out: f32 for networks, else
bytes.
"""
import concurrent.futures
import json
import os
import sys
import time


def network(engine, folder, batches, threads):
    with open(os.path.join(folder, "facts.json")) as f:
        side = json.load(f)["side"]
    batches, threads = [int(b) for b in batches.split(",")], int(threads)
    kind, _, precision = engine.partition("-")
    return {"openvino": openvino, "onnxruntime": onnxruntime, "torch": pytorch}[kind](
        folder, precision, batches, threads, side)


def pictures(batch, side):
    import numpy as np
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import nets
    u8 = nets.export.pictures("peers", 2, side)
    return np.ascontiguousarray(nets.export.normalise(np.resize(u8, (batch, side, side, 3))).numpy())


def openvino(folder, precision, batches, threads, side):
    """Its throughput mode with as many requests as it asks for; one request of a batch of one, in
    its latency mode: that is what a batch of one means."""
    import openvino as ov
    core, runs, last = ov.Core(), {}, {}
    for batch in batches:
        model = core.read_model(os.path.join(folder, "model.onnx"))
        model.reshape([batch, 3, side, side])
        hint = "LATENCY" if batch == 1 else "THROUGHPUT"
        compiled = core.compile_model(model, "CPU", {
            "PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": precision})
        count = compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") if batch > 1 else 1
        x = pictures(batch, side)
        requests = [compiled.create_infer_request() for _ in range(count)]
        for request in requests:
            request.set_input_tensor(ov.Tensor(x.copy()))

        def run(n, requests=requests):
            n = max(n, 2 * len(requests))
            flying = requests[:n]
            for request in flying:
                request.start_async()
            for i in range(n):
                request = flying[i % len(flying)]
                request.wait()
                if i + len(flying) < n:
                    request.start_async()
            return n
        runs[str(batch)] = run
        last[str(batch)] = lambda request=requests[0]: request.get_output_tensor().data
    return runs, last, f"openvino {ov.__version__.split('-')[0]}"


def onnxruntime(folder, _precision, batches, threads, side):
    import onnxruntime as ort
    runs, last, kept = {}, {}, {}
    for batch in batches:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.add_free_dimension_override_by_name("batch", batch)
        # Idle threads would take the turn of others.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = ort.InferenceSession(os.path.join(folder, "model.onnx"), options,
                                       providers=["CPUExecutionProvider"])
        given = {"x": pictures(batch, side)}

        def run(n, session=session, given=given, key=str(batch)):
            for _ in range(n):
                kept[key] = session.run(None, given)[0]
            return n
        runs[str(batch)] = run
        last[str(batch)] = lambda key=str(batch): kept[key]
    return runs, last, f"onnxruntime {ort.__version__}"


def pytorch(folder, precision, batches, threads, side):
    """Channels last, compiled with frozen weights, in bf16 throughout where that is asked for."""
    import torch
    import torch._inductor.config as inductor
    torch.set_num_threads(threads)
    inductor.freezing = True
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import nets  # noqa: F401  the classes of the modules
    runs, last, kept = {}, {}, {}
    for batch in batches:
        model = torch.load(os.path.join(folder, "model.pt"), weights_only=False).eval()
        x = torch.from_numpy(pictures(batch, side))
        if precision == "bf16":
            model, x = model.bfloat16(), x.bfloat16()
        model = model.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
        model = torch.compile(model, dynamic=False)

        def run(n, model=model, x=x, key=str(batch)):
            with torch.no_grad():
                for _ in range(n):
                    kept[key] = model(x)
            return n
        runs[str(batch)] = run
        last[str(batch)] = lambda key=str(batch): kept[key].float().contiguous().numpy()
    return runs, last, f"torch {torch.__version__}"


def each(pool, work, items):
    """Every item on the threads of a pool, in pieces, so that Python itself costs little."""
    pieces = [items[i::32] for i in range(32)]
    list(pool.map(lambda piece: [work(item) for item in piece], pieces))


def reading(library, slide, threads, side=None, corners=None):
    threads = int(threads)
    if corners:
        with open(corners) as f:
            places = [tuple(map(int, line.split())) for line in f]
        side = int(side)
    pool = concurrent.futures.ThreadPoolExecutor(threads)
    if library == "openslide":
        import openslide
        it = openslide.OpenSlide(slide)
        version = f"openslide {openslide.__library_version__}"
        if not corners:
            side, places = grid(slide)
        read = lambda place: it.read_region(place, 0, (side, side))
        run = lambda: each(pool, read, places)
        first = lambda: read(places[0]).convert("RGB").tobytes()
    elif library == "tifffile":
        import tifffile
        page = tifffile.TiffFile(slide).pages[0]
        version = f"tifffile {tifffile.__version__} + imagecodecs"

        def run():
            for _ in page.segments(maxworkers=threads):
                pass
        first = lambda: next(page.segments(maxworkers=1))[0].tobytes()
    else:
        import cucim
        it = cucim.CuImage(slide)
        cucim.CuImage.cache("nocache")
        version = f"cucim {cucim.__version__}"
        if not corners:
            side, places = grid(slide)

        def run():
            for _ in it.read_region(places, (side, side), 0, num_workers=threads, batch_size=16):
                pass
        import numpy as np
        first = lambda: np.asarray(it.read_region(places[0], (side, side), 0)).tobytes()
    return whole(run), {"": first}, version


def grid(slide):
    """Side and corners of the whole native tiles of level 0."""
    import tifffile
    page = tifffile.TiffFile(slide).pages[0]
    side = page.tilewidth
    return side, [(x, y) for y in range(0, page.imagelength, side)
                  for x in range(0, page.imagewidth, side)]


def reduced(_library, slide, threads, halvings):
    """OpenJPEG without so many wavelet decompositions, one tile a thread: no Python library reads a
    slide so."""
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    import openjpeg
    import tifffile
    pool, halvings = concurrent.futures.ThreadPoolExecutor(int(threads)), int(halvings)
    page = tifffile.TiffFile(slide).pages[0]
    places = list(zip(page.dataoffsets, page.databytecounts))
    file = os.open(slide, os.O_RDONLY)
    read = lambda place: openjpeg.decode(os.pread(file, place[1], place[0]), halvings)
    first = lambda: read(places[0]).tobytes()
    return whole(lambda: each(pool, read, places)), {"": first}, f"openjpeg {openjpeg.version()}"


def whole(run):
    def times(n):
        for _ in range(n):
            run()
        return n
    return {"": times}


def resample(library, size, to, interpolation, pixels):
    size, to = int(size), int(to)
    with open(pixels, "rb") as f:
        data = f.read()
    if library == "pillow":
        import PIL
        from PIL import Image
        picture = Image.frombytes("RGB", (size, size), data)
        filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
        work = lambda: picture.resize((to, to), filters[interpolation])
        return whole(work), {"": lambda: work().tobytes()}, f"pillow {PIL.__version__}"
    import torch
    import torchvision
    from torchvision.transforms.v2 import functional
    torch.set_num_threads(1)
    x = torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(1, size, size, 3)
    x = x.permute(0, 3, 1, 2)
    mode = getattr(torchvision.transforms.InterpolationMode, interpolation.upper())
    work = lambda: functional.resize(x, [to, to], interpolation=mode, antialias=True)
    first = lambda: work()[0].permute(1, 2, 0).contiguous().numpy().tobytes()
    return whole(work), {"": first}, f"torchvision {torchvision.__version__}"


def tissue(slide):
    """The steps of CLAM's segmentation (Lu et al. 2021) on OpenSlide and OpenCV."""
    import cv2
    import numpy as np
    import openslide

    def contours():
        with openslide.OpenSlide(slide) as it:
            level = it.get_best_level_for_downsample(64)
            rgb = np.array(it.read_region((0, 0), level, it.level_dimensions[level]))
            saturation = cv2.cvtColor(rgb[..., :3], cv2.COLOR_RGB2HSV)[..., 1]
            blurred = cv2.medianBlur(saturation, 7)
            _, mask = cv2.threshold(blurred, 0, 255, cv2.THRESH_OTSU + cv2.THRESH_BINARY)
            mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((4, 4), np.uint8))
            found, order = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
            scale = it.level_downsamples[level] ** 2
            kept = 0
            for i, contour in enumerate(found):
                if order[0][i][3] == -1:
                    area = cv2.contourArea(contour)
                    child = order[0][i][2]
                    while child != -1:
                        area -= cv2.contourArea(found[child])
                        child = order[0][child][0]
                    kept += area * scale > 512 * 512
            return kept
    cv2.setNumThreads(1)
    version = f"openslide {openslide.__library_version__} + opencv {cv2.__version__}"
    return whole(contours), {"": lambda: str(contours()).encode()}, version


def main():
    kind, *rest = sys.argv[1:]
    make = {"network": network, "tiles": reading, "regions": reading, "reduced": reduced,
            "resample": resample, "tissue": tissue}[kind]
    # A library that prints must not break the protocol.
    out, sys.stdout = sys.stdout, sys.stderr
    runs, last, version = make(*rest)
    for run in runs.values():
        run(1)
    print("ready", version, file=out, flush=True)
    for line in sys.stdin:
        key, _, value = line.strip().rpartition(" ")
        if key == "dump":
            made = next(iter(last.values()))()
            with open(value, "wb") as f:
                f.write(made if isinstance(made, bytes) else made.astype("float32").tobytes())
            print("done", file=out, flush=True)
            continue
        run = runs.get(key) or runs[""]
        start = time.perf_counter()
        n = run(int(value))
        print((time.perf_counter() - start) / n, file=out, flush=True)


if __name__ == "__main__":
    main()
