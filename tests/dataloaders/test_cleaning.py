from __future__ import annotations

import numpy as np
import pytest

from dataloaders.prepare import tissue
from dataloaders.prepare.tissue import body_mask
from dataloaders.registration import dice

SPACING = np.array([2.0, 2.0, 3.0])


def toy_ct() -> dict[str, np.ndarray]:
    """Body ellipse with two lungs that run through both ends of the volume, a gas bubble, a table and a tube."""
    x, y = np.meshgrid(np.linspace(-1, 1, 96), np.linspace(-1, 1, 96), indexing="ij")
    flat = {
        "body": (x / 0.7) ** 2 + (y / 0.5) ** 2 < 1,
        "lungs": ((np.abs(x) - 0.3) / 0.2) ** 2 + (y / 0.3) ** 2 < 1,
        "table": (np.abs(y + 0.62) < 0.02) & (np.abs(x) < 0.9),  # behind the patient
        "tube": (x - 0.85) ** 2 + (y - 0.7) ** 2 < 0.03**2,
    }
    parts = {name: np.repeat(part[..., None], 12, axis=2) for name, part in flat.items()}
    parts["gas"] = np.zeros_like(parts["body"])
    parts["gas"][46:50, 46:50, 5:8] = True
    image = np.full(parts["gas"].shape, -1000.0, np.float32)
    for name, hu in {"body": 40, "lungs": -850, "gas": -1000, "table": 100, "tube": 100}.items():
        image[parts[name]] = hu
    return parts | {"image": image}


def test_table_and_tube_go_lungs_and_gas_stay() -> None:
    ct = toy_ct()
    mask = body_mask(ct["image"], SPACING, is_ct=True)
    assert mask[ct["lungs"] | ct["gas"]].all()
    assert not mask[ct["table"] | ct["tube"]].any()
    assert (mask == ct["body"]).mean() > 0.995


def test_labelled_voxels_always_belong_to_the_body() -> None:
    ct = toy_ct()
    assert body_mask(ct["image"], SPACING, True, ct["tube"])[ct["tube"]].all()


def test_a_body_cut_by_the_field_of_view_stays_whole() -> None:
    image = np.full((40, 40, 10), 40.0, np.float32)
    assert body_mask(image, SPACING, is_ct=True).all()


def toy_t1() -> tuple[np.ndarray, np.ndarray]:
    grid = np.meshgrid(*(np.linspace(-1, 1, 48),) * 3, indexing="ij")
    r = np.sqrt(sum(g**2 for g in grid))
    truth = np.digitize(-r, [-0.8, -0.65, -0.5])
    image = np.array([0.0, 60, 200, 320])[truth] + (truth > 0) * np.random.default_rng(0).normal(0, 12, r.shape)
    return truth, np.maximum(image, 0).astype(np.float32)


def test_hmrf_finds_the_tissues_and_leaves_none_out() -> None:
    truth, t1 = toy_t1()
    found = tissue.hmrf_tissue(t1, truth > 0)
    assert (found[truth == 0] == 0).all()
    assert (found[truth > 0] > 0).all()
    assert min(dice(found == i, truth == i) for i in (1, 2, 3)) > 0.9


def test_a_few_bright_voxels_do_not_make_it_collapse() -> None:
    truth, t1 = toy_t1()
    t1[20:22, 20:22, 20:22] = 5000
    found = tissue.hmrf_tissue(t1, truth > 0)
    assert min((found == i).sum() for i in (1, 2, 3)) > 0.02 * (truth > 0).sum()


def test_lesions_are_filled_before_classification() -> None:
    truth, t1 = toy_t1()
    lesion = np.zeros(truth.shape, bool)
    lesion[22:27, 22:27, 22:27] = True
    t1[lesion] = 60  # dark as CSF
    found = tissue.hmrf_tissue(t1, truth > 0, lesion)
    assert (found[lesion] == 3).mean() > 0.9


def test_a_collapse_is_refused() -> None:
    with pytest.raises(tissue.TissueError, match=r"collapsed.*csf 0\.0 %"):
        tissue.refuse_collapse(np.full((4, 4, 4), 3, np.uint8), np.ones((4, 4, 4), bool))
