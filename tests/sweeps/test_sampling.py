from __future__ import annotations

import sys
from collections import Counter
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from qnb.errors import InvalidOption
from qnb.sweeps.designs import grid
from qnb.sweeps.sampling import METHODS, Method, sample

_methods = st.sampled_from(list(METHODS))


def test_every_method_has_its_name() -> None:
    assert get_args(Method) == tuple(METHODS)


@settings(max_examples=30)
@given(
    st.integers(1, 70), _methods, st.integers(0, 2**64), st.integers(-50, 50), st.integers(1, 99)
)
def test_a_sample_is_seeded_in_range_and_of_the_type_of_its_range(
    n: int, method: Method, seed: int, low: int, width: int
) -> None:
    def draw(seed: int) -> Any:
        return sample(
            n, method=method, seed=seed,
            whole=(low, low + width), real=(low, low + width + 0.5), pick=["a", None], fixed="x",
        )  # fmt: skip

    design = draw(seed)
    assert len(design) == n
    assert list(design) == list(draw(seed))
    for point in design:
        assert type(point["whole"]) is int
        assert low <= point["whole"] <= low + width
        assert type(point["real"]) is float
        assert low <= point["real"] <= low + width + 0.5
        assert point["pick"] in ("a", None)
        assert point["fixed"] == "x"
    assert design.names == ("whole", "real", "pick", "fixed")


@pytest.mark.parametrize("method", METHODS)
def test_another_seed_gives_other_points(method: Method) -> None:
    drawn = [list(sample(8, method=method, seed=seed, x=(0.0, 1.0))) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("method", ["sobol", "halton", "random"])
def test_a_larger_sample_keeps_the_points_of_the_smaller(method: Method) -> None:
    small, large = (sample(n, method=method, x=(0.0, 1.0), y=[1, 2, 3]) for n in (21, 50))
    assert large[:21] == list(small)


def test_sobol_is_balanced_on_every_side_and_pair_of_sides() -> None:
    design = sample(64, a=(1, 4), b=["u", "v", "w", "x"], c=(0.0, 1.0))
    assert Counter(p["a"] for p in design) == dict.fromkeys(range(1, 5), 16)  # both ends included
    assert Counter(p["b"] for p in design) == dict.fromkeys("uvwx", 16)
    assert sum(p["c"] < 0.5 for p in design) == 32
    assert set(Counter((p["c"] < 0.5, p["a"] < 3) for p in design).values()) == {16}


def test_a_latin_hypercube_has_one_point_in_each_row_of_each_parameter() -> None:
    design = sample(10, method="lhs", a=(0, 9), b=(0.0, 10.0))
    assert sorted(p["a"] for p in design) == list(range(10))
    assert sorted(int(p["b"]) for p in design) == list(range(10))


@pytest.mark.parametrize(
    "choices", [np.array([1, 2]), range(1, 3), pd.Series([1, 2]), pd.Index([1, 2]), [1, 2]]
)
def test_choices_may_be_any_sequence_or_array(choices: Any) -> None:
    assert Counter(type(p["a"]) for p in sample(4, a=choices)) == {int: 4}
    assert {p["a"] for p in sample(4, a=choices)} == {1, 2}


@pytest.mark.parametrize("method", METHODS)
def test_frozen_distributions_are_followed(method: Method) -> None:
    design = sample(256, method=method, rate=stats.loguniform(1e-4, 1e-1), z=stats.norm(5, 2))
    rates, z = (np.array(column) for column in design.columns().values())
    assert 1e-4 <= rates.min() < 2e-4 < 5e-2 < rates.max() <= 1e-1
    assert abs(np.median(z) - 5) < 0.6
    assert np.isfinite(z).all()
    assert stats.kstest(z, stats.norm(5, 2).cdf).pvalue > 1e-3


def test_discrete_distributions_give_whole_numbers_and_new_style_ones_serve() -> None:
    design = sample(16, k=stats.randint(0, 4), z=stats.Normal(mu=1.0, sigma=2.0))
    assert Counter(p["k"] for p in design) == dict.fromkeys(range(4), 4)
    assert {type(p["k"]) for p in design} == {int}
    assert {type(p["z"]) for p in design} == {float}


def test_a_sample_combines_with_other_designs() -> None:
    design = sample(4, x=(0.0, 1.0)) * grid(seed=[0, 1], method="fast")
    assert len(design) == 8
    assert design[0]["x"] == design[1]["x"]
    assert [p["seed"] for p in design[:2]] == [0, 1]


class _OnlyRandom:
    def rvs(self) -> float:
        return 0.0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sample(0, a=(0, 1)), "n=0: expected.*≥ 1"),
        (lambda: sample(2.0, a=(0, 1)), "n=2.0"),  # type: ignore[arg-type]
        (lambda: sample(True, a=(0, 1)), "n=True"),
        (lambda: sample(4, method="sobel", a=(0, 1)), "'sobel'.*lhs, random. Did you mean 'sobol'"),  # type: ignore[arg-type]
        (lambda: sample(4, method=[1, 2], a=(0, 1)), r"grid\(method="),  # type: ignore[arg-type]
        (lambda: sample(4, seed=None, a=(0, 1)), "seed=None: expected.*same points"),  # type: ignore[arg-type]
        (lambda: sample(4, seed=range(3), a=(0, 1)), r"qnb.sample\(...\) \* qnb.grid\(seed=...\)"),  # type: ignore[arg-type]
        (lambda: sample(4, seed=-1, a=(0, 1)), "seed=-1"),
        (lambda: sample(4), "nothing varies"),
        (lambda: sample(4, a=3), "nothing varies"),
        (lambda: sample(4, a=(1, 0)), r"a=\(1, 0\): expected \(low, high\) with low < high"),
        (lambda: sample(4, a=(1, 1)), "a constant is written bare"),
        (lambda: sample(4, a=(0, float("inf"))), "both finite"),
        (lambda: sample(4, a=(float("nan"), 1)), "both finite"),
        (lambda: sample(4, a=(0, 10**400)), "both finite"),
        (lambda: sample(4, a=(1, 2, 3)), r"Write choices as a list: a=\[1, 2, 3\]"),
        (lambda: sample(4, a=("u", "v")), r"a=\['u', 'v'\]"),
        (lambda: sample(4, a=(False, True)), r"a=\[False, True\]"),
        (lambda: sample(4, a=[]), "a=.*an axis without values"),
        (lambda: sample(4, a={1, 2}), "a=.*a set has no order"),
        (lambda: sample(4, a=stats.norm([0, 1, 2, 3])), "a=.*where one finite number was expected"),
        (lambda: sample(4, a=stats.norm(0, -1)), "a=.*nan.*Freeze it with one number"),
        (lambda: sample(4, a=stats.gamma), "a=.*it failed.*Freeze it"),
        (lambda: sample(4, a=_OnlyRandom()), "a=.*only draws at random"),
        (lambda: sample(4, **{"a b": (0, 1)}), "'a b' cannot name a parameter"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_cannot_be_sampled_is_refused_with_the_remedy(make: Any, message: str) -> None:
    with pytest.raises(InvalidOption, match=message):
        make()


def test_without_scipy_random_still_works_and_the_others_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats.qmc", None)
    assert len(sample(3, method="random", a=(0, 1))) == 3
    with pytest.raises(InvalidOption, match=r"pip install 'scipy>=1.15', or use method='random'"):
        sample(3, a=(0, 1))
