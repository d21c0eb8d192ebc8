"""Writes the seeds, small files of every format, into tests/fuzz/seeds: `python -m tests.fuzz.seeds [TARGET …]`."""

import gzip
import io
import json
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.fuzz import official, runs
from tests.fuzz.official import OFFICIAL

SEEDS = Path(__file__).parent / "seeds"
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 18, 3), dtype=np.uint8)
SMOOTH = np.stack([np.add.outer(np.arange(24) * k, np.arange(40) * 3) % 256 for k in (2, 5, 7)], axis=2).astype(
    np.uint8
)


def image(kind: str, picture: Image.Image | None = None, **options: Any) -> bytes:
    stream = io.BytesIO()
    (picture or Image.fromarray(SMOOTH)).save(stream, kind, **options)
    return stream.getvalue()


def pictures() -> dict[str, list[bytes]]:
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb, gray, noise = Image.fromarray(SMOOTH), Image.fromarray(SMOOTH[:, :, 0]), Image.fromarray(PIXELS)
    rgba, palette = rgb.convert("RGBA"), rgb.convert("P", palette=Image.Palette.ADAPTIVE, colors=16)
    ids = Image.fromarray(SMOOTH[:, :, 0] % 5)
    deep = Image.fromarray(SMOOTH[:, :, 0].astype(np.uint16) * 257)
    return {
        "jpeg": [
            image("JPEG", quality=80), image("JPEG", progressive=True), image("JPEG", gray), image("JPEG", exif=exif),
            image("JPEG", rgb.convert("CMYK")), image("JPEG", noise, subsampling=0, restart_marker_rows=1),
        ],
        "png": [
            image("PNG"), image("PNG", palette), image("PNG", rgba), image("PNG", deep),
            image("PNG", gray.convert("1")), image("PNG", noise, exif=exif),
        ],
        "webp": [
            image("WEBP"), image("WEBP", lossless=True), image("WEBP", rgba),
            image("WEBP", save_all=True, append_images=[noise.resize((40, 24))]),
        ],
        "tiff": [
            image("TIFF"), image("TIFF", compression="tiff_lzw"), image("TIFF", compression="tiff_adobe_deflate"),
            image("TIFF", deep), image("TIFF", gray.convert("1"), compression="group4"), image("TIFF", palette),
            image("TIFF", compression="jpeg"), image("TIFF", gray.convert("F")),
        ],
        "gif": [image("GIF", palette), image("GIF", save_all=True, append_images=[noise.resize((40, 24))])],
        "bmp": [image("BMP"), image("BMP", palette), image("BMP", gray.convert("1"))],
        "ppm": [image("PPM"), image("PPM", gray), b"P3 2 2 255 1 2 3 4 5 6 7 8 9 10 11 12\n",
                b"P6 2 1 65535 " + bytes(range(12)), b"P1 3 2 1 0 1 0 1 1"],
        "tga": [image("TGA"), image("TGA", compression="tga_rle"), image("TGA", rgba)],
        "jp2": [image("JPEG2000"), image("JPEG2000", rgba), image("JPEG2000", gray, irreversible=True)],
        "avif": [image("AVIF", quality=50), image("AVIF", rgba, quality=30)],
        "npy": [_numpy(SMOOTH), _numpy(SMOOTH[:, :, 0].astype(np.float32) / 255), _numpy(SMOOTH.transpose(2, 0, 1)),
                _npz(image=SMOOTH), _npz(image=SMOOTH, other=PIXELS)],
        "mask": [image("PNG", ids), image("PNG", palette), image("TIFF", ids),
                 image("PNG", deep), image("BMP", palette), image("GIF", palette)],
    }  # fmt: skip


def _numpy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def _npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def texts() -> dict[str, list[bytes]]:
    recipe = (
        'extends = "mae-vit-b"\nname = "x"\n[data]\nimage_size = 32\nmean = [0.5, 0.5, 0.5]\ncrop_scale = [0.2, 1.0]\n'
        "[masking]\nratio = 0.5\n[optim]\nepochs = 2\nwarmup_epochs = 0\nbase_lr = 1e-3\n[dm]\nviews = 2\n"
        '[jd]\ntarget = "hog"\n'
    )
    target = (
        'extends = "mae-vit-b"\nname = "y"\n[method]\nname = "mae"\ntarget = {kind = "pixels", norm = "patch"}\n'
        '[backbone]\nname = "vit_micro"\n'
    )
    settings = [
        "optim.epochs=3", "dm=off", "data.image_size=[96, 160]", "method.target=hog", 'jd.target={kind="pixels"}',
        "runtime.device=cuda:1", "masking.ratio=.5", "data.range=[0, 4095]", 'data.exclude=["a"]',
    ]  # fmt: skip
    lists = [
        "p/a.png 0\np/b.png 1\n", "path,label,split\np/a.png,cat,train\np/b.png,dog,val\n",
        "p/a.png\tx y\np/b.png\tz\n", '"p/a.png" 3\n# comment\n./p/b.png 4\n', "p/a\np/b\n",
        "file;class\np/a.png;1.0\np/b.png;02\n",
    ]  # fmt: skip
    classes = [
        '{"classes": ["a", "b", "c"], "ignore_index": 254, "palette": [[0, 0, 0], [1, 2, 3], [255, 255, 255]]}',
        '["a", "b"]', '{"classes": ["a", "b"], "palette": null}',
    ]  # fmt: skip
    return {
        "recipe": [recipe.encode(), target.encode()],
        "set": [line.encode() for line in settings],
        "list": [content.encode() for content in lists],
        "classes": [content.encode() for content in classes],
    }


def coco() -> bytes:
    counts = {"size": [24, 40], "counts": [100, 50, 810]}
    shapes = [[[2, 2, 10, 2, 10, 10, 2, 10]], counts, {"size": [24, 40], "counts": "T3b1n8"}, [[1.5, 1, 9, 2, 4, 8.5]]]
    boxes = [[2, 2, 8, 8], [4, 4, 3, 18], [8, 8, 5, 6], [1, 1, 8, 8]]
    annotations = [
        {"id": n + 1, "image_id": 1 + n % 2, "category_id": 1 + n % 2, "bbox": box, "segmentation": shape,
         "area": 20.0, "iscrowd": int(n == 1)}
        for n, (shape, box) in enumerate(zip(shapes, boxes, strict=True))
    ]  # fmt: skip
    annotations[2]["segmentation"] = {"size": [24, 40], "counts": _runs([200, 10, 14, 10, 726])}
    images = [{"id": n, "file_name": f"{name}.png", "height": 24, "width": 40} for n, name in ((1, "a"), (2, "b"))]
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}).encode()


def _runs(counts: list[int]) -> str:
    """COCO's compressed run lengths."""
    text = ""
    for n, count in enumerate(counts):
        number = count - counts[n - 2] if n > 2 else count
        more = True
        while more:
            digit, number = number & 31, number >> 5
            more = not (number == 0 and not digit & 16) and not (number == -1 and digit & 16)
            text += chr(48 + (digit | 32 * more))
    return text


def panoptic() -> bytes:
    segments = [{"id": n, "category_id": 1 + n % 2, "area": 5, "iscrowd": 0} for n in range(1, 4)]
    entries = [
        {"image_id": n, "file_name": f"{name}.png", "segments_info": segments} for n, name in ((1, "a"), (2, "b"))
    ]
    images = [{"id": n, "file_name": f"{name}.png", "height": 24, "width": 40} for n, name in ((1, "a"), (2, "b"))]
    categories = [{"id": n, "name": f"c{n}", "color": [n, n, n], "isthing": 1} for n in (1, 2)]
    return json.dumps({"images": images, "annotations": entries, "categories": categories}).encode()


def tars() -> list[bytes]:
    found = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w", format=form) as tar:
            for name, content in (
                ("a.png", image("PNG")),
                ("a.cls", b"3"),
                ("d/" + "é" * 40 + "b.jpg", b"\xff\xd8"),
                ("b.cls", b"1"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
            link = tarfile.TarInfo("c.png")
            link.type, link.linkname = tarfile.SYMTYPE, "a.png"
            tar.addfile(link)
        content = stream.getvalue().rstrip(b"\0")
        found.append(content + bytes(-len(content) % 512 + 1024))
    return found


def parquets() -> list[bytes]:
    import pyarrow
    from pyarrow import parquet

    small, broken = image("PNG", Image.fromarray(PIXELS)), b"\xff\xd8\xff"
    struct = pyarrow.array(
        [{"bytes": small, "path": "a.png"}, {"bytes": None, "path": "b.png"}, {"bytes": broken, "path": None}]
    )
    tables = [
        pyarrow.table({"image": struct, "label": [0, 1, 1]}),
        pyarrow.table({"img": [small, small], "label": ["x", "y"]}),
        pyarrow.table({"image": [PIXELS[:, :, 0].tolist()] * 3, "label": [0.0, 1.0, None]}),
    ]  # fmt: skip
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    tables.append(tables[0].replace_schema_metadata(metadata))
    found = []
    for number, table in enumerate(tables):
        stream = io.BytesIO()
        parquet.write_table(table, stream, compression=("snappy", "zstd", "none", "gzip")[number], row_group_size=2)
        found.append(stream.getvalue())
    return found


def packs(folder: Path) -> list[bytes]:
    from remask.images.sources.opening import open_source
    from remask.images.tools.form import Form
    from remask.images.tools.packing import pack

    for name, content in (("x/a.png", SMOOTH), ("y/b.png", PIXELS)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(folder / name)
    found = []
    for kind in ("raw", "jpeg"):
        pack(open_source(str(folder)), folder / f"{kind}.remask", Form(kind=kind))  # type: ignore[arg-type]
        found.append((folder / f"{kind}.remask").read_bytes())
    return found


def weights(folder: Path) -> dict[str, list[bytes]]:
    """Checkpoints of tiny networks in the layouts of papers, a codebook, stored ids, and what a run writes."""
    import torch
    from safetensors.torch import save

    from remask.backbones.beit import create_beit
    from remask.backbones.vit import create_vit
    from remask.targets.tokens import save_codebook, save_ids

    torch.manual_seed(0)
    sizes = {"patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "mlp_ratio": 1.0}
    vit = create_vit("vit_base_patch16_224", (8, 8), [0.5] * 3, [0.5] * 3, overrides=sizes).network.state_dict()
    beit = create_beit("beit_base_patch16_224", (8, 8), [0.5] * 3, [0.5] * 3, overrides=sizes).network.state_dict()

    def saved(content: Any, zipped: bool = True) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream, _use_new_zipfile_serialization=zipped)
        return stream.getvalue()

    teacher = {f"backbone.{key}": tensor for key, tensor in vit.items()}
    moco = {f"module.{which}_encoder.{key}": tensor for which in ("base", "momentum") for key, tensor in vit.items()}
    optimizer = {
        "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2)}},
        "param_groups": [{"lr": 0.1, "params": [0]}],
    }
    save_codebook(
        folder / "c", torch.randn(4, 48), {"target": {"kind": "pixels", "norm": "none"}, "patch": [4, 4], "pictures": 3}
    )
    save_ids(folder / "i", torch.arange(3), torch.zeros(3, 4, dtype=torch.int64), 8)
    return {
        "mae": [saved({"model": vit, "epoch": 3}), saved({"model": vit}, zipped=False), save(dict(vit))],
        "dino": [saved({"teacher": teacher, "student": teacher, "args": 3})],
        "mocov3": [saved({"state_dict": moco, "epoch": 3})],
        "beit": [saved({"model": beit})],
        "simmim": [saved({"model": {f"encoder.{key}": tensor for key, tensor in beit.items()}})],
        "maskfeat": [saved({"model_state": vit})],
        "dalle": [saved({"state_dict": _dalle()})],
        "codebook": [(folder / "c").read_bytes()],
        "ids": [(folder / "i").read_bytes()],
        "optimizer": [saved(optimizer)],
    }


def _dalle() -> dict[str, Any]:
    from remask.targets.dalle import DalleEncoder

    state: dict[str, Any] = DalleEncoder(4, 1, 8, 3).state_dict()
    return state


def write(folder: Path, *names: str) -> None:
    """Seeds below `SEEDS`: those of the named targets, or of all."""
    groups = {
        **pictures(), **texts(), "coco": [coco()], "panoptic": [panoptic()], "tar": tars(), "parquet": parquets(),
        "packed": packs(folder / "pack"), **weights(folder), **official.seeds(), **runs.seeds(),
    }  # fmt: skip
    for name in names or groups:
        shutil.rmtree(SEEDS / name, ignore_errors=True)
        (SEEDS / name).mkdir(parents=True)
        for number, content in enumerate(groups[name]):
            packed = name in OFFICIAL  # long names of many tensors
            stored = gzip.compress(content, mtime=0) if packed else content
            (SEEDS / name / f"{number:02}{'.gz' * packed}").write_bytes(stored)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        write(Path(temporary), *sys.argv[1:])
    files = [path for path in SEEDS.rglob("*") if path.is_file()]
    print(f"{len(files)} seeds, {sum(path.stat().st_size for path in files):,} bytes")
