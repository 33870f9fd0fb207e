"""Points drawn from ranges, choices and distributions: spread evenly, or at random.

The unit cube is sampled first, a side for each parameter that varies; each side is then stretched
onto what was given for its parameter. So a method knows nothing of distributions, and they nothing
of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, Final, Literal, TypeAlias

from qnb.errors import InvalidOption
from qnb.options import hint
from qnb.sweeps.axes import Constant, axis, check_names, short
from qnb.sweeps.designs import Columns, Design

__all__ = ["METHODS", "Method", "sample"]

Method = Literal["sobol", "halton", "lhs", "random"]
Side: TypeAlias = Sequence[float]  # of the unit cube: numbers from 0 up to, not including, 1
Stretch: TypeAlias = Callable[[Side], list[Any]]

#: each method and its engine in ``scipy.stats.qmc``
METHODS: Final = {"sobol": "Sobol", "halton": "Halton", "lhs": "LatinHypercube", "random": ""}

_EDGE: Final = 2.0**-32  # nearer to 0 or 1 a normal distribution is at its infinite ends
_FREEZE: Final = "Freeze it with one number for each parameter, as in scipy.stats.gamma(2.0)"


def sample(n: int, /, *, method: Method = "sobol", seed: int = 0, **distributions: Any) -> Design:
    """``n`` points; the same seed gives the same points.

    A distribution is a range ``(low, high)`` (of whole numbers if both are: then ``high`` is
    included), a list or array of choices, equally likely, or a frozen distribution of
    ``scipy.stats``. A single value is a constant.

    ``"sobol"`` and ``"halton"`` cover the space evenly, ``"lhs"`` each parameter by itself
    (a Latin hypercube); ``"sobol"`` does best with a power of two. But for ``"lhs"``, a larger
    ``n`` keeps the points there were and adds to them.
    """
    _check(n, method, seed)
    check_names(distributions)
    sides = {name: _stretch(name, given) for name, given in distributions.items()}
    varying = [name for name, side in sides.items() if not isinstance(side, Constant)]
    if not varying:
        raise InvalidOption(
            f"a sample of {n:,} points in which nothing varies: give at least one parameter a "
            "range (low, high), a list of choices, or a distribution of scipy.stats"
        )
    cube = dict(zip(varying, _cube(n, len(varying), method, seed), strict=True))
    columns = [
        side if isinstance(side, Constant) else side(cube[name]) for name, side in sides.items()
    ]
    return Columns(sides, columns, n)


def _check(n: object, method: object, seed: object) -> None:
    if not _is_whole(n, least=1):
        raise InvalidOption(f"n={n!r}: expected how many points to draw, a whole number ≥ 1")
    apart = "qnb.sample(...) * qnb.grid({}=...) gives the function an argument of that name"
    if not isinstance(method, str) or method not in METHODS:
        near = hint(method, METHODS) if isinstance(method, str) else ""
        raise InvalidOption(
            f"method={short(method)}: expected one of {', '.join(METHODS)}.{near} "
            f"({apart.format('method')})"
        )
    if not _is_whole(seed, least=0):
        raise InvalidOption(
            f"seed={short(seed)}: expected a whole number ≥ 0, so that the cell run again means "
            f"the same points ({apart.format('seed')})"
        )


def _is_whole(value: object, *, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


# ---- the unit cube ----


def _cube(n: int, sides: int, method: str, seed: int) -> list[Side]:
    """A column of ``n`` numbers for each side."""
    import numpy as np

    random = np.random.default_rng(int(seed))
    if method == "random":
        cube = random.random((n, sides))
    else:
        engine = _engine(method, sides, random)
        # Sobol warns of other lengths than powers of two; the first n of one are the same points.
        cube = engine.random(2 ** (n - 1).bit_length() if method == "sobol" else n)[:n]
    return [column.tolist() for column in cube.T]


def _engine(method: str, sides: int, random: Any) -> Any:
    try:
        qmc = importlib.import_module("scipy.stats.qmc")
        return getattr(qmc, METHODS[method])(sides, rng=random)
    except (ImportError, TypeError) as error:  # before scipy 1.15 there was no rng=
        raise InvalidOption(
            f"method={method!r} needs scipy 1.15 or newer, which is not here ({error}): install "
            "it with pip install 'scipy>=1.15', or use method='random'"
        ) from error


# ---- from a side to values ----


def _stretch(name: str, given: Any) -> Stretch | Constant:
    """How numbers from 0 to 1 become values of ``name``."""
    quantiles = getattr(given, "ppf", None) or getattr(given, "icdf", None)
    if callable(quantiles):
        _quantiles(name, given, quantiles, 0.5)
        return lambda side: _quantiles(name, given, quantiles, side)
    if callable(getattr(given, "rvs", None)):
        raise InvalidOption(
            f"{name}={short(given)}: a distribution that only draws at random cannot be spread "
            "evenly: give one with ppf, as the frozen ones of scipy.stats have"
        )
    if isinstance(given, tuple):
        return _range(name, given)
    choices = axis(name, given)
    if isinstance(choices, Constant):
        return choices
    return lambda side: [choices[int(at * len(choices))] for at in side]


def _range(name: str, given: tuple[Any, ...]) -> Stretch:
    if len(given) != 2 or not all(isinstance(v, Real) and not isinstance(v, bool) for v in given):
        raise InvalidOption(
            f"{name}={short(given)}: a tuple is a range of numbers, (low, high). "
            f"Write choices as a list: {name}={short(list(given))}"
        )
    whole = all(isinstance(v, Integral) for v in given)
    low, high = map(int if whole else float, given)
    if not low < high or not high - low < sys.float_info.max:
        raise InvalidOption(
            f"{name}={given!r}: expected (low, high) with low < high, both finite; a constant is "
            "written bare"
        )
    if whole:
        count = int(high - low) + 1
        return lambda side: [low + min(int(at * count), count - 1) for at in side]
    return lambda side: [min(low + at * (high - low), high) for at in side]


def _quantiles(name: str, given: Any, quantiles: Callable[[Any], Any], at: Any) -> list[Any]:
    """The values of a distribution at these of its quantiles; whole numbers if it is discrete."""
    import numpy as np

    at = np.clip(at, _EDGE, 1 - _EDGE)
    try:
        values = np.asarray(quantiles(at))
        sound = values.shape == at.shape and np.isfinite(values).all()
    except Exception as error:
        raise InvalidOption(f"{name}={short(given)}: it failed with: {error}. {_FREEZE}") from error
    if not sound:
        raise InvalidOption(
            f"{name}={short(given)}: it gives {short(values)} where one finite number was expected."
            f" {_FREEZE}"
        )
    discrete = hasattr(given, "pmf") and not hasattr(given, "pdf")
    return [int(value) for value in values.flat] if discrete else values.astype(float).tolist()
