"""A recipe key that nothing reads is a bug; a recipe that does not say what to expect is not one."""

import ast
import re
import tomllib
import typing
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from tests.architecture.commands import fault_in_remask, shell_commands
from tests.architecture.source import LIBRARY, Module, modules

STATED = ("title", "paper", "expected", "command", "cost")
FOLLOWING = ("paper", "command")
"""Of these, what need not be written: it follows from the method and the name."""
PRETRAINING = sorted((LIBRARY / "recipes" / "pretrain").rglob("*.toml"))
DOWNSTREAM = [path for path in sorted((LIBRARY / "recipes").glob("*/*.toml")) if path.parent.name != "pretrain"]


def sections() -> dict[str, tuple[set[str], set[str]]]:
    """Each model of a recipe: the keys under which it is held, and the keys that it has."""
    from pydantic import BaseModel

    from remask.recipe import Recipe
    from remask.recipe.downstream import TASKS

    found: dict[str, tuple[set[str], set[str]]] = {}

    def visit(model: type[BaseModel], key: str) -> None:
        held, _ = found.setdefault(model.__name__, (set(), set(model.model_fields)))
        held.add(key)
        for name, field in model.model_fields.items():
            for inner in _models_in(field.annotation, BaseModel):
                visit(inner, name)

    for root in (Recipe, *TASKS.values()):
        visit(root, "recipe")
    return found


def _models_in(annotation: object, base: type) -> list[type]:
    """The models that an annotation mentions: itself, or inside Optional, list, dict, a union."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return [annotation] if issubclass(annotation, base) else []
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument, base)]


def _last_name(node: ast.AST | None) -> str | None:
    """`c` of `a.b.c`, `c` of `c`."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None


def names_for(scope: ast.AST, models: set[str], held: set[str]) -> set[str]:
    """What a function calls a section: its key, a variable annotated with its type or assigned from its key."""
    names = set(held)
    for node in _walk(scope).naming:
        if isinstance(node, ast.arg):
            names |= {node.arg} if models & _words_of(node) else set()
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {name for target in targets for name in _given(target, node.value, held)}
    return names


class Walked(NamedTuple):
    """The nodes of a tree that tell what is read of a section."""

    naming: list[Any]
    attributes: list[ast.Attribute]
    imports: list[ast.ImportFrom]
    functions: list[ast.FunctionDef]


@cache
def _walk(tree: ast.AST) -> Walked:
    """Once for all sections; trees are told apart by identity."""
    found = Walked([], [], [], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            found.attributes.append(node)
        elif (isinstance(node, ast.arg) and node.annotation) or isinstance(
            node, ast.Assign | ast.NamedExpr | ast.AnnAssign
        ):
            found.naming.append(node)
        elif isinstance(node, ast.ImportFrom):
            found.imports.append(node)
        elif isinstance(node, ast.FunctionDef):
            found.functions.append(node)
    return found


@cache
def _words_of(argument: ast.arg) -> frozenset[str]:
    """The words of an argument's annotation."""
    return frozenset(re.findall(r"\w+", ast.unparse(argument.annotation or ast.Tuple())))


def _given(target: ast.AST, value: ast.AST | None, held: set[str]) -> set[str]:
    """The names that receive a section in `target = value`, also in `a, b = recipe.data, recipe.optim`."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return {name for t, v in zip(target.elts, value.elts, strict=False) for name in _given(t, v, held)}
    name = _last_name(target)
    return {name} if name and _last_name(value) in held else set()


def reads(tree: ast.Module, model: str, held: set[str]) -> set[str]:
    """What a module reads off a section: `recipe.optim.lr`, `optim.lr`, or `o.lr` after o = recipe.optim."""
    imported = [alias for node in _walk(tree).imports for alias in node.names]
    models = {model} | {alias.asname for alias in imported if alias.name == model and alias.asname}
    scopes = _walk(tree).functions
    return _attributes(tree, held).union(*(_attributes(scope, names_for(scope, models, held)) for scope in scopes))


def _attributes(scope: ast.AST, names: set[str]) -> set[str]:
    return {node.attr for node in _walk(scope).attributes if _last_name(node.value) in names}


def readers() -> list[Module]:
    """Who may hold a recipe: what imports it, and the report that prints it."""
    found = modules()
    known = frozenset(module.name for module in found)
    importers = {edge.importer for module in found for edge in module.edges(known) if "remask.recipe" in edge.imported}
    outside = [module for module in found if module.part != "recipe"]
    return [module for module in outside if module.part == "report" or module.name in importers]


def test_every_key_is_read() -> None:
    unread, holders = [], readers()
    for model, (held, keys) in sections().items():
        read = set().union(*(reads(module.tree, model, held) for module in holders))
        unread += [f"{'/'.join(sorted(held))}.{key}" for key in keys - read]
    assert not unread, f"nothing reads {', '.join(sorted(unread))}"


def test_the_walk_reaches_nested_keys() -> None:
    keys = [key for _, keys in sections().values() for key in keys]
    assert len(keys) >= 30
    assert {"seed", "ratio", "epochs", "device"} <= set(keys)


def test_the_check_tells_a_read_from_a_mention() -> None:
    tree = ast.parse(
        "from remask.recipe import OptimSection as O\n"
        "def last(x: O):\n"
        "    return x.seconds\n"
        "def build(recipe, o: Recipes.OptimSection | None):\n"
        "    m, d = recipe.masking, recipe.dm\n"
        "    other.clip; recipe.optim.lr = 1\n"
        "    return recipe.optim.epochs, o.betas, m.ratio, optim.warmup, d.views\n"
        "def other(m, o):\n"
        "    return m.cell, o.lr"
    )
    assert reads(tree, "OptimSection", {"optim"}) == {"epochs", "betas", "warmup", "seconds"}
    assert reads(tree, "MaskingSection", {"masking"}) == {"ratio"}


def own_words() -> dict[str, dict[str, Any]]:
    """What each recipe of pre-training says itself, by name: a row of a table with what stands before all rows."""
    found = {}
    for path in PRETRAINING:
        content = tomllib.loads(path.read_text())
        rows = content.pop("rows", None)
        found |= {path.stem: content} if rows is None else {name: content | row for name, row in rows.items()}
    return found


def stated_by_tasks() -> dict[str, Any]:
    """The recipes of tasks, as they load."""
    from remask.recipe.downstream import TASKS
    from remask.recipe.load import load

    return {
        f"{path.parent.name}/{path.stem}": load(TASKS[path.parent.name], path.parent, path.stem, environment={})
        for path in DOWNSTREAM
    }


def test_recipes_load_and_say_what_they_are() -> None:
    from remask.recipe import load_recipe, recipe_names

    assert sorted(own_words()) == recipe_names()
    assert {path.parent.name for path in DOWNSTREAM} == {"finetune", "segment", "detect"}
    recipes = {name: load_recipe(name, environment={}) for name in recipe_names()} | stated_by_tasks()
    assert len(recipes) >= 70
    assert not [(name, key) for name, recipe in recipes.items() for key in STATED if not getattr(recipe, key)]


def test_recipes_say_it_themselves() -> None:
    """Save the paper and the command, which follow: an inherited title or number is another recipe's."""
    own = own_words() | {str(path): tomllib.loads(path.read_text()) for path in DOWNSTREAM}
    assert not [
        (name, key) for name, words in own.items() for key in STATED if key not in FOLLOWING and not words.get(key)
    ]


def test_commands_of_recipes_parse() -> None:
    from remask.recipe import load_recipe, recipe_names

    recipes = {name: load_recipe(name, environment={}) for name in recipe_names()} | stated_by_tasks()
    for name, recipe in recipes.items():
        ours = [words for words in shell_commands(recipe.command) if words[0] == "remask"]
        assert ours, f"{name}: its command does not call remask"
        assert not [fault for words in ours if (fault := fault_in_remask(words))], name
        assert name in recipe.command or "--recipe" not in recipe.command or name.partition("/")[2] in recipe.command


def test_a_table_in_one_file(tmp_path: Path) -> None:
    """A row is a recipe: it changes what stands before all rows, and says what it is."""
    from remask.recipe import load_recipe

    plain, linear = (
        load_recipe("convmae-dmjd-50-convit-b-dec2-plain"),
        load_recipe("convmae-dmjd-50-convit-b-dec2-linear"),
    )
    assert (plain.jd, plain.method.decoder_depth, plain.optim.epochs) == (None, 2, 50)
    assert linear.jd is not None
    assert linear.jd.layers == 1
    assert linear.expected == "ImageNet-1K linear probe 60.4 % (Table V)"
    child = tmp_path / "mine.toml"
    child.write_text('extends = "convmae-dmjd-50-convit-b-dec4"\n[optim]\nepochs = 5\n')
    mine = load_recipe(child)
    assert (mine.name, mine.method.decoder_depth, mine.optim.epochs, mine.expected) == ("mine", 4, 5, "")
    assert mine.paper == linear.paper
    assert mine.command == ""


def test_the_paper_follows_what_is_trained() -> None:
    from remask.recipe import load_recipe

    assert "2111.06377" in load_recipe("mae-vit-b").paper
    assert "2301.00230" in load_recipe("mae-vit-b", {"dm": {"views": 2, "prediction": 1.0}}).paper
    assert "2205.03892" in load_recipe("convmae-dmjd-convit-b", {"dm": "off", "jd": "off"}).paper
