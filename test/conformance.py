#!/usr/bin/python3
"""Runs the OCI's own conformance program against dims and demands 100 %.

    conformance.py [--workers N]...      default: once each with 1, 2 and 8

DIMS_BIN names the binary (default: dims at the top of the checkout; the ASan
build works too), CONFORMANCE the program (default: oci-conformance, then
conformance, on PATH).

Only the result files are believed: the program leaves with 0 after a bad
configuration, and neither Skip nor Disabled lowers its overall "Pass".
"""
import argparse
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree

TOP = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
MUST_PASS = 1032        # the suite's tests at the commit named below
RUN_LIMIT_S = 600       # ASan on a small machine takes a minute or two
START_LIMIT_S = 20
STOP_LIMIT_S = 30
SHOWN_FAILURES = 40

MISSING = """\
conformance: the program is not here. It is the folder conformance/ of
  opencontainers/distribution-spec at commit 967efdc, built there with
  `go build -o oci-conformance .` (Go 1.24 or newer), outside this checkout.
  Put it on PATH or name it in CONFORMANCE.
conformance: not run"""


def find_program():
    named = os.environ.get("CONFORMANCE")
    if named:
        return shutil.which(named)
    return shutil.which("oci-conformance") or shutil.which("conformance")


def start_dims(binary, folder, workers, errors):
    """Returns the process and its port once it says that it listens."""
    command = [binary, "-p", "0", "-d", os.path.join(folder, "data"),
               "--workers", str(workers), "--log-level", "warn"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors,
                               text=True, start_new_session=True)
    if select.select([process.stdout], [], [], START_LIMIT_S)[0]:
        line = process.stdout.readline()
        match = re.search(r"listening on http://127\.0\.0\.1:(\d+)", line)
        if match:
            return process, int(match.group(1))
    process.kill()
    sys.exit("conformance: dims did not start")


def stop_dims(process):
    process.terminate()
    try:
        return process.wait(STOP_LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return "none: it did not stop"


def run_suite(program, port, folder):
    results = os.path.join(folder, "results")
    # Settings of the caller's shell must not switch tests off.
    environment = {key: value for key, value in os.environ.items()
                   if not key.startswith("OCI_")}
    environment.update(
        OCI_REGISTRY=f"127.0.0.1:{port}", OCI_TLS="disabled",
        OCI_VERSION="dev", OCI_DATA_SPARSE="true",
        OCI_REPO1="conformance/repo1", OCI_REPO2="conformance/repo2",
        OCI_RESULTS_DIR=results)
    with open(os.path.join(folder, "output"), "w") as output:
        # Its own folder, or it would read an oci-conformance.yaml found here.
        subprocess.run([program], cwd=folder, env=environment, stdout=output,
                       stderr=subprocess.STDOUT, timeout=RUN_LIMIT_S)
    return results


def read_counts(results):
    """Returns the counts and what did not pass; None without the files."""
    names = ("junit.xml", "results.yaml", "report.html")
    paths = [os.path.join(results, name) for name in names]
    if not all(os.path.isfile(path) and os.path.getsize(path)
               for path in paths):
        return None
    root = ElementTree.parse(paths[0]).getroot()
    suite = next(root.iter("testsuite"))
    count = {"Fail": int(suite.get("failures", 0)),
             "Skip": int(suite.get("skipped", 0)),
             "Error": int(suite.get("errors", 0)),
             "Disabled": int(suite.get("disabled", 0))}
    passed = int(suite.get("tests", 0)) - sum(count.values())
    bad = [(case.get("name"), case.findtext("system-out") or "")
           for case in suite.iter("testcase") if case.get("status") != "passed"]
    with open(paths[1]) as file:
        # The two tables after the configuration: one status per API and data.
        tables = re.split(r"^apis:$", file.read(), flags=re.M)[-1]
    bad += re.findall(r"^  (.+): (?!Pass$)(\w+)$", tables, flags=re.M)
    return {"Pass": passed, **count}, bad


def judge(program, binary, workers):
    """One run; prints its line and says whether it was perfect."""
    with tempfile.TemporaryDirectory(prefix="dims-conformance-") as folder:
        with open(os.path.join(folder, "stderr"), "w+") as errors:
            process, port = start_dims(binary, folder, workers, errors)
            begin = time.monotonic()
            try:
                results = run_suite(program, port, folder)
            except subprocess.TimeoutExpired:
                results = folder
            seconds = time.monotonic() - begin
            status = stop_dims(process)
            errors.seek(0)
            noise = errors.read()
        read = read_counts(results)
        if read is None:
            with open(os.path.join(folder, "output")) as output:
                print(output.read()[-2000:])
            print(f"conformance: {workers} workers: no results, FAILED")
            return False
    count, bad = read
    perfect = (count["Pass"] >= MUST_PASS and sum(count.values())
               == count["Pass"] and not bad and status == 0 and not noise)
    for name, text in bad[:SHOWN_FAILURES]:
        print(f"  {name}: {' '.join(text.split())[:300]}")
    if noise or status != 0:
        print(f"  dims left with status {status} and said:\n{noise[-4000:]}")
    print(f"conformance: {workers} workers: "
          + ", ".join(f"{number} {name}" for name, number in count.items())
          + f", {seconds:.1f} s: " + ("ok" if perfect else "FAILED"),
          flush=True)
    return perfect


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--workers", type=int, action="append", metavar="N",
                        help="repeatable; default 1, 2 and 8")
    arguments = parser.parse_args()
    program = find_program()
    if program is None:
        if os.environ.get("CONFORMANCE"):
            sys.exit(f"conformance: {os.environ['CONFORMANCE']}: not a program")
        print(MISSING)
        return 0
    binary = os.environ.get("DIMS_BIN") or os.path.join(TOP, "dims")
    if not os.access(binary, os.X_OK):
        sys.exit(f"conformance: {binary}: no such binary; `make` builds it")
    # A list, not a generator: a failed run does not hide the others' counts.
    runs = [judge(program, os.path.abspath(binary), workers)
            for workers in arguments.workers or (1, 2, 8)]
    return 0 if all(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
