"""Comparisons: rows × seeds × a budget from a file. Each cell is a run and a small file; the table is made from these.

plan.py is the file of a study, cells.py what each of its cells runs and keeps, budget.py how long, runner.py the
processes, statistics.py and report.py the page. Nothing here imports torch: cells run as commands of their own.
"""
