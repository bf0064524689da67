"""Self-contained HTML pages in English and Japanese: one file that opens from a mail attachment, without the network."""

from __future__ import annotations

from kawara.report.run_page import RunSummary, Sample, write_run_page

__all__ = ["RunSummary", "Sample", "write_run_page"]
