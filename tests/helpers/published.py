"""Plugins of each kind, as third parties would write them, and what geobind finds of them."""

from collections.abc import Callable
from typing import NamedTuple

from geobind import loggers, plugins, pretrained
from geobind.data import dataset as datasets
from geobind.importers import registry as importers
from geobind.plugins import PluginKind, Registry


class Kind(NamedTuple):
    """One kind of thing that plugins provide."""

    word: str  # in messages
    kind: PluginKind
    registry: Callable[[], Registry]
    base: str  # what a class must be derived from
    hook: str
    method: str  # that it must implement
    source: str  # of a good plugin, but for `NAME`

    def named(self, name):
        return self.source.replace("NAME", name)

    def collect(self):
        """The registry of the plugins that tests published, and of those alone."""
        return self.kind.collect(
            entry for entry in plugins.list_entry_points() if entry.dist.name.startswith("acme-")
        )


MODALITY = Kind(
    "modality",
    plugins.MODALITY,
    plugins.registry,
    "geobind.Modality",
    "geobind_modalities",
    "prepare",
    """
    import geobind

    class Thing(geobind.Modality):
        name = "NAME"
        role = "frozen"
        def encoder(self, width, *, pretrained=True): ...
        def prepare(self, raw, *, training=False): ...

    @geobind.hookimpl
    def geobind_modalities():
        return [Thing]
    """,
)
IMPORTER = Kind(
    "importer",
    importers.IMPORTER,
    importers.registry,
    "geobind.importers.Importer",
    "geobind_importers",
    "rows",
    """
    import geobind
    from geobind.importers import Column, Importer

    class Thing(Importer):
        name = "NAME"
        title = "Bells of the Alps"
        home = "https://example.org/bells"
        licence = "CC BY 4.0"
        citation = "Meier, Bells, 2024"
        layout = "*.wav"
        columns = {"audio": Column("file")}
        loud: bool = False
        many: tuple[int, ...] = ()

        def rows(self):
            yield from ({"key": f.stem, "audio": f} for f in sorted(self.folder().glob("*.wav")))

    @geobind.hookimpl
    def geobind_importers():
        return [Thing]
    """,
)
LOGGER = Kind(
    "logger",
    loggers.LOGGER,
    loggers.registry,
    "geobind.loggers.Logger",
    "geobind_loggers",
    "open",
    """
    import geobind
    from geobind.loggers import Logger

    class Thing(Logger):
        name = "NAME"
        def open(self, about): ...

    @geobind.hookimpl
    def geobind_loggers():
        return [Thing]
    """,
)
DATASET = Kind(
    "dataset",
    datasets.DATASET,
    datasets.registry,
    "geobind.data.Dataset",
    "geobind_datasets",
    "rows",
    """
    import geobind
    from geobind.data import Dataset

    class Thing(Dataset):
        name = "NAME"
        title = "Bells of the Alps"
        def rows(self): ...

    @geobind.hookimpl
    def geobind_datasets():
        return [Thing]
    """,
)
WEIGHTS = Kind(
    "pretrained weights",
    pretrained.WEIGHTS,
    pretrained.registry,
    "geobind.pretrained.PackagedWeights",
    "geobind_weights",
    "path",
    """
    import geobind
    from geobind.pretrained import PackagedWeights

    class Thing(PackagedWeights):
        name = "NAME"
        needs = "numpy"
        install = "pip install numpy"
        def path(self): ...

    @geobind.hookimpl
    def geobind_weights():
        return [Thing]
    """,
)
KINDS = {kind.word: kind for kind in (MODALITY, IMPORTER, DATASET, LOGGER, WEIGHTS)}


def only_fault(publish, kind, source):
    """The messages about a faulty plugin beside a good one, which must be found; {module} is its module."""
    module = publish("acme-broken", source)
    publish("acme-sound", kind.named("sonar"))
    found = kind.collect()
    assert list(found.plugins) == ["sonar"]
    (broken,) = found.broken
    assert str(broken.source) == "acme-broken 1.0 [broken]"
    return broken.reason.replace(module, "{module}")
