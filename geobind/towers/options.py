"""Options of towers, free of torch."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator

from geobind.errors import CheckpointError
from geobind.extras import INSTALL
from geobind.modality import BUNDLED
from geobind.pretrained import locate_packaged
from geobind.towers.architecture import (
    check_clip_config,
    check_htsat_config,
    check_plain,
    check_timm_options,
)

HeadKind = Literal["auto", "identity", "linear", "mlp"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Decibels = Annotated[float, Field(ge=-200, le=200)]
PixelValue = Annotated[float, Field(ge=-1e12, le=1e12)]

PYTORCH = {".pt", ".pth", ".bin", ".ckpt"}  # pickles, of which only the tensors are read
_MAX_FRAMES = 100_000  # of a spectrogram: 1000 s every 10 ms
PICKLED = {".pkl", ".pickle", ".tar"}


def refuse_pickle(value: Any) -> Any:
    """Refuse a weights file that only pickle can read: unpickling runs whatever code is in the file."""
    if isinstance(value, str) and Path(value).suffix.lower() in PICKLED:
        raise ValueError(
            f"'{value}' is a pickle, which can run code when it is read; "
            "convert it once with safetensors.torch.save_file and name the .safetensors file"
        )
    return value


def _read_config(value: Any, info: ValidationInfo) -> Any:
    """Replace the path of a JSON config by its content, so that a saved bundle does not need the file."""
    if not (isinstance(value, str) and value.endswith(".json")):
        return value
    if isinstance(info.context, dict) and BUNDLED in info.context:
        raise ValueError("names a file, which a bundle cannot; its card holds the config itself")
    path = Path(value)
    if not path.is_file():
        raise ValueError(
            f"no file '{value}'; give a name of open_clip.list_models() or an open_clip JSON config"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"'{value}' is not JSON: {error}") from None
    # open_clip's released configs wrap the architecture; the bare ones it ships do not.
    return config.get("model_cfg", config) if isinstance(config, dict) else config


Architecture = Annotated[str | dict[str, Any], BeforeValidator(_read_config)]
Weights = Annotated[str | bool, BeforeValidator(refuse_pickle)]


class TowerOptions(BaseModel):
    """A group of options: immutable, and strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


class ClipOptions(TowerOptions):
    """A CLIP; a modality uses its image tower or its text tower."""

    model: Architecture = Field(
        description="A name of open_clip.list_models(), or an open_clip config: its JSON file or mapping."
    )
    pretrained: Weights = Field(
        description="An open_clip tag such as openai, or weights as open_clip or transformers save them: a "
        ".safetensors or PyTorch file, its folder, package:NAME, or OWNER/NAME of a hub; false for random."
    )
    prefix: str = Field(
        default="", description="Of a file that holds several towers, the name this one's keys begin with."
    )
    projection: bool = Field(
        default=True,
        description="Whether an image tower ends with CLIP's projection; without, head maps its features.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> ClipOptions:
        if self.pretrained is True or self.pretrained == "":
            raise ValueError("pretrained: name an open_clip tag (such as openai) or a file, or say false")
        if isinstance(self.model, dict) and "embed_dim" not in self.model:
            raise ValueError("an open_clip config needs embed_dim, and vision_cfg or text_cfg")
        if isinstance(self.model, dict):
            check_clip_config(self.model)
        if isinstance(self.model, str) and self.pretrained == "openai" and "quickgelu" not in self.model:
            raise ValueError(
                f"OpenAI's weights were trained with QuickGELU, which '{self.model}' does not use: "
                f"write model: {self.model}-quickgelu"
            )
        return self


class TimmOptions(TowerOptions):
    """One backbone of timm, without its classifier."""

    model: str = Field(description="A name of timm.list_models(), such as resnet18 or vit_small_patch16_224.")
    pretrained: Weights = Field(
        description="true for timm's own weights, a .safetensors or PyTorch file or its folder, "
        "package:NAME, or false for random."
    )
    options: dict[str, Any] = Field(
        default={}, description="Further arguments of timm.create_model, such as {drop_path_rate: 0.1}."
    )

    @model_validator(mode="after")
    def _consistent(self) -> TimmOptions:
        check_timm_options(self.options)
        if ":" in self.model:
            raise ValueError(
                f"'{self.model}' is fetched from a hub even to be built; name one of timm.list_models()"
            )
        return self


class PhotoAugment(TowerOptions):
    """Random changes to a photograph that is trained on."""

    random_resized_crop: tuple[Fraction, Fraction] | None = Field(
        default=None,
        description="The smallest and largest share of the area a random crop keeps, e.g. [0.5, 1].",
    )
    hflip: bool = Field(default=False, description="Mirror left and right half of the time.")
    jitter: float = Field(
        default=0, ge=0, lt=1, description="Brightness, contrast and saturation change by up to this share."
    )

    @model_validator(mode="after")
    def _ordered(self) -> PhotoAugment:
        crop = self.random_resized_crop
        if crop is not None and not 0 < crop[0] <= crop[1]:
            raise ValueError(
                f"random_resized_crop must be [smallest, largest] with 0 < smallest <= largest, not {crop}"
            )
        return self


class TileAugment(PhotoAugment):
    """Random changes to an image seen from above that is trained on; up is no direction there."""

    vflip: bool = Field(default=False, description="Mirror top and bottom half of the time.")
    rotations: bool = Field(default=False, description="Turn by 0, 90, 180 or 270 degrees.")
    band_jitter: float = Field(
        default=0, ge=0, lt=1, description="Each band is scaled on its own by up to this share."
    )
    randaugment: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Number of RandAugment operations (8-bit RGB only); GeoBind uses 3.",
    )


class ImageOptions(BaseModel):
    """The options every image modality shares; inherit them beside `Modality`."""

    clip: ClipOptions | None = Field(
        default=ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai"),
        description="Encode with the image tower of this CLIP; left out where timm is given.",
    )
    timm: TimmOptions | None = Field(default=None, description="Encode with this timm backbone instead.")
    head: HeadKind = Field(
        default="auto",
        description="What maps the backbone to the shared width; auto: nothing where it fits, else linear.",
    )
    size: int | None = Field(
        default=None, ge=8, le=4096, description="Pixels a side; the model's own by default."
    )
    squash: bool | None = Field(
        default=None,
        description="Whether an oblong image is distorted to a square, or cropped to one; by default the "
        "model's own way.",
    )
    channels: int = Field(default=3, ge=1, le=1024, description="Bands of an image; a CLIP takes 3.")
    mean: tuple[PixelValue, ...] | None = Field(
        default=None,
        description="Subtracted from each band; the model's own by default. 8-bit images count from 0 to 1, "
        "others in their own units.",
    )
    std: tuple[PixelValue, ...] | None = Field(
        default=None, description="What each band is divided by, as mean."
    )

    @model_validator(mode="before")
    @classmethod
    def _timm_replaces_clip(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("timm") is not None and "clip" not in data:
            return {**data, "clip": None}
        return data

    @model_validator(mode="after")
    def _one_encoder(self) -> ImageOptions:
        if (self.clip is None) == (self.timm is None):
            raise ValueError("give either clip or timm")
        if self.clip is not None and self.channels != 3:
            raise ValueError(
                f"a CLIP takes 3 channels, not {self.channels}: use timm, whose first layer adapts"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) not in (1, self.channels):
                raise ValueError(f"{name} must have 1 or {self.channels} values, not {len(values)}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("give both mean and std, or neither")
        if self.std is not None and min(self.std) < 1e-12:
            raise ValueError("std must be above 0, and at least 1e-12")
        return self

    @property
    def chosen(self) -> ClipOptions | TimmOptions:
        """The one encoder that was given."""
        return cast("ClipOptions | TimmOptions", self.clip or self.timm)


class HtsatOptions(TowerOptions):
    """The audio tower of CLAP: HTSAT with its projection, as transformers ships it."""

    pretrained: Weights = Field(
        description="A hub id such as laion/clap-htsat-unfused, a .safetensors or PyTorch file, its folder, "
        "package:NAME, or false."
    )
    fused: bool = Field(
        default=False,
        description="Whether the weights are fused ones: they see a recording longer than 10 s as a whole "
        "and in three parts, the others one part of it.",
    )
    fuse: Literal["longer", "all"] = Field(
        default="longer",
        description="Which recordings a fused HTSAT takes in parts: those longer than 10 s, as CLAP was "
        "trained, or all, as transformers' extractor does with one recording at a time.",
    )
    config: dict[str, Any] = Field(
        default={}, description="Arguments of transformers.ClapAudioConfig that differ from its defaults."
    )

    @model_validator(mode="after")
    def _consistent(self) -> HtsatOptions:
        if self.pretrained is True or self.pretrained == "":
            raise ValueError(
                "pretrained: name a hub id (such as laion/clap-htsat-unfused) or a file, or say false"
            )
        if self.fuse == "all" and not self.fused:
            raise ValueError("fuse: all is for fused weights: write fused: true")
        check_htsat_config(self.config)
        return self


_TRANSFORMERS = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "mobilebert",
    "modernbert", "mpnet", "roberta", "xlm-roberta",
)  # fmt: skip
_NOT_ARCHITECTURE = (  # notes of a config.json that say nothing of the network
    "_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype", "id2label", "label2id",
    "task_specific_params", "finetuning_task", "_attn_implementation_autoset",
)  # fmt: skip
_MAX_JSON = 64 * 2**20  # bytes of a config or a tokenizer
_MAX_GROWTH = 1000  # times that the replacements of a tokenizer could lengthen a text
_LENGTH = 256  # tokens read of a text, where the folder states no other number


class TransformerOptions(TowerOptions):
    """A text encoder of transformers, in a folder as `save_pretrained` writes it."""

    folder: str = Field(
        description="A folder with config.json, tokenizer.json and safetensors weights, such as that of "
        "all-MiniLM-L6-v2, or package:NAME."
    )
    pooling: Literal["mean", "cls"] | None = Field(
        default=None,
        description="The embedding of a text: the mean of its tokens' or the first one's; as the folder "
        "states, else mean.",
    )
    pretrained: bool = Field(
        default=True, description="False: the same architecture with random weights, as a baseline."
    )
    length: int | None = Field(
        default=None, ge=8, le=8192, description="Tokens read of a text; as the folder states, at most 256."
    )
    config: dict[str, Any] = Field(
        default={},
        repr=False,
        description="The content of config.json; read from the folder and saved in bundles.",
    )
    tokenizer: str = Field(
        default="", repr=False, description="The content of tokenizer.json, packed; as config."
    )

    @model_validator(mode="before")
    @classmethod
    def _read_folder(cls, data: Any, info: ValidationInfo) -> Any:
        """Fill in what the folder says, so that a saved bundle does not need it."""
        if not isinstance(data, dict) or not isinstance(data.get("folder"), str):
            return data
        if data.get("config") and data.get("tokenizer"):
            return data
        if isinstance(info.context, dict) and BUNDLED in info.context:
            raise ValueError(
                "names a folder, which a bundle cannot; its card holds config and tokenizer itself"
            )
        try:
            folder = locate_packaged(data["folder"]) or Path(data["folder"])
        except CheckpointError as error:
            raise ValueError(str(error)) from None
        config = _read_json(folder / "config.json")
        tokenizer = json.dumps(
            _read_json(folder / "tokenizer.json"), ensure_ascii=False, separators=(",", ":")
        )
        pooling = _read_json(folder / "1_Pooling" / "config.json", optional=True)
        stated = _read_json(folder / "sentence_bert_config.json", optional=True).get("max_seq_length")
        first = "cls" if pooling.get("pooling_mode_cls_token") else "mean"
        packed = base64.b64encode(zlib.compress(tokenizer.encode(), 9)).decode()
        config = {key: value for key, value in config.items() if key not in _NOT_ARCHITECTURE}
        filled = {**data, "config": config, "tokenizer": packed, "pooling": data.get("pooling") or first}
        filled["length"] = data.get("length") or (stated if isinstance(stated, int) else _LENGTH)
        return filled

    @model_validator(mode="after")
    def _consistent(self) -> TransformerOptions:
        check_plain(self.config, "config")
        kind = self.config.get("model_type")
        if kind not in _TRANSFORMERS:
            raise ValueError(
                f"{self.folder}: its model_type is {kind!r}; encoders of texts are {', '.join(_TRANSFORMERS)}"
            )
        if {"auto_map", "quantization_config"} & self.config.keys():
            raise ValueError(f"{self.folder}: its config needs code or kernels of its own, which are not run")
        growth = _count_growth(json.loads(unpack_tokenizer(self.tokenizer)))
        if growth > _MAX_GROWTH:
            raise ValueError(f"{self.folder}: its tokenizer makes texts up to {growth} times as long")
        return self

    @property
    def read_length(self) -> int:
        """The number of tokens read of a text: no more than the model has positions."""
        positions = self.config.get("max_position_embeddings", 512)
        first = (self.config.get("pad_token_id") or 0) + 1 if "roberta" in self.config["model_type"] else 0
        first = first or (2 if self.config["model_type"] in ("camembert", "mpnet") else 0)
        return max(8, min(self.length or _LENGTH, int(positions) - first))


def unpack_tokenizer(packed: str) -> str:
    """Return the content of tokenizer.json from the text that options keep it in.

    Raises:
        ValueError: It is no such text, or its content is too long.
    """
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(packed, validate=True), _MAX_JSON)
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise ValueError(f"longer than {_MAX_JSON} bytes, or cut short")
        return content.decode()
    except (zlib.error, ValueError) as error:
        raise ValueError(f"tokenizer is not the packed content of a tokenizer.json: {error}") from None


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    try:
        if path.is_file() and path.stat().st_size > _MAX_JSON:
            raise ValueError(f"{path}: larger than {_MAX_JSON} bytes")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        if optional:
            return {}
        hint = ""
        if path.name == "tokenizer.json" and path.parent.is_dir():
            hint = "; write it once: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        raise ValueError(f"{path}: cannot be read ({error.strerror}){hint}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: must hold a mapping")
    return cast("dict[str, Any]", value)


def _count_growth(tokenizer: Any) -> int:
    """Return how many times as long a text can become by the replacements of a tokenizer."""
    growth, waiting = 1, [tokenizer]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            named = cast("dict[str, Any]", node)
            if named.get("type") == "Replace" and isinstance(named.get("content"), str):
                growth *= max(1, len(named["content"]))
            waiting.extend(value for value in named.values() if isinstance(value, dict | list))
        else:
            waiting.extend(value for value in cast("list[Any]", node) if isinstance(value, dict | list))
    return growth


class TextOptions(BaseModel):
    """The options of a text modality; inherit them beside `Modality`."""

    clip: ClipOptions | None = Field(
        default=ClipOptions(model="ViT-B-32-quickgelu", pretrained="openai"),
        description="Encode with the text tower of this CLIP; left out where transformer is given.",
    )
    transformer: TransformerOptions | None = Field(
        default=None,
        description="Encode with this transformer from a folder instead (needs `pip install "
        "'geobind[audio]'`).",
    )
    head: HeadKind = Field(
        default="auto",
        description="What maps the tower to the shared width; auto: nothing where it fits, else linear.",
    )

    @model_validator(mode="before")
    @classmethod
    def _transformer_replaces_clip(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("transformer") is not None and "clip" not in data:
            return {**data, "clip": None}
        return data

    @model_validator(mode="after")
    def _one_encoder(self) -> TextOptions:
        if (self.clip is None) == (self.transformer is None):
            raise ValueError("give either clip or transformer")
        return self

    def requires(self) -> Mapping[str, str]:
        """Return the packages that the chosen encoder needs: module to the command that installs it."""
        return {} if self.transformer is None else {"transformers": INSTALL["transformers"]}


class AudioAugment(TowerOptions):
    """Random changes to a recording that is trained on; one longer than the window is cropped in any case."""

    shift: bool = Field(default=False, description="Turn the window around itself by a random time.")
    gain_db: float = Field(
        default=0, ge=0, le=200, description="Change the level by up to this many decibels, up or down."
    )
    noise_snr_db: tuple[Decibels, Decibels] | None = Field(
        default=None,
        description="Add white noise at a signal-to-noise ratio drawn from [lowest, highest] dB.",
    )
    mask_time: Fraction = Field(default=0, description="SpecAugment: hide up to this share of the frames.")
    mask_mels: Fraction = Field(default=0, description="SpecAugment: hide up to this share of the mel bands.")


class AudioOptions(BaseModel):
    """The options of an audio modality; inherit them beside `Modality`."""

    htsat: HtsatOptions | None = Field(
        default=HtsatOptions(pretrained="laion/clap-htsat-unfused"),
        description="Encode with CLAP's audio tower (needs `pip install 'geobind[audio]'`); left out where "
        "timm is given.",
    )
    timm: TimmOptions | None = Field(
        default=None,
        description="Encode the log-mel spectrogram, as an image of one band, with this timm backbone.",
    )
    head: HeadKind = Field(
        default="auto",
        description="What maps the backbone to the shared width; auto: nothing where it fits, else linear.",
    )
    rate: int | None = Field(
        default=None, ge=1000, le=192_000, description="Samples a second; 16000, HTSAT 48000."
    )
    seconds: float | None = Field(
        default=None, ge=1e-3, le=600, description="Length of the window heard; 10."
    )
    crops: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Where nothing is trained: of a longer recording, this many windows from its beginning "
        "to its end are heard, and their embeddings averaged; 1 hears the middle.",
    )
    loudness: float | None = Field(
        default=None,
        ge=-70,
        le=0,
        description="Bring every window to this loudness in LUFS (ITU-R BS.1770), such as -23; by default "
        "levels stay.",
    )
    mels: int | None = Field(default=None, ge=8, le=512, description="Mel bands; 64.")
    window_ms: float | None = Field(
        default=None, ge=0.1, le=1000, description="Length of a frame; 25, HTSAT 21.3."
    )
    hop_ms: float | None = Field(default=None, ge=0.1, le=1000, description="Time between frames; 10.")
    fmin: float | None = Field(default=None, ge=0, description="Lowest frequency in Hz; 20, HTSAT 50.")
    fmax: float | None = Field(
        default=None, gt=0, description="Highest frequency in Hz; half the rate, HTSAT 14000."
    )

    @model_validator(mode="before")
    @classmethod
    def _timm_replaces_htsat(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("timm") is not None and "htsat" not in data:
            return {**data, "htsat": None}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> AudioOptions:
        if (self.htsat is None) == (self.timm is None):
            raise ValueError("give either htsat or timm")
        sound = {"rate", "seconds", "mels", "window_ms", "hop_ms", "fmin", "fmax"}
        given = sorted(field for field in sound if getattr(self, field) is not None)
        if self.htsat is not None and given:
            raise ValueError(
                f"{', '.join(given)}: HTSAT hears 10 s at 48 kHz in 64 mel bands; use timm to choose"
            )
        if self.crops > 1 and self.htsat is not None and self.htsat.fused:
            raise ValueError("crops: a fused HTSAT hears a longer recording as a whole already")
        frames = 1000 * (self.seconds or 10) / (self.hop_ms or 10)
        if frames > _MAX_FRAMES:
            raise ValueError(
                f"seconds / hop_ms makes {frames:,.0f} frames; at most {_MAX_FRAMES:,} are heard"
            )
        rate = self.rate or 16_000
        low, high = self.fmin or 0, self.fmax or rate / 2
        if not low < high <= rate / 2:
            raise ValueError(f"fmin < fmax <= rate / 2 must hold, not {low:g} < {high:g} <= {rate / 2:g}")
        return self

    def requires(self) -> Mapping[str, str]:
        """Return the packages that the chosen encoder needs: module to the command that installs it."""
        return {} if self.htsat is None else {"transformers": INSTALL["transformers"]}

    @property
    def chosen(self) -> HtsatOptions | TimmOptions:
        """The one encoder that was given."""
        return cast("HtsatOptions | TimmOptions", self.htsat or self.timm)
