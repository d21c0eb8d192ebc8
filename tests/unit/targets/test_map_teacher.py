"""targets/map_teacher.py: what a teacher sees, grid and norm of its features, and that the method has none of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from remask.errors import UserError
from remask.targets.map_teacher import Frozen, MapTeacher, resized

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
OWN_MEAN, OWN_STD = [0.5, 0.4, 0.3], [0.25, 0.5, 0.2]


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def normalised(images: Tensor, mean: list[float], std: list[float]) -> Tensor:
    return (images / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)


def network(stride: int = 8, width: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, stride, stride), nn.BatchNorm2d(width), nn.Dropout(0.5))


def teacher(net: nn.Module, patch: int = 8, **options: object) -> MapTeacher:
    constants = {"teacher_mean": OWN_MEAN, "teacher_std": OWN_STD, "width": 5, "name": "tiny"}
    return MapTeacher(net, (patch, patch), MEAN, STD, **{**constants, **options})  # type: ignore[arg-type]


def test_a_teacher_sees_the_whole_image_by_its_own_constants() -> None:
    net, images = network(), pictures(2, 3, 16, 24)
    target = teacher(net, norm="none")
    expected = net(normalised(images, OWN_MEAN, OWN_STD))
    tokens = target(images)
    assert tokens.shape == (2, 2 * 3, 5)
    assert torch.allclose(tokens, expected.flatten(2).transpose(1, 2), atol=1e-6)
    assert torch.allclose(target(normalised(images, MEAN, STD)), tokens, atol=1e-6), "a float image is turned back"


def test_layer_norm_runs_over_each_token_without_affine() -> None:
    net, images = network(), pictures(2, 3, 16, 16)
    raw, normed = teacher(net, norm="none")(images), teacher(net)(images)
    centred = raw - raw.mean(-1, keepdim=True)
    assert torch.allclose(normed, centred / (raw.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt(), atol=1e-5)


def test_images_are_resized_to_the_size_the_teacher_was_made_for() -> None:
    net, images, seen = network(), pictures(1, 3, 32, 32), []
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    assert teacher(net, patch=8, size=(24, 40))(images).shape == (1, 16, 5)
    assert seen[0].shape == (1, 3, 24, 40)
    teacher(net, patch=8)(images)
    assert seen[1].shape == (1, 3, 32, 32)


def test_a_second_view_equals_the_resized_file() -> None:
    from PIL import Image

    images = 60 + pictures(1, 3, 24, 24) // 2  # no overshoot, which Pillow cuts off between its two passes
    images[..., :12] = images[..., :12] // 64 * 64
    by_pillow = Image.fromarray(images[0].permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BICUBIC)
    ours = resized(images.float(), (12, 12))[0].permute(1, 2, 0)
    theirs = torch.tensor(list(by_pillow.tobytes())).view(12, 12, 3).float()
    assert float((ours - theirs).abs().max()) <= 1
    assert torch.equal(ours, ours.round())
    assert float(ours.min()) >= 0
    assert float(ours.max()) <= 255
    same = images.float()
    assert resized(same, (24, 24)) is same


@pytest.mark.parametrize(("stride", "patch"), [(4, 8), (8, 4)])
def test_a_map_of_another_grid_is_resized_to_the_students(stride: int, patch: int) -> None:
    net, images = network(stride), pictures(1, 3, 16, 16)
    tokens = teacher(net, patch, norm="none")(images)
    own = net(normalised(images, OWN_MEAN, OWN_STD))
    side = 16 // patch
    assert tokens.shape == (1, side**2, 5)
    by_hand = F.interpolate(own, (side, side), mode="bilinear", antialias=True)
    assert torch.allclose(tokens, by_hand.flatten(2).transpose(1, 2), atol=1e-6)
    flat = teacher(net, patch, norm="none")(torch.full((1, 3, 16, 16), 77, dtype=torch.uint8))
    assert torch.allclose(flat, flat[:, :1].expand_as(flat), atol=1e-5), "resizing adds no border"


def test_a_teacher_is_never_trained_and_never_saved() -> None:
    net = network()
    target = teacher(net)
    method = nn.ModuleDict({"target": target, "head": nn.Linear(2, 2)})
    assert list(target.state_dict()) == []
    assert list(target.parameters()) == []
    assert set(method.state_dict()) == {"head.weight", "head.bias"}
    method.train()
    assert not any(module.training for module in net.modules())
    assert not any(parameter.requires_grad for parameter in net.parameters())
    images = pictures(2, 3, 16, 16)
    running = copy.deepcopy(net.state_dict())
    first = target(images)
    assert not first.requires_grad
    assert torch.equal(target(images), first)
    assert all(torch.equal(tensor, running[name]) for name, tensor in net.state_dict().items())
    method.load_state_dict(method.state_dict())


def test_a_teacher_follows_its_owner() -> None:
    """Seen on the device without memory, which every machine has, and in the type."""
    target = teacher(network())
    owner = nn.Sequential(nn.Sequential(target))
    owner.double()
    assert {p.dtype for p in target.network.networks[0].parameters()} == {torch.float64}
    owner.float().to("meta")
    assert {p.device.type for p in target.network.networks[0].parameters()} == {"meta"}
    assert target(torch.zeros(2, 3, 16, 24, dtype=torch.uint8, device="meta")).shape == (2, 6, 5)


def test_a_copy_has_its_own_network() -> None:
    first = Frozen(network())
    second = copy.deepcopy(first)
    assert second.networks[0] is not first.networks[0]


def test_features_are_fp32_under_autocast() -> None:
    images, target = pictures(2, 3, 16, 16), teacher(network())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = target(images)
    assert lowered.dtype == torch.float32
    assert torch.allclose(lowered, target(images), atol=0.1)


def test_gray_pictures_are_repeated() -> None:
    net, images = network(), pictures(1, 1, 16, 16)
    constants = {"teacher_mean": OWN_MEAN, "teacher_std": OWN_STD, "width": 5, "name": "tiny"}
    gray = MapTeacher(net, (8, 8), [0.5], [0.5], **constants)  # type: ignore[arg-type]
    assert torch.allclose(gray(images), teacher(net)(images.repeat(1, 3, 1, 1)), atol=1e-6)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match="the teacher tiny gives 5 channels, not 7"):
        teacher(network(), width=7)(pictures(1, 3, 16, 16))
    with pytest.raises(UserError, match="the teacher tiny sees 3 channels, not 2"):
        MapTeacher(
            network(), (8, 8), [0.5] * 2, [0.5] * 2, teacher_mean=OWN_MEAN, teacher_std=OWN_STD, width=5, name="tiny"
        )
    assert teacher(network()).describe() == "features of tiny, LayerNorm"
    assert teacher(network(), norm="none").describe() == "features of tiny"
