"""What `make table` writes: complete, equal to the records, quick, and the same each time."""

import copy
import csv
import shutil
import time
from itertools import product

import numpy as np
import pytest

from callkit import records, tables
from callkit.__main__ import main
from callkit.statistics import paired

RECORDS = records.load_records()


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    began = time.process_time()  # not the clock's: other tests run beside it
    main(["table", "--out", str(folder)])
    assert time.process_time() - began < 60
    return folder


def rows(path):
    with path.open() as f:
        return list(csv.DictReader(f))


def test_every_record_is_in_the_long_table(written):
    found = rows(written / "records.csv")
    assert {r["file"] for r in found} == {r["file"] for r in RECORDS}
    for r in RECORDS[:: len(RECORDS) // 10]:
        mine = {x["split"]: x for x in found if x["file"] == r["file"]}
        assert mine.keys() == r["metrics"].keys()
        assert float(mine["few"]["fid"]) == r["metrics"]["few"]["fid"]


def test_methods_are_set_against_each_other_at_unequal_steps():
    family = records.by_steps(records.studies(RECORDS))["digits-ir50-cpu"]
    by_split = tables.other_steps(family, "call", 3_000, "ddpm", 4_500)
    assert by_split.keys() == {"many", "medium", "few", "overall"}
    fid = {
        steps: {
            r["run"]["seed"]: r["metrics"]["few"]["fid"]
            for r in RECORDS
            if (r["run"]["dataset"], r["run"]["imbalance_ratio"], r["run"]["method"]) == ("digits", 50, method)
            and r["run"]["overrides"] == {"steps": steps}
        }
        for steps, method in ((3_000, "call"), (4_500, "ddpm"))
    }
    few = by_split["few"]
    assert few.seeds == [0, 1, 2, 3, 4]
    assert few.values == pytest.approx([fid[3_000][s] / fid[4_500][s] for s in few.seeds])


def test_scores_and_differences_are_recomputed_by_hand(written):
    fid = {}
    for method in ("ddpm", "call"):
        found = records.load_records(
            dataset="digits", imbalance_ratio=50, profile="cpu", method=method, weights="theta", overrides={},
            guidance_scale=1,
        )  # fmt: skip
        fid[method] = {r["run"]["seed"]: r["metrics"]["few"]["fid"] for r in found}
    (call,) = (
        r for r in rows(written / "digits-ir50-cpu-scores.csv")
        if (r["method"], r["weights"], r["guidance"]) == ("call", "theta", "1")
    )  # fmt: skip
    values = list(fid["call"].values())
    assert call["few FID"] == f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"
    (row,) = (
        r for r in rows(written / "digits-ir50-cpu-differences.csv")
        if (r["method"], r["weights"], r["guidance"], r["split"]) == ("call", "theta", "1", "few")
    )  # fmt: skip
    both = sorted(fid["call"].keys() & fid["ddpm"].keys())
    ratio = np.exp(np.mean([np.log(fid["call"][s] / fid["ddpm"][s]) for s in both]))
    difference = np.mean([fid["call"][s] - fid["ddpm"][s] for s in both])
    assert row["seeds"] == str(len(both)) and row["baseline"] == "ddpm theta"
    assert row["FID ratio [95 %]"].startswith(f"{ratio:.3g} [")
    assert row["FID difference [95 %]"].startswith(f"{difference:.3g} [")


def test_every_table_is_markdown_and_csv_and_every_figure_png_and_svg(written):
    names = {suffix: {p.stem for p in written.glob(f"*.{suffix}")} for suffix in ("md", "csv", "png", "svg")}
    assert names["csv"] - {"records"} == names["md"] - {"all"} and names["png"] == names["svg"]
    for study in records.studies(RECORDS):
        comparable = sum(w["weights"] == "theta" for w in tables.variants(study)) > 1  # a lone one differs from nothing
        assert (f"{study.name}-differences" in names["csv"]) == comparable
        assert {f"{study.name}-scores", f"{study.name}-claims"} <= names["csv"]
    for name in ("methods", "against-ddpm", "variants", "guidance", "distance", "divergence"):
        assert f"digits-ir50-cpu-{name}" in names["svg"]
    assert {f"paper-table{n}" for n in records.PAPER_TABLES} <= names["md"]
    assert "diverged at step" in (written / "all.md").read_text()


def test_gains_set_call_against_its_own_base_loss_where_enough_seeds_have_both():
    """On made records: a base loss scores 10, 20 and 30, with CALL on top a fifth less, give or take a hundredth."""

    def made(method, seed, scale=1.0, overrides=(), weights="theta"):
        record = copy.deepcopy(next(r for r in RECORDS if r["file"] == "digits-ir50-oc-cpu-seed0-theta.json"))
        record["run"] |= {"method": method, "seed": seed, "weights": weights, "overrides": dict(overrides)}
        record["run"] |= {"guidance_scale": scale}
        fid = (7.8 + 0.1 * seed if "call" in method else 10) * seed
        record["metrics"] = {s: scores | {"fid": fid} for s, scores in record["metrics"].items()}
        return record

    seeds, found = (1, 2, 3), []
    found += [made(m, s) for m in ("ddpm", "call") for s in seeds]
    found += [made(m, s, 1.5) for m in ("oc", "oc-call") for s in seeds]
    found += [made("oc", s) for s in seeds] + [made("oc-call", s) for s in seeds[:2]]  # too few
    found += [made("call", s, overrides={"lam": 0.5}) for s in seeds]  # another method
    found += [made("call", s, weights="theta_g") for s in seeds]
    for another_study in ({"redraw": True}, {"cooldown": 50}):
        found += [made(m, s, overrides=another_study) for m in ("ddpm", "call") for s in seeds]
    rows = tables.gain_rows(tables.gains(records.studies(found)))
    assert [r.pop("where") for r in rows] == [
        "digits-ir50, 6,000 steps",
        "digits-ir50, 6,000 steps, on OC, guided 1.5",
        "digits-ir50, 6,000 steps, other images",
        "digits-ir50, 6,000 steps, falling rate",
    ]
    logs = np.log([0.79, 0.8, 0.81])
    half = 4.303 * logs.std(ddof=1) / 3**0.5
    words = "{:#.3g} [{:#.3g}, {:#.3g}]".format(*np.exp([logs.mean(), logs.mean() - half, logs.mean() + half]))
    ratio = {"CALL / base on Few": words, "CALL / base overall": words}
    # OC scores what DDPM does; of DDPM at 1.5, and with lam=0.5, there is nothing
    assert (
        rows
        == [{"seeds": 3, "verdict, Few": "better", "verdict, overall": "better", "base / DDPM on Few": "1"} | ratio] * 4
    )
    # of the scales of OC the one at which it is best, 1.5 by far if it scores a tenth there
    found += [made("oc-call", 3)]
    for r in found:
        if r["run"]["method"] == "oc" and r["run"]["guidance_scale"] == 1.5:
            r["metrics"]["few"]["fid"] /= 10 + r["run"]["seed"]
    best = tables.at_best_scale(tables.gains(records.studies(found)))
    assert [*map(str, best)] == ["digits-ir50, 6,000 steps, on OC, guided 1.5"]
    found = found[:-1]
    (axes,) = tables.gain_figure(tables.gains(records.studies(found))).axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == [
        *("digits-ir50, 6,000 steps (n = 3)", "on OC, guided 1.5 (n = 3)"),
        *("other images (n = 3)", "falling rate (n = 3)"),
    ]


def test_a_row_of_ratios_is_that_of_the_seeds_that_pair():
    study = records.find_study(records.studies(RECORDS), "digits", 50, "cpu")
    call, ddpm = study.select("call"), study.select("ddpm")[:3]
    row = tables.ratio_row(call, ddpm)
    assert row == {"seeds": 3} | {
        s.capitalize(): paired(call, ddpm, s, ratio=True).words() for s in ("many", "medium", "few", "overall")
    }
    assert tables.ratio_row([], ddpm)["seeds"] == 0


def with_steps(record, steps):
    """As if the run had been trained for so long, and ten times better for it."""
    other = copy.deepcopy(record)
    other["run"] |= {"steps": steps, "overrides": record["run"]["overrides"] | {"steps": steps}}
    for scores in other["metrics"].values():
        scores["fid"] /= 10
    return other


def test_settings_that_are_not_calls_are_the_baselines_too():
    words = {"method": "call", "weights": "theta", "guidance_scale": 1, "overrides": {"lam": 0.5, "flip": True}}
    assert tables.plain(words, "ddpm")["overrides"] == {"flip": True}
    some = [r for r in RECORDS if r["run"]["method"] in ("ddpm", "call") and r["run"]["dataset"] == "digits"][:6]
    held = copy.deepcopy(some)
    for r in held:
        r["run"]["overrides"] = r["run"]["overrides"] | {"held_out": 0.1}
    assert len(records.studies(some + held)) == 2 * len(records.studies(some)), "other images, another study"


def test_studies_that_differ_in_training_steps_alone_make_a_family(tmp_path):
    digits = records.find_study(records.studies(RECORDS), "digits", 50, "cpu").records
    some = [r for r in digits if r["run"]["method"] in ("ddpm", "call")]
    longer = [with_steps(r, 12_000) for r in some]
    found = records.studies(some + longer + [with_steps(r, 500) for r in some])
    assert {n: [*f] for n, f in records.by_steps(found).items()} == {"digits-ir50-cpu": [500, 6_000, 12_000]}
    assert sorted(s.records[0]["run"]["steps"] for s in records.ends(found)) == [6_000, 12_000]
    assert [[*f] for f in records.by_steps(records.studies(some)).values()] == [[6_000]]
    once = [r for r in digits if r["run"]["method"] == "rs"]
    (family,) = records.by_steps(records.studies(some + longer + once)).values()
    curves, against = tables.steps_figures(family).values()
    ddpm = next(line for line in curves.axes[2].lines if line.get_label() == "DDPM")
    fid = [r["metrics"]["few"]["fid"] for r in family[6_000].select("ddpm")]
    assert ddpm.get_xdata().tolist() == [6_000, 12_000]
    assert ddpm.get_ydata() == pytest.approx([np.mean(fid), np.mean(fid) / 10])
    labels = [t.get_text() for t in against.axes[0].get_yticklabels()]
    assert [x.partition(" (")[0] for x in labels] == ["CALL, 6,000 steps", "CALL, 12,000 steps"], "RS has one number"
    tables.write(some + longer, [], tmp_path)
    assert (tmp_path / "digits-ir50-cpu-steps-against-ddpm.svg").exists()
    assert (tmp_path / "digits-ir50-cpu-methods.svg").exists(), "the study that has the family's name"


@pytest.mark.parametrize("few", [True, False])
def test_two_classes_have_tables_and_figures_without_medium(few, tmp_path):
    """And without Few, if that has one image."""

    def of_two(record):
        other = copy.deepcopy(record)
        other["metrics"] = {k: v for k, v in record["metrics"].items() if "medium" not in k}
        other["metrics"]["class-9"]["fid"] = None  # too few images
        if not few:
            other["metrics"]["few"]["fid"] = None
        del other["training"]["curve"]["distance_medium"]
        return other

    some = [of_two(r) for r in RECORDS if r["run"]["method"] in ("ddpm", "call") and r["run"]["dataset"] == "digits"]
    tables.write(some, [], tmp_path)
    drawn = tables.figures(records.find_study(records.studies(some), "digits", 50, "cpu"))
    for name in ("methods", "guidance"):
        assert [axes.get_title() for axes in drawn[name].axes] == ["Many", "Few"][: 1 + few]
    assert (tmp_path / "gains.csv").exists() == few
    verdicts = {(r["source"], r["expected"]): r["verdict"] for r in rows(tmp_path / "digits-ir50-cpu-claims.csv")}
    assert verdicts["Figure 2", "CALL < DDPM, Medium"] == "not tested"
    assert verdicts["Table 5", "CALL < DDPM"] != "not tested"
    assert (verdicts["Abstract, Figure 2", "CALL < DDPM, Few"] == "not tested") != few


def test_the_same_records_give_the_same_bytes(written, tmp_path):
    some = [r for r in RECORDS if r["run"]["method"] in ("ddpm", "call", "oc")]
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        tables.write(some, [], folder)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes(), path.name


def test_without_the_repository_there_are_tables_of_the_records_alone(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    for method, seed in product(("ddpm", "call"), range(3)):
        shutil.copy(records.results_folder() / f"digits-ir50-{method}-cpu-seed{seed}-theta.json", tmp_path / "runs")
    monkeypatch.setattr(records, "REPOSITORY", tmp_path / "site-packages")
    main(["table", str(tmp_path / "runs"), "--out", str(tmp_path / "out")])
    of_the_study = {f"digits-ir50-cpu-{name}" for name in ("scores", "differences")}
    assert {p.stem for p in (tmp_path / "out").glob("*.csv")} == {"records", "gains", *of_the_study}
    said = capsys.readouterr().out
    assert "no tables of the paper's claims and numbers: these are in the repository" in said and "6 records ->" in said


def test_no_records_is_an_error_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match="error: no records in"):
        main(["table", str(tmp_path), "--out", str(tmp_path / "out")])


def test_diverged_runs_alone_make_tables(tmp_path):
    written = tables.write([], records.load_records(diverged=True)[:1], tmp_path)
    assert tmp_path / "all.md" in written and "diverged at step" in (tmp_path / "all.md").read_text()
