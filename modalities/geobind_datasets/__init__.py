"""Importers of public datasets: a module for each family, each class found through the hook below."""

from __future__ import annotations

import geobind
from geobind.importers.contract import Importer
from geobind_datasets.captions import RSICD, RSITMD, SydneyCaptions, UCMCaptions
from geobind_datasets.cross_view import CVACT, CVUSA, VIGOR
from geobind_datasets.eurosat import EuroSAT
from geobind_datasets.geosound import GeoSound
from geobind_datasets.image_folder import ImageFolder
from geobind_datasets.sat2cap import Sat2Cap
from geobind_datasets.soundingearth import SoundingEarth
from geobind_datasets.species import ISatNat, ISoundNat, TaxaBench
from geobind_datasets.stac import Stac
from geobind_datasets.torchgeo import TorchGeo
from geobind_datasets.webdataset import WebDataset


@geobind.hookimpl
def geobind_importers() -> tuple[type[Importer], ...]:
    """Provide the importers of this package."""
    return (
        Sat2Cap,
        SoundingEarth,
        GeoSound,
        ISatNat,
        ISoundNat,
        TaxaBench,
        ImageFolder,
        CVUSA,
        CVACT,
        VIGOR,
        RSICD,
        RSITMD,
        UCMCaptions,
        SydneyCaptions,
        EuroSAT,
        WebDataset,
        TorchGeo,
        Stac,
    )
