"""The binder: encoders of any number of modalities in one embedding space."""

# B inputs in a batch, N inputs, M references, C classes, D width of the space

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, TypeAlias, TypeVar, overload

import torch
from torch import Tensor, nn

from geobind import scoring
from geobind.bridge import DEFAULTS, AnchorBank, Bridge, BridgeOptions, choose_bridge
from geobind.bundles import bundle
from geobind.errors import CheckpointError, DataError, RecipeError
from geobind.fuser import Fuser
from geobind.fusion import Expectation, fuse
from geobind.inference import (
    Workers,
    check_width,
    choose_threads,
    embed_batches,
    eval_mode,
    list_class_examples,
    prepare_ahead,
    split_inputs,
)
from geobind.modality import Modality
from geobind.precision import Lowering, Precision, PrecisionChoice
from geobind.recipe.marks import MARKS, Mark, Pair, StageStep, find_shared_towers, mark_pairs, read_steps
from geobind.runtimes import CompiledEncoders, Runtime, check_runtime
from geobind.scoring import SoftmaxTemperature
from geobind.utils.displays import RetrievalCell, choose_metric, render_matrix
from geobind.utils.formatting import shorten
from geobind.utils.hashing import derive_seed, fingerprint
from geobind.utils.progress import track
from geobind.utils.vectors import require_directions, unit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from geobind.bundles.card import Card
    from geobind.recipe import Recipe

    Embeddings: TypeAlias = Tensor | NDArray[Any]
Auto: TypeAlias = bool | None  # None: decided from the input
T = TypeVar("T")


_OF_TORCH = ("encoders", "eval", "parameters", "state_dict", "to", "train")  # what users call of a module


class Binder(nn.Module):
    """Encoders that share one embedding space.

    Args:
        modalities: The modalities, by name.
        width: Length D of an embedding.
        pretrained: False builds the encoders without reading any weights.
        seed: Makes random weights the same every time.
        card: The origin of the weights; saved with them.

    Raises:
        GeobindError: An encoder cannot be built: weights are missing, or it cannot have this width.
    """

    def __init__(
        self,
        modalities: Mapping[str, Modality],
        width: int,
        *,
        pretrained: bool = True,
        seed: int | None = None,
        card: Card | None = None,
    ) -> None:
        super().__init__()
        self.modalities = dict(modalities)
        self.width = width
        self.card = card
        self.bank: AnchorBank | None = None
        self.fuser: Fuser | None = None
        self.precision: Precision = "float32"
        self.runtime: Runtime = "torch"
        self.workers: Workers = "auto"
        self._lowering = Lowering()
        self._compiled = CompiledEncoders()
        self.encoders = nn.ModuleDict()
        for name, modality in modalities.items():
            if seed is not None:
                # Seeded one by one: a further modality leaves the others' random weights as they were.
                torch.manual_seed(derive_seed(seed, "encoder", name))
            try:
                self.encoders[name] = modality.encoder(width, pretrained=pretrained)
            except RecipeError as error:
                raise RecipeError(f"modality '{name}': {error}") from error
        self.eval()

    def forward(self, name: str, batch: Any) -> Tensor:
        """Embed a prepared batch, (B, ...), as unit-length float32 (B, D)."""
        return check_width(unit(self.encoders[name](batch)), self.width, name)

    def __repr__(self) -> str:
        """Return one line: name, width, modalities, marks of their pairs, device."""
        return f"Binder({self._describe()})"

    def _repr_html_(self) -> str:
        """Return the same line for notebooks, above the retrieval that was measured after the last stage."""
        found = list(_read_retrieval(self.card.metrics if self.card else {}))
        metric = choose_metric(name for name, _ in found)
        cells = [cell for name, cell in found if name == metric]
        return render_matrix(f"Binder: {self._describe()}", metric, list(self.modalities), cells)

    def _describe(self) -> str:
        parts = [f"width {self.width}", ", ".join(self.modalities) or "no modalities"]
        try:
            marks = self.marks
        except CheckpointError:  # a stranger's card says nothing of use
            marks = {}
        for mark in MARKS:
            joined = [
                [name for name in self.modalities if name in pair] for pair in marks if marks[pair] == mark
            ]
            pairs = ["-".join(names) for names in joined]
            if pairs and mark != "unconnected":
                parts.append(f"{mark}: {', '.join(pairs)}")
        name = f"{self.card.name}, " if self.card else ""
        low = "" if self.precision == "float32" else f" {self.precision}"
        run = "" if self.runtime == "torch" else f" by {self.runtime}"
        return f"{name}{'; '.join([*parts, f'{self.device}{low}{run}'])}"

    def __dir__(self) -> list[str]:
        """List geobind's own names; of the many of a module only those that users call."""
        own = (name for name in (*vars(Binder), *vars(self)) if not name.startswith("_"))
        return sorted({*own, *_OF_TORCH, *(name for name in super().__dir__() if name.startswith("__"))})

    @property
    def device(self) -> torch.device:
        """The device of the encoders."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @property
    def precisions(self) -> dict[str, PrecisionChoice]:
        """The type of each modality that was embedded otherwise than in float32 by torch, and why."""
        return {**self._lowering.choices, **self._compiled.choices}

    @property
    def steps(self) -> tuple[StageStep, ...]:
        """The stages that its card lists: the pairs each compared and the encoders it trained.

        Raises:
            CheckpointError: The card is a stranger's, and does not list stages as geobind writes them.
        """
        try:
            return read_steps(self.card.stages if self.card else ())
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"binder.json: stages: not as geobind writes them ({type(error).__name__}: {error}); "
                "save the bundle again, without them"
            ) from error

    @property
    def marks(self) -> dict[Pair, Mark]:
        """The mark of every pair of its modalities, such as trained or emergent, by its card's stages."""
        options = {name: kind.model_dump(mode="json") for name, kind in self.modalities.items()}
        return mark_pairs(self.modalities, self.steps, find_shared_towers(options, self.width))

    @property
    def anchor(self) -> str:
        """The anchor of the recipe that trained it, else its first modality."""
        anchor = self.card.recipe.get("anchor", "satellite") if self.card else "satellite"
        return anchor if anchor in self.modalities else next(iter(self.modalities))

    @property
    def bridge_options(self) -> BridgeOptions:
        """How a bridge uses its bank: as its card says, else the defaults."""
        return self.card.bank.options if self.card and self.card.bank else DEFAULTS

    @property
    def bank_bridge(self) -> Bridge | None:
        """The bridge of its bank, for any pair; None without a bank."""
        return None if self.bank is None else Bridge(self.bank, self.bridge_options)

    def bridge(self, one: str, two: str) -> Bridge | None:
        """Return the bridge of two modalities, where they are emergent and neither is the bank's anchor.

        None without a bank (`Binder.bank`), and for other pairs, which it does not help: `docs/bridge.md`.

        Raises:
            PluginError: The binder has no such modality.
        """
        for name in (one, two):
            self.modality(name)
        return choose_bridge(self.bank_bridge, self.marks, one, two)

    def modality(self, name: str) -> Modality:
        """Return the modality called `name`.

        Raises:
            PluginError: The binder has none of that name.
        """
        if not isinstance(name, str) or name not in self.modalities:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise bundle.make_unknown_modality_error(name, self.modalities)
        return self.modalities[name]

    @overload
    def embed(
        self,
        modality: str,
        x: Any,
        *,
        batch_size: int = ...,
        progress: Auto = ...,
        numpy: Literal[False] = ...,
        precision: Precision | None = ...,
        runtime: Runtime | None = ...,
        workers: Workers | None = ...,
    ) -> Tensor: ...
    @overload
    def embed(
        self,
        modality: str,
        x: Any,
        *,
        batch_size: int = ...,
        progress: Auto = ...,
        numpy: Literal[True],
        precision: Precision | None = ...,
        runtime: Runtime | None = ...,
        workers: Workers | None = ...,
    ) -> NDArray[np.float32]: ...
    def embed(
        self,
        modality: str,
        x: Any,
        *,
        batch_size: int = 64,
        progress: Auto = None,
        numpy: bool = False,
        precision: Precision | None = None,
        runtime: Runtime | None = None,
        workers: Workers | None = None,
    ) -> Tensor | NDArray[np.float32]:
        """Embed one raw input, or a list (or another ordered container, or an iterator) of them.

        Args:
            modality: Name of the modality.
            x: One input of a kind the modality accepts (a path, bytes, an image, an array, a string, ...),
                or many: a list, a generator, a column of strings or paths (numpy, pandas). A tuple, a dict
                and an array, tensor or column of numbers are one input: of several, give `list(x)`.
            batch_size: Inputs per forward pass; it changes speed and memory, not the result.
            progress: Show a progress bar; default: when it takes long and a person is watching.
            numpy: Return a numpy array instead of a tensor.
            precision: The type that the encoder computes in: float32, bfloat16, or auto, which times both
                and takes bfloat16 where it is faster and the embeddings stay the same (`precisions` says
                which, and how alike); int8, of matrix products, by onnxruntime alone; default:
                `Binder.precision`, float32.
            runtime: What the encoder runs in: torch, or on the CPU onnxruntime (float32, int8) or openvino
                (float32, bfloat16), which compile it first: that takes seconds; default: `Binder.runtime`,
                torch.
            workers: Threads that prepare inputs ahead of the encoder, at most two batches; auto: one for
                each processor; default: `Binder.workers`, auto.

        Returns:
            Unit-length float32 embeddings (N, D) on the CPU, in input order; N is 1 for one input.

        Raises:
            DataError: An input cannot be read, or its embedding is NaN or zero; the message names its number.
                Or x is a set.
            PluginError: The binder has no such modality, or the runtime is not installed.
            ExportError: The encoder does not run in the runtime, or embeds otherwise there.
        """
        kind = self.modality(modality)
        if not isinstance(batch_size, SupportsIndex) or operator.index(batch_size) < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DataError(f"batch_size must be a whole number of at least 1, not {batch_size!r}")
        many = split_inputs(x)
        inputs = [x] if many is None else many
        total = len(inputs) if isinstance(inputs, Sequence) else None
        threads = choose_threads(self.workers if workers is None else workers, total)
        shown = track(inputs, f"embedding {modality}", total, progress)
        batches = prepare_ahead(kind, shown, batch_size, threads, alone=many is None)
        embedded = self.embed_prepared(modality, ((None, batch) for batch in batches), precision, runtime)
        parts = [part for _, part in embedded if part is not None]
        if not parts:
            raise DataError("nothing to embed: the input is an empty list")
        embedding_ND = require_directions(torch.cat(parts), f"embeddings of '{modality}'")
        return embedding_ND.numpy() if numpy else embedding_ND

    def embed_prepared(
        self,
        modality: str,
        batches: Iterable[tuple[T, Any]],
        precision: Precision | None = None,
        runtime: Runtime | None = None,
    ) -> Iterator[tuple[T, Tensor | None]]:
        """Yield what comes with each prepared batch, and its unit-length float32 embeddings on the CPU.

        Args:
            modality: Name of the modality.
            batches: Collated batches of prepared inputs, each with anything; None instead of an empty one.
            precision: As of `embed`.
            runtime: As of `embed`.
        """
        chosen, asked = check_runtime(
            self.runtime if runtime is None else runtime, self.precision if precision is None else precision
        )
        encoder = self.encoders[modality]

        def encode(batch: Any) -> Tensor:
            with eval_mode(encoder):
                if chosen != "torch":
                    run = self._compiled.take(modality, encoder, batch, chosen, asked)
                    return check_width(run(batch), self.width, modality)
                self._compiled.choices.pop(modality, None)
                if asked == "float32":
                    return self(modality, batch)
                lowered = self._lowering.take(modality, encoder, batch, asked)
                return check_width(unit(lowered(batch)), self.width, modality)

        yield from embed_batches(encode, batches, self.device)

    def similarity(
        self,
        a_ND: Embeddings,
        b_MD: Embeddings,
        *,
        probability: tuple[str, str] | None = None,
        over: Literal["pair", "gallery"] = "pair",
        prior: float = 0.5,
        bridge: Bridge | tuple[str, str] | None = None,
    ) -> Tensor:
        """Compare every row of `a_ND` with every row of `b_MD`: (N, M).

        Args:
            a_ND: Embeddings, as `embed` gives them.
            b_MD: Others.
            probability: The modalities of the two, for probabilities by what was fitted on held-out rows;
                without it the result is cosine similarities in [-1, 1].
            over: `pair`: how likely each pair is a match; `gallery`: which row of `b_MD` is, if one is.
            prior: Share of matches among the pairs compared, for `pair`.
            bridge: A bridge to score by; or the two modalities, for `Binder.bridge` of them where there is
                one, else cosines.

        Raises:
            DataError: Different widths, a row that is not finite, no calibration of these modalities, a prior
                not in (0, 1), a bank of another model, or a bridge as well as a probability.
        """
        if bridge is not None and probability is not None:
            raise DataError("probabilities were fitted to cosines, not to bridged scores: give one of them")
        chosen = self.bridge(*bridge) if isinstance(bridge, tuple) else bridge
        if chosen is not None:
            chosen.bank.check_model(self.width, self.card.digests if self.card else {})
            return chosen.score(a_ND, b_MD)
        similarity_NM = scoring.cosine(a_ND, b_MD)
        if probability is None:
            return similarity_NM
        scales = scoring.require_scales(self.card and self.card.calibration, *probability)
        return scoring.probabilities(similarity_NM, scales, probability[0], over, prior)

    def temperature(self, query: str, gallery: str) -> SoftmaxTemperature:
        """Return the default temperature of `classify` for two modalities, and its origin."""
        return scoring.find_temperature(self.card and self.card.calibration, query, gallery)

    def classify(
        self,
        modality: str,
        x: Any,
        labels: Iterable[str] | Mapping[str, Any],
        *,
        through: str = "text",
        templates: Iterable[str] = ("{}",),
        temperature: float | None = None,
        batch_size: int = 64,
        bridge: Bridge | bool | None = None,
    ) -> Tensor:
        """Classify inputs zero-shot, by the embeddings of their possible labels.

        Args:
            modality: What `x` is.
            x: One input or a list of them.
            labels: Class names in a container with an order (a list, an array, a column, not a set), or a
                mapping from each class to examples of it in `through`.
            through: The modality that describes the classes.
            templates: Sentences with `{}` for the name; a class is the mean of its embedded sentences
                (CLIP's prompt ensembling, arXiv:2103.00020 section 3.1.4).
            temperature: Similarities are divided by it before the softmax; default: the one fitted for the
                two modalities, or else CLIP's 0.01 (`Binder.temperature` says which).
            batch_size: Inputs per forward pass.
            bridge: A bridge to score by; True: `Binder.bridge` of the two, if any; False: cosines; default:
                True unless a temperature was fitted for the two, which belongs to cosines.

        Returns:
            Probabilities (N, C), in the order of `labels`.

        Raises:
            DataError: No labels or ones without an order, a template without `{}`, or a temperature that is
                not positive.
        """
        chosen = scoring.check_temperature(
            self.temperature(modality, through).value if temperature is None else temperature
        )
        examples = list_class_examples(labels, templates)
        class_CD = torch.stack([self.embed(through, e, batch_size=batch_size).mean(0) for e in examples])
        if bridge is None:
            bridge = not scoring.is_fitted(self.card and self.card.calibration, modality, through)
        by = bridge if isinstance(bridge, Bridge) else (modality, through) if bridge else None
        similarity_NC = self.similarity(self.embed(modality, x, batch_size=batch_size), class_CD, bridge=by)
        return scoring.softmax(similarity_NC, chosen)

    def compose(self, parts: Mapping[str, Any], weights: Mapping[str, float] | None = None) -> Tensor:
        """Add embeddings of several modalities (ImageBind's arithmetic, arXiv:2305.05665 section 4.3).

        Args:
            parts: One input, or equally many inputs, for each modality.
            weights: How much each counts (default 1 each); negative weights subtract.

        Returns:
            Unit-length embeddings (N, D) of the weighted sums.

        Raises:
            DataError: Nothing to add, a weight without a part or not finite, different numbers of inputs, or
                parts that cancel out.
        """
        return scoring.add_embeddings({name: self.embed(name, raw) for name, raw in parts.items()}, weights)

    def infer(
        self, parts: Mapping[str, Any], to: Iterable[str] | None = None, *, fuser: bool | Fuser = False
    ) -> dict[str, Expectation]:
        """Infer the embedding of every modality from any subset of them.

        A modality that is given keeps its own embedding. Others come from a product of experts, which weigh
        by the temperatures fitted on held-out rows, or all alike where none were; or from a trained fuser.
        `Expectation.calibrated` and `.note` say which.

        Args:
            parts: One input, or equally many, for each modality; None, also within a list, is a missing one.
            to: The modalities to infer; default: all, or those that the fuser knows.
            fuser: True: the binder's own fuser, which was trained on rows of several modalities; or another.

        Returns:
            By modality, mean embeddings (N, D) and concentrations (N,), on the CPU. A row without any input
            has zeros, which are equally far from everything, and a concentration of 0.

        Raises:
            DataError: Every input is missing, or different numbers of them; the binder has no fuser, or the
                fuser was not trained on a modality.
            PluginError: The binder has no such modality.
        """
        chosen = self._choose_fuser(fuser)
        if to is None and chosen is not None:
            to = [name for name in self.modalities if name in chosen.modalities]
        wanted = [*self.modalities] if to is None else list(to)
        for name in (*parts, *wanted):
            self.modality(name)
        if chosen is not None:
            chosen.check_known((*parts, *wanted))
        rows = {name: [x] if (many := split_inputs(x)) is None else list(many) for name, x in parts.items()}
        rows = {name: [None] * len(x) if parts[name] is None else x for name, x in rows.items()}
        given: dict[str, Tensor] = {}
        present: dict[str, Tensor] = {}
        for name, x in rows.items():
            there_N = torch.tensor([one is not None for one in x])
            if parts[name] is None or not there_N.any():
                continue
            given[name] = torch.zeros(len(x), self.width)
            given[name][there_N] = self.embed(name, [one for one in x if one is not None])
            present[name] = there_N
        if chosen is not None:
            return chosen.infer(given, wanted, present)
        calibration = self.card.calibration if self.card else None
        return {name: fuse(given, name, calibration, present) for name in wanted}

    def _choose_fuser(self, fuser: bool | Fuser) -> Fuser | None:
        """Return the fuser to infer with, None for a product of experts."""
        chosen = self.fuser if fuser is True else fuser or None
        if chosen is None and fuser:
            raise DataError(
                "this binder has no fuser: train one by `fuse: {}` in its recipe and `geobind run --resume`, "
                "or infer without (fuser=False)"
            )
        return chosen and chosen.check_model(self.width, self.card.digests if self.card else chosen.digests)

    def save(self, folder: str | Path, *, over: str | Path | None = None) -> Path:
        """Write a bundle, or only the changes to the bundle `over`. See `geobind.bundles.bundle.save`."""
        return bundle.save(self, Path(folder), over=over)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        runtime: Runtime = "torch",
        modalities: Collection[str] | None = None,
    ) -> Binder:
        """Read a bundle, or that of a run's folder, without pickle. See `geobind.bundles.bundle.load`.

        Args:
            folder: The bundle, or the folder of a run.
            base: The bundle that a small one changes.
            device: Where its encoders compute, such as `cuda`; default: the CPU.
            precision: The type they compute in when they embed, as of `embed`.
            runtime: What they run in when they embed, as of `embed`.
            modalities: Load the encoders of these alone, which saves time and memory; default: all.
        """
        check_runtime(runtime, precision)
        return _place(bundle.load(cls, Path(folder), base=base, only=modalities), device, precision, runtime)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "float32",
        runtime: Runtime = "torch",
        modalities: Collection[str] | None = None,
    ) -> Binder:
        """Read a bundle from a folder, or from the Hugging Face hub by its id (`owner/name`).

        Args:
            name: The folder or the id.
            revision: A branch, tag or commit of the hub.
            device: Where its encoders compute, such as `cuda`; default: the CPU.
            precision: The type they compute in when they embed, as of `embed`.
            runtime: What they run in when they embed, as of `embed`.
            modalities: Load the encoders of these alone, which saves time and memory; default: all.
        """
        check_runtime(runtime, precision)
        binder = bundle.from_pretrained(cls, str(name), revision=revision, only=modalities)
        return _place(binder, device, precision, runtime)

    def push_to_hub(self, name: str, *, private: bool = False) -> str:
        """Publish the bundle on the Hugging Face hub as `owner/name` and return its address."""
        return bundle.push_to_hub(self, name, private=private)


def _read_retrieval(metrics: Mapping[str, Any]) -> Iterator[tuple[str, RetrievalCell]]:
    """Yield each figure of retrieval in a card by its metric; a stranger's card may hold anything."""
    rows: Any = metrics.get("rows")
    for row in rows if isinstance(rows, list) else ():
        try:
            for name, figure in row["metrics"].items():
                names = str(row["query"]), str(row["gallery"]), str(row["mark"])
                yield str(name), RetrievalCell(*names, float(figure["value"]), float(figure["chance"]))
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _place(
    binder: Binder, device: str | torch.device | None, precision: Precision, runtime: Runtime
) -> Binder:
    """Move a binder to a device, and set the precision and the runtime that it embeds in.

    Raises:
        DataError: There is no such device here.
    """
    binder.precision, binder.runtime = precision, runtime
    if device is None:
        return binder
    try:
        return binder.to(torch.device(device))
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # torch built without CUDA asserts
        have = ["cpu", *(name for name in ("cuda", "mps", "xpu") if _is_available(name))]
        reason = shorten(str(error).partition("\n")[0], 120)
        raise DataError(f"no device '{device}' here ({reason}); there is {', '.join(have)}") from error


def _is_available(device: str) -> bool:
    module: Any = getattr(torch, device, None)
    return module is not None and bool(module.is_available())


def build_binder(recipe: Recipe) -> Binder:
    """Build the binder that a recipe's first stage starts from.

    The modalities of the bundle that it begins from have the bundle's weights; others are built anew.

    Raises:
        GeobindError: An encoder cannot be built, or the bundle cannot be read or has changed.
    """
    if recipe.base_bundle is None:
        return Binder(recipe.built, recipe.width, seed=recipe.seed)
    folder = recipe.base_bundle.folder
    begun = Binder.load(folder)
    card = begun.card
    if card is None or fingerprint(card.digests, card.modalities) != recipe.base_bundle.digest:
        raise CheckpointError(f"{folder}: another bundle was written there meanwhile; run again")
    fresh = {name: kind for name, kind in recipe.built.items() if name not in begun.modalities}
    binder = Binder(fresh, recipe.width, seed=recipe.seed)
    encoders = {**begun.encoders, **binder.encoders}
    binder.modalities = dict(recipe.built)
    binder.encoders = nn.ModuleDict({name: encoders[name] for name in recipe.built})
    return binder.eval()
