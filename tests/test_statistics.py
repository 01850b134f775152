"""Intervals and tests over seeds, against scipy."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from callkit import records
from callkit.statistics import holm, mean_interval, paired, sign_flip_p

RNG = np.random.default_rng(0)


def record(seed, fid, **run):
    """As much of a record as pairing looks at."""
    words = dict(dataset="digits", imbalance_ratio=50, profile="cpu", steps=6000, class_counts=[5, 1], seed=seed)
    return {
        "file": f"seed{seed}",
        "run": words | run,
        "sampling": {"sampler": "ddim", "steps": 50},
        "evaluation": {"extractor_sha256": "0" * 64, "generated_images": 3000, "reference": "all"},
        "metrics": {"few": {"fid": fid}},
        "config": {},
    }


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_interval_of_a_mean_is_scipys(n):
    values = RNG.normal(3, 2, n)
    mean, *ends = mean_interval(values)
    assert mean == pytest.approx(values.mean())
    assert ends == pytest.approx(stats.t.interval(0.95, n - 1, loc=values.mean(), scale=stats.sem(values)))


def test_interval_of_one_value_or_none_has_no_ends():
    assert mean_interval([2.0])[0] == 2 and np.isnan(mean_interval([2.0])[1:]).all()
    assert np.isnan(mean_interval([])).all()
    assert mean_interval([2.0, 2.0]) == (2, 2, 2)


def test_the_interval_covers_the_mean_as_often_as_it_says():
    draws = np.random.default_rng(1).normal(size=(4000, 3))
    intervals = [mean_interval(row) for row in draws]
    covered = np.mean([i.low <= 0 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=3 * (0.95 * 0.05 / 4000) ** 0.5)


@pytest.mark.parametrize("n", [2, 3, 6, 10])
def test_sign_flips_are_counted(n):
    d = RNG.normal(0.5, 1, n)
    means = [abs(np.mean(d * signs)) for signs in itertools.product((1, -1), repeat=n)]
    assert sign_flip_p(d) == np.mean([m >= means[0] * (1 - 1e-9) for m in means])


def test_of_many_differences_some_sign_flips_are_drawn():
    d = RNG.normal(0.3, 1, 40)
    assert sign_flip_p(d) == pytest.approx(stats.ttest_1samp(d, 0).pvalue, rel=0.3) and sign_flip_p(d) == sign_flip_p(d)


def test_sign_flips_have_a_smallest_p():
    assert (
        sign_flip_p([-3]) == 1
        and sign_flip_p([1, 2]) == 0.5
        and sign_flip_p([1, 2, 3]) == 0.25
        and sign_flip_p([1] * 6) == 2**-5
        and sign_flip_p([0, 0]) == 1
    )
    with pytest.raises(ValueError, match="no difference to test"):
        sign_flip_p([])


def test_paired_is_scipys_paired_t_test():
    a, b = RNG.uniform(10, 40, (2, 5))
    ours, baseline = ([record(s, v) for s, v in enumerate(x)] for x in (a, b))
    found = paired(ours[::-1], baseline, "few")
    expected = stats.ttest_rel(a, b)
    assert found.values == pytest.approx(a - b) and found.p == pytest.approx(expected.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval()))
    found = paired(ours, baseline, "few", ratio=True)
    expected = stats.ttest_rel(np.log(a), np.log(b))
    assert found.values == pytest.approx(a / b) and found.p == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx(stats.gmean(a) / stats.gmean(b))
    assert (found.low, found.high) == pytest.approx(tuple(np.exp(expected.confidence_interval())))
    assert found.p_exact == sign_flip_p(np.log(a / b))


def test_only_seeds_that_both_have_are_paired():
    found = paired([record(0, 1.0), record(2, 6.0)], [record(2, 4.0), record(3, 1.0)], "few")
    assert found.seeds == [2] and found.values == [2] and found.words() == "2.00" and found.p_exact == 1
    assert paired([record(0, 1.0)], [], "few").words() == "" == paired([], [], "few", ratio=True).words()


def test_two_seeds_have_an_interval_and_a_p_unless_they_are_alike():
    found = paired([record(0, 3.0), record(1, 5.0)], [record(0, 2.0), record(1, 2.0)], "few")
    assert found.words() == f"2.00 [{2 - stats.t.ppf(0.975, 1):.1f}, {2 + stats.t.ppf(0.975, 1):.1f}]"
    assert found.p == pytest.approx(stats.ttest_1samp([1, 3], 0).pvalue)
    alike = paired([record(0, 3.0), record(1, 3.0)], [record(0, 2.0), record(1, 2.0)], "few")
    assert alike.words() == "1.00 [1.000, 1.000]" and np.isnan(alike.p)


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.001, 0.999))
def test_holm_rejects_what_the_closed_test_of_bonferroni_does(p, level):
    """Independent definition: reject i if every set of hypotheses with i in it holds one p below level / its size."""
    subsets = [s for n in range(len(p)) for s in itertools.combinations(range(len(p)), n + 1)]
    rejected = [all(min(p[j] for j in s) <= level / len(s) for s in subsets if i in s) for i in range(len(p))]
    adjusted = holm(p)
    near = [abs(len(s) * min(p[j] for j in s) - level) < 1e-9 for s in subsets]
    assume(not any(near))  # where rounding decides
    assert [a <= level for a in adjusted] == rejected


def test_holm_on_numbers_worked_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.6]) == pytest.approx([1, 1]) and holm([]) == []


def test_what_does_not_pair_is_an_error():
    with pytest.raises(ValueError, match="two records of one seed"):
        paired([record(0, 1.0), record(0, 2.0)], [record(0, 1.0)], "few")


def test_runs_of_other_lengths_pair_only_where_that_is_asked_for():
    pair = [record(0, 1.0, steps=4000)], [record(0, 4.0)]
    with pytest.raises(ValueError, match=r"differ in run\.steps"):
        paired(*pair, "few")
    assert paired(*pair, "few", ratio=True, other_steps=True).values == pytest.approx([0.25])
    pair[0][0]["sampling"]["steps"] = 10
    with pytest.raises(ValueError, match=r"differ in sampling\.steps"):
        paired(*pair, "few", other_steps=True)


@pytest.mark.parametrize(
    ("part", "key"),
    [
        *(("run", key) for key in ("dataset", "imbalance_ratio", "profile", "steps", "class_counts")),
        *(("sampling", key) for key in ("sampler", "steps")),
        *(("evaluation", key) for key in ("extractor_sha256", "generated_images", "reference")),
        ("config", "redraw"),
        ("config", "image_size"),
    ],
)
def test_records_that_differ_in_what_decides_a_score_do_not_pair(part, key):
    other = record(0, 1.0)
    other[part][key] = "another"
    with pytest.raises(ValueError, match=rf"seed0 and seed0 differ in {part}\.{key}: they do not pair"):
        paired([other], [record(0, 1.0)], "few")


def test_the_first_records_had_the_usual_data():
    other = record(0, 1.0)
    other["config"] = {"image_size": None, "redraw": False}
    assert paired([other], [record(0, 1.0)], "few").seeds == [0]


def test_real_records_pair():
    words = dict(dataset="digits", imbalance_ratio=50, profile="cpu", overrides={}, guidance_scale=1, weights="theta")
    ddpm, call = (records.load_records(method=m, **words) for m in ("ddpm", "call"))
    found = paired(call, ddpm, "few", ratio=True)
    assert found.seeds[:3] == [0, 1, 2] and found.low < found.mean < found.high
    few = [{r["run"]["seed"]: r["metrics"]["few"]["fid"] for r in x} for x in (call, ddpm)]
    assert found.values == pytest.approx([few[0][s] / few[1][s] for s in found.seeds])
    with pytest.raises(ValueError, match="two records of one seed"):
        paired(call, records.load_records(method="ddpm", **words | {"guidance_scale": 1.5}) * 2)
