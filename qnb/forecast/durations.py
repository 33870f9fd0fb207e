"""How long jobs take: what their parameters explain, and how the remainder is spread. Pure.

The logarithm of a duration is a sum of effects (a trend over a parameter, or a value for each of
its levels) and a remainder. How strong each effect may be is judged by the evidence. What that
leaves open stays open: the effect of a parameter that has not changed yet, a trend beyond the
values seen. It then differs from path to path; a path is one way that things may be.

The remainder is spread as was seen, by Kaplan and Meier's estimate, in which a running job counts
as far as it has come. Beyond the longest seen is a tail, whose weight and reach are open too.

All that is drawn at random is drawn with fixed seeds: the same history gives the same forecast.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["PATHS", "Durations", "Effects", "Floats", "Places", "Spread", "fortunes"]

Floats: TypeAlias = NDArray[np.float64]
Places: TypeAlias = NDArray[np.int64]

PATHS: Final = 100

# Of effects. Their strength is in log duration: 1 is a factor of 2.7 up or down.
_STRENGTHS: Final = np.array([0.003, 0.3, 1.0, 2.5])
_CHANCES: Final = np.log([0.6, 0.2, 0.15, 0.05])  # of each strength, before anything was seen
_CURVED: Final = 0.12  # how strong the curvature of a trend is, to its slope
_LEVELS: Final = 16  # told apart, of one parameter
_BLOCK: Final = 64

# Of remainders.
_BINS: Final = 64
_LONGEST: Final = 16  # are not binned
_TABLE: Final = 256
_TAIL: Final = 0.3  # how many jobs longer than all that was seen are believed in unseen
_REACHES: Final = 12
_NEAR: Final = 0.3  # how much rather the tail is short
_FAR: Final = 20.0  # times the longest seen, at most on average, while it is like the others


# ---- what parameters may do ----

#: makes columns of numbers of a parameter's values
Columns: TypeAlias = Callable[[Sequence[Any]], Floats]


class Effects:
    """Turns points into rows of numbers: a column for each part of each effect."""

    def __init__(self, parameters: Mapping[str, Sequence[Any]]) -> None:
        """The values are those of all points, or of enough to see their range."""
        self._columns: list[tuple[str, Columns]] = []
        groups, weights = [-1], [1.0]
        for name, values in parameters.items():
            for columns, sizes in (_trend(values), _levels(values)):
                if columns is not None:
                    self._columns.append((name, columns))
                    groups += [max(groups) + 1] * len(sizes)
                    weights += sizes
        self.groups = np.array(groups)  #: the effect that a column is part of; -1: of none
        self.weights = np.array(weights)  #: how strong it may be, to others of its effect

    def rows(self, parameters: Mapping[str, Sequence[Any]], count: int) -> Floats:
        """A row for each of ``count`` points."""
        columns = [columns(parameters[name]) for name, columns in self._columns]
        return np.concatenate([np.ones((1, count)), *columns]).T


def _trend(values: Sequence[Any]) -> tuple[Columns | None, list[float]]:
    """Slope and curvature over a number, from -1 to 1; over its logarithm if it spans much."""
    if not all(isinstance(v, Real) and not isinstance(v, bool | np.bool_) for v in values):
        return None, []
    at = _numbers(values)
    low, high = float(np.nanmin(at, initial=np.inf)), float(np.nanmax(at, initial=-np.inf))
    if not low < high:
        return None, []
    logarithmic = low > 0 and high > 5 * low
    if logarithmic:
        low, high = math.log(low), math.log(high)

    def columns(values: Sequence[Any]) -> Floats:
        at = _numbers(values)
        if logarithmic:
            at = np.log(np.maximum(at, 1e-150))
        at = np.clip((2 * at - low - high) / (high - low), -1.5, 1.5)
        at = np.nan_to_num(at)
        return np.stack([at, (3 * at**2 - 1) / 2])

    return columns, [1.0, _CURVED]


def _numbers(values: Sequence[Any]) -> Floats:
    try:
        at = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):  # one is none, or beyond all floats
        at = np.array([_number(value) for value in values])
    return np.clip(at, -1e150, 1e150)


def _number(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return math.nan


def _levels(values: Sequence[Any]) -> tuple[Columns | None, list[float]]:
    """A column for each of its values, if they are few."""
    try:
        names = dict.fromkeys(values)
    except TypeError:  # one cannot be hashed
        return None, []
    if not 1 < len(names) <= _LEVELS:
        return None, []
    place = {name: at for at, name in enumerate(names)}
    count = len(place)

    def columns(values: Sequence[Any]) -> Floats:
        try:
            codes = np.array([place.get(value, count) for value in values])
        except TypeError:
            codes = np.full(len(values), count)
        found: Floats = (codes == np.arange(count)[:, None]).astype(np.float64)
        return found

    return columns, [1.0] * count


# ---- what they do ----


class Durations:
    """What the durations seen say of those to come."""

    def __init__(
        self, effects: Effects, rows: Floats, took: Floats, running: int, each: int
    ) -> None:
        """Points with these ``rows`` of ``effects`` took so long; so far, the last ``running``.

        Those that have ended are one of ``each`` as many.
        """
        self._draw = np.random.default_rng(7)
        self._groups, self._weights = effects.groups, effects.weights
        self._strengths = np.full(int(self._groups.max()) + 2, 2)
        self.noise = 0.3  #: how widely the bulk of the remainders is spread
        count = len(took) - running
        seen = np.log(np.maximum(took, 1e-6))
        self._centre = float(np.median(seen[:count]))
        seen -= self._centre
        fitted = np.zeros(len(seen))
        usual, weight = seen[:], np.append(np.ones(count), np.zeros(running))
        for _ in range(4):
            self._mean, freedom = self._fit(rows, usual, weight)
            fitted = rows @ self._mean
            self.noise = _width((seen - fitted)[:count], freedom)
            usual, weight = _pulling(seen, fitted, self.noise, count)
            weight[count:] /= each
        #: the remainders, from the shortest; as wide as if nothing had been fitted to them
        self.rest = np.sort((seen - fitted)[:count]) * math.sqrt(count / max(1.0, count - freedom))
        self._paths = self._drawn(rows, weight)
        shift = 0.7 * (self.noise + 1 / count) / math.sqrt(count)
        self._level = self._centre + shift * self._draw.standard_normal((PATHS, 1))

    def expected(self, rows: Floats) -> Floats:
        """The log durations of these points without their remainders, a row a path."""
        found = np.empty((PATHS, len(rows)))
        for at in range(0, len(rows), _BLOCK):
            found[:, at : at + _BLOCK] = self._paths @ rows[at : at + _BLOCK].T
        found += self._level
        return found

    def middle(self, rows: Floats) -> Floats:
        """The same for the path in the midst of all."""
        found: Floats = rows @ self._mean + self._centre
        return found

    def _fit(self, rows: Floats, usual: Floats, weight: Floats) -> tuple[Floats, float]:
        """The most likely effects, and how many of them were free to follow the data."""
        weighted = rows.T * (weight / self.noise**2)
        gram, moment = weighted @ rows, weighted @ usual
        for group in range(len(self._strengths) - 1):
            self._strengths[group] = self._evidence(gram, moment, group).argmax()
        posterior = gram + np.diag(self._prior(self._strengths))
        mean: Floats = np.linalg.solve(posterior, moment).astype(np.float64)
        return mean, float(np.trace(np.linalg.solve(posterior, gram)))

    def _drawn(self, rows: Floats, weight: Floats) -> Floats:
        """Effects as they may be, a row a path. All agree on the mean of what was seen."""
        gram = (rows.T * (weight / self.noise**2)) @ rows
        moment = gram @ self._mean + self._prior(self._strengths) * self._mean
        strengths = np.tile(self._strengths, (PATHS, 1))
        for group in range(len(self._strengths) - 1):
            strengths[:, group] = _apportioned(self._evidence(gram, moment, group), self._draw)
        posterior = gram + np.eye(len(gram)) * self._prior(strengths)[:, None, :]
        inverse = np.linalg.inv(np.linalg.cholesky(posterior))
        normal = self._draw.standard_normal((PATHS, len(gram), 1))
        paths: Floats = (inverse.swapaxes(1, 2) @ (inverse @ moment[:, None] + normal))[..., 0]
        paths[:, 0] -= (paths - self._mean) @ np.average(rows, axis=0, weights=weight)
        return paths

    def _prior(self, strengths: Places) -> Floats:
        """How surely each column is thought to do nothing."""
        sizes = _STRENGTHS[strengths[..., self._groups]] * self._weights
        found: Floats = np.where(self._groups < 0, 10.0, sizes) ** -2.0
        return found

    def _evidence(self, gram: Floats, moment: Floats, group: int) -> Floats:
        """How likely each strength of this effect is, in logarithms; the others as they are."""
        tried = np.tile(self._strengths, (len(_STRENGTHS), 1))
        tried[:, group] = np.arange(len(_STRENGTHS))
        prior = self._prior(tried)
        posterior = gram + np.eye(len(gram)) * prior[:, None, :]
        explained = np.linalg.solve(posterior, moment[:, None])[..., 0] @ moment
        sizes = np.linalg.slogdet(posterior)[1]
        found: Floats = _CHANCES + (np.log(prior).sum(axis=1) - sizes + explained) / 2
        return found


def _pulling(seen: Floats, fitted: Floats, noise: float, count: int) -> tuple[Floats, Floats]:
    """What the effects are fitted to and with which weights: ``count`` that ended, others running.

    A running job pulls upwards, the more the longer it runs: among the latest only the short ones
    have ended. What lies far off is moved nearer, or a straggler would be taken for an effect.
    """
    short = (seen - fitted)[count:] / noise
    hazard = _hazard(short)
    information = np.clip(hazard * (hazard - short), 1e-6, 1.0)
    pulled = np.append(seen[:count], fitted[count:] + noise * hazard / information)
    near = np.clip(pulled, fitted - 4 * noise, fitted + 4 * noise)
    return near, np.append(np.ones(count), information)


def _hazard(at: Floats) -> Floats:
    """How likely a normal variable that is not below ``at`` is right there."""
    density = [math.exp(-z * z / 2) / math.sqrt(2 * math.pi) for z in at.clip(-8, 8)]
    beyond = [math.erfc(z / math.sqrt(2)) / 2 for z in at.clip(-8, 8)]
    found: Floats = np.array(density) / np.array(beyond)
    return found


def _width(rest: Floats, freedom: float) -> float:
    """The standard deviation of the bulk, a little more while there are few."""
    bulk = 1.4826 * float(np.median(np.abs(rest - np.median(rest))))
    square = float(np.minimum(rest**2, 9 * max(bulk, 1e-3) ** 2).sum())
    return math.sqrt((square + 0.02) / max(1.0, len(rest) + 1 - freedom))


def _apportioned(likely: Floats, draw: np.random.Generator) -> Places:
    """A choice for each path, each as often as it is likely (in logarithms)."""
    chances = np.exp(likely - likely.max()).cumsum()
    at = (np.arange(PATHS) + 0.5) / PATHS
    return draw.permutation(np.searchsorted(chances[:-1] / chances[-1], at))


# ---- the remainder ----


class Spread:
    """The remainder of log durations, a row a path."""

    def __init__(self, rest: Floats, reached: Floats, noise: float, each: int) -> None:
        """``rest`` are those seen, sorted, one of ``each`` as many; ``reached`` is how far the
        running jobs have come. ``noise`` is the width of their bulk.
        """
        draw = np.random.default_rng(11)
        # each of the longest is an atom, the others are binned
        binned = max(0, len(rest) - _LONGEST)
        starts = np.arange(min(_BINS, binned)) * binned // max(1, min(_BINS, binned))
        starts = np.append(starts, np.arange(binned, len(rest)))
        ended = np.diff(starts, append=len(rest)).astype(np.float64)
        self._atoms = np.add.reduceat(rest, starts) / ended
        later = ended[::-1].cumsum()[::-1] - ended
        going = len(reached) - np.searchsorted(np.sort(reached), self._atoms)
        ends = draw.standard_gamma(ended, (PATHS, len(ended)))
        stays = draw.standard_gamma(later + going / each + _TAIL, (PATHS, len(ended)))
        self._ended = 1 - (stays / (ends + stays)).cumprod(axis=1)  # by each atom
        surpassed = float(np.expm1(np.maximum(reached - rest[-1], 0)).sum())
        self._further = _excess(rest, surpassed)
        apart = rest[-1] > np.median(rest) + 4 * noise
        most = self._further if apart else _FAR
        reaches = np.geomspace(min(max(noise, 0.05), most), most, _REACHES)
        likely = -surpassed / reaches - _NEAR * np.log(reaches)
        #: by how many times itself the longest is surpassed on average, if it is, in each path
        self._reach = reaches[_apportioned(likely, draw)]
        self._table = self._quantiles()

    def _quantiles(self) -> Places:
        """Which atom a number from 0 to 1 stands for, in each path; one more is the tail."""
        paths = np.arange(PATHS)[:, None]
        at = (np.arange(_TABLE) + 0.5) / _TABLE
        # one sorted row after the other, so that all are searched at once
        places = np.searchsorted((self._ended + paths).ravel(), (at + paths).ravel(), side="right")
        size = len(self._atoms)
        found: Places = np.clip(places.reshape(PATHS, _TABLE) - size * paths, 0, size)
        return found

    def draw(self, chance: Floats, beyond: Floats) -> Floats:
        """Remainders of jobs: ``chance`` is a number from 0 to 1, ``beyond`` one around 1 for how
        far it is into the tail.
        """
        columns = (chance * _TABLE).astype(np.int64)
        columns += np.arange(0, PATHS * _TABLE, _TABLE)[:, None]
        place = self._table.take(columns)
        found: Floats = self._atoms.take(place, mode="clip")
        path, job = np.nonzero(place == len(self._atoms))
        found[path, job] += np.log1p(self._reach[path] * beyond[path, job])
        return found

    def draw_further(self, reached: Floats, chance: Floats, beyond: Floats) -> Floats:
        """The same for jobs that have reached this and go on."""
        before = np.searchsorted(self._atoms, reached, side="right")
        ended = np.concatenate([np.zeros((PATHS, 1)), self._ended], axis=1)[:, before]
        found = self.draw(np.minimum(ended + (1 - ended) * chance, 1 - 1e-9), beyond)
        last = np.maximum(reached, self._atoms[-1])
        reach = np.minimum(self._reach[:, None] * np.exp(self._atoms[-1] - last), self._further)
        surpassed: Floats = np.where(found <= reached, last + np.log1p(reach * beyond), found)
        return surpassed

    def mean(self) -> Floats:
        """How many times as long as expected jobs take on average, in each path."""
        chance = np.broadcast_to((np.arange(_TABLE) + 0.5) / _TABLE, (PATHS, _TABLE))
        found: Floats = np.exp(self.draw(chance, fortunes(np.arange(_TABLE))[1])).mean(axis=1)
        return found


def _excess(rest: Floats, surpassed: float) -> float:
    """By how many times itself a long one is surpassed by the longer ones, on average."""
    longest = rest[-max(1, len(rest) // 10) :]
    most = rest[max(0, len(rest) - len(longest) - 1)]
    excess = float(np.expm1(longest - most).sum()) + surpassed
    return min(1.0, (excess + 1) / (len(longest) + 1))


_FORTUNES: Final = 1024


def fortunes(jobs: Places) -> tuple[Floats, Floats]:
    """What happens to these jobs by chance, a row a path: a number from 0 to 1, and one around 1.

    A job keeps its fortune from one estimate to the next, or these would jitter.
    """
    chance, beyond = _fortunes()
    at = jobs % _FORTUNES
    return chance.take(at, axis=1), beyond.take(at, axis=1)


@cache
def _fortunes() -> tuple[Floats, Floats]:
    draw = np.random.default_rng(5)
    even = np.tile((np.arange(PATHS) + 0.5) / PATHS, (_FORTUNES, 1)).T
    return draw.permuted(even, axis=0), -np.log(draw.permuted(even, axis=0))
