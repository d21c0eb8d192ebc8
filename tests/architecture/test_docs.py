"""Each equation stands, by its number, in a comment at the code that computes it; each module says what it is."""

import ast
import io
import tokenize

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
    "2212.06593": "remask.methods.fastmim",  # FastMIM
    "2208.12256": "remask.methods.dmae",  # DMAE
    "2302.02089": "remask.methods.moma",  # MOMA
    "2210.08344": "remask.methods.umae",  # U-MAE
    "2303.05251": "remask.methods.localmim",  # LocalMIM
    "2303.02416": "remask.targets.pixels",  # PixMIM
    "2512.15715": "remask.backbones.vit",  # Pixio
}
NAMED = {module.name: module for module in MODULES}


def comments(module: Module) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(module.text).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def test_equations_are_cited_where_they_are_computed() -> None:
    assert not [(name, eq) for eq, name in EQUATIONS.items() if not any(eq in line for line in comments(NAMED[name]))]


def test_papers_are_named_where_they_are_built() -> None:
    assert not [(name, arxiv) for arxiv, name in PAPERS.items() if arxiv not in NAMED[name].text]


def test_modules_say_what_they_are() -> None:
    empty = [module for module in MODULES if module.path.name == "__init__.py" and not module.tree.body]
    assert not [module.name for module in MODULES if module not in empty and not ast.get_docstring(module.tree)]


def test_public_functions_say_what_they_do() -> None:
    public = [
        (f"{module.name}.{node.name}", node)
        for module in MODULES
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert len(public) >= 500
    assert not [name for name, node in public if ast.get_docstring(node) is None]
