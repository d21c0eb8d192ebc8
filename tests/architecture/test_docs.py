"""Each equation stands, by its number, in a comment at the code that computes it; each module says what it is."""

import ast
import io
import tokenize

import pytest

from tests.architecture.source import Module, modules

MODULES = modules()

# What is computed where: the citation, and the module in whose comments (equations) or text (papers) it must stand.
EQUATIONS = {
    "DMJD Eq. (3)": "remask.masking",
    "DMJD Eq. (4)": "remask.training.optim",
    "DMJD Eq. (5)": "remask.methods.dmjd",
    "DMJD Eq. (6)": "remask.method",
}
PAPERS = {
    "2111.06377": "remask.methods.mae",  # MAE
    "2301.00230": "remask.methods.dmjd",  # DMJD
    "2111.09886": "remask.methods.simmim",  # SimMIM
    "2112.09133": "remask.methods.maskfeat",  # MaskFeat
    "2106.08254": "remask.methods.beit",  # BEiT
    "2205.03892": "remask.methods.convmae",  # ConvMAE
}


def named(name: str) -> Module:
    found = {module.name: module for module in MODULES}
    if name not in found:
        pytest.skip(f"{name} is not written yet")
    return found[name]


def comments(module: Module) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


@pytest.mark.parametrize(("citation", "module"), EQUATIONS.items())
def test_equation_is_cited_where_it_is_computed(citation: str, module: str) -> None:
    assert [line for line in comments(named(module)) if citation in line], f"no comment in {module} cites {citation}"


@pytest.mark.parametrize(("arxiv", "module"), PAPERS.items())
def test_paper_is_named_where_it_is_built(arxiv: str, module: str) -> None:
    assert arxiv in named(module).text


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_module_says_what_it_is(module: Module) -> None:
    if module.path.name == "__init__.py" and not module.tree.body:
        return
    assert ast.get_docstring(module.tree)


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.name)
def test_public_functions_say_what_they_do(module: Module) -> None:
    public = [
        node
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not [node.name for node in public if ast.get_docstring(node) is None]
