"""The rule that turns records into verdicts, and that the claims are what the grids run."""

import copy
import json
import sys
from glob import glob

import pytest
from hypothesis import given
from hypothesis import strategies as st

from callkit import claims, data, records, tables
from callkit.claims import VERDICTS, Part, runs, verdict, whole
from callkit.config import make_config
from callkit.statistics import Paired, paired

sys.path += [str(records.REPOSITORY / folder) for folder in ("sweeps", "benchmarks")]
import evidence as evidence_of
import grid

RECORDS = records.load_records()
STUDIES = records.studies(RECORDS, records.load_records(diverged=True))


def ratio(*values, low=float("nan"), high=float("nan")) -> Paired:
    return Paired(list(range(len(values))), list(values), float("nan"), low, high, float("nan"), float("nan"))


@pytest.mark.parametrize(
    ("found", "expected", "said"),
    [
        (ratio(0.8, 0.8, 0.9, low=0.7, high=0.95), "lower", "supported"),
        (ratio(0.8, 0.8, 0.9, low=0.7, high=0.95), "higher", "reversed"),
        (ratio(0.5, 0.8, 0.9, low=0.4, high=1.3), "lower", "direction only"),
        (ratio(1.5, 1.2, 1.1, low=0.9, high=1.8), "lower", "opposite direction"),
        (ratio(0.8, 0.9, low=0.7, high=0.95), "lower", "too few seeds"),
        (ratio(0.8), "lower", "too few seeds"),
        (ratio(0.8), "higher", "too few seeds"),
        (ratio(0.5, 0.8, 1.1, low=0.4, high=1.3), "lower", "not supported"),
        (ratio(), "lower", "not tested"),
        (ratio(1.01, 0.99, 1.0, low=0.95, high=1.05), "equal", "supported"),
        (ratio(1.01, 0.99, 1.0, low=0.85, high=1.15), "equal", "direction only"),
        (ratio(1.01, 0.99, 1.2, low=0.7, high=1.3), "equal", "not supported"),
        (ratio(1.5, 1.4, 1.6, low=1.3, high=1.7), "equal", "reversed"),
        (ratio(0.8, 0.8, 0.9, low=0.7, high=0.95), "no higher", "supported"),
        (ratio(0.8, 0.8, 1.0, low=0.7, high=1.2), "no higher", "direction only"),
    ],
)
def test_verdict(found, expected, said):
    assert verdict(found, expected) == said


@given(st.lists(st.sampled_from(VERDICTS)))
def test_a_claim_is_as_good_as_its_worst_part(verdicts):
    said = whole(verdicts)
    waiting = {"too few seeds", "not tested"}
    tested, against = set(verdicts) - waiting, {"opposite direction", "reversed"}
    assert (said == "supported") == (set(verdicts) == {"supported"})
    assert (said == "supported in part") == (tested == {"supported"} and bool(waiting & set(verdicts)))
    assert (said == "reversed") == (tested == {"reversed"})
    assert (said == "opposite direction") == ("opposite direction" in tested and tested <= against)
    assert (said == "not tested") == (set(verdicts) <= {"not tested"})
    assert (said == "too few seeds") == (not tested and "too few seeds" in verdicts)
    mixed = bool(tested & against) and not tested <= against
    assert (said == "not supported") == (mixed or ("not supported" in tested and not tested & against))
    assert (said == "direction only") == ("direction only" in tested and tested <= {"supported", "direction only"})


def test_a_part_reads_the_records_it_names():
    (study,) = (s for s in STUDIES if s.name == "digits-ir50-cpu")
    part = Part(runs("call", "theta_g"), "higher", runs("call"), "few")
    assert part.words() == "CALL θᵍ > CALL, Few"
    assert (
        Part(runs("oc", scale=2.5), "no higher", runs("call", scale=2.5, lam=0.5)).words()
        == "OC ≲ CALL, lam=0.5, at 2.5"
    )
    assert Part(runs("call", rank=0.2), "lower", runs("ddpm", rank=0.2)).words() == "CALL < DDPM, rank=0.2"
    ours, baseline = claims.files(part, study).split()
    seeds = part.ratio(study).seeds
    for pattern, weights in ((ours, "theta_g"), (baseline, "theta")):
        braces = "{" + ",".join(map(str, seeds)) + "}"
        assert pattern == f"digits-ir50-call-cpu-seed{braces}-{weights}.json"
        found = glob(str(records.results_folder() / pattern.replace(braces, "?")))
        assert {records.read_record(f)["run"]["seed"] for f in found} >= set(seeds)


def test_a_verdict_follows_the_records():
    """The same claim with Few of theta^g made as good as theta's: no longer supported."""
    (claim,) = (c for c in claims.of("cpu") if c.name == "split-pattern")
    (study,) = (s for s in STUDIES if s.name == "digits-ir50-cpu")
    assert claims.rows(claim, study)[-1]["verdict"] == "supported"
    changed = copy.deepcopy(study.records)
    for r in changed:
        if r["run"]["weights"] == "theta_g":
            r["metrics"]["few"]["fid"] = 30.0
    changed = records.Study(study.name, changed, [])
    assert claims.rows(claim, changed)[-1]["verdict"] in ("not supported", "direction only")


def test_the_papers_ratio_stands_beside_ours():
    assert claims.in_paper(Part(runs("call"), "lower", runs("ddpm"))) == f"{9.281 / 10.163:.2f}"  # Table 5
    assert (
        claims.in_paper(Part(runs("call"), "lower", runs("ddpm"), "few")) == f"{18.729 / 22.188:.2f}"
    )  # Table 4, on OC
    ends = 22.776 / 27.083, 7.193 / 8.007  # over Tables 1 to 3: the smallest is CIFAR-10's
    found = claims.in_paper(Part(runs("oc-call"), "lower", runs("ddpm"))).split(" to ")
    assert found == [f"{7.372 / 10.216:.2f}", f"{ends[1]:.2f}"] and float(found[0]) < ends[0] < ends[1]
    without = claims.in_paper(Part(runs("call", diversity=0.0), "higher", runs("call")))
    assert without == f"{8.073 / 7.519:.2f}"
    assert claims.in_paper(Part(runs("call", lam=0.5), "higher", runs("call"))) == ""


def test_claims_about_networks_follow_their_measurements(monkeypatch, tmp_path):
    rows = {row["source"]: row for row in claims.measured()}
    assert all(row["verdict"] in VERDICTS for row in rows.values())
    folder = records.REPOSITORY / "benchmarks"
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("evidence", "speed", "speed-paper")}
    for ways in found["evidence"]["pruning"].values():
        for by in ways.values():
            by["correlation"] = 0.9
    found["evidence"]["repairs"]["theta_g + a number per class"]["few"] = 1.0
    found["speed-paper"]["ratios"]["sample, merged"] = 1.2
    (tmp_path / "benchmarks").mkdir()
    for name, value in found.items():
        (tmp_path / "benchmarks" / f"{name}.json").write_text(json.dumps(value))
    monkeypatch.setattr(records, "REPOSITORY", tmp_path)
    verdicts = [row["verdict"] for row in claims.measured()]
    assert verdicts == ["direction only", "not supported", "not supported"]


def test_a_measurement_can_be_made_again():
    evidence = json.loads((records.REPOSITORY / "benchmarks" / "evidence.json").read_text())
    real = data.load_long_tailed("digits", 50)
    made = evidence_of.pruned(real.train, evidence["draws"])["layer"]
    assert made["correlation"] == pytest.approx(
        evidence["pruning"]["training images"]["layer"]["correlation"], abs=0.05
    )
    for split, scores in evidence_of.copies(real).items():
        assert scores["fid"] == pytest.approx(evidence["copies"][split]["fid"], rel=0.01), split


def test_studies_keep_apart_what_cannot_be_compared():
    plain = [r for r in RECORDS if r["run"]["dataset"] == "digits" and not r["run"]["overrides"]][:3]
    small = copy.deepcopy(plain[:1])
    small[0]["run"]["overrides"] = {"image_size": 8, "lam": 0.5}
    other = copy.deepcopy(plain[:1])
    other[0]["evaluation"]["extractor"] = "lite0"
    found = {s.name: s for s in records.studies(plain + small + other)}
    base = records.studies(plain[:1])[0].name
    assert set(found) == {base, f"{base}-lite0", f"{base}-image_size=8"}
    method = small[0]["run"]["method"]
    words = dict(weights=small[0]["run"]["weights"], guidance_scale=small[0]["run"]["guidance_scale"])
    assert found[f"{base}-image_size=8"].select(method, {"lam": 0.5}, **words) == small
    digits = records.find_study(STUDIES, "digits", 50, "cpu")
    assert digits.name == "digits-ir50-cpu" and {r["run"]["dataset"] for r in digits.records} == {"digits"}
    with pytest.raises(
        ValueError, match=r"no records of cifar10 as cifar10-irnatural-paper; there are .*digits-ir50-cpu"
    ):
        records.find_study(STUDIES, "cifar10", None, "paper")


def test_folders_of_one_name_are_studies_of_their_own():
    def records_of(folder):
        found = copy.deepcopy(records.find_study(STUDIES, "digits", 50, "cpu").select("ddpm"))
        for r in found:
            r["run"]["dataset"], r["evaluation"]["extractor"] = f"imagefolder:{folder}/train", "lite0"
        found += copy.deepcopy(found)
        for r in found[: len(found) // 2]:
            r["run"]["method"] = "call"
        return found

    birds, cars = map(records_of, ("birds", "cars"))
    assert [s.name for s in records.studies(birds)] == ["imagefolder-train-ir50-cpu"]
    both = records.studies(birds + cars)
    words = "imagefolder-train-ir50-cpu-imagefolder%3A{}%2Ftrain".format
    assert {s.name: s.records for s in both} == {words("birds"): birds, words("cars"): cars}
    assert records.find_study(both, "imagefolder:cars/train", 50, "cpu").records == cars
    gains = [f"imagefolder:{folder}/train-ir50, 6,000 steps" for folder in ("birds", "cars")]
    assert [*map(str, tables.gains(both))] == gains
    with pytest.raises(ValueError, match="on imagefolder:birds/train, imagefolder:cars/train: select one dataset"):
        paired(birds + cars, cars)
    with pytest.raises(ValueError, match="no records of imagefolder:cars/train as imagefolder-train-ir50-cpu; there"):
        records.find_study(records.studies(birds), "imagefolder:cars/train", 50, "cpu")


@pytest.mark.parametrize(
    ("dataset", "ratio", "profile", "grids"),
    [
        ("digits", 50, "cpu", ("digits-study", "digits-guided")),
        ("cifar100", 100, "paper", ("table1", "fig2", "table4", "table5", "fig4", "fig5")),
    ],
)
def test_the_grids_hold_every_run_of_every_claim(dataset, ratio, profile, grids):
    have = []
    for name in grids:
        found = grid.load(name)
        have += [(c, scale) for c in found.runs.values() for scale in found.guidance_scales]
    for claim in claims.of(profile):
        assert bool(claim.parts) == (claim.name not in ("celeba", "fine-tuning"))
        for part in claim.parts:
            for side in (part.ours, part.baseline):
                overrides = {k: tuple(v) if isinstance(v, list) else v for k, v in side["overrides"].items()}
                wanted = make_config(dataset, ratio, side["method"], profile, 0, **overrides)
                assert (wanted, side["guidance_scale"]) in have, (claim.name, side)


def test_the_paper_s_ratio_is_of_the_same_comparison_unless_asked_for_that_on_oc():
    table = [r for r in records.paper_table(5) if r["metric"] == "fid" and not r["overrides"]]
    fid = {(r["method"], r["split"]): r["mean"] for r in table}
    ours = claims.Part(claims.runs("call"), "lower", claims.runs("ddpm"))
    assert claims.paper_ratios(ours) == [fid["call", "overall"] / fid["ddpm", "overall"]]
    assert fid["oc-call", "overall"] / fid["ddpm", "overall"] in claims.paper_ratios(ours, "oc-call")
    few = claims.Part(claims.runs("call"), "lower", claims.runs("ddpm"), "few")
    assert claims.paper_ratios(few) == [] and len(claims.paper_ratios(few, "oc-call")) == 1
    assert claims.in_paper(few) == f"{claims.paper_ratios(few, 'oc-call')[0]:.2f}"


def test_the_predictions_part_where_d_on_few_first_passes_the_mark():
    curve = {"step": [50, 100, 150, 200], "distance_few": [None, 0.009, 0.02, 0.005]}
    assert records.parted_at(curve) == 150
    assert records.parted_at(curve | {"distance_few": [None, 0.0, 0.01, 0.01]}) is None


def test_means_are_compared_over_the_seeds_that_all_have():
    def of(*seeds):
        return [{"run": {"seed": s}} for s in seeds]

    def same(*groups, **options):
        return list(records.same_seeds(dict(enumerate(groups)), **options).values())

    assert same(of(0, 1, 2, 3), of(4, 2, 1, 0), of(7, 1)) == [of(0, 1, 2), of(2, 1, 0), of(1)]
    assert same(of(0, 1), of(1), []) == [of(0, 1), of(1), []]  # nobody has three
    assert same(of(0, 1), of(1), at_least=1) == [of(1), of(1)]
    assert same() == []
