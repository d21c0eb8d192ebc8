"""What is told about a run: the page with its curves, pictures, probe and cost."""

from remask.report.page import write_report
from remask.report.task import write_task_report

__all__ = ["write_report", "write_task_report"]
