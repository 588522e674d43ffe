"""Which classifiers there are; that they are torchvision's is tested in test_export."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import classifiers
from provision.errors import UsageError


def test_names_are_sorted_and_unique() -> None:
    names = classifiers.names()
    assert names == sorted(set(names))
    assert {"resnet50", "squeezenet1_1", "mobilenet_v3_small", "vit_b_16"} <= set(names)
    for name in names:
        classifiers.check(name)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("resnet5", "resnet50"),
        ("ResNet50", "resnet50"),
        ("resnet-50", "resnet50"),
        ("squeezenet", "squeezenet1_1"),
        ("mobilenet_v3", "mobilenet_v3_small"),
        ("vit", "vit_b_16"),
        ("ViT-B-16", "vit_b_16"),
        ("efficientnet_s", "efficientnet_v2_s"),
        ("convnext", "convnext_tiny"),
    ],
)
def test_misspelt_name_lists_what_may_be_meant(name: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"no classifier named '{name}'") as caught:
        classifiers.check(name)
    assert caught.value.fix.startswith("did you mean ")
    assert meant in caught.value.fix
    assert caught.value.exit_code == 2


def test_name_like_none_lists_all() -> None:
    with pytest.raises(UsageError) as caught:
        classifiers.check("@@@@")
    assert all(name in caught.value.fix for name in classifiers.names())


@settings(deadline=None)
@given(st.text())
def test_any_other_name_is_refused(name: str) -> None:
    if name in classifiers.names():
        classifiers.check(name)
    else:
        with pytest.raises(UsageError):
            classifiers.check(name)
