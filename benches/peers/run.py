"""run.py --binary B --worker W --cache DIR [OPTIONS]: the table of `scripts/bench-peers`.

Every participant is a process that is told when to work. Participants take turns, round after round,
so that what disturbs the machine disturbs all alike; a median is over rounds. What a participant
puts out is compared with the others' before it is timed. Needs what requirements.txt lists.
"""
import argparse
import collections
import csv
import datetime
import glob
import json
import os
import platform
import random
import re
import select
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
OURS = "histokern"
# Relative L2 distance from PyTorch in f32 up to which a network is right.
RIGHT = {"f32": 1e-3, "fp16": 3e-2, "bf16": 1.5e-1}

Row = collections.namedtuple("Row", "work batch who precision unit version rates error note")


class Failed(Exception):
    pass


class Worker:
    """A participant. `amount` is what one run does, in the unit of the row."""

    def __init__(self, who, precision, command, env, log):
        self.who, self.precision, self.log = who, precision, log
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=open(log, "w"), env=env, cwd=ROOT)
        self.seconds, self.version, self.error, self.note = {}, "", None, ""

    def read(self, timeout):
        ready, _, _ = select.select([self.process.stdout], [], [], timeout)
        line = self.process.stdout.readline().decode() if ready else ""
        if not line:
            self.process.kill()
            with open(self.log) as f:
                last = (f.read().strip().splitlines() or ["no answer"])[-1]
            raise Failed(f"{self.who} {self.precision}: {last[:200]}")
        return line.strip()

    def start(self, timeout):
        self.version = self.read(timeout).removeprefix("ready").strip()

    def tell(self, line, timeout=300):
        self.process.stdin.write((line + "\n").encode())
        self.process.stdin.flush()
        return self.read(timeout)

    def time(self, key, runs):
        return float(self.tell(f"{key} {runs}"))

    def dump(self):
        with tempfile.NamedTemporaryFile() as f:
            self.tell(f"dump {f.name}")
            return f.read()

    def close(self):
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Bench:
    def __init__(self, args):
        self.args, self.rows, self.scratch = args, [], tempfile.mkdtemp()
        self.env = dict(os.environ, PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS=str(args.threads),
                        TORCHINDUCTOR_CACHE_DIR=os.path.join(args.cache, "inductor"))
        if args.isa == "avx2":
            self.env.update(HISTOKERN_CPU="avx2", ONEDNN_MAX_CPU_ISA="AVX2", DNNL_MAX_CPU_ISA="AVX2",
                            ATEN_CPU_CAPABILITY="avx2")
        self.flags = cpu_flags()

    def say(self, text):
        print(text, file=sys.stderr, flush=True)

    def worker(self, who, precision, *command):
        log = os.path.join(self.scratch, f"{who}-{precision}.log".replace(" ", "-"))
        return Worker(who, precision, [str(c) for c in command], self.env, log)

    def ours(self, precision, *command):
        return self.worker(OURS, precision, self.args.worker, *command)

    def peer(self, who, precision, *command):
        return self.worker(who, precision, sys.executable, os.path.join(HERE, "peer.py"), *command)

    def started(self, workers, timeout=600):
        """Those that came up; why others did not is said."""
        up = []
        for worker in workers:
            try:
                worker.start(timeout)
                up.append(worker)
            except Failed as why:
                self.say(f"  left out: {why}")
        return up

    def turns(self, work, workers, keys, amount, unit, seconds):
        """Rounds over keys and workers until the time is up."""
        for worker in workers:
            worker.seconds = {key: [] for key in keys}
            worker.runs = {}
            for key in keys:
                once = worker.time(key, 1)
                worker.runs[key] = max(1, min(200, int(self.args.slot / max(once, 1e-6))))
        end, rounds = time.monotonic() + seconds, 0
        while rounds < self.args.rounds or (time.monotonic() < end and rounds < 15):
            # Another order each time: nobody always follows the same one.
            for key in keys:
                for worker in random.Random(rounds).sample(workers, len(workers)):
                    worker.seconds[key].append(worker.time(key, worker.runs[key]))
            rounds += 1
        for worker in workers:
            worker.close()
            version = worker.version or self.version
            for key in keys:
                rates = sorted(amount(key) / s for s in worker.seconds[key])
                self.rows.append(Row(work, key, worker.who, worker.precision, unit, version, rates,
                                     worker.error, worker.note))
        self.show(work)

    def show(self, work):
        mine = [r for r in self.rows if r.work == work]
        for row in mine:
            at = f"batch {row.batch}" if row.batch.isdigit() else ""
            error = "" if row.error is None else f"  error {row.error:.1e}"
            self.say(f"  {work:28} {at:9} {row.who + ' ' + row.precision:20} "
                     f"{statistics.median(row.rates):10.2f} {row.unit}  spread "
                     f"{spread(row.rates):4.0%}{error}  {row.note}")

    # -----------------------------------------------------------------------------------------

    def networks(self):
        batches = self.args.batches.split(",")
        for name in self.args.models.split(","):
            folder = os.path.join(self.args.cache, name)
            if subprocess.run([sys.executable, os.path.join(HERE, "nets.py"), name, folder],
                              env=self.env, stdout=sys.stderr).returncode:
                self.say(f"{name}: could not be prepared, left out")
                continue
            self.say(f"{name}: starting")
            self.network(name, folder, batches)

    def network(self, name, folder, batches):
        a, keys = self.args, ",".join(batches)
        with open(os.path.join(folder, "facts.json")) as f:
            facts = json.load(f)
        pixels = os.path.join(self.scratch, f"{name}.u8")
        sys.path.insert(0, HERE)
        import nets
        nets.pictures(name, 2).tofile(pixels)
        package = os.path.join(folder, "package")
        workers = [self.ours(p, "network", package, keys, a.threads, p, pixels)
                   for p in self.precisions()]
        engines = ["openvino-f32", "onnxruntime-f32", "torch-f32"]
        if "bf16" in self.precisions() and "avx512_bf16" in self.flags and a.isa == "native":
            engines += ["openvino-bf16", "torch-bf16"]
        if a.isa == "avx2":
            self.say("  ONNX Runtime cannot be kept from AVX-512: left out")
            engines.remove("onnxruntime-f32")
        if a.no_torch:
            engines = [e for e in engines if not e.startswith("torch")]
        for engine in engines:
            who, precision = engine.split("-")
            workers.append(self.peer(who, precision, "network", engine, folder, keys, a.threads))
        want = np.load(os.path.join(folder, "want.npy"))[0].ravel()
        right = []
        for worker in self.started(workers, 900):
            try:
                got = np.frombuffer(worker.dump(), np.float32)[:want.size]
            except Failed as why:
                self.say(f"  left out: {why}")
                continue
            worker.error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
            if worker.error <= RIGHT[worker.precision]:
                right.append(worker)
            else:
                self.say(f"  WRONG, left out: {worker.who} {worker.precision} {worker.error:.1e}")
                worker.close()
        for worker in right:
            worker.note = f"{facts['gflop']:.1f} GFLOP an image"
        self.turns(name, right, batches, int, "images/s", a.seconds)

    def precisions(self):
        return self.args.precisions.split(",")

    # -----------------------------------------------------------------------------------------

    def slide(self, side, mpp=0.25, codec="jpeg-ycc"):
        os.makedirs(self.args.cache, exist_ok=True)
        path = os.path.join(self.args.cache, f"slide-{side}-{mpp}-{codec}.svs")
        if not os.path.exists(path):
            self.say(f"writing a slide of {side} x {side}")
            subprocess.run([self.args.binary, "synth", "-o", path, "--seed", "7", "--width",
                            str(side), "--height", str(side), "--mpp", str(mpp), "--codec", codec,
                            "--quiet"], check=True)
        return path

    def jpeg2000(self, side):
        """A slide whose tiles are JPEG 2000 as Aperio's scanners write them: 9-7, five levels."""
        # Large enough that OpenSlide does not keep all of it decoded from one turn to the next.
        path = os.path.join(self.args.cache, f"slide-{side}-jpeg2000.svs")
        if not os.path.exists(path):
            import tifffile
            with tifffile.TiffFile(self.slide(side, codec="deflate")) as slide:
                page = slide.pages[0]
                pixels, text = page.asarray(), page.description
            how = {"level": 48, "reversible": False, "resolutions": 6, "codecformat": "j2k"}
            tifffile.imwrite(path, pixels, tile=(256, 256), photometric="rgb", description=text,
                             compression=33005, compressionargs=how, metadata=None)
        return path

    def reading(self):
        side, most = 4096 if self.args.quick else 8192, self.args.threads
        for codec in ("jpeg420", "jpeg-rgb"):
            slide = self.slide(side, codec=codec)
            for threads in (most,) if self.args.quick else (1, most):
                self.read(f"tiles {codec}, {threads} threads", slide, "tiles", threads, side * side)
        for codec in ("lzw", "lzw-predictor", "deflate", "deflate-predictor"):
            self.read(f"tiles {codec}, {most} threads", self.slide(4096, codec=codec), "tiles", most,
                      4096 * 4096)
        self.read(f"tiles jpeg2000, {most} threads", self.jpeg2000(4096), "tiles", most,
                  4096 * 4096)
        # Megapixels of the slide, so that the rows can be compared.
        for halvings in (1, 2):
            self.read(f"tiles jpeg2000 at 1/{2 ** halvings}, {most} threads", self.jpeg2000(4096),
                      "reduced", most, 4096 * 4096, halvings)
        corners, count, edge = os.path.join(self.scratch, "corners.txt"), 200, 512
        draw = random.Random(3)
        with open(corners, "w") as f:
            f.writelines(f"{draw.randrange(side - edge)} {draw.randrange(side - edge)}\n"
                         for _ in range(count))
        self.read(f"random 512 px, {self.args.threads} threads", self.slide(side, codec="jpeg420"),
                  "regions", self.args.threads, count * edge * edge, edge, corners)

    def read(self, name, slide, kind, threads, pixels, *more):
        libraries = {"tiles": ["openslide", "tifffile", "cucim"], "reduced": ["openjpeg"],
                     "regions": ["openslide", "cucim"]}[kind]
        workers = [self.ours("u8", kind, slide, threads, *more)]
        workers += [self.peer(lib, "u8", kind, lib, slide, threads, *more) for lib in libraries]
        # Lossy JPEG 2000 may be rounded either way.
        bound = 1 if "jpeg2000" in name else 0
        self.turns(name, self.alike(workers, bound), ["all"], lambda _: pixels / 1e6, "megapixels/s",
                   self.args.seconds / 2)

    def alike(self, workers, bound):
        """Those that came up, with the largest difference from our bytes noted."""
        up = self.started(workers)
        if not up or up[0].who != OURS:
            raise Failed("our own worker did not start")
        own = np.frombuffer(up[0].dump(), np.uint8).astype(int)
        for worker in list(up[1:]):
            try:
                other = np.frombuffer(worker.dump(), np.uint8).astype(int)
            except Failed as why:
                self.say(f"  left out: {why}")
                up.remove(worker)
                continue
            if other.size != own.size:
                worker.note = f"{other.size} bytes where ours are {own.size}"
                continue
            largest = int(np.abs(own - other).max())
            worker.note = "same bytes" if largest == 0 else f"bytes differ by up to {largest}"
            if largest > bound:
                worker.note += " (!)"
        return up

    def resampling(self):
        rng = np.random.default_rng(5)
        for size, to in ((512, 256), (448, 224), (512, 224), (256, 224)):
            pixels = os.path.join(self.scratch, f"{size}.rgb")
            rng.integers(0, 256, (size, size, 3), np.uint8).tofile(pixels)
            for mode in ("bilinear", "bicubic"):
                task = ["resample", size, to, mode, pixels]
                workers = [self.ours("u8", *task)]
                workers += [self.peer(library, "u8", "resample", library, *task[1:])
                            for library in ("pillow", "torchvision")]
                self.turns(f"resample {mode} {size}-{to}, 1 thread", self.alike(workers, 0), ["all"],
                           lambda _: size * size / 1e6, "megapixels/s", self.args.seconds / 4)

    def tissue(self):
        slide = self.slide(4096 if self.args.quick else 20000)
        workers = [self.ours("u8", "tissue", slide),
                   self.peer("opencv", "u8", "tissue", slide)]
        up = self.started(workers)
        for worker in up:
            worker.note = f"{worker.dump().decode()} contours"
        self.turns("tissue from file", up, ["all"], lambda _: 1, "slides/s", self.args.seconds / 4)

    # -----------------------------------------------------------------------------------------

    def pipeline(self):
        """A whole slide: ours as a process from start to end, the peer without its start."""
        a = self.args
        name = "resnet18" if a.quick else "resnet50"
        folder = os.path.join(a.cache, name)
        subprocess.run([sys.executable, os.path.join(HERE, "nets.py"), name, folder], env=self.env,
                       stdout=sys.stderr, check=True)
        side = 4096 if a.quick else 20000
        slide, package = self.slide(side), os.path.join(folder, "package")
        corners = os.path.join(self.scratch, "tiles.txt")
        seconds, facts, made = collections.defaultdict(list), {}, {}
        peers = ["f32"] + (["bf16"] if "avx512_bf16" in self.flags else [])
        for turn in range(1 if a.quick else 2):
            for precision in self.precisions():
                out = os.path.join(self.scratch, f"features-{precision}-{turn}")
                took, peak = self.timed([a.binary, "features", slide, "--package", package, "--out",
                                         out, "--device", "cpu", "--precision", precision,
                                         "--batch", "16", "--quiet"])
                seconds[OURS, precision].append(took)
                made[OURS, precision], places = features(out)
                facts[OURS, precision] = (self.version, f"peak memory {peak / 1e6:.0f} MB")
                with open(corners, "w") as f:
                    f.writelines(f"{x} {y}\n" for x, y in places)
            for precision in peers:
                out = os.path.join(self.scratch, "peer.npy")
                run = subprocess.run(
                    [sys.executable, os.path.join(HERE, "pipeline.py"), slide, corners, "448", "224",
                     folder, precision, str(a.threads), out], env=self.env, check=True,
                    stdout=subprocess.PIPE)
                said = json.loads(run.stdout.splitlines()[-1])
                seconds["python", precision].append(said["seconds"])
                made["python", precision] = np.load(out)
                facts["python", precision] = (said["version"], "")
        want = made["python", "f32"]
        for (who, precision), taken in seconds.items():
            got = made[who, precision]
            error = float(np.linalg.norm(got - want) / np.linalg.norm(want))
            version, note = facts[who, precision]
            rates = sorted(len(want) / s for s in taken)
            self.rows.append(Row(f"slide {side}, {name}", "all", who, precision, "tiles/s", version,
                                 rates, error, note))
        self.show(f"slide {side}, {name}")

    def timed(self, command):
        start = time.monotonic()
        process = subprocess.Popen([str(c) for c in command], env=self.env)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise Failed(f"{' '.join(map(str, command))}: status {status}")
        return time.monotonic() - start, usage.ru_maxrss * 1024

    @property
    def version(self):
        text = subprocess.run([self.args.binary, "--version"], stdout=subprocess.PIPE).stdout
        return text.decode().strip()


def features(folder):
    """Features and corners of the only slide that was encoded into `folder`."""
    import h5py
    (path,) = glob.glob(os.path.join(folder, "**", "*.h5"), recursive=True)
    with h5py.File(path) as f:
        return f["features"][:], f["coords"][:].astype(int)


def cpu_flags():
    try:
        with open("/proc/cpuinfo") as f:
            return set(re.search(r"^flags\s*:(.*)$", f.read(), re.M)[1].split())
    except (OSError, TypeError):
        return set()


def cpu_name():
    try:
        with open("/proc/cpuinfo") as f:
            text = f.read()
        get = lambda key: re.search(rf"^{key}\s*:\s*(.*)$", text, re.M)[1]
        return f"{get('model name')} (family {get('cpu family')} model {get('model')})"
    except (OSError, TypeError):
        return platform.processor() or platform.machine()


def spread(rates):
    return (rates[-1] - rates[0]) / statistics.median(rates)


def table(rows):
    """Ours beside the best peer of the same kind."""
    lines = [f"{'work':30} {'batch':>5} {'ours':>5} {'rate':>10} {'spread':>6}  "
             f"{'best peer':22} {'rate':>10} {'spread':>6} {'ratio':>6}"]
    middle = lambda row: statistics.median(row.rates)
    for own in [r for r in rows if r.who == OURS]:
        others = [r for r in rows if (r.work, r.batch) == (own.work, own.batch) and r.who != OURS]
        # FP16 operands are held to those who compute in f32.
        kind = "bf16" if own.precision == "bf16" else own.precision.replace("fp16", "f32")
        others = [r for r in others if r.precision == kind]
        batch = own.batch if own.batch.isdigit() else ""
        line = (f"{own.work:30} {batch:>5} {own.precision:>5} {middle(own):10.2f} "
                f"{spread(own.rates):6.0%}  ")
        if others:
            best = max(others, key=middle)
            line += (f"{best.who + ' ' + best.precision:22} {middle(best):10.2f} "
                     f"{spread(best.rates):6.0%} {middle(own) / middle(best):6.2f}")
        lines.append(line.rstrip())
    return "\n".join(lines)


def record(rows, path):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["cpu", "threads", "work", "batch", "who", "precision", "version", "unit",
                      "median", "min", "max", "rounds", "error", "note"])
        for r in rows:
            numbers = [statistics.median(r.rates), r.rates[0], r.rates[-1]]
            out.writerow([cpu_name(), ARGS.threads, r.work, r.batch if r.batch.isdigit() else "",
                          r.who, r.precision, r.version, r.unit, *(f"{n:.5g}" for n in numbers),
                          len(r.rates), "" if r.error is None else f"{r.error:.2e}", r.note])


def arguments():
    parser = argparse.ArgumentParser(description="this program beside its peers on this CPU")
    parser.add_argument("--binary", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--worker", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--cache", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true", help="resnet18 and small slides")
    parser.add_argument("--models", help="with commas between")
    parser.add_argument("--parts", default="networks,reading,resampling,tissue,pipeline")
    parser.add_argument("--precisions", default="fp16,bf16,f32", help="of ours")
    parser.add_argument("--batches", default="16,1")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--isa", choices=["native", "avx2"], default="native",
                        help="keep everyone to AVX2")
    parser.add_argument("--no-torch", action="store_true", help="without PyTorch, which compiles long")
    parser.add_argument("--seconds", type=float, help="of turns for each network")
    parser.add_argument("--rounds", type=int, default=3, help="at least")
    parser.add_argument("--slot", type=float, default=0.4, help="seconds of a turn")
    parser.add_argument("--record", metavar="DIR", help="write DIR/<date>-peers.csv")
    parser.add_argument("--docs", action="store_true",
                        help="with --record: renew table and picture of docs/performance.md")
    args = parser.parse_args()
    args.models = args.models or ("resnet18" if args.quick else
                                  "vgg16_bn,resnet50,densenet121,unet,vit_s16,vit_b16")
    args.seconds = args.seconds or (20 if args.quick else 40)
    return args


def main():
    bench = Bench(ARGS)
    started = time.monotonic()
    for part in ARGS.parts.split(","):
        bench.say(f"== {part}")
        try:
            getattr(bench, part)()
        except (Failed, subprocess.CalledProcessError) as why:
            bench.say(f"  {part}: {why}")
    minutes = (time.monotonic() - started) / 60
    print(f"{cpu_name()}, {ARGS.threads} threads, {bench.version}, {minutes:.1f} minutes")
    print("; ".join(sorted({r.version for r in bench.rows if r.who != OURS})))
    print()
    print(table(bench.rows))
    if ARGS.record:
        today = datetime.datetime.now(datetime.timezone.utc).date()
        suffix = "-avx2" if ARGS.isa == "avx2" else ""
        path = os.path.join(ARGS.record, f"{today}-peers{suffix}.csv")
        record(bench.rows, path)
        print(f"\n{path}")
        if ARGS.docs:
            import plot
            plot.write(path, os.path.join(ROOT, "docs", "performance.svg"),
                       os.path.join(ROOT, "docs", "performance.md"))


ARGS = arguments()

if __name__ == "__main__":
    main()
