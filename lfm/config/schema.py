"""Every value of a run, in one typed place, which is why this file is longer than others.

A run is described by one `RunConfig`. Presets build it (`lfm/config/presets.py`), `--set stage1.epochs=3`
changes it, and it is checked on construction: a bad value is refused with the value, the rule and the fix.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator


class Section(BaseModel):
    """A part of the configuration: immutable, and no field that is not declared."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True, coerce_numbers_to_str=True
    )

    @model_validator(mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, values: Any) -> Any:
        for name, value in values.items() if isinstance(values, dict) else ():
            field = cls.model_fields.get(name)
            if isinstance(value, bool) and field is not None and field.annotation is not bool:
                raise ValueError(f"{name} is {str(value).lower()}, which is no number; write one")
        return values


Depth = Literal["auto", "full", "percentile"] | tuple[float, float]
"""Which levels of deep images become black and white."""


class DataConfig(Section):
    """Which images, and how long their tail is."""

    name: str = "fashion-mnist"
    """Data set, one of `lfm.data.sources.registry.DATASETS`; `custom` for your own images."""
    source: str = ""
    """Location of the raw files. custom: an image folder, a split list (.txt), a manifest (.csv, .parquet, .jsonl), on
    disk or at s3://. Others: a folder; empty: LFM_HOME/downloads/NAME, downloaded where that is allowed."""
    images: str = ""
    """Folder or s3:// prefix that relative paths in a list or manifest start from; empty: the folder of the list."""
    class_names: str = ""
    """File of class names: one a line (by name where it holds the names of the data, else in label order), lines
    "0 cat", or JSON {label: name}, {name: number}; empty: the names in the data."""
    class_depth: int = Field(0, ge=0, le=4)
    """Image folder: the level below `source` whose folders are the classes, 1 for ROOT/CLASS, 2 for ROOT/SPLIT/CLASS
    or ROOT/GROUP/CLASS; 0: 1, or 2 below split folders, and what is doubtful is refused."""
    verify: bool = True
    """Refuse archives and lists that are not the published ones, by checksum or count."""
    profile: Literal["exponential", "step", "as-is"] = "exponential"
    """Training images of each class: n_k = n_1 gamma^(-k/(C-1)); the first half n_1 and the rest n_1 / gamma; all."""
    imbalance: float = Field(100.0, ge=1)
    """Imbalance factor gamma = n_1 / n_C of the training subset."""
    max_per_class: int = Field(0, ge=0)
    """Training images n_1 of the largest class; 0: the most that every class could give."""
    val_per_class: int = Field(0, ge=0)
    """The last images of each class of the full training set, kept out of training for tuning."""
    test_per_class: int = Field(0, ge=0)
    """Where the data have no test split: images of each class to make one of; 0: `test_share` of the smallest class."""
    test_share: float = Field(0.2, gt=0, lt=1)
    """Where the data have no test split: share of the images that never train, chosen by the hash of their content
    alone; the test split is made of them, and stays when images are added."""
    without_test: Literal["refuse", "leave-out", "keep"] = "refuse"
    """Classes that have no test images, or, where the split is made, one image alone. refuse: nothing is trained;
    leave-out: they are no classes; keep: they are trained and not scored."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """Unreadable images. stop: the build ends with a list of them; skip: they are left out."""
    max_bad: float = Field(0.05, ge=0, lt=1)
    """skip: largest share of unreadable images; with more, the build ends."""
    max_megapixels: float = Field(100.0, gt=0)
    """Larger images count as unreadable, since a decompression bomb fills the memory."""
    depth: Depth = "auto"
    """Images of more than 8 bits: which levels become black and white, the same for all images and in serving. auto: 8,
    10, 12, 14 or 16 bits, the fewest that hold every level, or floats of 0 to 1 or -1 to 1; where the images fill
    little of it, percentile; full: all that the type holds; percentile: the 1st and 99th of the training images;
    [low, high]: these levels."""
    decode: Literal["auto", "once", "each-time"] = "auto"
    """once: keep the pixels at the model's size in one memory map; each-time: decode in workers while training;
    auto: once, where the pixels take at most `decode_gb`."""
    decode_gb: float = Field(40.0, gt=0)
    """auto: largest size of the decoded pixels in gigabytes."""

    @model_validator(mode="after")
    def _black_under_white(self) -> "DataConfig":
        if not isinstance(self.depth, str) and self.depth[0] >= self.depth[1]:
            raise ValueError(
                f"depth {list(self.depth)} is [level of black, level of white], the first below the second"
            )
        return self

    @model_validator(mode="after")
    def _no_field_without_effect(self) -> "DataConfig":
        for name, other, idle in (
            ("max_per_class", "profile", "as-is"),
            ("imbalance", "profile", "as-is"),
            ("max_bad", "on_bad_image", "stop"),
        ):
            default = type(self).model_fields[name].default
            if getattr(self, other) == idle and getattr(self, name) != default:
                raise ValueError(
                    f"{name} {getattr(self, name):g} has no effect with {other}={idle}; set {name}={default:g}, or "
                    f"another {other}"
                )
        return self

    @field_validator("source", "images", "class_names")
    @classmethod
    def _home_folder(cls, place: str) -> str:
        return str(Path(place).expanduser()) if place.startswith("~") else place


class TextConfig(Section):
    """How class names become embeddings."""

    encoder: Literal["minilm", "backbone"] = "backbone"
    """Frozen text tower. backbone: the model's own; minilm: all-MiniLM-L6-v2, 384 dimensions, from the `offline`
    extra."""
    prompt: str | tuple[str, ...] = "a photo of a {}"
    """Template around each class name, `{}` is the name; or several, whose embeddings are averaged."""
    descriptions: str = ""
    """JSON file {class name: sentence or list of sentences}; these and the prompts are averaged."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The templates, one or more."""
        return (self.prompt,) if isinstance(self.prompt, str) else self.prompt

    @model_validator(mode="after")
    def _one_place_for_the_name(self) -> "TextConfig":
        if not self.prompts:
            raise ValueError("prompt is empty; give at least one template, as in 'a photo of a {}'")
        for prompt in self.prompts:
            if prompt.count("{}") != 1 or set("{}") & set(prompt.replace("{}", "")):
                raise ValueError(f"prompt {prompt!r} needs exactly one {{}} for the class name")
        return self


class ModelConfig(Section):
    """The image tower and where its weights come from."""

    tower: str = "ViT-B-32"
    """Any open_clip model (ViT-B/32, RN50, ViT-B-16-SigLIP ...) or an open_clip JSON file of your own;
    tf_efficientnet_lite0, timm's, 3.9 million weights; conv4: four 3 x 3 convolutions, 290,000 weights, from scratch,
    for small images."""
    weights: str = "openai"
    """open_clip's pre-trained tag (openai, datacomp_xl_s13b_b90k ...), a local or s3:// checkpoint (.safetensors, or
    a torch file, which is loaded weights-only), `imagenet-lite0` for tf_efficientnet_lite0, or `random`."""
    head: Literal["text", "classes"] = "text"
    """What image features are compared with. text: the frozen class embeddings (the paper); classes: a row a class that
    trains in both stages, in the tower's features before their projection into the text's space. It starts from the
    class embeddings by the projection's transpose (Shi et al. 2024, LIFT)."""
    keep: Literal["tuned", "whole"] = "tuned"
    """What is kept of a model that tunes little (`stage1.tune`). tuned: that little, and the tower by name and hash,
    which `lfm serve` and `lfm predict` find or fetch; whole: everything, for servers without either (KServe)."""
    image_size: int = Field(0, ge=0, le=512)
    """Pixels a side of conv4's images, 8 or more (0: unchanged), or of tf_efficientnet_lite0's, 32 or more (0: 224).
    Other towers have their own size."""

    @model_validator(mode="after")
    def _not_too_small(self) -> "ModelConfig":
        if 0 < self.image_size < 8:
            raise ValueError(f"image_size {self.image_size} leaves conv4 nothing to pool; use 8 or more, or 0")
        return self

    @property
    def aligned(self) -> bool:
        """Whether a pre-trained tower was trained to meet text; if not, its projection is fitted to the images."""
        return self.weights != "imagenet-lite0"


class MixupConfig(Section):
    """What a training image is mixed with, and how the label moves: local sampling and label shift of the paper."""

    name: Literal["none", "mixup", "remix", "lfm"] = "lfm"
    """none; mixup (Zhang et al. 2018); remix (Chou et al. 2020); lfm (this paper)."""
    tau: float = Field(0.05, gt=0)
    """Temperature of local sampling: low pairs near neighbours, high tends to uniform."""
    partner: Literal["text", "uniform"] = "text"
    """Partner class of lfm: by text similarity, or uniform over the other classes (an ablation)."""
    exclude: tuple[tuple[str, str], ...] = ()
    """Pairs of class names that lfm never mixes with each other, as [["left hand", "right hand"]]; in either order."""
    max_similarity: float = Field(1.0, gt=-1, le=1)
    """Classes whose names have a higher cosine in text are never partners in lfm; 1: all may be."""
    partner_image: Literal["uniform", "until-used-up"] = "uniform"
    """Image within the partner class: uniform (text), or without replacement until used up (code)."""
    beta: float = Field(0.5, ge=0.01)
    """lambda_x ~ Beta(beta, beta). Text 0.5; code 0.2 for lfm, 1 for mixup, 0.5 for remix."""
    lambda_per: Literal["pair", "batch"] = "pair"
    """One lambda_x per pair (text) or per batch (code)."""
    remix_kappa: float = Field(3.0, gt=1)
    """Remix: class-count ratio from which the label moves to the rarer class."""
    remix_tau: float = Field(0.5, ge=0, le=1)
    """Remix: the label moves only where the frequent class's weight is below this."""
    remix_branches: Literal["published", "swapped"] = "published"
    """Remix: where the label moves, to the rarer class (published), or to the more frequent one, as the released code
    of this paper has it (swapped)."""


class LossConfig(Section):
    """The loss on the cosine logits (Franklin et al. 2024, Table 1)."""

    name: Literal["ce", "balce", "focal", "ldam", "mms"] = "ce"
    """One of `lfm.method.losses.LOSSES`."""
    temperature: float = Field(1.0, gt=0)
    """ce, balce and focal divide the cosines by this. The paper uses the cosine as it is: 1."""
    focal_gamma: float = Field(2.0, ge=0)
    """Focusing exponent of Focal (Lin et al. 2017: 2; the released code: 0, which is CE)."""
    ldam_margin: float = Field(0.5, ge=0)
    """Largest margin of LDAM (Cao et al. 2019), that of the rarest class."""
    ldam_scale: float = Field(30.0, gt=0)
    """Scale of the logits in LDAM."""
    mms_margin: float = Field(0.3, ge=0)
    """Weight of the text distance in MMS's margin (Shu et al. 2023)."""
    mms_temperature: float = Field(0.01, gt=0)
    """MMS divides the cosines and margins by this."""
    adjust: Literal["none", "prior", "label-mass"] = "none"
    """Logit adjustment while training (Menon et al. 2021), with any loss but balce, which has it. prior: by the log of
    each class's share of the training images; label-mass: of its expected share of all label mass under the mixup."""
    adjust_strength: float = Field(1.0, ge=0)
    """Multiplies the logarithm that `adjust` adds; 1 in the paper."""

    @model_validator(mode="after")
    def _strength_of_something(self) -> "LossConfig":
        if self.adjust == "none" and self.adjust_strength != 1:
            raise ValueError(f"adjust_strength {self.adjust_strength:g} has no effect with adjust=none; set it to 1")
        return self

    @model_validator(mode="after")
    def _adjusted_once(self) -> "LossConfig":
        if self.name == "balce" and self.adjust != "none":
            raise ValueError(
                f"adjust {self.adjust} does not go with balce, which adds the log of the class counts itself; set "
                f"adjust=none, or name=ce"
            )
        return self

    @property
    def divisor(self) -> float:
        """What the loss divides the cosines by."""
        return {"ldam": 1 / self.ldam_scale, "mms": self.mms_temperature}.get(self.name, self.temperature)

    @property
    def title(self) -> str:
        """Name of the loss in tables: `ce`, `ce + la(prior)`, `mms + la(mass 0.5)`."""
        if self.adjust == "none":
            return self.name
        strength = "" if self.adjust_strength == 1 else f" {self.adjust_strength:g}"
        return f"{self.name} + la({self.adjust.removeprefix('label-')}{strength})"


class StageConfig(Section):
    """One training stage (Franklin et al. 2024, decoupled training; values in Table 6)."""

    epochs: int = Field(10, ge=0)
    """Passes over the training set; 0 skips the stage."""
    lr: float = Field(1e-3, gt=0)
    """Highest learning rate."""
    min_lr: float = Field(0.0, ge=0)
    """Learning rate at the end of the cosine."""
    cosine: Literal["step", "epoch"] = "step"
    """When the cosine lowers the learning rate: every step, or once an epoch (code)."""
    warmup: float = Field(0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate rises linearly from 0."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    """adam (paper), adamw (decoupled weight decay), or sgd with momentum."""
    momentum: float = Field(0.9, gt=0, lt=1)
    """sgd: momentum, without Nesterov's."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of the optimizer, on everything that trains."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = 32
    """Images of a step, over all processes; auto: the largest that fits in memory and is still faster, found
    by a search (the learning rate does not change)."""
    micro_batch: int = Field(0, ge=0)
    """Images of a step that a process computes at once; gradients are accumulated. For small GPUs; 0: all."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential moving average of the weights, with which the stage is scored and ends; 0: none."""
    clip: float = Field(0.0, ge=0)
    """Largest norm of a step's gradient; 0: not clipped."""
    alpha: float | Literal["auto"] = Field(1.0)
    """Strength of the label shift; auto: the largest that keeps every class's own-label mass (at most 2)."""

    @model_validator(mode="after")
    def _ranges(self) -> "StageConfig":
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}; lower it")
        if not isinstance(self.alpha, str) and self.alpha < 0:
            raise ValueError(f"alpha {self.alpha} is negative; use 0 or more, or auto")
        if not self.epochs and self.ema:
            raise ValueError(f"ema {self.ema:g} has no effect with epochs=0; set it to 0")
        usual = type(self).model_fields["momentum"].default
        if self.optimizer != "sgd" and self.momentum != usual:
            raise ValueError(
                f"momentum {self.momentum:g} has no effect with optimizer={self.optimizer}; set it to {usual:g}, or "
                f"optimizer=sgd"
            )
        return self


class TowerStageConfig(StageConfig):
    """Stage 1, which trains the image tower, as a whole or a little of it."""

    tune: str = "full"
    """What trains. full: the whole tower (the paper). adaptformer: a bottleneck next to each block's MLP; lora: low
    ranks for query and value; vpt: prompt tokens in each block; bias; norm; mask: random entries of the weights;
    last:N: the last N blocks and what follows. Other than full, only what trains is kept: megabytes a model."""
    tune_size: int = Field(0, ge=0)
    """adaptformer: width; lora: rank; vpt: tokens; mask: entries of a matrix. 0: 2^floor(log2(C / (2 blocks))), at
    least 1, for the first two; 10 tokens; as many entries as adaptformer has weights."""
    tune_init: Literal["kaiming-uniform", "kaiming-normal"] = "kaiming-uniform"
    """How the first matrix of adaptformer and lora is drawn; the second is zero."""

    wise: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = 1.0
    """Where the stage ends on the line from the untouched weights (0) to the tuned ones (1; WiSE-FT); auto: the tenth
    with the best accuracy on the validation images, mean over the classes."""

    @model_validator(mode="after")
    def _line_has_two_ends(self) -> "TowerStageConfig":
        if not self.epochs and self.wise != 1:
            raise ValueError(f"wise {self.wise} has no effect with epochs=0; set it to 1")
        return self

    @field_validator("tune")
    @classmethod
    def _known(cls, tune: str) -> str:
        if not re.fullmatch(r"full|adaptformer|lora|vpt|bias|norm|mask|last:[1-9]\d*", tune):
            raise ValueError(f"{tune!r} is none of full, adaptformer, lora, vpt, bias, norm, mask, last:N (as last:2)")
        return tune

    @field_validator("tune_size")
    @classmethod
    def _size_has_effect(cls, size: int, info: ValidationInfo) -> int:
        tune = info.data.get("tune", "adaptformer")
        if size and tune not in ("adaptformer", "lora", "vpt", "mask"):
            raise ValueError(f"tune_size {size} has no effect with tune={tune}; set it to 0")
        return size


class HeadStageConfig(StageConfig):
    """Stage 2, which trains W_I, or a head of classes, behind the frozen tower."""

    features: Literal["tower", "cached"] = "tower"
    """What is mixed. tower: pixels, and the tower sees each mix in each epoch (the paper); cached: features, of which
    the tower makes one for each image, or two where images are flipped: many times as fast, without crops."""

    @model_validator(mode="after")
    def _no_search_without_the_tower(self) -> "HeadStageConfig":
        if self.features == "cached" and self.batch_size == "auto":
            raise ValueError("batch_size auto is searched for with the tower; with features=cached give a number")
        return self


GROUPS = ("many", "medium", "few")
"""Shot groups, in the order of every table."""


class ShotsConfig(Section):
    """Groups of classes by training images, whose scores Franklin et al. 2024 gives in Table 1."""

    many: int = Field(100, ge=0)
    """many: more training images than this."""
    few: int = Field(20, ge=0)
    """few: fewer than this (the released code counts 20 as few, so 21); medium: between the two."""

    @model_validator(mode="after")
    def _order(self) -> "ShotsConfig":
        if self.few > self.many + 1:
            raise ValueError(f"few ({self.few}) must not be above many + 1 ({self.many + 1}): groups would overlap")
        return self

    @property
    def rule(self) -> str:
        """The rule in words, as reports print it."""
        return f"many > {self.many}, few < {self.few}"


class TrainConfig(Section):
    """How to train: only rounding of the result depends on this."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    nodes: int = Field(1, ge=1)
    """Machines that share each batch; more than one: Kubeflow Trainer starts them (docs/nodes.md)."""
    processes: int = Field(1, ge=0)
    """Processes of each machine that share each batch; 0: one for every GPU. The batches are the same whatever their
    number."""
    workers: int = Field(0, ge=0)
    """Threads of each process that decode images while it trains; 0: the machine's cores, shared by its processes."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """auto: bf16 where the hardware multiplies it natively, else fp32."""
    flip: bool = True
    """Flip each image left-right with probability one half."""
    crop: Literal["none", "random", "growing"] = "none"
    """Part of each training image that is seen, out of the pixels that are kept, at the tower's size. none: all (the
    paper); random: 8 to 100 % of the area, sides 3:4 to 4:3, bilinear (Szegedy et al. 2015; LIFT); growing: a square
    whose least area grows from 8 to 100 % in the course of a stage as 1 - sqrt(1 - t^2), bicubic (LIFT+)."""
    resize: Literal["fast", "exact"] = "fast"
    """How training images get to the tower's size. fast: the same kernel without PIL's rounding, small images after
    mixing; exact: each image as evaluation resizes it, to the last bit, before mixing."""
    validate_every: int = Field(5, ge=0)
    """Epochs between scores on the validation images; 0: never."""
    checkpoint_minutes: float = Field(1.0, gt=0)
    """Minutes between checkpoints, which are written while training goes on: with the time that writing one takes,
    the most work that a killed process loses."""
    checkpoint_steps: int = Field(0, ge=0)
    """Steps between further checkpoints; 0: none but those by time. One that is still being written is waited for."""
    keep_checkpoints: int = Field(2, ge=1)
    """Number of checkpoints that are kept; if the newest is damaged, the one before is used."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile of the model. auto: on GPUs for stages of 1,000 steps or more, where a C compiler is there."""
    recompute: bool = False
    """Activation checkpointing: compute each block's activations again in the backward pass, for less memory."""
    own_label_threshold: float = Field(0.5, gt=0, le=1)
    """Own-label mass under which a class is warned about: another one's label wins on its own images."""
    auto_own_label: float = Field(0.7, gt=0, le=1)
    """Own-label mass that `alpha: auto` keeps. One half is a tie, and cost the largest class half its images."""

    @model_validator(mode="after")
    def _parts_are_not_exact(self) -> "TrainConfig":
        if self.crop != "none" and self.resize == "exact":
            raise ValueError(f"crop={self.crop} resizes parts of images in its own way; set resize=fast, or crop=none")
        return self


NAMED = ("mixup.name", "loss.name", "loss.adjust", "loss.adjust_strength", "stage1.tune")
"""Fields that `RunConfig.method` tells."""


class RunConfig(Section):
    """All values of a run: data, text, model, method, training."""

    preset: str
    """Name of the preset this came from; also the MLflow experiment."""
    seed: int = Field(0, ge=0, lt=2**32)
    """Seed of the subset, the initial weights and every batch."""
    fidelity: Literal["text", "code"] = "text"
    """text: the paper's text; code: the values of the authors' released code (docs/method.md)."""
    data: DataConfig = DataConfig()
    text: TextConfig = TextConfig()
    model: ModelConfig = ModelConfig()
    mixup: MixupConfig = MixupConfig()
    loss: LossConfig = LossConfig()
    stage1: TowerStageConfig = TowerStageConfig()
    stage2: HeadStageConfig = HeadStageConfig()
    shots: ShotsConfig = ShotsConfig()
    train: TrainConfig = TrainConfig()

    @property
    def method(self) -> str:
        """Name of the method in tables: `ce`, `lfm + ce`, `ce + la(prior), adaptformer`, `zero-shot`, `ridge`."""
        if self.stage1.epochs == self.stage2.epochs == 0:
            return "zero-shot" if self.model.aligned else "ridge"
        tuned = "" if self.stage1.tune == "full" else f", {self.stage1.tune}"
        mixup = "" if self.mixup.name == "none" else f"{self.mixup.name} + "
        return f"{mixup}{self.loss.title}{tuned}"

    def stage(self, number: int) -> StageConfig:
        """Stage 1 or 2."""
        return {1: self.stage1, 2: self.stage2}[number]
