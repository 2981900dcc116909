"""Loggers that come with geobind: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import geobind
from geobind.extras import INSTALL
from geobind.loggers import About, Logger, Writer
from geobind.utils.files import read_json, write_json


class TensorBoard(Logger):
    """Event files in the run's folder, one run of TensorBoard for each stage."""

    name: ClassVar[str] = "tensorboard"
    needs: ClassVar[str] = "tensorboard"
    install: ClassVar[str] = INSTALL["tensorboard"]

    def open(self, about: About) -> Writer:
        """Open the event file of a stage; what TensorBoard knows of steps to come is hidden."""
        from torch.utils.tensorboard.writer import SummaryWriter

        home = about.folder / "tensorboard" / about.stage
        for old in home.glob("events.out.tfevents.*") if about.first_step == 0 else ():
            old.unlink()
        writer = SummaryWriter(str(home), purge_step=about.first_step or None)
        if about.first_step == 0:
            writer.add_text("recipe", f"```yaml\n{about.recipe_text}\n```")
        return _Board(writer)


class _Board:
    def __init__(self, writer: Any) -> None:
        self.writer = writer

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name.replace("@", "_at_").replace(":", "/"), value, step)

    def close(self) -> None:
        self.writer.close()


class WandB(Logger):
    """Weights & Biases: a run for each stage, those of one recipe in a group."""

    name: ClassVar[str] = "wandb"
    needs: ClassVar[str] = "wandb"
    install: ClassVar[str] = "pip install wandb"

    project: str = "geobind"
    entity: str | None = None
    mode: str | None = None  # online, offline or disabled

    def open(self, about: About) -> Writer:
        """Begin the run of a stage, or go on with it."""
        import wandb  # pyright: ignore[reportMissingImports]

        run = wandb.init(
            project=self.project,
            entity=self.entity,
            mode=self.mode,
            dir=str(about.folder),
            group=about.run,
            name=f"{about.run}: {about.stage}",
            id=_identity(about.folder / "wandb.json", about, lambda: uuid.uuid4().hex),
            resume="allow",
            config={"recipe": dict(about.recipe), "recipe_text": about.recipe_text},
            reinit="finish_previous",
        )
        return _Run(run)


class _Run:
    def __init__(self, run: Any) -> None:
        self.run = run

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()


class MLflow(Logger):
    """MLflow: a run for each stage of an experiment named as the recipe."""

    name: ClassVar[str] = "mlflow"
    needs: ClassVar[str] = "mlflow"
    install: ClassVar[str] = "pip install mlflow"

    uri: str | None = None  # of the tracking server; default: what MLflow itself takes
    experiment: str | None = None  # default: the recipe's name

    def open(self, about: About) -> Writer:
        """Begin the run of a stage."""
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]

        client: Any = MlflowClient(tracking_uri=self.uri)
        title = self.experiment or about.run
        known = client.get_experiment_by_name(title)
        home = known.experiment_id if known else client.create_experiment(title)
        run = _identity(
            about.folder / "mlflow.json",
            about,
            lambda: str(client.create_run(home, run_name=about.stage).info.run_id),
        )
        client.log_text(run, about.recipe_text, "recipe.yaml")
        return _Tracked(client, run)


class _Tracked:
    def __init__(self, client: Any, run: str) -> None:
        self.client, self.run = client, run

    def numbers(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            # MLflow knows letters, digits, dashes, dots, spaces, slashes and underscores.
            self.client.log_metric(self.run, re.sub(r"[^\w\-./ ]", "_", name), value, step=step)

    def close(self) -> None:
        self.client.set_terminated(self.run)


def _identity(file: Path, about: About, make: Callable[[], str]) -> str:
    """Return the same word when a stage is resumed, another when it begins again."""
    known = read_json(file)
    if not about.first_step or about.stage not in known:
        known[about.stage] = make()
        write_json(file, known)
    return str(known[about.stage])


@geobind.hookimpl
def geobind_loggers() -> list[type[Logger]]:
    """Offer the three."""
    return [TensorBoard, WandB, MLflow]
