"""`remask recipes`: the recipes that come with remask."""

import json
import re
from collections.abc import Mapping

from remask.recipe import Recipe, load_recipe, method_label, recipe_names
from remask.recipe.downstream import TASKS
from remask.recipe.load import load
from remask.recipe.naming import FOLDER


def recipes(as_json: bool = False) -> None:
    """Print the recipes of pre-training by their table in the paper, then those of tasks; JSON has the former alone."""
    rows = [_row(load_recipe(name, environment={})) for name in recipe_names()]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    tables = sorted({_table(row) for row in rows}, key=lambda table: (table not in TABLES, table))
    for table in tables:
        print(f"\n{table} of DMJD, arXiv 2301.00230" if table in TABLES else f"\n{table}")
        for row in (row for row in rows if _table(row) == table):
            print(f"  {row['name']:<{width}}  {row['method']:<13}  {row['backbone']}, {row['target']}")
            print(f"  {'':<{width}}  expected: {row['expected'] or '-'}")
    for task, schema in TASKS.items():
        print(f"\nremask {task} RUN --recipe NAME")
        for name in recipe_names(FOLDER / task):
            one = load(schema, FOLDER / task, name, environment={})
            print(f"  {name:<{width}}  {one.title}\n  {'':<{width}}  expected: {one.expected or '-'}")
    print("\nremask show NAME prints a recipe's equation; remask pretrain --recipe NAME --data DIR trains it.")


TABLES = ("Table I", "Table II", "Table III", "Table IV", "Table V", "Table VI")


def _table(row: Mapping[str, str]) -> str:
    """The title of the first of DMJD's tables in which a recipe is a row."""
    found = re.search(r"Tables? ([IV]+)\b", row["table"])
    return f"Table {found[1]}" if found else "Not in a table of DMJD"


def _row(recipe: Recipe) -> dict[str, str]:
    target = recipe.method.target
    return {
        "name": recipe.name,
        "title": recipe.title,
        "paper": recipe.paper,
        "table": recipe.table,
        "method": method_label(recipe),
        "backbone": recipe.backbone.name,
        "target": f"{target.kind}-{target.norm}" if target.norm != "none" else target.kind,
        "expected": recipe.expected,
    }
