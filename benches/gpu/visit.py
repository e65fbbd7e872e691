"""visit.py PACK OUT [OPTIONS]: what `scripts/gpu-visit run` does, step by step.

A step is a process with a time limit; what it says goes to OUT/<step>.log. Speed is measured in turns,
ours, theirs, ours, theirs, by networks of the same shape with random weights on random pictures, batch
norm calibrated; the medians are compared.
"""
import argparse
import csv
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
# Pictures' side as in benches/peers/nets.py, batch sizes, and the ratio that is wanted at the largest.
NETWORKS = {
    "resnet50": (224, (1, 32, 256), 1.5), "vgg16_bn": (224, (1, 256), 1.15),
    "densenet121": (224, (1, 256), 2.5), "vit_l16": (224, (1, 256), 1.1),
    "unet": (256, (1, 32), 1.2), "inception_v3": (299, (1, 256), 1.4),
    "vit_s16": (224, (1, 256), None), "resnet18": (224, (1, 256), None),
}
STEPS = "tests", "check", "memcheck", "racecheck", "speed"


class Visit:
    def __init__(self, args, folder):
        self.args, self.steps, self.rows = args, {}, []
        self.revision = text(os.path.join(folder, "revision"))
        self.binary, self.test = (os.path.join(folder, name) for name in ("histokern", "test-cuda"))
        # Where the tests look for the checkout.
        root = text(os.path.join(folder, "root"))
        if not os.path.exists(root):
            os.makedirs(os.path.dirname(root), exist_ok=True)
            os.symlink(ROOT, root)

    def path(self, name):
        return os.path.join(self.args.out, name)

    def step(self, name, command, seconds, env=()):
        """Runs a command; its standard output, or None when it failed."""
        began = time.monotonic()
        with open(self.path(f"{name}.log"), "w") as log:
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=log, timeout=seconds,
                                      env=dict(os.environ, **dict(env)))
                code, said = done.returncode, done.stdout.decode(errors="replace")
            except (subprocess.TimeoutExpired, OSError) as why:
                code, said = str(why), ""
            log.write(said)
        self.steps[name] = {"exit": code, "seconds": round(time.monotonic() - began, 1)}
        verdict = "ok" if code == 0 else f"FAILED ({code}), see {name}.log"
        print(f"{self.steps[name]['seconds']:7.1f} s  {name}: {verdict}", flush=True)
        return said if code == 0 else None

    def tests(self):
        self.step("tests", [self.test], self.args.limit)

    def check(self):
        said = self.step("check", [self.binary, "check", "--device", "cuda", "--json"], self.args.limit)
        if said:
            findings = json.loads(said)["findings"]
            passed = sum(finding["passed"] for finding in findings)
            self.steps["check"]["findings"] = [passed, len(findings)]

    def sanitizer(self, tool):
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        if not os.path.exists(sanitizer):
            print(f"           {tool}: no compute-sanitizer here", flush=True)
            return
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9", self.binary, "check",
                   "--device", "cuda", "--quiet"]
        self.step(tool, command, self.args.limit)

    def memcheck(self):
        self.sanitizer("memcheck")

    def racecheck(self):
        self.sanitizer("racecheck")

    def speed(self):
        for name in self.args.networks:
            side, batches, _ = NETWORKS[name]
            sizes = ",".join(str(b) for b in batches)
            ours, theirs = [], []
            for turn in range(self.args.turns):
                said = self.step(f"ours-{name}-{turn}", [
                    self.binary, "bench", "--model", name, "--side", str(side), "--device",
                    self.args.device, "--batch", sizes, "--seconds", str(self.args.seconds), "--json",
                    "--quiet"], self.args.limit)
                ours.append(json.loads(said) if said else None)
                if not self.args.peers:
                    continue
                said = self.step(f"peers-{name}-{turn}", [
                    sys.executable, os.path.join(HERE, "peers.py"), name, sizes,
                    str(self.args.seconds), *(["--compile"] if self.args.compile else [])],
                    self.args.limit)
                theirs.append(json.loads(said.strip().splitlines()[-1]) if said else None)
            self.add(name, batches, [r for r in ours if r], [r for r in theirs if r])

    def add(self, name, batches, ours, theirs):
        for batch in batches:
            rates = {}
            for report in ours:
                for row in report["batches"]:
                    if row["rows"] == batch and row["images_per_second"]:
                        rates.setdefault("histokern", []).append(row["images_per_second"])
                        if row["overlapped_images_per_second"]:
                            rates.setdefault("histokern overlapped", []).append(
                                row["overlapped_images_per_second"])
            for report in theirs:
                for who, by_batch in report["images_per_second"].items():
                    if str(batch) in by_batch:
                        rates.setdefault(who, []).append(by_batch[str(batch)])
            for who, values in rates.items():
                spread = (max(values) - min(values)) / statistics.median(values)
                self.rows.append([name, batch, who, statistics.median(values), spread])

    def write(self):
        report = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            "machine": machine(), "revision": self.revision, "steps": self.steps,
            "rates": [dict(zip(("network", "batch", "who", "images_per_second", "spread"), row))
                      for row in self.rows],
        }
        with open(self.path("visit.json"), "w") as f:
            json.dump(report, f, indent=1)
        with open(self.path("visit.csv"), "w", newline="") as f:
            out = csv.writer(f)
            for key in ("date", "revision"):
                out.writerow([f"# {key}", report[key]])
            for key, value in report["machine"].items():
                out.writerow([f"# {key}", value])
            out.writerow(["network", "batch", "who", "images_per_second", "spread"])
            out.writerows([n, b, who, f"{rate:.4g}", f"{s:.3f}"] for n, b, who, rate, s in self.rows)

    def table(self):
        print(f"\n{'network':14} {'batch':>5}  {'ours/s':>9}  {'best peer/s':>11}  ratio  wanted  peer")
        for name in self.args.networks:
            _, batches, wanted = NETWORKS[name]
            for batch in batches:
                rates = {who: rate for n, b, who, rate, _ in self.rows if (n, b) == (name, batch)}
                ours = rates.pop("histokern", None)
                rates.pop("histokern overlapped", None)
                if ours is None:
                    print(f"{name:14} {batch:5}  no rate of ours")
                elif not rates:
                    print(f"{name:14} {batch:5}  {ours:9.1f}  no peer")
                else:
                    peer = max(rates, key=rates.get)
                    goal = f"{wanted:6.2f}" if wanted and batch == batches[-1] else " " * 6
                    ratio = ours / rates[peer]
                    print(f"{name:14} {batch:5}  {ours:9.1f}  {rates[peer]:11.1f}  {ratio:5.2f}  {goal}  {peer}")


def text(path):
    with open(path) as f:
        return f.read().strip()


def machine():
    """What the driver says of the first GPU."""
    keys = "name", "driver_version", "memory.total", "clocks.max.sm", "clocks.sm", "power.limit"
    try:
        said = subprocess.run(["nvidia-smi", "-i", "0", "--format=csv,noheader",
                               f"--query-gpu={','.join(keys)}"], capture_output=True, text=True,
                              timeout=60, check=True).stdout
        return dict(zip(keys, (value.strip() for value in said.split(","))))
    except (OSError, subprocess.SubprocessError) as why:
        return {"name": f"unknown: {why}"}


def arguments():
    parser = argparse.ArgumentParser(prog="scripts/gpu-visit run FILE", description="one visit to a GPU")
    parser.add_argument("pack", help=argparse.SUPPRESS)
    parser.add_argument("out", metavar="OUT", help="folder for results and logs")
    parser.add_argument("--steps", default=",".join(STEPS), help="with commas between [%(default)s]")
    parser.add_argument("--networks", default=",".join(NETWORKS), help="with commas between [%(default)s]")
    parser.add_argument("--device", default="cuda", help="of `bench` [%(default)s]")
    parser.add_argument("--seconds", type=int, default=4, help="of timing a network [%(default)s]")
    parser.add_argument("--turns", type=int, default=2, help="of ours and theirs [%(default)s]")
    parser.add_argument("--limit", type=float, default=400, help="seconds for a step [%(default)s]")
    parser.add_argument("--compile", action="store_true",
                        help="torch.compile with max-autotune too: minutes for each network")
    parser.add_argument("--no-peers", dest="peers", action="store_false", help="without PyTorch")
    args = parser.parse_args()
    args.steps, args.networks = args.steps.split(","), args.networks.split(",")
    for name in set(args.steps) - set(STEPS) | set(args.networks) - set(NETWORKS):
        parser.error(f"no step or network {name}: {', '.join(STEPS)}; {', '.join(NETWORKS)}")
    return args


def main():
    args = arguments()
    os.makedirs(args.out, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(args.pack) as pack:
            pack.extractall(folder, filter="data")
        visit = Visit(args, folder)
        for name in args.steps:
            getattr(visit, name)()
            # What is done is kept, whatever becomes of the rest.
            visit.write()
    if "speed" in args.steps:
        visit.table()
    sys.exit(any(step["exit"] != 0 for step in visit.steps.values()))


if __name__ == "__main__":
    main()
