from pathlib import Path

import pytest

from steelsight.data.catalog import Catalog, scan
from steelsight.data.formats.registry import load
from steelsight.data.splits import make_split
from steelsight.data.synthetic import CoilConfig, write_severstal
from steelsight.training.config import TrainConfig, with_settings
from steelsight.training.prepare import TrainingData, prepare

TINY = {
    "steps": 20,
    "validate_every": 10,
    "checkpoint_every": 5,
    "pictures_every": 0,
    "precision": "fp32",
    "device": "cpu",
    "threads": 1,
    "network.width": 0.125,
    "sampling.batch": 4,
    "sampling.crop_hw": [64, 64],
}
"""A run that takes seconds."""


@pytest.fixture(scope="session")
def drawn_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training") / "drawn"
    weights = (0.3, 0.2, 0.3, 0.2)
    write_severstal(
        CoilConfig(frames=48, seed=11, faulty_share=0.6, size_wh=(256, 128), class_weights=weights),
        folder,
    )
    return folder


@pytest.fixture(scope="session")
def drawn_catalog(drawn_folder: Path) -> Catalog:
    return scan(load(drawn_folder))


@pytest.fixture(scope="session")
def drawn_data(drawn_catalog: Catalog) -> TrainingData:
    split = make_split(drawn_catalog, None, folds=3, group_source="none")
    return prepare(drawn_catalog, split, *split.fold(0))


@pytest.fixture(scope="session")
def tiny() -> TrainConfig:
    return with_settings(TrainConfig(), TINY)
