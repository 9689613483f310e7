"""The sections of a recipe: which keys there are, their types, ranges and defaults.

Values are not coerced ("8" is not 8), and every rule that ties keys together raises `Problem` with the key to mend.
"""

import os
from collections import Counter
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rlvr.config.checkpoints import CheckpointsConfig
from rlvr.config.extrapolation import ExtrapolationConfig
from rlvr.config.guidance import GuidanceConfig
from rlvr.config.lora import LoRAConfig, Quantization, check_lora
from rlvr.config.presets import (
    PRESETS,
    AdvantageRule,
    Aggregation,
    Algorithm,
    GroupFilter,
    KLEstimator,
    KLPlacement,
    Mismatch,
    PolicyLoss,
    RatioLevel,
    Switches,
)
from rlvr.config.problems import Problem, dotted, nearest
from rlvr.config.regularizers import RegularizersConfig
from rlvr.config.rollout import PAGED, RolloutConfig
from rlvr.config.sampler import SamplerConfig
from rlvr.config.schedules import Bounds, Weight
from rlvr.config.section import Section
from rlvr.config.watch import WatchConfig


class ModelConfig(Section):
    """The policy to start from."""

    shorthand = "path"

    path: str = Field(min_length=1)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    attn_implementation: str = "sdpa"
    revision: str | None = None
    trust_remote_code: bool = False
    lora: LoRAConfig | None = None  # null: all weights are trained
    quantization: Quantization | None = None  # of the weights under the adapter, by bitsandbytes


class DataSource(Section):
    """Where rows come from: `reasoning_gym://TASK?param=v`, a Hub id or a local file."""

    dataset: str = Field(min_length=1)
    subset: str | None = None
    split: str = "train"
    columns: dict[str, str] = Field(default={})  # our column -> source column
    limit: int | None = Field(default=None, ge=1)  # first N rows


DEFAULT_SELF_CHECK_ROWS = 2000


class DataConfig(Section):
    """Training rows and how they become prompts."""

    train: DataSource
    template: str | None = None  # str.format over the row's columns; without it the `prompt` column is used as is
    system: str | None = None
    chat: Literal["auto", "always", "never"] = "auto"  # auto: when the tokenizer has a chat template
    max_prompt_length: int = Field(default=1024, ge=1)  # tokens
    long_prompts: Literal["error", "drop"] = "error"
    self_check: Literal["error", "drop", "off"] = "error"  # of rows whose reference the verifier does not find right
    self_check_rows: int = Field(default=DEFAULT_SELF_CHECK_ROWS, ge=1)  # most that "error" looks at, evenly spaced

    @field_validator("self_check", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        """YAML reads a bare `off` as false."""
        return "off" if value is False else value

    @model_validator(mode="after")
    def _check_self_check(self) -> Self:
        if self.self_check != "error" and self.self_check_rows != DEFAULT_SELF_CHECK_ROWS:
            looks_at = "every row" if self.self_check == "drop" else "no row"
            raise Problem(
                "self_check_rows",
                f"has no effect, as self_check {self.self_check!r} looks at {looks_at}; set self_check to 'error', or"
                " remove it",
            )
        return self


class RewardFunctionConfig(Section):
    """One reward function: registry name, `pkg.module:function`, `./file.py:function` or entry point name."""

    shorthand = "use"

    use: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    weight: Weight = 1.0  # in the total: a number, or a schedule {step: number}
    clip: Bounds = None  # [low, high] that its value is held to in the total
    args: dict[str, Any] = Field(default={})  # keyword arguments

    @property
    def label(self) -> str:
        """The name in metrics, tables and `rewards.verifier`."""
        return self.name or self.use.rpartition(":")[2]


def default_workers() -> int:
    """4, or the number of processors where there are fewer; results do not depend on it."""
    return min(4, os.cpu_count() or 1)


class RewardsConfig(Section):
    """How completions are scored, and which score says whether a completion is right."""

    functions: list[RewardFunctionConfig] = Field(min_length=1)
    verifier: str | None = None
    correct_at: float = 1.0  # a completion is right when the verifier's value is at least this
    max_unscorable: float = Field(default=0.5, ge=0, le=1)  # share of a step without a verdict above which a run aborts
    gate: str | None = None  # label of the function below whose `gate_at` the total is 0
    gate_at: float = 1.0
    workers: int = Field(default_factory=default_workers, ge=0)  # processes per process of the run; 0: judge in it
    timeout_s: float = Field(default=5.0, gt=0)  # per judgement
    cpu_s: float = Field(default=0.5, gt=0)  # of them, on the processor: a hundred times what a judgement usually takes
    memory_mb: int = Field(default=1024, ge=64)  # per worker, beyond the imported rewards
    async_concurrency: int = Field(default=64, ge=1)  # judgements at once
    # For all asynchronous judgements of a step together; those that take the verifier's outcomes have as long again.
    async_timeout_s: float = Field(default=60.0, gt=0)

    @property
    def verifier_name(self) -> str:
        """The label of the function whose value decides the outcome."""
        return self.verifier or self.functions[0].label

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        labels = [function.label for function in self.functions]
        label, count = Counter(labels).most_common(1)[0]
        if count > 1:
            raise Problem("functions", f"{count} functions are called {label!r}; give each its own `name`")
        for key, wanted in (("verifier", self.verifier), ("gate", self.gate)):
            if wanted is not None and wanted not in labels:
                advice = nearest(wanted, labels, f"the labels are {', '.join(labels)}")
                raise Problem(key, f"no reward function is called {wanted!r}; {advice}")
        if self.gate is None and self.gate_at != 1.0:
            raise Problem("gate_at", "has no effect without a gate; set gate, or remove it")
        return self


class AlgorithmConfig(Section):
    """A preset, and the switches in which a run departs from it."""

    preset: str = "dapo"
    advantage: AdvantageRule | None = None
    advantage_ddof: int | None = Field(default=None, ge=0, le=1)
    advantage_eps: float | None = Field(default=None, ge=0)
    ratio_level: RatioLevel | None = None
    policy_loss: PolicyLoss | None = None
    clip_low: float | None = Field(default=None, gt=0)
    clip_high: float | None = Field(default=None, gt=0)
    dual_clip: float | None = Field(default=None, gt=1)
    delta: float | None = Field(default=None, gt=1)
    cispo_cap: float | None = Field(default=None, gt=0)
    sapo_tau_pos: float | None = Field(default=None, gt=0)
    sapo_tau_neg: float | None = Field(default=None, gt=0)
    aggregation: Aggregation | None = None
    group_filter: GroupFilter | None = None
    overlong_filter: bool | None = None
    kl_coef: float | None = Field(default=None, ge=0)
    kl_estimator: KLEstimator | None = None
    kl_placement: KLPlacement | None = None
    mismatch: Mismatch | None = None
    mismatch_low: float | None = Field(default=None, ge=0)
    mismatch_high: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check_preset(self) -> Self:
        if self.preset not in PRESETS:
            advice = nearest(self.preset, PRESETS, f"presets are {', '.join(PRESETS)}")
            raise Problem("preset", f"unknown preset {self.preset!r}; {advice}")
        algorithm = self.resolved()
        if algorithm.kl_placement == "reward" and algorithm.kl_estimator == "k3_ratio":
            raise Problem("kl_estimator", "'k3_ratio' reweighs a term of the loss; in the reward use 'k1'")
        return self

    def resolved(self) -> Algorithm:
        """Every switch with its value."""
        preset = PRESETS[self.preset]
        own = self.model_dump(exclude_none=True, exclude={"preset"})
        inherited = {field.name: getattr(preset, field.name) for field in fields(Switches)}
        return Algorithm(preset=self.preset, **(inherited | own))


class EarlyStopConfig(Section):
    """A run ends once so many scheduled evaluations in a row have brought no gain on the validation sets."""

    patience: int = Field(ge=1)
    min_gain: float = Field(default=0.0, ge=0)  # of the best score so far; less than this is no gain
    by: str = "pass@1"  # which estimate, averaged over evaluation.validation


class EvaluationConfig(Section):
    """What is measured, on which held-out sets.

    `sets` are test sets: they are reported, and nothing is ever chosen by them. Whatever chooses, such as the search
    for alpha, reads `validation`. No prompt may be in both, which is checked once the rows are loaded.
    """

    sets: dict[str, DataSource] = Field(default={})
    validation: dict[str, DataSource] = Field(default={})
    num_samples: int = Field(default=8, ge=1)  # completions per prompt
    temperature: float = Field(default=1.0, gt=0)
    temperatures: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})  # of single sets, by name
    k: list[int] = Field(default=[1, 8])  # of pass@k
    greedy: bool = True
    batch_size: int = Field(default=64, ge=1)  # completions per generate call and process
    every: int | None = Field(default=None, ge=1)  # optimiser steps between evaluations during training; none: no such
    early_stop: EarlyStopConfig | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _check_k(self) -> Self:
        for k in self.k:
            if not 1 <= k <= self.num_samples:
                allowed = f"every k must be between 1 and evaluation.num_samples={self.num_samples}"
                raise Problem("k", f"pass@{k} cannot be estimated; {allowed}")
        return self

    @model_validator(mode="after")
    def _check_temperatures(self) -> Self:
        for name in self.temperatures:
            known = [*self.sets, *self.validation]
            if name not in known:
                advice = nearest(name, known, f"the sets are {', '.join(known) or 'none'}")
                raise Problem(f"temperatures.{name}", f"there is no such set; {advice}")
        return self

    @model_validator(mode="after")
    def _check_early_stop(self) -> Self:
        if self.early_stop is not None:
            self.check_comparable("early_stop", "early_stop.by", self.early_stop.by)
        return self

    def check_comparable(self, user: str, key: str, metric: str) -> None:
        """Raises Problem at `user` where there is no validation to choose by, at `key` for a metric not measured."""
        if not self.validation or self.every is None:
            raise Problem(
                user,
                "needs held-out prompts by which policies are compared; give evaluation.validation some, and"
                " evaluation.every the steps between comparisons",
            )
        metrics = [f"pass@{k}" for k in self.k] + ["greedy"] * self.greedy
        if metric not in metrics:
            advice = nearest(metric, metrics, f"it measures {', '.join(metrics)}")
            raise Problem(key, f"{metric!r} is not measured by the evaluation; {advice}")

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        for name in self.validation:
            if name in self.sets:
                raise Problem(
                    f"validation.{name}",
                    "is the name of a test set in evaluation.sets too; give one of the two another",
                )
        return self


class ReportConfig(Section):
    """Where metrics go."""

    to: list[Literal["none", "wandb", "trackio", "tensorboard"]] = Field(default=["wandb"], min_length=1)
    project: str = "rlvr"
    completions_every: int = Field(default=1, ge=0)  # write the completions of every Nth step, 0 = never
    token_values: int = Field(default=2, ge=0)  # of these, how many with log-prob and entropy of every token

    @model_validator(mode="after")
    def _check_none(self) -> Self:
        if "none" in self.to and len(self.to) > 1:
            others = ", ".join(name for name in self.to if name != "none")
            raise Problem("to", f"'none' excludes the others; remove it or remove {others}")
        return self


FULL_VOCABULARY = {"top_p": 1.0, "top_k": 0, "min_p": 0.0}  # sampling settings that leave no token out


class Recipe(Section):
    """A whole recipe. `trainer` holds fields of TRL's GRPOConfig; `rlvr.config.trainer_defaults` checks them."""

    model: ModelConfig
    data: DataConfig
    rewards: RewardsConfig
    algorithm: AlgorithmConfig = AlgorithmConfig()
    regularizers: RegularizersConfig = RegularizersConfig()
    guidance: GuidanceConfig | None = None
    extrapolation: ExtrapolationConfig | None = None
    sampler: SamplerConfig = SamplerConfig()
    trainer: dict[str, Any] = Field(default={})
    checkpoints: CheckpointsConfig = CheckpointsConfig()
    rollout: RolloutConfig = RolloutConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    report: ReportConfig = ReportConfig()
    watch: WatchConfig = WatchConfig()

    @model_validator(mode="after")
    def _check_mismatch(self) -> Self:
        """A correction compares two probabilities of the same token, so both must be of the same distribution."""
        rule = self.algorithm.resolved().mismatch
        if rule == "none":
            return self
        if not self.trainer.get("use_vllm", False) and not self.trainer.get(PAGED, False):
            raise Problem(
                "algorithm.mismatch",
                f"{rule!r} needs log-probabilities of the engine, which generate does not report; set trainer.use_vllm"
                f" or trainer.{PAGED} to true, or algorithm.mismatch to 'none'",
            )
        for name, neutral in FULL_VOCABULARY.items():
            value = self.trainer.get(name, neutral)
            if value not in (neutral, None):
                raise Problem(
                    "algorithm.mismatch",
                    f"{rule!r} is biased under trainer.{name}={value}: the engine reports probabilities of the kept"
                    f" tokens only; set trainer.{name} to {neutral} or algorithm.mismatch to 'none'",
                )
        return self

    @model_validator(mode="after")
    def _check_keep_best(self) -> Self:
        if self.checkpoints.keep_best is not None:
            self.evaluation.check_comparable("checkpoints.keep_best", "checkpoints.best_by", self.checkpoints.best_by)
        return self

    @model_validator(mode="after")
    def _check_lora(self) -> Self:
        try:
            check_lora(self.model.lora, self.model.quantization, self.trainer)
        except Problem as problem:
            raise Problem(dotted("model", problem.key), problem.text) from problem
        return self

    @model_validator(mode="after")
    def _check_extrapolation(self) -> Self:
        if self.extrapolation is not None and self.model.lora is not None:
            raise Problem(
                "extrapolation",
                "cannot be used with model.lora, whose factors A and B do not move on a line when their product does;"
                " remove one of the two",
            )
        if self.extrapolation is not None and self.extrapolation.validate and not self.evaluation.validation:
            raise Problem(
                "extrapolation.validate",
                "true needs held-out prompts by which jumps are judged; give evaluation.validation some, or set it to"
                " false",
            )
        return self


SHORTHANDS: tuple[type[Section], ...] = (ModelConfig, RewardFunctionConfig, GuidanceConfig)
