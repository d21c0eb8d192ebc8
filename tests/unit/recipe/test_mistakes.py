"""recipe/: every mistake is one line that says what, where and what to do."""

from pathlib import Path

import pytest

from remask.errors import UserError
from remask.recipe import load_recipe
from remask.recipe.values import image_size


def problem(name: str = "mae-vit-b", *settings: str, **environment: str) -> str:
    with pytest.raises(UserError) as error:
        load_recipe(name, settings, environment=environment)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def write(tmp_path: Path):
    def file(text: str, name: str = "mine.toml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return file


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["optim.epochs=0"], "optim.epochs: must be at least 1, not 0"),
        (["optim.epochs=many"], "optim.epochs: must be a whole number, not 'many'"),
        (["optim.epochs=1.5"], "optim.epochs: must be a whole number, not 1.5"),
        (["optim.base_lr=inf"], "optim.base_lr: must be a finite number, not inf"),
        (["optim.min_lr=nan"], "optim.min_lr: must be a finite number, not nan"),
        (["optim.epochs=1" + "0" * 400], "optim.epochs: a number of 401 digits is too large"),
        (["data.range=[0, 1" + "0" * 400 + "]"], "data.range: a number of 401 digits is too large"),
        (["optim.base_lr=-1" + "0" * 400], "optim.base_lr: a number of 401 digits is too large"),
        (["data.flip=1"], "data.flip: must be true or false, not 1"),
        (["masking.ratio=1.0"], "masking.ratio: must be below 1, not 1.0"),
        (["masking.ratio=0"], "masking.ratio: must be above 0, not 0"),
        (
            ["masking.pattern=stripes"],
            "masking.pattern: must be 'random', 'cells', 'blocks', 'inverse-blocks', 'green', 'attention', 'loss' or",
        ),
        (["runtime.workers=some"], "runtime.workers: must be a whole number or 'auto', not 'some'"),
        (["runtime.workers=-1"], "runtime.workers: must be at least 0 or 'auto', not -1"),
        (["runtime.device=gpu"], 'runtime.device: must be auto, cpu, cuda, cuda:N or mps, not "gpu"'),
        (["data.crop_scale=0.2"], "data.crop_scale: must be two numbers, as in [0.2, 1.0], not 0.2"),
        (["data.crop_ratio=[2, 1]"], "data.crop_ratio: must be [low, high] with 0 < low ≤ high, not [2.0, 1.0]"),
        (["method.name=simmin"], 'method.name: unknown method "simmin"; known: mae'),
        (["optim=3"], "optim: must be a section of keys, not 3"),
        (["dm=maybe"], "dm: must be on, off or a section of keys, not 'maybe'"),
        (["optim.epochs=0", "seed=-1", "data.max_bad=2"], "seed: must be at least 0, not -1, and 2 more"),
        (
            ["method.target=hogs"],
            'method.target: unknown target "hogs"; pixels, pixels-norm, hog, hog-l2, tokens, average, clip',
        ),
        (["method.target=tokens"], "method.name mae regresses vectors, and method.target.kind tokens are ids: use"),
        (["method.name=beit"], "method.name beit classifies token ids, method.target.kind pixels are none: set"),
        (["jd.target=tokens"], "jd regresses vectors with smooth-l1, and jd.target.kind tokens are ids: choose"),
        (["method.name=convmae"], "method.name convmae masks the convolutions of a ConViT; backbone.name vit_base"),
        (
            ["backbone.name=convvit_base"],
            "method mae on backbone.name convvit_base is ConvMAE: set method.name convmae",
        ),
        (
            ["backbone.name=swin_base_patch4_window7_224"],
            "method.name mae drops masked tokens, and backbone.name swin_base_patch4_window7",
        ),
        (["method.name=simmim", "backbone.name=convvit_base"], "method.name simmim replaces masked tokens, and"),
        (["method.target={kind='features'}"], 'method.target.kind = "features" needs a teacher, as in teacher'),
        (["method.target={kind='tokens', tokenizer='dalle'}"], 'method.target.tokenizer = "dalle" needs a file'),
        (["method.target={kind='tokens', over='features'}"], 'method.target.over = "features" needs a teacher, as'),
        (["method.target.norm=l2"], 'method.target.norm of pixels is one of none, patch, not "l2"'),
        (
            ["jd.target={kind='hog', norm='patch'}"],
            'jd.target.norm of hog is one of none, l2, layer, not "patch"',
        ),
        (["method.target.bins=12"], 'method.target.bins belongs to kind = "hog"; leave it out for pixels'),
        (["data.std=[0.2, 0.2]"], "data.std has 2 numbers for data.channels 3; give 1 or that many"),
        (["data.crop_scale=[0.5, 2]"], "data.crop_scale [0.5, 2.0]: a crop cannot be larger than the picture"),
        (
            ["optim.epochs=20", "optim.warmup_epochs=40"],
            "optim.warmup_epochs 40 is more than optim.epochs 20; lower it",
        ),
        (
            ["dm.prediction=0.5"],
            "dm.prediction 0.5 is below masking.ratio 0.75: a view cannot hide more than all views",
        ),
        (["masking.predicted=.8"], "masking.predicted 0.8 is above masking.ratio 0.75: it is a share of all patches"),
        (["data.crop_scale=[-.5, 1]"], "data.crop_scale: must be [low, high] with 0 < low ≤ high, not [-0.5, 1.0]"),
        (["masking.predicted=0"], "masking.predicted: must be 'all' or 'once' or above 0, not 0"),
        (["masking.predicted=twice"], "masking.predicted: must be 'all' or 'once' or a number, not 'twice'"),
        (
            ["masking.predicted=once", "dm.independent=true"],
            "masking.predicted has no use with dm on: it belongs to several disjoint views",
        ),
        (["method.decoder_layers=['begin']"], "method.decoder_layers: "),
        (["method.decoder_layers=[-1]"], "method.decoder_layers: "),
        (["method.decoder=cross", "method.name=simmim", "method.target=pixels"], "method.decoder has no use with"),
        (
            ["method.target={kind='average', top=2, layers=[1]}"],
            "method.target.layers [1] and top 2: give one of them",
        ),
        (["average.decay=[0.9, 1.1]", "method.target=average"], "average.decay: must be at most 1, not 1.1"),
        (["average.decay=0.9", "method.target=average"], "average.decay: must be two numbers"),
        (["average.decay=[1,1]", "method.target=average"], "average.decay: [1.0, 1.0] would never follow"),
        (["masking.pattern=attention", "masking.hints=0.3"], "masking.hints 0.3 is more than masking.ratio 0.75 lets"),
        (
            ["method.decoder_layers=[0,end]"],
            "method.decoder_layers: must be a list, not '[0,end]': words in a list",
        ),
        (
            ["method.name=localmim"],
            "method.name localmim predicts HOG in cells of several sizes, and method.target.kind pixels has none: set",
        ),
        (
            ["method.name=localmim", "method.target=hog-l2", "method.cells=[4, 8]", "method.decoder_layers=[1]"],
            "method.cells [4, 8] are 2 for the 1 of method.decoder_layers: one for each",
        ),
        (
            ["method.name=localmim", "method.target=hog-l2", "method.target.cell=4"],
            "method.target.cell has no use with method.name localmim: it belongs to the other methods: localmim has",
        ),
        (["method.cells=[4]"], "method.cells has no use with method.name mae: it belongs to localmim; leave it out"),
        (["backbone.class_tokens=0"], "backbone.class_tokens: must be at least 1, not 0"),
        (
            ["backbone.name=vit_base_patch16_224.mae", "backbone.class_tokens=8"],
            "backbone.class_tokens 8: the weights of backbone.name vit_base_patch16_224.mae have their own number",
        ),
        (
            [
                "method.name=simmim",
                "method.target=pixels",
                "backbone.name=swin_tiny_patch4_window7_224",
                "backbone.class_tokens=2",
            ],
            "backbone.class_tokens has no use with backbone.name swin_tiny_patch4_window7_224: it belongs to plain",
        ),
        (["dm.views=0"], "dm.views: must be at least 1, not 0"),
        (
            ["data.crop=simple", "data.reduced=true"],
            'data.crop "simple" is cut from whole pictures on the CPU: leave data.reduced out',
        ),
        (
            ["data.crop=simple", "data.crop_padding=224"],
            "data.crop_padding 224 must be below data.image_size, 224x224",
        ),
        (["data.crop=centre"], "data.crop: must be 'random' or 'simple', not 'centre'"),
        (["data.crop=simple", "data.crop_scale=[0.5, 1]"], "data.crop_scale has no use with data.crop simple: it"),
        (["data.crop_padding=2"], "data.crop_padding has no use with data.crop random: it belongs to simple crops"),
        (
            ["method.target.low_pass=160"],
            "method.target.low_pass 160 leaves nothing out: images of 224 pixels have up to 158.4 cycles a side",
        ),
        (["jd.target.low_pass=3"], 'jd.target.low_pass belongs to kind = "pixels"; leave it out for hog'),
        (["data.image_size=100"], "data.image_size 100x100 cannot be cut into 16x16 patches; the nearest is 96x96"),
        (["data.image_size=8"], "data.image_size 8x8 cannot be cut into 16x16 patches; the nearest is 16x16"),
        (
            ["masking.pattern=cells", "masking.cell=4"],
            "masking cells of 64 px do not fit the 14x14 patches of data.image_size 224x224; the nearest is 256x256",
        ),
        (["masking.cell=2"], 'masking.cell 2 needs masking.pattern "cells"'),
        (["jd.target.cell=5"], "jd.target.cell 5 does not divide the patch of 16 pixels"),
        (
            ["method.name=fastmim", "masking.cell_pixels=8", "method.target=hog", "method.target.cell=16"],
            "method.target.cell 16 does not divide the masking cell of 8 pixels",
        ),
        (["masking.cell_pixels=0"], "masking.cell_pixels: must be at least 1, not 0"),
        (
            ["masking.pattern=cells", "masking.cell=2", "masking.cell_pixels=32"],
            "masking.cell 2 and masking.cell_pixels 32: give one of them",
        ),
        (
            ["masking.cell_pixels=64"],
            "masking cells of 64 px do not fit the 14x14 patches of data.image_size 224x224; the nearest is 256x256",
        ),
        (["masking.cell_pixels=24"], "masking.cell_pixels 24 neither divides the patch of 16 pixels nor is a multiple"),
        (["masking.cell_pixels=8"], "masking.cell_pixels 8 is finer than the patch of 16 pixels, and method mae hides"),
        (["progress.sizes=[]"], "progress.sizes: "),
        (["progress.sizes=[128, 224, 192]"], "progress.sizes go from 224x224 to 192x192: each must be larger"),
        (["progress.sizes=[128, 128, 224]"], "progress.sizes go from 128x128 to 128x128: each must be larger"),
        (["progress.sizes=['96x160', '160x96']"], "progress.sizes go from 96x160 to 160x96: each must be larger"),
        (
            ["progress.sizes=[128, 192]"],
            "progress.sizes end at 192x192, and data.image_size is 224x224: the last size is the one that is kept",
        ),
        (
            ["progress.sizes=[128, 224]", "progress.epochs=[800, 700]"],
            "progress.epochs [800, 700] add up to 1500, and optim.epochs is 1600",
        ),
        (["progress.sizes=[128, 224]", "progress.epochs=[1600]"], "progress.epochs has 1 numbers for 2 sizes"),
        (["progress.sizes=[128, 224]", "progress.epochs=[1600, 0]"], "progress.epochs: must be at least 1, not 0"),
        (
            ["progress.sizes=[128, 176, 224]", "optim.epochs=2"],
            "optim.epochs 2 is too few for 3 sizes: give each one at least an epoch",
        ),
        (["progress=on"], "progress.sizes is missing: Image sizes one after the other, growing."),
        (["method.decoder_heads=7"], "method.decoder_heads 7 does not divide method.decoder_width 512"),
        (["runtime.accumulate=3"], "runtime.accumulate 3 does not divide optim.batch_size 4096"),
        (
            ["uniformity=on", "runtime.accumulate=4"],
            "runtime.accumulate 4 would cut the batch, and uniformity compares all its pictures: leave it out; where",
        ),
        (["uniformity=on", "optim.batch_size=1"], "optim.batch_size 1 has no pairs of pictures, which uniformity"),
        (["uniformity.weight=0"], "uniformity.weight: must be above 0, not 0"),
        (["uniformity.of=patches"], "uniformity.of: must be 'mean' or 'class', not 'patches'"),
        (["probe.k=5"], "probe.source is missing: Labelled pictures to classify."),
        (["optim.epochs"], '--set "optim.epochs": write it as section.key=value, as in --set optim.epochs=10'),
        (["optim.epoch=1"], "unknown key optim.epoch; did you mean optim.epochs?"),
        (["epochs=1"], "unknown key epochs; did you mean optim.epochs?"),
        (["optimizer.batch_size=1"], "unknown key optimizer.batch_size; did you mean optim.batch_size?"),
        (["zzz=1"], "unknown key zzz; remask show RECIPE prints the keys"),
    ],
)
def test_wrong_settings_are_one_line(settings, line):
    said = problem("mae-vit-b", *settings)
    assert said.startswith(line)
    assert len(said) < 200


def test_unknown_recipes():
    assert problem("mae-vitb").startswith('unknown recipe "mae-vitb"; did you mean mae-vit-b')
    assert problem("qqqq") == 'unknown recipe "qqqq"; remask recipes lists them'


def test_an_error_names_the_file_or_variable(write):
    path = write('extends = "demo"\n[optim]\nepochs = 0\n')
    assert problem(path) == f"optim.epochs: must be at least 1, not 0 ({path})"
    path = write('extends = "demo"\n[optim]\nepoch = 3\n')
    assert problem(path) == f"unknown key optim.epoch ({path}); did you mean optim.epochs?"
    said = problem("demo", REMASK_OPTIM__EPOCHS="x")
    assert said == "optim.epochs: must be a whole number, not 'x' (REMASK_OPTIM__EPOCHS)"
    said = problem("demo", REMASK_BATCH_SIZE="2")
    assert said == "unknown key batch_size (REMASK_BATCH_SIZE); did you mean optim.batch_size?"


def test_broken_files(write, tmp_path):
    path = write("a = 1\nb = \n")
    assert problem(path).startswith(f"recipe file {path} is not valid TOML: ")
    assert "line 2" in problem(path)
    (tmp_path / "latin.toml").write_bytes(b'title = "\xe9"')
    assert problem(str(tmp_path / "latin.toml")).endswith("is not UTF-8 text")
    assert "does not exist; remask recipes lists" in problem(str(tmp_path / "none.toml"))
    assert problem(f"{tmp_path}/").endswith("cannot be read: Is a directory")
    assert problem(write("extends = 3")).startswith("extends must be a recipe's name or file, not 3")
    missing = problem(write('extends = "demo"\n[optim]\nepochs = "off"'))
    assert missing == f"optim.epochs: must be a whole number, not off ({path})"
    assert problem(write("seed = 1")).startswith("data is missing: Where pictures come from and how they are cut.")


def test_a_circle_of_extends_is_named(write):
    write('extends = "b.toml"', "a.toml")
    path = write('extends = "./a.toml"', "b.toml")
    assert problem(path) == "recipes extend each other in a circle: b.toml → a.toml → b.toml"


@pytest.mark.parametrize(("text", "size"), [("224", (224, 224)), ("96x160", (96, 160)), (None, None), ("8", (8, 8))])
def test_an_image_size_on_the_command_line(text, size):
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "96x", "1x2x3", "-4", "0", "96.5"])
def test_no_image_size_on_the_command_line(text):
    with pytest.raises(UserError, match=r"^--image-size must be pixels as in 224, ") as error:
        image_size(text)
    assert "\n" not in str(error.value)
