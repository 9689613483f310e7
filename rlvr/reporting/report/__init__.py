"""One self-contained HTML page about one run or several: `building.build_report`."""

REPORT_FILE = "report.html"  # its name in a run directory
