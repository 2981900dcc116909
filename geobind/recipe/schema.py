"""The schema of a recipe: modalities, stages, data, evaluation, validation, model card."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from html import escape
from itertools import combinations, permutations
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    model_validator,
)

from geobind.data.augmentation import Geometry
from geobind.data.options import DataOptions, MixedData
from geobind.modality import Modality, Role
from geobind.recipe.marks import Mark, Pair, StageStep, find_shared_towers, mark_pairs
from geobind.recipe.parsing import dump_yaml
from geobind.recipe.stage_options import (
    MAX_ROWS,
    AdamW,
    BatchSize,
    CacheSpec,
    Chunk,
    Constant,
    Cosine,
    InfoNCEOptions,
    LossOptions,
    NeighbourBatches,
    Part,
    RecipeBlock,
    Steps,
    TrainSpec,
    WarmRestarts,
    to_part,
)

Pairing = Literal["anchor", "all"]
Name = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=100, description="in folders, tables, messages"),
]
Prompt = Annotated[str, Field(min_length=1, max_length=1000)]


class ModalityPair(NamedTuple):
    """Two modalities that a stage compares; the first is the loss's anchor, the second its other."""

    anchor: str
    other: str
    weight: float = 1.0

    @property
    def name(self) -> str:
        """The name in recipes, metrics and messages."""
        return f"{self.anchor}-{self.other}"

    @property
    def both(self) -> frozenset[str]:
        """Both modalities, in no order."""
        return frozenset((self.anchor, self.other))


def build_pairs(
    anchor: str,
    aligned: Sequence[str],
    pairing: Pairing = "anchor",
    trained: Collection[str] = (),
    weights: Mapping[str, float] | None = None,
) -> tuple[ModalityPair, ...]:
    """Build the pairs of modalities that a stage compares.

    Args:
        anchor: The stage's anchor.
        aligned: The aligned modalities, in their order.
        pairing: "anchor" pairs each of them with the anchor; "all" pairs all of them and the anchor with each
            other, except two modalities that the stage does not train.
        trained: The trained modalities, used by "all".
        weights: The weight of a pair's loss, by one of its `pair_aliases`.

    Returns:
        The pairs, those with the anchor first.
    """
    names = list(dict.fromkeys((anchor, *aligned)))
    pairs = [(anchor, other) for other in names[1:]]
    if pairing == "all":
        pairs = [pair for pair in combinations(names, 2) if set(pair) & set(trained)]
    said = weights or {}
    return tuple(
        ModalityPair(*pair, next((said[word] for word in pair_aliases(*pair, anchor) if word in said), 1.0))
        for pair in pairs
    )


def pair_aliases(one: str, two: str, anchor: str) -> tuple[str, ...]:
    """Return the names of a pair in a recipe: `one-two`, `two-one`, and `two` alone with the anchor."""
    alone = (two,) if one == anchor else (one,) if two == anchor else ()
    return (f"{one}-{two}", f"{two}-{one}", *alone)


def find_pair(text: str, known: Iterable[str]) -> tuple[str, str] | None:
    """Return the two modalities that `ONE-TWO` names; None if it names none. Names may have hyphens."""
    return next((pair for pair in permutations(known, 2) if "-".join(pair) == text), None)


def to_names(aligned: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names in `align`, which is one or several."""
    return (aligned,) if isinstance(aligned, str) else tuple(aligned)


class Question(RecipeBlock):
    """A question in words about places, and the number of each place that tells the truth."""

    prompts: tuple[Prompt, Prompt] = Field(
        description="what is said of a place where it is true, and of one where it is not"
    )
    truth: str = Field(description="a column of numbers, or a fact of the dataset")
    above: float = Field(allow_inf_nan=False, description="true of places with a larger number")
    below: float | None = Field(
        default=None,
        allow_inf_nan=False,
        description="untrue of places with at most this, which may be less than `above`: places between are "
        "left out. Default: `above`",
    )
    modalities: tuple[str, ...] = Field(
        default=(), max_length=100, description="the modalities to ask; default: all but that of the words"
    )
    through: str = Field(default="text", description="the modality that reads the prompts")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.lower > self.above:
            raise ValueError(f"`below` is {self.below:g} and `above` {self.above:g}: places cannot be both")
        return self

    @property
    def lower(self) -> float:
        """The largest number of which the first prompt is untrue."""
        return self.above if self.below is None else self.below

    def list_asked(self, known: Iterable[str]) -> tuple[str, ...]:
        """Return the modalities to ask, of those there are."""
        there = tuple(name for name in known if name != self.through)
        return tuple(name for name in self.modalities if name in there) if self.modalities else there

    def describe_truth(self) -> str:
        """Describe which places it is true of, and which not."""
        untrue = "" if self.below is None else f", untrue up to {self.lower:g}"
        return f"{self.truth} above {self.above:g}{untrue}"


class Evaluation(RecipeBlock):
    """The evaluation after the last stage: retrieval for every ordered pair of modalities."""

    data: DataOptions | None = Field(default=None, description="default: the recipe's data")
    split: str = Field(default="test", description="rows no stage has trained on")
    by: Literal["row", "label"] = Field(
        default="row", description="the right answer to a query: its own row, or any row of its class"
    )
    limit: int | None = Field(
        default=None, gt=1, le=MAX_ROWS, description="at most this many rows, the first ones"
    )
    clusters: Literal["cell", "group", "row"] | None = Field(
        default=None,
        description="rows that are no independent queries: of one `group`, or of one cell of a degree; "
        "`row`: none. Default: groups where the table has them, else cells; intervals are wider for it",
    )
    calibrate: str | None = Field(
        default=None,
        description="split, neither trained nor measured on, that makes similarities probabilities",
    )
    sums: tuple[str, ...] = Field(
        default=(),
        description="embedding arithmetic, as `ONE+TWO:GALLERY`: do sums find what holds what both say?",
    )
    untrained: bool = Field(
        default=False, description="measure the encoders before any stage too, as a baseline of every figure"
    )
    direct: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="emergent pairs, as `ONE-TWO`, to train on each other too: encoders from the same start, "
        "not kept, whose figures are an upper bound",
    )
    questions: dict[Name, Question] = Field(
        default_factory=dict,
        max_length=100,
        description="questions in words, put to every modality; a number of each place tells the truth",
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if self.calibrate == self.split:
            raise ValueError(
                f"`calibrate` and `split` are both '{self.split}': what is fitted on the rows that it is "
                "measured on looks better than it is; name a validation split"
            )
        return self


class FuserOptions(RecipeBlock):
    """A fuser, trained after the last stage on frozen embeddings: any subset in, any modality out."""

    split: str = Field(default="train", description="the rows of the stages' tables to train it on")
    rows: int = Field(
        default=20_000, ge=1, le=1_000_000, description="at most this many rows of a table, drawn at random"
    )
    epochs: int = Field(default=40, ge=1, le=10_000, description="passes over the rows")
    batch_size: int = Field(default=512, ge=2, le=65_536, description="rows per step, as negatives are")
    width: int = Field(default=128, ge=4, le=4096, multiple_of=4, description="of its own vectors")
    layers: int = Field(default=2, ge=1, le=16, description="blocks of attention and MLP")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="dropout on the output of a block")
    lr: float = Field(default=1e-3, ge=1e-12, le=100, description="peak learning rate")


class CardOptions(RecipeBlock):
    """Facts for the model card that only the author knows."""

    use: str | None = Field(default=None, description="what the model is meant for")
    not_for: str | None = Field(default=None, description="what it should not be used for")
    licence: str | None = Field(
        default=None, description="licence under which the weights are published, such as CC-BY-4.0"
    )
    weights: dict[str, str] = Field(
        default_factory=dict, description="licence of the pretrained weights that a modality starts from"
    )


_ONE_VALUE, _BLOCK = "one value", "a block"  # no identifiers: they are left out of a mistake's path


class Watch(RecipeBlock):
    """Evaluate a stage on held-out rows while it runs, keep the best weights, stop when none get better."""

    every: Steps = Field(description="steps between two evaluations; there is one after the last step too")
    split: str = Field(default="val", description="rows no stage trains on and nothing else is measured on")
    data: DataOptions | None = Field(default=None, description="default: the stage's own data")
    limit: int | None = Field(
        default=500,
        gt=1,
        le=MAX_ROWS,
        description="at most this many rows, taken at even distances; null: all",
    )
    by: Literal["row", "label"] = Field(
        default="row", description="the right answer to a query: its own row, or any row of its class"
    )
    measure: Annotated[str, Field(pattern=r"^(R@[1-9][0-9]{0,4}|loss)$")] = Field(
        default="R@10", description="what is to get better: recall, as R@1 or R@10, or the loss"
    )
    keep: Literal["best", "last"] = Field(
        default="best", description="which weights the stage ends with: of the best evaluation, or the last"
    )
    patience: Steps | None = Field(
        default=None,
        description="stop after this many evaluations in a row without a gain; null: never",
    )
    least: float = Field(
        default=0.0, ge=0, le=1e6, description="a gain smaller than this does not count as one"
    )

    @property
    def cutoff(self) -> int:
        """The k of the measured recall."""
        return 10 if self.measure == "loss" else int(self.measure.removeprefix("R@"))


class EmaOptions(RecipeBlock):
    """An exponential moving average (EMA) of the trained weights, used for evaluations and the result."""

    decay: float = Field(gt=0, lt=1, description="share of the old average that each step keeps")
    warmup: bool = Field(
        default=True, description="keep less of it at first: (1 + n) / (10 + n) after n steps, up to `decay`"
    )


def _is_block(value: object) -> str:
    return _BLOCK if isinstance(value, Mapping | RecipeBlock) else _ONE_VALUE


def to_ema_options(said: float | EmaOptions | None) -> EmaOptions | None:
    """Return the options of a decay or a block."""
    return said if said is None or isinstance(said, EmaOptions) else EmaOptions(decay=said)


# 0.999, or {decay: 0.999, warmup: false}
EmaSpec = Annotated[
    Annotated[Annotated[float, Field(gt=0, lt=1)] | None, Tag(_ONE_VALUE)]
    | Annotated[EmaOptions, Tag(_BLOCK)],
    Discriminator(_is_block),
    AfterValidator(to_ema_options),  # equal options must have equal fingerprints
]


class LoggerEntry(BaseModel):
    """A logger of a recipe: its name, and its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str


# tensorboard, or {name: wandb, project: sounds}
LoggerSpec = Annotated[
    Annotated[str, Tag(_ONE_VALUE)] | Annotated[LoggerEntry, Tag(_BLOCK)],
    Discriminator(lambda value: _BLOCK if isinstance(value, Mapping | LoggerEntry) else _ONE_VALUE),
]


CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]
Auto = Literal["auto"]
Compile = bool | CompileMode | Auto
FabricPrecision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true", "64-true", "auto"]
_ONE, _MANY = "one of them", "several of them"  # no identifiers: they are left out of a mistake's path
OneOrMany = Discriminator(lambda value: _MANY if isinstance(value, list | tuple) else _ONE)


_INHERITED = ("compile", "checkpoint_activations")  # options of `fabric` that a stage may have for itself


class Stage(RecipeBlock):
    """One sentence: align these modalities with the anchor, train these encoders."""

    name: Name
    align: Annotated[
        Annotated[str, Tag(_ONE)] | Annotated[tuple[str, ...], Field(max_length=100), Tag(_MANY)],
        OneOrMany,
    ] = Field(description="the modality to align with the anchor, or several")
    pairs: Pairing = Field(
        default="anchor",
        description="which modalities are compared: each with the anchor, or all with each other",
    )
    weights: dict[str, Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="how much the loss of a pair counts, by its aligned modality or as one-other; default: 1",
    )
    anchor: str | None = Field(
        default=None, description="the modality aligned with; default: the recipe's anchor"
    )
    train: TrainSpec = Field(
        description="the encoders to train, or of each what: full, head, lora, or a block with its options"
    )
    data: Annotated[
        Annotated[DataOptions | None, Tag(_ONE)] | Annotated[tuple[MixedData, ...], Tag(_MANY)],
        OneOrMany,
    ] = Field(
        default=None, description="a table or several; default: the aligned modality's, or the recipe's"
    )
    mix: Literal["batches", "rows"] = Field(
        default="batches",
        description="of several tables: each batch holds rows of one, or rows of all",
    )
    split: str = Field(default="train", description="the rows of the data to train on")
    batch_size: BatchSize = Field(
        description="pairs per step over all devices together, as negatives are; auto: what fits in memory"
    )
    chunk: Chunk | None = Field(
        default=None,
        description="rows of one process embedded at a time: a step takes two passes, with the gradient of "
        "the whole batch in the memory of these rows; null: all at once",
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        le=1_000_000,
        description="steps whose mean gradient moves the weights once; adds no negatives, which chunk and a "
        "larger batch_size do",
    )
    batches: NeighbourBatches | None = Field(
        default=None, description="what batches hold besides rows drawn at random: groups of neighbours"
    )
    epochs: int | None = Field(
        default=None, ge=1, le=1_000_000, description="passes over the rows; give this or steps"
    )
    steps: Steps | None = Field(default=None, description="batches to train on; give this or epochs")
    loss: LossOptions = Field(default=InfoNCEOptions(), description="infonce or siglip, with its options")
    optimizer: AdamW = Field(default=AdamW(), description="AdamW and its options")
    schedule: Annotated[Constant | Cosine | WarmRestarts, Field(discriminator="name")] = Field(
        default=Cosine(), description="how the learning rate changes: constant, cosine or warm_restarts"
    )
    precision: FabricPrecision | None = Field(default=None, description="default: the recipe's")
    compile: Compile | None = Field(default=None, description="default: the recipe's")
    checkpoint_activations: bool | Auto | None = Field(default=None, description="default: the recipe's")
    clip_norm: float | None = Field(
        default=1.0, ge=1e-6, le=1e6, description="largest norm of the gradient; null: no clipping"
    )
    cache: CacheSpec = Field(
        default="auto",
        description="keep the embeddings of frozen encoders, for later epochs and runs",
    )
    watch: Watch | None = Field(
        default=None,
        description="evaluate on held-out rows during training, keep the best weights, stop early",
    )
    ema: EmaSpec = Field(
        default=None,
        description="end with an exponential moving average of the weights: its decay, or a block",
    )
    checkpoint_seconds: float = Field(
        default=60.0, ge=0, le=1e7, description="least time between two checkpoints; 0: every step"
    )

    @property
    def aligned(self) -> tuple[str, ...]:
        """The modalities that are aligned with the anchor."""
        return to_names(self.align)

    @property
    def auto_options(self) -> tuple[str, ...]:
        """The options that are `auto`, chosen at the start of a run by what is measured."""
        return tuple(name for name in ("batch_size", "chunk", *_INHERITED) if getattr(self, name) == "auto")

    @property
    def compile_mode(self) -> CompileMode | None:
        """The mode of torch.compile; None: nothing is compiled, or not yet."""
        if self.compile is True:
            return "default"
        return None if self.compile is False or self.compile == "auto" else self.compile

    @property
    def trained(self) -> dict[str, Part]:
        """The trained part of each encoder with its options, by modality."""
        said = dict.fromkeys(self.train, "full") if isinstance(self.train, list) else self.train
        return {name: to_part(part) for name, part in said.items()}

    @property
    def ema_options(self) -> EmaOptions | None:
        """The options of the EMA, None without one."""
        return to_ema_options(self.ema)

    @property
    def parts(self) -> dict[str, str]:
        """The name of the trained part of each encoder, by modality."""
        return {name: part.part for name, part in self.trained.items()}


class FabricOptions(RecipeBlock):
    """Options of Lightning Fabric: devices, strategy, precision."""

    accelerator: str = Field(default="auto", description="cpu, cuda, mps or another of Fabric's")
    devices: Annotated[int, Field(le=100_000)] | Literal["auto"] = Field(
        default="auto", description="devices of a machine, or processes on a CPU"
    )
    num_nodes: int = Field(default=1, ge=1, le=100_000, description="machines")
    strategy: Literal["auto", "ddp", "fsdp2"] = Field(
        default="auto",
        description="whether each process holds all weights (ddp, the default of several) or a share (fsdp2)",
    )
    precision: FabricPrecision = Field(
        default="32-true",
        description="of arithmetic; -mixed keeps weights in float32; auto: bf16-mixed where it is faster",
    )
    compile: Compile = Field(
        default=False, description="torch.compile of the encoders, or its mode; auto: where measured to pay"
    )
    checkpoint_activations: bool | Auto = Field(
        default=False,
        description="compute the blocks of trained encoders twice, to save their activations; auto: where a "
        "batch does not fit without",
    )
    sync_batchnorm: bool = Field(default=True, description="batch norms see the rows of all processes")
    deterministic: bool = Field(
        default=False,
        description="only algorithms that give the same bits every time; an error where none is",
    )


class AugmentOptions(RecipeBlock):
    """Augmentation across modalities."""

    together: tuple[str, ...] = Field(
        default=(),
        max_length=100,
        description="co-registered rasters, which are mirrored, turned and cropped alike in each row",
    )


class ModalityEntry(BaseModel):
    """One modality of a recipe: `role`, `data`, and its own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    role: Role | None = Field(default=None, description="overrides the plugin's role")
    data: DataOptions | None = Field(default=None, description="where its pairs with the anchor come from")

    @property
    def options(self) -> dict[str, Any]:
        """The modality's own options."""
        return dict(self.model_extra or {})


def find_pair_providers(built: Mapping[str, Modality]) -> set[str]:
    """Return the modalities whose plugins define pairs of their own."""
    return {name for name, modality in built.items() if type(modality).pairs is not Modality.pairs}


class StageSources(NamedTuple):
    """Where the rows of a stage come from."""

    own: tuple[str, ...]  # aligned modalities whose plugins bring their pairs with the anchor
    tables: tuple[DataOptions, ...]  # the tables of the other aligned modalities


class BaseBundle(NamedTuple):
    """The bundle that a recipe begins from."""

    folder: Path
    modalities: tuple[str, ...]
    digest: str  # hash of its weights and options
    steps: tuple[StageStep, ...]  # its stages


class Recipe(RecipeBlock):
    """A recipe: modalities, data, and the stages that bind them."""

    name: Name
    base_path: str | None = Field(
        default=None,
        alias="base",
        description="the bundle to begin from, or a run's folder: its modalities, width and anchor",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="of first weights, batches and augmentation")
    width: int = Field(default=512, ge=2, le=65536, description="length of an embedding in the shared space")
    anchor: str = Field(
        default="satellite", description="the modality that stages align with unless they say otherwise"
    )
    modalities: dict[str, ModalityEntry] = Field(
        min_length=1, description="the kinds of observation, each with the options of its plugin"
    )
    plugins: tuple[str, ...] = Field(
        default=(),
        description="Python files, relative to the recipe, that provide modalities as a package would",
    )
    data: DataOptions | None = Field(
        default=None, description="rows for every stage that names none of its own"
    )
    augment: AugmentOptions = Field(default=AugmentOptions(), description="augmentation across modalities")
    fabric: FabricOptions = Field(default=FabricOptions(), description="devices, strategy, precision")
    workers: Annotated[int, Field(ge=0, le=1024)] | Literal["auto"] = Field(
        default="auto", description="processes that load data; 0: none"
    )
    max_broken: float = Field(
        default=0.01, ge=0, le=1, description="share of broken samples past which a stage stops"
    )
    stages: list[Stage] = Field(min_length=1, description="what is aligned with what, one after another")
    evaluate: Evaluation | None = Field(
        default=None, description="what is measured on held-out rows at the end"
    )
    bank: int = Field(
        default=4000,
        ge=0,
        le=100_000,
        description="unlabelled rows of the anchor that the bundle keeps, as a bridge between emergent "
        "pairs; 0: none",
    )
    fuse: FuserOptions | None = Field(
        default=None,
        description="train a fuser on the frozen embeddings after the last stage; {} takes its defaults",
    )
    loggers: tuple[LoggerSpec, ...] = Field(
        default=(), description="where metrics go besides metrics.csv: names, or blocks with options"
    )
    card: CardOptions = Field(
        default=CardOptions(), description="facts for the model card that only the author knows"
    )

    _written: dict[str, Any] = PrivateAttr(default_factory=dict)
    _base: Path = PrivateAttr(default_factory=Path)
    _built: dict[str, Modality] = PrivateAttr(default_factory=dict)
    _base_bundle: BaseBundle | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _inherit(self) -> Self:
        """Give each stage the options of `fabric` that it leaves open and that may be chosen for each."""
        for number, stage in enumerate(self.stages):
            left = {name: getattr(self.fabric, name) for name in _INHERITED if getattr(stage, name) is None}
            self.stages[number] = stage.model_copy(update=left)
        return self

    @property
    def written(self) -> dict[str, Any]:
        """The recipe as plain JSON, overrides applied and interpolation resolved."""
        return self._written

    @property
    def base(self) -> Path:
        """The folder that relative paths of the recipe start from."""
        return self._base

    @property
    def built(self) -> dict[str, Modality]:
        """The modalities, constructed with their options."""
        return self._built

    @property
    def base_bundle(self) -> BaseBundle | None:
        """The bundle that the recipe begins from; None without one, or for a recipe out of a bundle."""
        return self._base_bundle

    @property
    def steps(self) -> tuple[StageStep, ...]:
        """The stages of the base bundle, then the recipe's own, as marks of pairs follow from them."""
        own = (
            StageStep(tuple((pair.anchor, pair.other) for pair in self.pairs_of(stage)), tuple(stage.parts))
            for stage in self.stages
        )
        return (*(self._base_bundle.steps if self._base_bundle else ()), *own)

    @property
    def marks(self) -> dict[Pair, Mark]:
        """The mark of every pair of modalities after the last stage: trained, emergent, ..."""
        options = {name: modality.model_dump(mode="json") for name, modality in self._built.items()}
        return mark_pairs(self.modalities, self.steps, find_shared_towers(options, self.width))

    def __repr__(self) -> str:
        """Return one line: name, width, modalities, stages."""
        stages = ", ".join(stage.name for stage in self.stages)
        return f"Recipe({self.name}: width {self.width}; {', '.join(self.modalities)}; stages {stages})"

    def __str__(self) -> str:
        return repr(self)

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p><pre>{escape(dump_yaml(self.written))}</pre>"

    def role(self, name: str) -> Role:
        """Return the modality's role: the recipe's, else its plugin's."""
        return self.modalities[name].role or self._built[name].role

    def anchor_of(self, stage: Stage) -> str:
        """Return the modality that a stage aligns with."""
        return stage.anchor or self.anchor

    def names_of(self, stage: Stage) -> tuple[str, ...]:
        """Return the modalities of a stage, its anchor first."""
        return tuple(dict.fromkeys((self.anchor_of(stage), *stage.aligned)))

    def precision_of(self, stage: Stage) -> FabricPrecision:
        """The precision that a stage computes in, as Fabric names it."""
        return stage.precision or self.fabric.precision

    def pairs_of(self, stage: Stage) -> tuple[ModalityPair, ...]:
        """Return the pairs of modalities that a stage compares."""
        return build_pairs(self.anchor_of(stage), stage.aligned, stage.pairs, stage.parts, stage.weights)

    def geometry_of(self, stage: Stage) -> dict[str, Geometry]:
        """Return how each modality of a stage draws its geometric augmentations.

        Beside a co-registered raster that the stage does not train, whose embeddings are cached, the others
        stay unchanged too; with `cache: off` it is turned with them and embedded anew each time.
        """
        names, together = self.names_of(stage), self.together_in(stage)
        kind: Geometry = "shared" if stage.cache == "off" or set(together) <= set(stage.parts) else "none"
        return {name: kind if name in together else "own" for name in names}

    def augmented_in(self, stage: Stage) -> frozenset[str]:
        """Return the modalities that a stage augments: those it trains, and frozen ones turned with them."""
        turned = (name for name, kind in self.geometry_of(stage).items() if kind == "shared")
        return frozenset((*stage.parts, *turned))

    def together_in(self, stage: Stage) -> tuple[str, ...]:
        """Return the co-registered rasters of `augment.together` in a stage, none if it has only one."""
        there = tuple(name for name in self.names_of(stage) if name in self.augment.together)
        return there if len(there) > 1 else ()

    @property
    def evaluation_data(self) -> DataOptions | None:
        """The table that `evaluate` measures on; None where nothing is evaluated, or no table is named."""
        return (self.evaluate.data or self.data) if self.evaluate else None

    def stage_sources(self, stage: Stage, own: Collection[str] | None = None) -> StageSources:
        """Return where the rows of a stage come from; names that the recipe does not have are left out.

        Args:
            stage: The stage.
            own: The modalities that bring their pairs; default: those whose plugins define `pairs`.
        """
        if own is None:
            own = find_pair_providers(self._built)
        others = [name for name in stage.aligned if name not in own and name in self.modalities]
        brought = tuple(name for name in stage.aligned if name in own)
        return StageSources(brought, self.tables_of(stage, others) if others else ())

    def tables_of(self, stage: Stage, aligned: Collection[str] | None = None) -> tuple[DataOptions, ...]:
        """Return the tables of a stage: its own, else those of its aligned modalities, else the recipe's."""
        if stage.data is not None:
            return (stage.data,) if isinstance(stage.data, DataOptions) else stage.data
        found: list[DataOptions] = []
        for name in stage.aligned if aligned is None else aligned:
            options = self.modalities[name].data or self.data
            if options is not None and options not in found:
                found.append(options)
        return tuple(found)
