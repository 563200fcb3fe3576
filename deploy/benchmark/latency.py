"""Latency: interleaved bursts of separate processes, so noise affects all candidates equally."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segdeploy.benchmark.failure import Failure
from segdeploy.benchmark.process import Candidate, Process, started
from segdeploy.benchmark.rounds import Answers, burst, first_error, take_turns
from segdeploy.benchmark.worker import STAGES
from segdeploy.errors import InputError
from segdeploy.ledger import Ledger

# Bounds of the number of rounds, and rounds per second of timing. Clock rates vary from second to
# second: the ratios of two runs differed by 8 % with seven long rounds, by 2 % with fifty short.
_FEWEST, _MOST, _A_SECOND = 10, 50, 10
SECONDS = 5.0
_CALLS_PACED = 2
_DRAWS = 2000


@dataclass(frozen=True)
class Ratio:
    """Speed-up over the reference, with a 95 % bootstrap interval over the rounds.

    `is_clear` is False if the interval contains 1: the run shows no significant difference.
    """

    speedup: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the difference in speed is significant."""
        return self.low > 1 or self.high < 1


@dataclass(frozen=True)
class Latency:
    """Latency of one network call at batch 1 in ms, its stages, and the cost of loading.

    Median and percentiles are of the network call alone. `stages_ms` holds the medians of
    preprocessing, network call and postprocessing to labels. `device_ms` holds the medians of the
    copies and the computation inside the call, measured on the device if the runtime supports it.
    `scale_ms` holds the median of each scale of a loop. `standard_error_ms` is the standard error
    of the rounds' medians. `stable` is False if the warm-up ended by its time limit. With `fps`,
    the calls were paced.
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
    ledger: Ledger | None = None,
    identities: Sequence[str] = (),
    on_burst: Callable[[int, int], None] = lambda done, total: None,
) -> list[Latency | Failure]:
    """Time all candidates in rounds of one burst per candidate; the first is the reference.

    `seconds` is the total duration of each candidate; each round has at least two calls. With `fps`
    there are only as many rounds as that pace allows. With `threads`, a process is pinned to as
    many cores where the system allows it. A candidate whose process fails is left out of the
    following rounds.
    """
    rounds = max(_FEWEST, min(_MOST, int(seconds * _A_SECOND)))
    if fps is not None:
        rounds = max(2, min(rounds, int(seconds * fps / _CALLS_PACED)))
    with started(candidates, threads) as workers:
        bursts = take_turns(
            workers,
            rounds,
            burst(seconds / rounds, fps=fps),
            ledger=Ledger(None, "") if ledger is None else ledger,
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
    if (refused := first_error(bursts)) is not None:
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
    """Return the medians in ms of durations by name; None without measurements."""
    if not found:
        return None
    return {name: float(np.median([one[name] for one in found]) * 1e3) for name in found[0]}


def _medians(bursts: Answers) -> NDArray[np.float64]:
    return np.array([np.median(burst["times"]["network"]) * 1e3 for burst in bursts])


def ratio_of(reference: NDArray[np.float64], candidate: NDArray[np.float64]) -> Ratio:
    """Return the median speed-up over the rounds, with its bootstrap interval.

    Within a round both networks ran shortly after each other. The ratio therefore cancels the clock
    rate and load of the machine.
    """
    ratios = reference / candidate
    rng = np.random.default_rng(0)
    draws = np.median(ratios[rng.integers(0, len(ratios), (_DRAWS, len(ratios)))], axis=1)
    low, high = np.quantile(draws, [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high))
