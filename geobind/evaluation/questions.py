"""Questions in words about places, answered by embeddings, with a number of each place as the truth."""

# N rows of the table, Q of them with a modality and a known answer, D width

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from geobind.binder import Binder
from geobind.data.numbers import find_number_columns, read_number_columns
from geobind.data.options import DataOptions
from geobind.data.table import Table, open_table
from geobind.errors import DataError, GeobindError, did_you_mean
from geobind.evaluation.embedded import EmbeddedRows
from geobind.evaluation.embeddings import number_clusters
from geobind.evaluation.intervals import Estimate, estimate_share
from geobind.evaluation.retrieval_metrics import Metric
from geobind.evaluation.split_leakage import Clusters
from geobind.modality import Modality
from geobind.recipe.marks import Mark, Marks
from geobind.recipe.parsing import parse_yaml, read_yaml_text
from geobind.recipe.schema import Evaluation, Question
from geobind.recipe.shipped import list_shipped_questions
from geobind.utils.formatting import format_first_fault

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Answer:
    """The answer of one modality's embeddings to a question, measured."""

    modality: str
    mark: Mark  # of the modality and that of the words
    rows: int
    true_rows: int
    auc: Metric
    untrained: Metric | None = None  # the same by encoders before any stage
    anchor: Metric | None = None  # the anchor's own on the same rows; None for the anchor itself


@dataclass(frozen=True)
class QuestionResult:
    """A question and its answers, one for each modality."""

    name: str
    prompts: tuple[str, str]
    truth: str  # how the truth is told, in words
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class QuestionResults:
    """The answers to all questions: `questions.json`."""

    questions: tuple[QuestionResult, ...]
    note: str = ""  # which rows count as dependent
    anchor: str = ""  # the modality whose own answers stand beside

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)


class Truth(NamedTuple):
    """The right answers to one question."""

    known_N: Mask  # rows whose number is above or below, not between
    true_N: Mask


def measure_auc(score_Q: Floats, true_Q: Mask, cluster_Q: Sequence[Any] | None = None) -> Metric:
    """Measure the share of pairs of a true and an untrue row that scores put in the right order.

    A tie counts one half, so that chance is 0.5. The area is the mean of the rows' placements among the rows
    of the other kind, over both kinds; the variance is theirs (DeLong et al., 1988, Biometrics 44:837).

    Args:
        score_Q: Larger for rows that look true.
        true_Q: Which rows are true; at least one is, and one is not.
        cluster_Q: Rows of one cluster count as dependent, None as alone; default: each row alone.
    """
    placed_Q = np.empty(len(score_Q))
    placed_Q[true_Q] = _share_below(score_Q[true_Q], score_Q[~true_Q])
    placed_Q[~true_Q] = 1 - _share_below(score_Q[~true_Q], score_Q[true_Q])
    unit_Q = None if cluster_Q is None else number_clusters(cluster_Q, len(score_Q), "clusters")
    mean = estimate_share(placed_Q, unit_Q, true_Q.astype(np.int64))
    # The mean over two kinds halves how far each is off, which the area adds up: a quarter of its variance.
    area = Estimate(mean.value, mean.effective / 4, mean.freedom)
    low, high = area.bounds()
    return Metric(area.value, 0.5, low, high, area.p_value(0.5))


def _share_below(score_Q: Floats, other_R: Floats) -> Floats:
    sorted_R = np.sort(other_R)
    smaller_Q = np.searchsorted(sorted_R, score_Q, side="left")
    not_larger_Q = np.searchsorted(sorted_R, score_Q, side="right")
    return (smaller_Q + not_larger_Q) / (2 * len(other_R))


def load_questions(name: str, recipe: Mapping[str, Any] | None = None) -> dict[str, Question]:
    """Load questions: of a YAML file as under `evaluate.questions`, of a bundle's recipe, or shipped ones.

    Args:
        name: A file; `recipe`; or the name of a shipped file, such as toyearth.
        recipe: That of the bundle, as plain values.

    Raises:
        RecipeProblems: It cannot be read, or is no YAML.
        DataError: It holds something else, or there are no such questions.
    """
    shipped = list_shipped_questions()
    path = Path(name) if Path(name).is_file() else shipped.get(name)
    values: Any
    if path is not None:
        values, where = parse_yaml(read_yaml_text(path), str(path))[0], str(path)
    elif name == RECIPE:
        evaluate: Any = (recipe or {}).get("evaluate")  # of a stranger's card
        values = evaluate.get("questions") if isinstance(evaluate, Mapping) else None
        where = "the bundle's recipe"
        if not values:
            raise DataError(f"the bundle's recipe asks no questions; name a file, or {', '.join(shipped)}")
    else:
        hint = did_you_mean(name, shipped, f"shipped are {', '.join(shipped) or 'none'}")
        raise DataError(f"questions '{name}': no such file, nor shipped questions; {hint}")
    try:
        return Evaluation.model_validate({"questions": values}).questions
    except ValidationError as error:
        raise DataError(f"{where}: {format_first_fault(error, whole='questions', skip=1)}") from None


RECIPE = "recipe"  # stands for the questions of the bundle's own recipe


def read_truths(
    held_out: Table,
    data: DataOptions,
    questions: Mapping[str, Question],
    modalities: Mapping[str, Modality],
    base: Path = Path(),
) -> dict[str, Truth]:
    """Read the right answers to some questions, and check that they can be asked.

    Args:
        held_out: The rows measured on.
        data: How their table was opened.
        questions: By name.
        modalities: Those of the binder.
        base: The folder that relative paths of `data` start from.

    Raises:
        DataError: A modality is unknown, words cannot be read, a number is no column, or a modality has only
            true or only untrue rows.
    """
    if not questions:
        return {}
    for name, question in questions.items():
        check_words(name, question, modalities)
    wanted = tuple(dict.fromkeys(question.truth for question in questions.values()))
    # Columns of numbers are no modalities, whatever their names.
    table = open_table(data.narrow(()), base, find_number_columns(data, wanted))
    numbers = read_number_columns(replace(table, rows_N=held_out.rows_N, view=held_out.view), data, wanted)
    truths: dict[str, Truth] = {}
    for name, question in questions.items():
        value_N = numbers[question.truth]
        true_N = value_N > question.above
        truths[name] = Truth(true_N | (value_N <= question.lower), true_N)
        for modality in question.list_asked(modalities):
            _check_both(name, question, truths[name], held_out, modality)
    return truths


def check_words(name: str, question: Question, modalities: Mapping[str, Modality]) -> None:
    """Check that a question is put to modalities there are, through one that reads words.

    Raises:
        DataError: It is not.
    """
    for word in (question.through, *question.modalities):
        if word not in modalities:
            hint = did_you_mean(word, modalities, f"there are {', '.join(modalities)}")
            raise DataError(f"question '{name}': no modality '{word}'; {hint}")
    if question.through in question.modalities:
        raise DataError(f"question '{name}': '{question.through}' holds the words; ask other modalities")
    for prompt in question.prompts:
        try:
            modalities[question.through].prepare(prompt)
        except GeobindError as error:
            raise DataError(
                f"question '{name}': '{question.through}' does not read {prompt!r} ({error}); name a "
                "modality of words by `through`"
            ) from error


def _check_both(name: str, question: Question, truth: Truth, held_out: Table, modality: str) -> None:
    rows_Q = held_out.rows_with([modality])
    known_Q = rows_Q[truth.known_N[rows_Q]]
    true = int(truth.true_N[known_Q].sum())
    if 0 < true < len(known_Q):
        return
    which = "none is true" if not true else "all are true"
    if not len(known_Q):
        which = "none has a number above or below"
    raise DataError(
        f"{held_out.name}: question '{name}': of the {len(rows_Q):,} rows of split '{held_out.view}' with "
        f"'{modality}' {which} ({question.describe_truth()}); change `above` or `below`, or name the "
        "modalities to ask"
    )


class Space(NamedTuple):
    """A binder, and the rows that it has embedded."""

    binder: Binder
    embedded: Mapping[str, EmbeddedRows]


def ask_questions(
    space: Space,
    questions: Mapping[str, Question],
    truths: Mapping[str, Truth],
    marks: Marks,
    clusters: Clusters,
    untrained: Space | None = None,
    anchor: str | None = None,
) -> QuestionResults | None:
    """Measure the answers of every modality to questions in words.

    The answer for a row is how much nearer its embedding is to the first prompt than to the second.

    Args:
        space: The binder, and its embeddings of the held-out rows.
        questions: By name.
        truths: Their right answers, of `read_truths`.
        marks: The mark of every pair of modalities.
        clusters: The cluster of each row of the table.
        untrained: The encoders before any stage, as a baseline.
        anchor: The modality whose own answers stand beside; default: the binder's anchor.

    Returns:
        Their answers; None without questions.
    """
    anchor = space.binder.anchor if anchor is None else anchor
    results: list[QuestionResult] = []
    for name, question in questions.items():
        truth = truths[name]
        contrast_D = _embed_contrast(space.binder, question)
        fresh_D = None if untrained is None else _embed_contrast(untrained.binder, question)

        def measure(
            rows: EmbeddedRows, known_Q: NDArray[np.int64], to_D: Tensor, true_N: Mask = truth.true_N
        ) -> Metric:
            cluster_Q = None if clusters.of_rows is None else [clusters.of_rows[row] for row in known_Q]
            return measure_auc((rows.of(known_Q).double() @ to_D).numpy(), true_N[known_Q], cluster_Q)

        answers: list[Answer] = []
        for modality in question.list_asked(space.embedded):
            own = space.embedded[modality]
            known_Q = own.rows_Q[truth.known_N[own.rows_Q]]
            fresh = None
            if untrained is not None and fresh_D is not None:
                fresh = measure(untrained.embedded[modality], known_Q, fresh_D)
            beside = space.embedded.get(anchor) if anchor not in (modality, question.through) else None
            both_Q = np.intersect1d(known_Q, beside.rows_Q) if beside else known_Q[:0]
            mixed = len(set(truth.true_N[both_Q].tolist())) == 2
            answers.append(
                Answer(
                    modality,
                    marks.get(frozenset((question.through, modality)), "unconnected"),
                    len(known_Q),
                    int(truth.true_N[known_Q].sum()),
                    measure(own, known_Q, contrast_D),
                    fresh,
                    measure(beside, both_Q, contrast_D) if beside and mixed else None,
                )
            )
        results.append(QuestionResult(name, question.prompts, question.describe_truth(), tuple(answers)))
    return QuestionResults(tuple(results), clusters.note, anchor) if results else None


def _embed_contrast(binder: Binder, question: Question) -> Tensor:
    """Return the direction from the second prompt of a question to the first: (D,)."""
    words_2D = binder.embed(question.through, list(question.prompts), progress=False)
    return (words_2D[0] - words_2D[1]).double()
