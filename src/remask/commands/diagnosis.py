"""`remask doctor`: versions, devices, speed and disk of this machine."""

import shutil
import time

from remask.training.environment import environment, installed


def doctor() -> None:
    """Print versions, devices, decoding speed and free disk, and for a missing extra the command that installs it."""
    import torch

    from remask.training.runtime import resolve

    facts = environment()
    print(f"python      {facts['python']} on {facts['platform']}")
    for name, found in facts["versions"].items():
        print(f"{name:<11} {found or 'missing'}")
    for name, extra in (("pyarrow", "data"), ("datasets", "data"), ("tensorboard", "")):
        print(f"{name:<11} {installed(name) or 'missing' + (f': pip install remask[{extra}]' if extra else '')}")
    print(f"cpu         {facts['cpu']}, {facts['cores']} threads, {torch.backends.cpu.get_cpu_capability()}")
    print(f"gpus        {', '.join(facts['gpus']) or 'none'}; mps: {torch.backends.mps.is_available()}")
    print(f"would use   {resolve('auto', 'auto').describe()}")
    print(f"decoding    {_decode_speed():.0f} JPEGs of 500×375 a second on one core, decoded and cropped to 224")
    disk = shutil.disk_usage(".")
    print(f"disk        {disk.free / 2**30:.1f} GiB free here")


def _decode_speed(seconds: float = 1.0) -> float:
    """JPEGs that one core decodes and crops a second, measured for `seconds` of processor time."""
    import io

    import torch
    from PIL import Image

    from remask.images.decoding import decode
    from remask.images.sources.opening import open_source
    from remask.images.transforms import RandomCropFlip

    buffer = io.BytesIO()
    photo = decode(open_source("photos").read(0))
    Image.fromarray(photo.permute(1, 2, 0).numpy()).resize((500, 375)).save(buffer, "JPEG", quality=90)
    crop, random, threads = RandomCropFlip((224, 224)), torch.Generator().manual_seed(0), torch.get_num_threads()
    torch.set_num_threads(1)
    crop(decode(buffer.getvalue()), random)  # the first one loads libraries
    count, began = 0, time.process_time()
    while (spent := time.process_time() - began) < seconds:
        crop(decode(buffer.getvalue()), random)
        count += 1
    torch.set_num_threads(threads)
    return count / spent
