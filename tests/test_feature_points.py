"""The contract of `models.feature_points`.

Every point is the path of a module of the model, and its output, or the first item of it, is a map (N, C, H, W), one
with channels last, or tokens. Points run from shallow to deep: maps never grow, at most four are named, and blocks of
one resolution are named at even distances, the last among them. Without the tokens in front of the patches, tokens make
a square for square pictures. Families that are not known, and models of the user's own, have no points.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dotkd import models
from dotkd.models.feature_points import is_channels_last, library_feature_points, tokens_before_patches

pytest.importorskip("torchvision")
pytest.importorskip("timm")
pytest.importorskip("transformers")

VIT: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "depth": 6, "num_heads": 2}
HF_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 5,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "patch_size": 8,
}
HF_DINO = {name: value for name, value in HF_VIT.items() if name != "intermediate_size"}
HF_STAGES: dict[str, Any] = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
HF_SWIN: dict[str, Any] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
STAGES = tuple(f"stages.{k}" for k in range(4))
LAYERS = tuple(f"layer{k}" for k in range(1, 5))


def numbered(prefix: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}.{number}" for number in numbers)


# spec, options, side of the pictures, points, tokens in front of the patches, whether channels come last.
CASES: list[tuple[str, dict[str, Any], int, tuple[str, ...], int, bool]] = [
    ("timm:vit_tiny_patch16_224", VIT, 32, numbered("blocks", 0, 2, 3, 5), 1, False),
    ("timm:vit_tiny_patch16_224", {**VIT, "depth": 2}, 32, numbered("blocks", 0, 1), 1, False),
    ("timm:vit_tiny_patch16_224", {**VIT, "reg_tokens": 4}, 32, numbered("blocks", 0, 2, 3, 5), 5, False),
    ("timm:deit_tiny_distilled_patch16_224", VIT, 32, numbered("blocks", 0, 2, 3, 5), 2, False),
    ("timm:xcit_nano_12_p16_224", {"embed_dim": 16, "depth": 4, "num_heads": 2}, 32,
     numbered("blocks", 0, 1, 2, 3), 0, False),
    ("timm:resnet10t", {}, 32, LAYERS, 0, False),
    ("timm:convnext_atto", {"dims": [8] * 4, "depths": [1] * 4}, 32, STAGES, 0, False),
    ("timm:swin_tiny_patch4_window7_224",
     {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2), "window_size": 2}, 32, numbered("layers", 0, 1), 0, True),
    ("timm:levit_128s", {"embed_dim": (32, 32, 32), "depth": (1, 1, 1), "key_dim": 8, "num_heads": (2, 2, 2)}, 64,
     STAGES[:3], 0, False),
    ("timm:mobilevit_xxs", {}, 64, (*STAGES[1:], "final_conv"), 0, False),
    ("timm:mobilenetv3_small_050", {}, 32, numbered("blocks", 0, 1, 3, 5), 0, False),
    ("torchvision:resnet18", {}, 32, LAYERS, 0, False),
    ("torchvision:mobilenet_v2", {}, 32, numbered("features", 3, 6, 13, 18), 0, False),
    ("torchvision:mobilenet_v3_small", {}, 32, numbered("features", 1, 3, 8, 12), 0, False),
    ("torchvision:efficientnet_b0", {}, 32, numbered("features", 2, 3, 5, 8), 0, False),
    ("torchvision:densenet121", {}, 32,
     ("features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"), 0, False),
    ("torchvision:shufflenet_v2_x0_5", {}, 32, ("stage2", "stage3", "stage4"), 0, False),
    ("torchvision:regnet_y_400mf", {}, 32, tuple(f"trunk_output.block{k}" for k in range(1, 5)), 0, False),
    ("transformers:vit", HF_VIT, 32, numbered("vit.layers", 0, 1, 2, 4), 1, False),
    ("transformers:deit", HF_VIT, 32, numbered("deit.layers", 0, 1, 2, 4), 2, False),
    ("transformers:dinov2_with_registers", {**HF_DINO, "num_register_tokens": 3}, 32,
     numbered("dinov2_with_registers.encoder.layer", 0, 1, 2, 4), 4, False),
    ("transformers:convnext", {**HF_STAGES, "num_stages": 4}, 32,
     numbered("convnext.encoder.stages", 0, 1, 2, 3), 0, False),
    ("transformers:resnet", {**HF_STAGES, "embedding_size": 8, "layer_type": "basic"}, 32,
     numbered("resnet.encoder.stages", 0, 1, 2, 3), 0, False),
    ("transformers:swin", HF_SWIN, 32, numbered("swin.encoder.layers", 0, 1), 0, False),
    ("transformers:mobilevit", {}, 64, numbered("mobilevit.encoder.layer", 1, 2, 3, 4), 0, False),
    ("transformers:mobilenet_v2", {}, 32, numbered("mobilenet_v2.layer", 1, 4, 11, 15), 0, False),
]  # fmt: skip


def build(spec: str, side: int, options: dict[str, Any]) -> nn.Module:
    return models.build(spec, num_classes=3, input_shape=(3, side, side), options=options).eval()


def outputs(model: nn.Module, points: tuple[str, ...], side: int) -> list[Tensor]:
    """What the modules at the points give, by hooks of this test's own."""
    given: dict[str, Tensor] = {}

    def keep(point: str) -> Any:
        return lambda module, inputs, output: given.update(
            {point: output[0] if isinstance(output, (tuple, list)) else output}
        )

    for point in points:
        model.get_submodule(point).register_forward_hook(keep(point))
    with torch.no_grad():
        model(torch.rand(2, 3, side, side))
    return [given[point] for point in points]


@pytest.mark.parametrize(
    ("spec", "options", "side", "points", "before", "channels_last"),
    CASES,
    ids=[f"{number}-{case[0]}" for number, case in enumerate(CASES)],
)
def test_points_are_maps_from_shallow_to_deep(
    spec: str, options: dict[str, Any], side: int, points: tuple[str, ...], before: int, channels_last: bool
) -> None:
    model = build(spec, side, options)
    assert library_feature_points(model) == points
    assert tokens_before_patches(model) == before
    assert is_channels_last(model) == channels_last
    sides: list[int] = []
    for output in outputs(model, points, side):
        assert output.shape[0] == 2
        if output.dim() == 3:
            patches = output.shape[1] - before
            assert math.isqrt(patches) ** 2 == patches
            sides.append(math.isqrt(patches))
        else:
            assert output.dim() == 4
            height, width = output.shape[1:3] if channels_last else output.shape[2:]
            assert height == width
            sides.append(int(height))
    assert sides == sorted(sides, reverse=True)
    assert sides[0] < side


def test_tokens_in_front_of_the_patches_see_no_place() -> None:
    """A picture shifted by one patch moves the patch tokens along; those in front of them stay as they are."""
    model = build("timm:vit_tiny_patch16_224", 32, {**VIT, "reg_tokens": 2, "depth": 1})
    with torch.no_grad():
        model.get_parameter("pos_embed").zero_()
        model.blocks[0] = nn.Identity()
        picture = torch.rand(1, 3, 32, 32)
        first = model.forward_features(picture)
        shifted = model.forward_features(picture.roll(8, dims=3))
    before = tokens_before_patches(model)
    assert before == 3
    assert torch.allclose(first[:, :before], shifted[:, :before])
    grids = [tokens[:, before:].unflatten(1, (4, 4)) for tokens in (first, shifted)]
    assert torch.allclose(grids[0].roll(1, dims=2), grids[1], atol=1e-6)
    assert not torch.allclose(grids[0], grids[1])


def test_unknown_families_have_no_points() -> None:
    import timm

    own = nn.Sequential(nn.Linear(2, 2))
    assert library_feature_points(own) is None
    assert tokens_before_patches(own) is None
    assert not is_channels_last(own)
    with torch.device("meta"):
        assert library_feature_points(timm.create_model("crossvit_9_240")) is None
        assert library_feature_points(timm.create_model("twins_svt_small")) is None


def test_a_class_derived_from_a_librarys_counts_as_it_where_it_has_the_modules() -> None:
    from torchvision.models.resnet import BasicBlock, ResNet

    class Own(ResNet):
        pass

    model = Own(BasicBlock, [1, 1, 1, 1])
    assert library_feature_points(model) == LAYERS
    del model.layer4
    assert library_feature_points(model) is None
