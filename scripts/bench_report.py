"""What the report of a long run costs: time to build, size, first paint, and search among the completions.

    python scripts/bench_report.py [--steps 1000] [--per-step 64] [--words 150]

The browser's figures are of the headless Chromium on this machine; without one they are left out.
"""

import argparse
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from rlvr.reporting.report.building import build_report
from tests.browser import Browser, chromium
from tests.report_runs import write_large_run

QUERIES = ("e", "problem 12", "zzzz", "the sum", "sheart")
FIRST_PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--per-step", type=int, default=64)
    parser.add_argument("--words", type=int, default=150, help="of a completion")
    parser.add_argument("--keep", type=Path, help="a folder to leave the run and its report in")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.keep or Path(scratch)) / "run"
        if not folder.exists():
            write_large_run(folder, options.steps, options.per_step, options.words)
        report = folder / "report.html"
        wall, cpu = time.perf_counter(), time.process_time()
        build_report([folder], report)
        print(f"{platform.system()} {platform.machine()}, Python {platform.python_version()}")
        print(f"{options.steps} steps, {options.steps * options.per_step:,} completions of {options.words} words")
        print(f"built in         {time.perf_counter() - wall:6.2f} s ({time.process_time() - cpu:.2f} s of processor)")
        print(f"file             {report.stat().st_size / 1e6:6.2f} MB")
        if chromium() is None:
            print("no Chromium on this machine: nothing measured in the browser")
            return
        in_browser(report)


def in_browser(report: Path) -> None:
    with Browser() as browser:
        browser.look(1280)
        started = time.perf_counter()
        browser.open(report)
        browser.wait_for(f"{FIRST_PAINT} > 0")
        print(f"first paint      {browser.value(FIRST_PAINT) / 1000:6.2f} s after navigation began")
        browser.wait_for("document.documentElement.dataset.unpacked")
        included = int(browser.value("document.documentElement.dataset.unpacked"))
        print(
            f"unpacked         {time.perf_counter() - started:6.2f} s after navigation began, {included:,} completions"
        )
        taken = [latency(browser, query) for query in QUERIES for _ in range(5)]
        print(
            f"search and show  {statistics.median(taken):6.1f} ms median, {max(taken):.1f} ms at most, of {len(taken)}"
        )


def latency(browser: Browser, query: str) -> float:
    """Milliseconds from the search to the page of results laid out, apart from the wait for the typing to pause."""
    browser.value(
        f"document.querySelector('[name=q]').value = {query!r}; delete document.documentElement.dataset.searchMs"
    )
    browser.value("document.querySelector('#filter').requestSubmit(); document.body.offsetHeight")
    return float(browser.value("document.documentElement.dataset.searchMs"))


if __name__ == "__main__":
    main()
