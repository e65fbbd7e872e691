#!/usr/bin/env python3
"""Runs `histokern info --verify` over a folder of malformed slides and holds it to their manifest.

    bad_tiffs.py BINARY FOLDER [--only SUBSTRING]

FOLDER holds MANIFEST.tsv with the columns path, base, category, expect, cwe, max_s, max_rss_mb,
sha256, bytes, what, and the files it names: valid/<base>.svs and bad/<category>/<name>.svs.

reject       the slide is not opened, with an error that names the file
reject_tile  it is not opened, or damaged parts fail, each with a reason, and every tile that does
             decode equals the same tile of the valid base
accept       it opens and every part decodes or is reported as holding no data
nofault      any of these
In every case: no signal, no panic, and the time and memory of the manifest are kept.

Only the Python standard library is used. Linux.
"""
import argparse
import csv
import json
import os
import resource
import subprocess
import sys
import time


def run(binary, path, max_s):
    """Returns (exit code, JSON or None, stderr, seconds); code None: out of time."""
    def limit():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    start = time.monotonic()
    command = [binary, "info", "--verify", "--json", "--digests", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=limit)
    try:
        out, err = process.communicate(timeout=max_s)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None, None, "", max_s
    seconds = time.monotonic() - start
    try:
        parsed = json.loads(out) if out.strip() else None
    except ValueError as error:
        parsed, err = None, err + f"\nbad JSON: {error}".encode()
    return code, parsed, err.decode(errors="replace"), seconds


def peak_mb(binary, path):
    """Peak resident set of one run, by a child of its own."""
    program = ("import resource,subprocess,sys;"
               "subprocess.run(sys.argv[1:],stdout=subprocess.DEVNULL,stderr=subprocess.DEVNULL);"
               "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    command = [sys.executable, "-c", program, binary, "info", "--verify", path]
    return int(subprocess.run(command, capture_output=True, check=True).stdout) / 1024


def tiles(result):
    return {(d["level"], d["col"], d["row"]): d for d in result["verify"]["digests"]}


def judge(row, path, code, result, err, base):
    """Returns a list of complaints."""
    if code is None:
        return ["out of time"]
    if code not in (0, 1):
        return [f"exit code {code}"]
    if "panicked" in err:
        return ["panicked: " + err.strip().splitlines()[0]]
    expect, opened = row["expect"], result is not None
    bad = []
    if not opened and os.path.basename(path) not in err:
        bad.append("the error does not name the file: " + err.strip())
    failed = result["verify"]["failed"] if opened else []
    if any(not part["error"] for part in failed):
        bad.append("a failure without a reason")
    if expect == "reject" and opened:
        bad.append("was opened")
    if expect == "accept" and not opened:
        bad.append("was not opened: " + err.strip())
    if expect == "accept" and failed:
        bad.append(f"{failed[0]}")
    if expect == "reject_tile" and opened:
        if not failed:
            bad.append("nothing failed")
        truth = tiles(base)
        for index, tile in tiles(result).items():
            wanted = truth.get(index, {}).get("sha256")
            if "sha256" in tile and tile["sha256"] != wanted and not tile.get("missing"):
                bad.append(f"tile {index} differs from the valid base")
    return bad


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("folder")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    with open(os.path.join(args.folder, "MANIFEST.tsv"), newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    bases, complaints, worst_s, worst_mb = {}, 0, (0.0, ""), (0.0, "")
    for row in rows:
        if args.only not in row["path"] and row["category"] != "valid":
            continue
        path, max_s, max_mb = os.path.join(args.folder, row["path"]), float(row["max_s"]), float(row["max_rss_mb"])
        code, result, err, seconds = run(args.binary, path, max_s)
        if row["category"] == "valid":
            bases[row["base"]] = result
        bad = judge(row, path, code, result, err, bases.get(row["base"]))
        mb = peak_mb(args.binary, path) if code is not None else 0.0
        if mb > max_mb:
            bad.append(f"{mb:.0f} MB, {max_mb:.0f} allowed")
        worst_s, worst_mb = max(worst_s, (seconds, row["path"])), max(worst_mb, (mb, row["path"]))
        for text in bad:
            print(f"{row['path']} [{row['expect']}: {row['what'][:60]}]: {text}")
        complaints += bool(bad)
    print(f"{len(rows)} files, {complaints} with complaints; slowest {worst_s[0]:.2f} s ({worst_s[1]}), "
          f"largest {worst_mb[0]:.0f} MB ({worst_mb[1]})")
    sys.exit(complaints > 0)


if __name__ == "__main__":
    main()
