"""Latency: each candidate in its own process, bursts interleaved, so that noise hits all alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.journal import Journal
from segdeploy.benchmark.process import Candidate, Failure, Process, started
from segdeploy.benchmark.rounds import Answers, burst, refusal, take_turns
from segdeploy.benchmark.worker import STAGES
from segdeploy.errors import InputError

# A machine's clock moves from second to second, and seven long rounds told two runs' ratios apart
# by 8 %; fifty short ones do by 2 %.
_FEWEST, _MOST, _A_SECOND = 10, 50, 10
SECONDS = 5.0
_CALLS_PACED = 2
_DRAWS = 2000


@dataclass(frozen=True)
class Ratio:
    """How many times as fast as the reference; 95 % of resampled rounds lie in between.

    `is_clear` is False where the interval holds 1: this run can see no difference.
    """

    speedup: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether one of the two is faster."""
        return self.low > 1 or self.high < 1


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one call of the network at batch 1, its stages apart, and what loading cost.

    The figures are of the network's call alone; `stages_ms` are medians of preprocessing, that
    call, and postprocessing to labels; `device_ms` those of the copies and the computation inside
    the call, by the device's own clock, where the runtime tells them. `scale_ms` are medians of
    each scale of a loop, by scale. `standard_error_ms` is that of the rounds' medians. `stable` is
    False where warming up ended by its bound. With `fps` the calls were paced.
    """

    median_ms: float
    p90_ms: float
    p99_ms: float
    standard_error_ms: float
    calls: int
    round_medians_ms: tuple[float, ...]
    stages_ms: dict[str, float]
    load_s: float
    first_ms: float
    peak_mib: int
    stable: bool
    fps: float | None = None
    ratio: Ratio | None = None
    device_ms: dict[str, float] | None = None
    scale_ms: dict[str, float] | None = None


def measure_latencies(
    candidates: Sequence[Candidate],
    *,
    seconds: float = SECONDS,
    threads: int | None = None,
    fps: float | None = None,
    journal: Journal | None = None,
    identities: Sequence[str] = (),
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latency | Failure]:
    """Time all candidates in rounds of one burst each; the first is the reference.

    `seconds` are those of a candidate in all, or two calls a round, if that is longer. At a pace
    of `fps` there are no more rounds than that leaves time for. With `threads` a process is pinned
    to as many cores, where the system allows it. A candidate whose process fails is left out of the
    rounds that follow.
    """
    rounds = max(_FEWEST, min(_MOST, int(seconds * _A_SECOND)))
    if fps is not None:
        rounds = max(2, min(rounds, int(seconds * fps / _CALLS_PACED)))
    with started(candidates, threads) as workers:
        bursts = take_turns(
            workers,
            rounds,
            burst(seconds / rounds, fps=fps),
            journal=journal or Journal(None, ""),
            identities=identities or [one.name for one in candidates],
            on_burst=on_burst,
        )
        return [
            worker
            if isinstance(worker, Failure)
            else _ended(worker, held, None if index == 0 else bursts[0], fps)
            for index, (worker, held) in enumerate(zip(workers, bursts, strict=True))
        ]


def _ended(
    worker: Process, bursts: Answers, reference: Answers | None, fps: float | None
) -> Latency | Failure:
    if (refused := refusal(bursts)) is not None:
        return Failure(refused)
    try:
        peak = worker.ask({"end": True})["peak_mib"]
    except InputError as error:
        return Failure(str(error))
    return _summary(bursts, reference, {**worker.ready, "peak_mib": peak}, fps)


def _summary(
    bursts: Answers, reference: Answers | None, known: dict[str, Any], fps: float | None
) -> Latency:
    medians = _medians(bursts)
    stages = {
        stage: np.concatenate([burst["times"][stage] for burst in bursts]) * 1e3 for stage in STAGES
    }
    calls = stages["network"]
    ratio = None
    if reference is not None and len(reference) == len(bursts) and "times" in reference[0]:
        ratio = ratio_of(_medians(reference), medians)
    return Latency(
        median_ms=float(np.median(calls)),
        p90_ms=float(np.percentile(calls, 90)),
        p99_ms=float(np.percentile(calls, 99)),
        standard_error_ms=float(medians.std(ddof=1) / np.sqrt(len(medians)))
        if len(medians) > 1
        else 0.0,
        calls=len(calls),
        round_medians_ms=tuple(float(one) for one in medians),
        stages_ms={stage: float(np.median(times)) for stage, times in stages.items()},
        load_s=known["load_s"],
        first_ms=known["first_ms"],
        peak_mib=known["peak_mib"],
        stable=known["stable"],
        fps=fps,
        ratio=ratio,
        device_ms=_each([burst["device"] for burst in bursts if "device" in burst]),
        scale_ms=_each([known["scales"]] if known["scales"] else []),
    )


def _each(found: list[dict[str, float]]) -> dict[str, float] | None:
    """Medians in ms of times by name; None where nothing was told."""
    if not found:
        return None
    return {name: float(np.median([one[name] for one in found]) * 1e3) for name in found[0]}


def _medians(bursts: Answers) -> NDArray[np.float64]:
    return np.array([np.median(burst["times"]["network"]) * 1e3 for burst in bursts])


def ratio_of(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Ratio:
    """The median over rounds of a speed-up, and its bootstrap interval.

    Within a round both ran a moment apart, under the same clock and load, which a ratio takes out.
    """
    ratios = reference / candidate
    rng = np.random.default_rng(0)
    draws = np.median(ratios[rng.integers(0, len(ratios), (_DRAWS, len(ratios)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))
