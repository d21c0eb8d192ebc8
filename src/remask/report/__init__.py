"""The report of a run: an HTML page with curves, pictures, evaluations and cost."""

from remask.report.page import write_report
from remask.report.task import write_task_report

__all__ = ["write_report", "write_task_report"]
