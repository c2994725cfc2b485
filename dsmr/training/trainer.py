"""Trainer: a model in training, with its counters and a watch on its loss, without a folder and without a reader.

The loop that steps it, and that validates, reports and saves, is `dsmr.training.loop`.
"""

from __future__ import annotations

import math
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from dsmr.corpus.store import TokenStore
from dsmr.corpus.stream import Batch, LaneStream
from dsmr.evaluation.baselines import Bigram
from dsmr.evaluation.pieces import count_steps, evaluate_pieces
from dsmr.fields import check_names, check_types, shown
from dsmr.model.checkpoint import digest_tensors
from dsmr.model.transformer import Transformer
from dsmr.music.augment import Augmentation
from dsmr.training.config import TrainingConfig
from dsmr.training.distributed import World, clip_gradients, gathered, parallelise
from dsmr.training.ground import check_ground, describe_ground
from dsmr.training.optimisation import (
    accumulate_gradients,
    check_world,
    compiled_token_nll,
    eager_token_nll,
    make_optimizer,
    make_precision,
    seed_step,
)
from dsmr.training.state import (
    TrainingState,
    join_tensors,
    load_memory,
    load_optimizer,
    memory_tensors,
    optimizer_tensors,
)

LOSS_WINDOW = 100
"""Steps that `LossWatch` looks back on."""


@dataclass
class Run:
    """How far a run has come; every field but `interrupted` is saved and restored.

    `progress` is the fraction of the budget used up, `learning_rate` that of the last step. `training_seconds` leaves
    validation and saving out. `validations` is how many have been made or passed over, `validation_seconds` what they
    took together and `last_validation_seconds` the last of them. PPL is exp of the validation loss, and `bigram_ppl`
    that of a bigram model of the training pieces on the same tokens; None before the first validation.
    `peak_memory` is in bytes: of the GPU, or else of the whole process (None where the system does not tell).
    `lengthened`: it was given another budget, which `progress` and `validations` do not follow yet.
    `interrupted`: the number of the signal that ended the run before its time.
    """

    step: int = 0
    tokens: int = 0
    progress: float = 0.0
    learning_rate: float = 0.0
    seconds: float = 0.0
    training_seconds: float = 0.0
    validations: int = 0
    validation_seconds: float = 0.0
    last_validation_seconds: float | None = None
    last_ppl: float | None = None
    best_ppl: float | None = None
    best_step: int | None = None
    bigram_ppl: float | None = None
    peak_memory: int | None = None
    lengthened: bool = False
    interrupted: int | None = None

    @property
    def tokens_per_second(self) -> float:
        """Speed of training alone."""
        return self.tokens / self.training_seconds if self.training_seconds else 0.0

    def __post_init__(self) -> None:
        """ValueError that names a field of another type or out of its range, as a damaged file may hold it."""
        check_types(self)
        for name, value in asdict(self).items():
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}: expected a finite number of at least 0, got {value}")
        if self.progress > 1:
            raise ValueError(f"progress: expected a fraction of the budget, got {self.progress}")
        if self.best_step is not None and self.best_step > self.step:
            raise ValueError(f"best_step: expected at most step={self.step}, got {self.best_step}")

    @classmethod
    def from_dict(cls, values: Any) -> Run:
        """The inverse of `counters`; ValueError names what is wrong."""
        return cls(**check_names(cls, values, "run"))

    def counters(self) -> dict[str, Any]:
        """What is saved: plain JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "interrupted"}


class DivergedError(RuntimeError):
    """A loss or a gradient stopped being finite, or the loss exploded."""


class LossWatch:
    """Notices an exploded loss, and no healthy run.

    A model that knows nothing pays log(vocabulary) nats a token, and an untrained one hardly more. The loss has
    exploded when the last `LOSS_WINDOW` steps together cost more than a nat a step above that: e.g. every one of them
    more than a nat, or ten of them ten nats. Steps before the first count as knowing nothing, and better ones make up
    for worse ones: a run that has learned something is not ended by a spike, but by a loss that stays.
    """

    def __init__(self, vocab_size: int) -> None:
        self.ignorance = math.log(vocab_size)
        self.losses: deque[float] = deque(maxlen=LOSS_WINDOW)

    def add(self, loss: float) -> None:
        """Take note of a step's loss, nats per token."""
        self.losses.append(loss)

    @property
    def excess(self) -> float:
        """Nats a step above knowing nothing, over the last `LOSS_WINDOW` steps."""
        return sum(loss - self.ignorance for loss in self.losses) / LOSS_WINDOW

    @property
    def exploded(self) -> bool:
        """Whether to end the run."""
        return self.excess > 1

    @property
    def alarmed(self) -> bool:
        """Whether the last step alone was as bad as that: no moment to take for a good state."""
        return bool(self.losses) and self.losses[-1] > self.ignorance + 1


class Trainer:
    """A model, its optimiser, the lanes it reads, their memory, and how far all that has come.

    Everything about it is a function of `state()`: another `Trainer` of the same model configuration, store and
    settings that is given that state goes on exactly as this one does, on the same kind of machine.

    Args:
        model: on the device to train on; trained in place.
        store: its splits "train" and "validation" must not be empty.
        config: see there.
        world: the processes that share the lanes out; each makes a `Trainer`, and all call its methods together.
        shard: spread the parameters over them, see `dsmr.training.distributed.parallelise`.

    Raises:
        ValueError: a split without pieces, or lanes that the processes cannot share out evenly.
        WorldError: the latter, an optimiser whose parameters cannot be sharded, or `compile` with several processes.
    """

    def __init__(
        self,
        model: Transformer,
        store: TokenStore,
        config: TrainingConfig,
        world: World | None = None,
        *,
        shard: bool = False,
    ) -> None:
        self.model, self.store, self.config = model, store, config
        self.world = world or World()
        lanes = self.world.share(config.lanes)
        check_world(config, self.world, shard)
        self._validation, pieces = store.indices("validation"), store.indices("train")
        if not self._validation or not pieces:
            raise ValueError(f"store: expected pieces in the splits train and validation of {store.path}, got none")
        self._validation_steps = count_steps(
            store, self._validation, config.validation_tokens, config.lanes, model.config.segment
        )
        self.device = model.embedding.weight.device
        self.precision = make_precision(config.autocast, self.device)
        with self.precision:
            self.memory = model.new_state(lanes)
        self.stream = LaneStream(
            store,
            pieces,
            lanes=lanes,
            segment=model.config.segment,
            seed=config.seed,
            rank=self.world.rank,
            world_size=self.world.size,
            transform=Augmentation(config.semitones, config.tempo, config.seed),
        )
        self.initial_weights: str | None = digest_tensors({n: t.cpu() for n, t in model.state_dict().items()})
        """The digest of the weights with which the run began; None: the state that it goes on from does not tell."""
        self._net = parallelise(model, self.world, shard=shard)
        self.optimizer = make_optimizer(model, config)
        self._token_nll = compiled_token_nll() if config.compile else eager_token_nll
        self.watch = LossWatch(model.config.vocab_size)
        self.run = Run()
        self.began_on: dict[str, Any] | None = describe_ground(self.device, self.world.size)
        """Of the state that this trainer goes on from; None: it does not tell."""
        self._can_afford_validation = False
        self._begun = time.monotonic()
        model.train()

    def step(self) -> float:
        """One optimiser step; returns its loss, nats per token.

        Raises:
            DivergedError: the loss or the gradient is not finite, or the loss has exploded. The parameters are those
                of the step before.
        """
        run, config, begun = self.run, self.config, time.monotonic()
        seed_step(config.seed, run.step, self.world.rank)
        batches = [next(self.stream).to(self.device) for _ in range(config.accumulate)]
        nll = accumulate_gradients(self._net, self.memory, batches, self.precision, self._token_nll)
        norm = clip_gradients(self.model, config.clip)
        before = run.progress  # below 1, or this step would not be; the clock may be past the end already
        seconds = run.training_seconds + time.monotonic() - begun
        after = config.progress(run.step + 1, seconds)
        # Of all clocks the first process's counts.
        loss, run.progress, middle, can_afford = self.world.sum(
            float(nll.mean()) / self.world.size,
            *(self.world.first * x for x in (after, (before + after) / 2, self._affordable(after, seconds))),
        )
        self._can_afford_validation = bool(can_afford)
        run.learning_rate = config.learning_rate_at(middle)
        for group in self.optimizer.param_groups:
            group["lr"] = run.learning_rate
        self._check(loss, norm, nll, batches)
        self.optimizer.step()
        self.optimizer.zero_grad()
        run.step += 1
        run.tokens += config.accumulate * config.lanes * self.stream.segment
        run.training_seconds += time.monotonic() - begun
        self.count_seconds()
        return loss

    @property
    def budget_used(self) -> float:
        """The fraction of this trainer's budget that the steps so far have used up, by this process's clock."""
        return self.config.progress(self.run.step, self.run.training_seconds)

    @property
    def validation_due(self) -> bool:
        """Whether the budget has been used up to the next validation, and there is time for it."""
        passed = int(self.run.progress * self.config.validations)
        return passed > self.run.validations and self._can_afford_validation

    def _affordable(self, progress: float, seconds: float) -> bool:
        """Whether there is time for a validation; the first one's segments may take as long as those of training."""
        run, cost = self.run, self.run.last_validation_seconds
        if cost is None:
            cost = self._validation_steps * seconds / (self.config.accumulate * (run.step + 1))
        return self.config.can_afford(cost, run.validation_seconds, progress, seconds)

    def renew_budget(self) -> None:
        """Go on by this trainer's budget with a run that was begun with another: no validation is due by that alone."""
        self.run.progress = self.budget_used
        self.run.validations = int(self.run.progress * self.config.validations)
        self.run.lengthened = False

    def validate(self, stopped: Callable[[], bool] = lambda: False) -> float | None:
        """Score the validation split; returns nats per token. DivergedError if that is not finite.

        None, and the validation is due as before, if `stopped`, asked after each segment, was true on any process.
        """
        if self.run.bigram_ppl is None:
            self.run.bigram_ppl = self._bigram_ppl()
        run, begun = self.run, time.monotonic()

        def heed(done: int, total: int) -> None:
            if done < total and stopped():
                raise _StoppedError

        own = None
        with self.precision, gathered(self.model), suppress(_StoppedError):
            own = evaluate_pieces(
                self.model,
                self.store,
                self._validation,
                lanes=self.memory.lanes,
                max_tokens=self.config.validation_tokens,
                rank=self.world.rank,
                world_size=self.world.size,
                progress=heed,
            )
        if self.world.max(own is None)[0] or own is None:
            return None
        nll_sum, tokens = self.world.sum(own.nll_sum, own.tokens)
        nll = nll_sum / tokens
        if not math.isfinite(ppl := perplexity(nll)):
            raise _diverged(f"step {run.step}: expected a finite validation PPL, got {ppl}")
        run.last_ppl = ppl
        if run.best_ppl is None or ppl < run.best_ppl:
            run.best_ppl, run.best_step = ppl, run.step
        run.validations = int(run.progress * self.config.validations)
        run.last_validation_seconds = time.monotonic() - begun
        run.validation_seconds += run.last_validation_seconds
        self.count_seconds()
        return nll

    def _bigram_ppl(self) -> float:
        bigram = Bigram.fit(self.store, self.store.indices("train"))
        return bigram.evaluate(self.store, self._validation, max_tokens=self.config.validation_tokens).ppl

    def count_seconds(self) -> None:
        """Bring `run`'s clock and its peak memory up to date."""
        self.run.seconds, self.run.peak_memory = time.monotonic() - self._begun, peak_memory(self.device)

    def state(self) -> TrainingState:
        """All but the model's weights, by global lane; see `dsmr.training.state`.

        The tensors, not copied if they need not be, are on the first process only.
        """
        streams = self.world.gather(self.stream.state_dict())
        document = {
            "run": self.run.counters(),
            "store": self.store.digest,
            "config": asdict(self.config),
            "initial_weights": self.initial_weights,
            "ground": describe_ground(self.device, self.world.size),
            "stream": {**streams[0], "lanes": [lane for stream in streams for lane in stream["lanes"]]},
            "losses": list(self.watch.losses),
        }
        tensors = memory_tensors(self.memory) | optimizer_tensors(self.model, self.optimizer)
        return TrainingState(document, join_tensors(tensors, self.world))

    def load_state(self, state: TrainingState) -> None:
        """Go on from where `state` was taken, by any number of processes; whoever calls this restores the weights.

        Raises:
            ValueError: a state of another stream, memory or model.
        """
        run = Run.from_dict(state.document["run"])
        positions = run.step * self.config.accumulate * self.stream.segment
        if run.tokens != (tokens := positions * self.config.lanes):
            raise ValueError(f"tokens: expected {tokens} in {run.step} steps, got {run.tokens}")
        losses = state.document["losses"]
        if not isinstance(losses, list) or len(losses) != min(run.step, LOSS_WINDOW):
            raise ValueError(
                f"losses: expected those of the last {LOSS_WINDOW} of {run.step} steps, got {shown(losses)}"
            )
        if not all(isinstance(loss, float) and math.isfinite(loss) for loss in losses):
            raise ValueError(f"losses: expected finite numbers, got {shown(losses)}")
        initial_weights = state.document.get("initial_weights")
        if not isinstance(initial_weights, str | None):
            raise ValueError(f"initial_weights: expected a digest, got {shown(initial_weights)}")
        began_on = None if (found := state.document.get("ground")) is None else check_ground(found)
        self.stream.load_state_dict(state.document["stream"], positions)
        load_memory(self.memory, state.tensors, self.world.rank * self.memory.lanes)
        load_optimizer(self.model, self.optimizer, state.tensors, run.step)
        self.watch.losses.extend(losses)
        self.run, self.began_on, self.initial_weights = run, began_on, initial_weights
        self._can_afford_validation = self._affordable(run.progress, run.training_seconds)
        self._begun = time.monotonic() - self.run.seconds

    def _check(self, loss: float, norm: float, nll: Tensor, batches: Sequence[Batch]) -> None:
        step = f"step {self.run.step + 1}"
        if not (math.isfinite(loss) and math.isfinite(norm)):
            worst = self._worst(nll, batches)
            raise _diverged(f"{step}: expected a finite loss and gradient norm, got {loss}, {norm}; worst is {worst}")
        self.watch.add(loss)
        if self.watch.exploded:
            raise _diverged(
                f"{step}: expected the last {LOSS_WINDOW} steps to cost less than a nat more than knowing nothing "
                f"({self.watch.ignorance:.2f}), got {self.watch.excess:.2f} nats more; "
                f"worst is {self._worst(nll, batches)}"
            )

    def _worst(self, nll: Tensor, batches: Sequence[Batch]) -> str:
        """Of all processes."""
        own = describe_worst(nll, batches, self.store, self.world.rank * self.memory.lanes)
        found = self.world.gather((float(nll.max()), own))
        return str(max(found, key=lambda entry: (math.isnan(entry[0]), entry[0]))[1])


class _StoppedError(Exception):
    """Ends an evaluation in the middle."""


def _diverged(what: str) -> DivergedError:
    return DivergedError(f"{what}; try a lower learning rate. Checkpoints saved before are as they were")


def describe_worst(nll: Tensor, batches: Sequence[Batch], store: TokenStore, first_lane: int = 0) -> str:
    """Where the loss was highest (or not a number): lane and piece, for people.

    Args:
        nll: `[segments, B]`, as `accumulate_gradients` returns it for `batches`.
        batches: the segments.
        store: knows the pieces' names.
        first_lane: the number of lane 0 among the lanes of all processes.
    """
    number, lane = divmod(int(nll.argmax()), nll.shape[1])  # not a number counts as the largest
    pieces = sorted(set(batches[number].piece[lane].tolist()) - {-1})
    names = ", ".join(f"{index} ({store.pieces[index].title!r})" for index in pieces)
    loss = float(nll[number, lane])
    return f"lane {first_lane + lane}, piece{'s' * (len(pieces) > 1)} {names} with a loss of {loss:.4g}"


def perplexity(nll: float) -> float:
    """Exp of nats per token; infinite where a float ends."""
    return math.exp(nll) if nll < 700 else math.inf


def peak_memory(device: torch.device) -> int | None:
    """Bytes: of the GPU, else of the process where the system keeps count."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
