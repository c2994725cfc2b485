"""Configuration of a study, a TOML file: what all variants share, and in what each of them differs.

    [study]                 name, seeds, tokens, split, baseline (the variant that others are compared with: the first)
    [model]                 fields of `ModelConfig`, and what shapes its schedule
    [training]              fields of `TrainingConfig`
    [probes]                fields of `Questions`, with tables [probes.resets] and [probes.cuts]
    [[variant]]             name, and whatever differs: fields of `ModelConfig` and of `TrainingConfig`, and
        storage             "int8" or "float8_e4m3": how memory is stored while probing
        evaluates           the name of a variant above whose weights are probed: then nothing but `storage` differs
        paper               {ppl = 5.98, krcu = 0.0248}: published numbers to stand beside

A schedule is described as `make_schedule` has it: `schedule` is its name, `layers`, `budget` (in tokens), `horizons`,
`long_layers`, `ratio` and `longest` shape it, and `retention` has the fields of `Retention`. A variant that names
another schedule inherits all of these but `horizons`, which belong to "explicit", and but for a budget where its
schedule is "full" or "explicit", which no budget shapes.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from dsmr.evaluation.models import Questions
from dsmr.evaluation.probes.krcu import Resets
from dsmr.evaluation.probes.truncation import Cuts
from dsmr.fields import check_types, is_integer, shown
from dsmr.model.config import ModelConfig
from dsmr.model.schedules import make_schedule
from dsmr.training import TrainingConfig
from dsmr_kernels import Retention
from dsmr_kernels.storage import Storage

BUNDLED = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.toml"))}
"""Studies that come with the package, by name."""

SHAPING = ("layers", "budget", "horizons", "long_layers", "ratio", "longest", "retention")
MODEL = tuple(field.name for field in fields(ModelConfig)) + SHAPING
TRAINING = tuple(field.name for field in fields(TrainingConfig) if field.name != "seed")
PROBES = tuple(field.name for field in fields(Questions) if field.name != "storage")
STUDY = ("name", "seeds", "tokens", "split", "baseline")
OWN = ("name", "evaluates", "storage", "paper")
PUBLISHED = ("ppl", "krcu")
UNBUDGETED = ("full", "explicit")


@dataclass(frozen=True)
class Variant:
    """One row of a study.

    Args:
        name: for tables and figures.
        model: its configuration.
        training: how it is trained; the seed is the job's.
        evaluates: the variant whose weights are probed; None: it is trained itself.
        storage: how memory is stored while probing; None: as in training.
        paper: published numbers to stand beside, by the names in `PUBLISHED`.
    """

    name: str
    model: ModelConfig
    training: TrainingConfig
    evaluates: str | None = None
    storage: Storage | None = None
    paper: Mapping[str, float] | None = None

    @property
    def slug(self) -> str:
        """Its name as that of a file."""
        return _slug(self.name)


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Args:
        name: for titles.
        seeds: each variant is trained once with each of them.
        split: whose pieces are probed.
        questions: the probes.
        variants: in the order of the tables.
        baseline: the name of the variant that all others are compared with.
    """

    name: str
    seeds: tuple[int, ...]
    split: str
    questions: Questions
    variants: tuple[Variant, ...]
    baseline: str

    @property
    def trained(self) -> tuple[Variant, ...]:
        """The variants that are trained."""
        return tuple(variant for variant in self.variants if variant.evaluates is None)

    def probed_with(self, trained: Variant) -> tuple[Variant, ...]:
        """The variants that are probed with a trained one's weights, itself the first."""
        return (trained, *(variant for variant in self.variants if variant.evaluates == trained.name))


def read_study(path: Path) -> Study:
    """Read a study from a TOML file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no TOML, or not a study: the error names the file, the table and the key.
    """
    with _within(path):
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"expected a TOML file, got: {error}") from error
        return parse_study(values)


def parse_study(values: Mapping[str, Any]) -> Study:
    """The study that the tables of a TOML file describe; ValueError names the table and the key that are wrong."""
    known = _table(values, "study", ("study", "model", "training", "probes", "variant"))
    about = _table(known.get("study"), "[study]", STUDY)
    with _within("[study]"):
        name, split, seeds = about.get("name"), about.get("split", "test"), about.get("seeds", [0])
        if not isinstance(name, str) or not name:
            raise ValueError(f"name: expected text, got {shown(name)}")
        if split not in ("train", "validation", "test"):
            raise ValueError(f"split: expected 'train', 'validation' or 'test', got {shown(split)}")
        if not _are_seeds(seeds):
            raise ValueError(f"seeds: expected different whole numbers of at least 0, got {shown(seeds)}")
        if (tokens := about.get("tokens")) is not None and (not is_integer(tokens) or tokens < 1):
            raise ValueError(f"tokens: expected a number of at least 1, got {shown(tokens)}")
    model = _table(known.get("model", {}), "[model]", MODEL)
    training = _table(known.get("training", {}), "[training]", TRAINING)
    tables = known.get("variant")
    if not isinstance(tables, list) or not tables:
        raise ValueError(f"[[variant]]: expected one or more, got {shown(tables)}")
    variants: dict[str, Variant] = {}
    for table in tables:
        variant = _variant(table, model, training, tokens, variants)
        if other := next((each for each in variants if _slug(each) == variant.slug), None):
            raise ValueError(f"variant {variant.name!r}: expected a name unlike all others, got one like {other!r}")
        variants[variant.name] = variant
    if (baseline := about.get("baseline", next(iter(variants)))) not in [*variants]:
        raise ValueError(f"[study]: baseline: expected one of {', '.join(variants)}, got {shown(baseline)}")
    return Study(name, tuple(seeds), split, _questions(known.get("probes", {})), tuple(variants.values()), baseline)


def _are_seeds(seeds: Any) -> bool:
    if not isinstance(seeds, list) or not seeds:
        return False
    return all(is_integer(seed) and seed >= 0 for seed in seeds) and len(set(seeds)) == len(seeds)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _variant(
    table: Any,
    model: Mapping[str, Any],
    training: Mapping[str, Any],
    tokens: int | None,
    others: Mapping[str, Variant],
) -> Variant:
    """The variant of a table, after those above it."""
    name = table.get("name") if isinstance(table, Mapping) else None
    if not isinstance(name, str) or not _slug(name):
        raise ValueError(f"[[variant]]: expected a name with letters or digits, got {shown(name)}")
    shares = "evaluates" in table
    with _within(f"variant {name!r}"):
        own = _table(
            table, "table", OWN if shares else tuple(each for each in OWN if each != "evaluates") + MODEL + TRAINING
        )
        storage, paper = own.get("storage"), own.get("paper")
        if storage is not None and storage not in get_args(Storage):
            raise ValueError(f"storage: expected one of {', '.join(get_args(Storage))}, got {shown(storage)}")
        if paper is not None:
            paper = _table(paper, "paper", PUBLISHED)
            if not all(_is_number(value) for value in paper.values()) or paper.get("ppl", 1) <= 0:
                raise ValueError(f"paper: expected finite numbers, that of ppl above 0, got {shown(paper)}")
        if shares:
            trained = [each.name for each in others.values() if each.evaluates is None]
            if (source := own["evaluates"]) not in trained:
                raise ValueError(
                    f"evaluates: expected a variant above that is trained, {', '.join(trained)}, got {shown(source)}"
                )
            return replace(others[source], name=name, evaluates=source, storage=storage, paper=paper)
        overrides = {key: value for key, value in own.items() if key in MODEL}
        made = _model(_inherited(model, overrides) | overrides)
        settings = {**training, **{key: value for key, value in own.items() if key in TRAINING}}
        return Variant(name, made, _training(settings, made, tokens), None, storage, paper)


def _inherited(model: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a variant has from [model]: nothing that another schedule than that one's cannot have."""
    kept = dict(model)
    if (schedule := overrides.get("schedule", model.get("schedule"))) != model.get("schedule"):
        kept.pop("horizons", None)
    if schedule in UNBUDGETED:
        kept.pop("budget", None)
    return kept


def _model(settings: Mapping[str, Any]) -> ModelConfig:
    sizes = {name: _tuples(value) for name, value in settings.items() if name not in SHAPING}
    shape = {name: settings[name] for name in SHAPING if name in settings}
    name, budget = sizes.pop("schedule", None), shape.pop("budget", None)
    if not isinstance(name, str):
        raise ValueError(f"schedule: expected its name, got {shown(name)}")
    for number in ("layers", "long_layers", "longest", "ratio"):
        value = shape.get(number, 1)
        if not (is_integer(value) or (number == "ratio" and isinstance(value, float))):
            raise ValueError(f"{number}: expected a number, got {shown(value)}")
    if budget is not None and not is_integer(budget):
        raise ValueError(f"budget: expected a number of tokens, got {shown(budget)}")
    if "layers" not in shape:
        raise ValueError("layers: expected the number of layers, got none")
    if not all(map(is_integer, _list(horizons := shape.pop("horizons", [])))):
        raise ValueError(f"horizons: expected a list of numbers, got {shown(horizons)}")
    if (retention := shape.get("retention")) is not None:
        shape["retention"] = Retention(**_table(retention, "retention", ("stride", "keep")))
    missing = {field.name for field in fields(ModelConfig) if field.name in ("width", "heads", "kv_heads")}
    if needed := sorted(missing - sizes.keys()):
        raise ValueError(f"{needed[0]}: expected a value, got none")
    schedule = make_schedule(name, shape.pop("layers"), budget_tokens=budget, horizons=horizons or None, **shape)
    return ModelConfig(schedule=schedule, **sizes)


def _training(settings: Mapping[str, Any], model: ModelConfig, tokens: int | None) -> TrainingConfig:
    """With a budget in tokens, the steps that read at least as many."""
    if (tokens is None) == (settings.keys() & {"steps", "minutes"} == set()):
        raise ValueError("expected a budget: either tokens in [study], or steps or minutes in [training]")
    known = {name: _tuples(value) for name, value in settings.items()}
    if tokens is None:
        return TrainingConfig(**known)
    once = TrainingConfig(steps=1, **known)
    return replace(once, steps=-(-tokens // (once.lanes * once.accumulate * model.segment)))


def _questions(values: Any) -> Questions:
    asked = _table(values, "[probes]", PROBES)
    asked.setdefault("reset_every", None)
    for name, cls in (("resets", Resets), ("cuts", Cuts)):
        if name in asked:
            table = _table(asked[name], f"[probes.{name}]", tuple(field.name for field in fields(cls)))
            with _within(f"[probes.{name}]"):
                asked[name] = cls(**{key: _tuples(value) for key, value in table.items()})
    with _within("[probes]"):
        check_types(made := Questions(**asked))
        for name in ("pieces", "reset_every", "lanes"):
            if (value := getattr(made, name)) is not None and value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        for name in ("skip", "recall"):
            if getattr(made, name) < 0:
                raise ValueError(f"{name}: expected at least 0, got {getattr(made, name)}")
    return made


def _table(values: Any, where: str, known: tuple[str, ...]) -> dict[str, Any]:
    """A table with no other keys than the known ones."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where}: expected a table of {', '.join(known)}, got {shown(values)}")
    if unknown := sorted(values.keys() - set(known)):
        raise ValueError(f"{where}: expected keys among {', '.join(known)}, got {shown(unknown[0])}")
    return dict(values)


def _is_number(value: Any) -> bool:
    return is_integer(value) or (isinstance(value, float) and math.isfinite(value))


def _list(value: Any) -> list[Any]:
    """A list as it is; of anything else one that holds no numbers."""
    return value if isinstance(value, list) else [None]


def _tuples(value: Any) -> Any:
    """TOML has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


@contextmanager
def _within(where: object) -> Iterator[None]:
    """Within, a ValueError says where it arose."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
