from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from bench.cli import cli
from bench.errors import BenchError
from bench.matrix.cards import CARDS, CONTEXT_BYTES, Card
from bench.tables.choice import Chooser, seeds_needed
from bench.tables.contrasts import Sample, difference, estimates
from bench.tables.evidence import ACCURACY, SPEED, gather, resampled_accuracy, resampling
from bench.tables.load import load_results
from bench.tables.recommend import read_limit, read_margin, recommend
from bench.tables.recommend_text import describe, show_recommendation, to_json
from benchmarks.simulated import TOKENS_PER_S, answers

from .evidences import BASELINE, QUIET, Noise, SimulatedCell, evidence, simulated
from .examples import H100, NF4, quality, record, training, write_result

FP16 = {"compute_dtype": "float16", "load_dtype": "float16"}
HELD = {"load_peak_allocated_bytes": 1e9, "load_peak_reserved_bytes": 1.1e9}


def cell(cell_id, number=0, **truth):
    """A cell of its own key; accuracy, log_speed and peak_bytes as a `SimulatedCell` has them."""
    return SimulatedCell(cell_id, {"lora_r": 2 * number + 2, **truth.pop("parameters", {})}, **truth)


def runs(cell_id, *, seeds=(0, 1, 2), accuracy=0.85, tokens_per_s=100.0, peak=3e9, measures=None, **fields):
    """Records of one cell with next to no noise; none in the accuracy that is usual, so that two such cells agree."""
    noise = 1e-6 * np.random.default_rng([*cell_id.encode()]).standard_normal((2, max(seeds) + 1))
    return [
        record(
            cell_id,
            seed,
            measures={
                **NF4,
                **training(peak, tokens_per_s * (1 + noise[0, seed]), 0.1),
                **quality(accuracy + (accuracy != 0.85) * noise[1, seed]),
                **(measures or {}),
            },
            **fields,
        )
        for seed in seeds
    ]


def of_records(folder, *cells, baseline="base", **options):
    records = [entry for entries in cells for entry in entries]
    return recommend(gather(load_results(write_result(folder / "r", records, baseline=baseline))), **options)


def outcomes(found):
    return {one.id: one.outcome for one in (*filter(None, [found.winner]), *found.others)}


def needed(gap, seeds_variance, examples_variance, comparisons):
    (count,) = seeds_needed(*(np.array([value]) for value in (gap, seeds_variance, examples_variance)), comparisons)
    return None if np.isnan(count) else int(count)


def text(found, width=80):
    console = Console(width=width, highlight=False, record=True, file=None)
    with console.capture() as captured:
        show_recommendation(found, console)
    return captured.get()


def test_the_fastest_cell_within_the_margin_wins_and_a_faster_one_that_lost_accuracy_does_not():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3, accuracy=0.849), cell("lossy", 2, log_speed=0.5, accuracy=0.7))
    found = recommend(evidence(cells, seeds=range(6), examples=2000, noise=QUIET), margin=1.0)
    assert found.answered
    assert found.winner.id == "fast"
    assert found.second.id == "lora-bf16"
    assert outcomes(found)["lossy"] == "lost"
    assert found.second.speed_change_percent == pytest.approx(100 * (np.exp(-0.3) - 1), abs=0.1)
    lossy = found.others[-1]
    assert lossy.difference_low_points < -15 < lossy.difference_high_points < -1.0
    lines = [line.text for line in describe(found)]
    assert lines[0] == "fast: the fastest cell that is within 1 point of the best accuracy"
    assert lines[1] == "speeds: measured on NVIDIA H100 80GB HBM3"
    assert any(line.startswith("lossy: accuracy lost: −1") for line in lines)  # noqa: RUF001


def test_with_few_seeds_it_refuses_and_names_what_is_shown_so_far():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3))
    one = recommend(evidence(cells, seeds=[0], examples=400), margin=0.5)
    assert not one.answered
    assert (one.winner.id, one.seeds_needed) == (one.best, None)
    assert "too few runs: 1 seed" in text(one)
    three = recommend(evidence(cells, seeds=range(3), examples=3000, random_seed=4), margin=1.0)
    (doubt,) = three.doubts
    assert not three.answered
    assert doubt.difference_low_points < -1.0 or doubt.difference_high_points > 1.0
    assert three.seeds_needed > 3
    assert f"--add-seeds {three.seeds_needed - 3}" in " ".join(text(three).split())


def test_more_seeds_decide_what_few_left_open():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3))
    decided = [
        recommend(evidence(cells, seeds=range(count), examples=2000, random_seed=7), margin=1.5).answered
        for count in (3, 30)
    ]
    assert decided == [False, True]


def again(gathered, cells, examples, generator, noise=None):
    """Yield evidence whose accuracies and speeds are drawn anew, by the model of `simulated`."""
    noise, weights, seeds = noise or Noise(), resampling(examples), len(gathered.seeds)
    tested = gathered.examples[0]
    log_speed = np.log(TOKENS_PER_S) + np.array([[cell.log_speed] for cell in cells])
    while True:
        (sums,) = answers([cell.accuracy for cell in cells], seeds, examples, noise, generator)
        after = np.where(sums > 0, tested.truth, -1).reshape(-1, examples)
        accuracy = resampled_accuracy(replace(tested, predicted_after=after), weights).reshape(-1, len(cells), seeds)
        speed = log_speed + noise.log_speed_run * generator.standard_normal((len(cells), seeds))
        means = {"accuracy_after": accuracy[0].mean(axis=1), "tokens_per_s": np.exp(speed).mean(axis=1)}
        samples = {ACCURACY.name: Sample(accuracy[0].astype(float), accuracy[1:]), SPEED.name: Sample(speed)}
        yield replace(gathered, cells=gathered.cells.assign(**means), samples={**gathered.samples, **samples})


def test_a_faster_cell_that_is_outside_the_margin_is_named_in_5_percent_of_results_at_most():
    """Barely outside, where it is named most often."""
    margin, examples, tries = 2.0, 200, 200
    cells = (BASELINE, cell("outside", 1, log_speed=0.3, accuracy=BASELINE.accuracy - margin / 100 - 0.001))
    gathered = evidence(cells, seeds=range(4), examples=examples)
    results = islice(again(gathered, cells, examples, np.random.default_rng(0)), tries)
    choices = [Chooser(one).choose(None, margin) for one in results]
    named = sum(choice.answered and choice.winner == 1 for choice in choices)
    assert named <= 0.05 * tries, f"named in {named} of {tries}"


def test_the_number_of_seeds_that_it_names_decides_in_most_cases():
    """A plan from variances as good as known, held against how often there then is an answer."""
    margin, examples, tries = 4.0, 200, 50
    cells = (BASELINE, cell("fast", 1, log_speed=0.3))
    generator = np.random.default_rng(0)
    noise = Noise(run=0.15)
    few = evidence(cells, seeds=range(4), examples=examples)
    first = islice(again(few, cells, examples, generator, noise), tries)
    found = [estimates(one.samples[ACCURACY.name], [difference(1, 0)]) for one in first]
    variances = [100**2 * np.mean([one[part] for one in found]) for part in ("seeds_variance", "examples_variance")]
    count = needed(margin, *variances, 1)
    more = evidence(cells, seeds=range(count), examples=examples)
    results = islice(again(more, cells, examples, generator, noise), tries)
    settled = sum(Chooser(one).choose(None, margin).answered for one in results)
    assert 0.7 * tries <= settled <= 0.96 * tries, f"{settled} of {tries} with {count} seeds"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((1.0, 0.0, 0.0, 1), 3),
        ((0.1, 1.0, 0.1, 1), None),  # the examples alone leave more open
        ((1.0, float("nan"), 0.0, 1), None),
        ((float("nan"), 1.0, 0.0, 1), None),
    ],
)
def test_seeds_are_named_only_where_they_help(arguments, expected):
    assert needed(*arguments) == expected


def test_more_seeds_are_needed_for_more_noise_and_for_more_comparisons():
    counts = [needed(1.0, variance, 0.01, comparisons) for variance, comparisons in ((1, 1), (4, 1), (4, 20))]
    assert counts == sorted(counts)
    assert counts[0] < counts[2]


def test_too_few_test_examples_are_told_with_the_margin_that_they_bear():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3))
    found = recommend(evidence(cells, seeds=range(5), examples=150), margin=0.1)
    assert not found.answered
    assert found.seeds_needed is None
    assert found.doubts[0].margin_points > 0.1
    assert "150 test examples are too few to tell" in " ".join(text(found).split())


def test_of_cells_that_are_not_shown_to_differ_in_speed_the_thriftiest_wins():
    cells = (BASELINE, cell("large", 1, peak_bytes=5 * 10**9, log_speed=0.2), cell("small", 2, log_speed=0.2))
    found = recommend(evidence(cells, seeds=range(4), examples=1000, noise=QUIET), margin=2.0)
    assert found.answered
    assert found.winner.id == "small"
    assert set(found.tied) == {"small", "large"}
    assert found.comparisons_count == (2 if found.best == "small" else 3)
    assert "not shown to differ in speed: large" in text(found)


def test_a_slower_cell_that_may_be_much_better_keeps_the_best_of_the_means_from_being_an_answer(tmp_path):
    noisy = [
        record("noisy", seed, measures={**NF4, **training(3e9, 10.0, 0.1), **quality(accuracy)})
        for seed, accuracy in enumerate((0.75, 0.85, 0.92))
    ]
    found = of_records(tmp_path, runs("base"), noisy, margin=1.0)
    assert not found.answered
    assert [(doubt.id, doubt.reason, doubt.against) for doubt in found.doubts] == [("noisy", "better", "base")]


def test_a_cell_with_too_few_seeds_stands_back_unless_it_is_faster(tmp_path):
    slow = runs("slow", seeds=(0,), accuracy=0.9, tokens_per_s=10.0)
    assert of_records(tmp_path, runs("base"), slow).answered
    fast = of_records(tmp_path, runs("base"), runs("fast", seeds=(0, 1), tokens_per_s=900.0))
    assert [(doubt.id, doubt.reason) for doubt in fast.doubts] == [("fast", "quality")]
    assert "too few runs: 2 seeds" in text(fast)


def test_a_difference_that_is_the_same_in_every_seed_has_no_interval_and_leaves_the_choice_open(tmp_path):
    exact = [
        [record(name, seed, measures={**NF4, **training(3e9, speed, 0.1), **quality(accuracy)}) for seed in range(3)]
        for name, speed, accuracy in (("base", 100.0, 0.85), ("b", 90.0, 0.84))
    ]
    found = of_records(tmp_path, *exact)
    assert [(doubt.id, doubt.reason, doubt.seeds_needed) for doubt in found.doubts] == [("b", "better", None)]
    shown = " ".join(text(found).split())
    assert "−1.0 points; the same in every seed, so that nothing tells how sure it is" in shown  # noqa: RUF001
    assert "with more seeds (qlora-bench run MATRIX --add-seeds 1)" in shown


def test_failed_cells_lose_and_say_how(tmp_path):
    failed = [
        *runs("partly", seeds=(0, 1), tokens_per_s=900.0),
        *runs("partly", seeds=(2,), status="oom", phase="train"),
    ]
    crashed = [*runs("again", tokens_per_s=50.0), *runs("again", seeds=(3,), status="crashed", phase="load")]
    found = of_records(tmp_path, runs("base"), failed, crashed)
    assert found.winner.id == "base"
    assert outcomes(found) == {"base": "best", "partly": "failed", "again": "within"}
    assert "partly: failed: oom in train" in text(found)


def test_when_all_cells_failed_none_is_recommended(tmp_path):
    found = of_records(tmp_path, runs("base", status="crashed", phase="start"), runs("b", status="oom", phase="train"))
    assert (found.winner, found.answered, found.second, found.changes) == (None, False, None, ())
    assert text(found).startswith("No cell can be recommended: none ended with figures to compare")


def test_without_quality_there_is_nothing_to_choose_by(tmp_path):
    random = [runs(name, parameters={"weights": "random"}) for name in ("base", "other")]
    with pytest.raises(BenchError, match="random weights have no accuracy; run a matrix with pretrained weights"):
        of_records(tmp_path, *random)


def test_one_cell_alone_is_the_answer(tmp_path):
    found = of_records(tmp_path, runs("base", seeds=(0,)))
    assert found.answered
    assert (found.winner.id, found.comparisons_count, found.others) == ("base", 0, ())
    assert text(found).startswith("base: the only cell there is")


def test_speeds_of_other_executions_are_not_compared(tmp_path):
    graph = {**H100, "execution_used": "cuda_graph"}
    eager = {**H100, "execution_used": "eager"}
    cells = [runs("base", environment=graph), runs("b", environment=graph, tokens_per_s=90.0)]
    slow = of_records(tmp_path, *cells, runs("eager", environment=eager, tokens_per_s=20.0))
    assert slow.answered
    assert "ran as eager, the choice as cuda_graph" in text(slow)
    fast = of_records(tmp_path, *cells, runs("eager", environment=eager, tokens_per_s=900.0))
    assert [(doubt.id, doubt.reason) for doubt in fast.doubts] == [("eager", "speed")]


def test_other_hardware_and_other_tests_are_not_compared(tmp_path):
    known = {**H100, "task_sha256": "abc"}
    far = runs("far", environment={**known, "gpu_name": "Tesla T4"}, tokens_per_s=900.0)
    other = runs("other", environment={**known, "task_sha256": "f00"}, tokens_per_s=900.0)
    lost = runs("b", environment=known, accuracy=0.84, tokens_per_s=90.0)
    found = of_records(tmp_path, runs("base", environment=known), lost, far, other)
    assert found.winner.id == "base"
    assert outcomes(found) == {"base": "best", "b": "lost", "far": "not comparable", "other": "not comparable"}


def predicted(gigabytes):
    return {"predicted_needed_bytes": gigabytes * 1e9 - CONTEXT_BYTES}


def test_only_cells_that_fit_are_chosen_and_the_larger_card_that_changes_it_is_named(tmp_path):
    cells = [
        runs("base", measures=predicted(10), tokens_per_s=50.0),
        runs("fast", measures=predicted(20), tokens_per_s=100.0),
    ]
    found = of_records(tmp_path, *cells, card=read_limit("12GB"))
    assert found.answered
    assert (found.winner.id, found.winner.need_source) == ("base", "predicted")
    assert found.winner.headroom_bytes == pytest.approx(2e9)
    assert outcomes(found)["fast"] == "does not fit"
    assert "fast: does not fit: needs 20.00 GB (predicted), and the card has 12.00 GB" in text(found, 200)
    changes = {change.where: change for change in found.changes}
    assert changes["no limit"].winner == "fast"
    assert changes["larger card"].winner == "fast"
    sizes = [card.memory_bytes for card in CARDS.values() if card.has_bfloat16 and card.memory_bytes >= 20e9]
    assert changes["larger card"].memory_bytes == min(sizes)
    assert changes["smaller card"].winner_fits is (changes["smaller card"].memory_bytes >= 10e9)
    free = of_records(tmp_path, *cells)
    assert free.winner.id == "fast"
    assert [(change.where, change.winner) for change in free.changes] == [("smallest card", "fast")]


def test_what_fits_is_measured_where_nothing_was_predicted(tmp_path):
    live, held = (CONTEXT_BYTES + size for size in (4_000_000_000, 6_000_000_000))
    measured = {**HELD, "train_peak_reserved_bytes": 6e9}
    sizes = {live - 1: "does not fit", live: "may not fit", held - 1: "may not fit", held: "best"}
    for size, outcome in sizes.items():
        found = of_records(tmp_path, runs("base", peak=4e9, measures=measured), card=Card(str(size), size))
        assert outcomes(found) == {"base": outcome}, size
    assert (found.winner.need_bytes, found.winner.need_source) == (live, "measured")


def test_a_faster_cell_that_may_or_may_not_fit_leaves_the_choice_open(tmp_path):
    bound = {**H100, "prediction_note": "a kernel without a meta counterpart"}
    unsure = runs("unsure", tokens_per_s=900.0, measures=predicted(5), environment=bound)
    for one in unsure:
        one["measures"].pop("train_peak_allocated_bytes")
    found = of_records(tmp_path, runs("base", measures=predicted(10)), unsure, card=read_limit("12GB"))
    assert [(doubt.id, doubt.reason) for doubt in found.doubts] == [("unsure", "fit")]
    assert "vram_limit: 12GB" in text(found)
    assert "more seeds do not tell which cells fit" in text(found)
    assert (found.seeds_needed, found.not_by_seeds) == (None, ("unsure",))


def test_where_seeds_settle_some_doubts_and_not_others_text_and_json_tell_both(tmp_path):
    bound = {**H100, "prediction_note": "a kernel without a meta counterpart"}
    unsure = runs("unsure", tokens_per_s=900.0, measures=predicted(5), environment=bound)
    for one in unsure:
        one["measures"].pop("train_peak_allocated_bytes")
    faster = [
        record("open", seed, measures={**NF4, **training(3e9, 500.0, 0.1), **quality(accuracy), **predicted(5)})
        for seed, accuracy in enumerate((0.846, 0.852, 0.849))
    ]
    found = of_records(tmp_path, runs("base", measures=predicted(10)), unsure, faster, card=read_limit("12GB"))
    assert {doubt.reason for doubt in found.doubts} == {"quality", "fit"}
    assert found.seeds_needed > 3
    assert found.not_by_seeds == ("unsure",)
    shown, read = " ".join(text(found).split()), json.loads(to_json(found))
    assert f"{found.seeds_needed} seeds in all" in shown
    assert "more seeds do not tell which cells fit" in shown
    assert (read["seeds_needed"], read["not_by_seeds"]) == (found.seeds_needed, ["unsure"])


def test_intervals_hold_for_the_comparisons_with_the_choice_too_where_that_is_not_the_best():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3, accuracy=0.84), cell("mid", 2, log_speed=0.1, accuracy=0.83))
    gathered = evidence(cells, seeds=range(6), examples=1000, noise=QUIET)
    of_best, of_both = (recommend(gathered, margin=margin) for margin in (0.1, 4.0))
    assert (of_best.winner.id, of_best.comparisons_count) == ("lora-bf16", 2)
    assert (of_both.winner.id, of_both.best, of_both.comparisons_count) == ("fast", "lora-bf16", 3)
    difference_ = estimates(gathered.samples[ACCURACY.name], [difference(1, 0)], 1 - 0.05 / 3)
    assert of_both.winner.difference_low_points == pytest.approx(100 * difference_["low"][0])
    assert "hold for all 3 comparisons together" in " ".join(text(of_both).split())


@pytest.mark.parametrize(
    ("gpu", "fits", "told", "is_card"),
    [
        ("NVIDIA H200", None, "measured on NVIDIA H200", None),
        ("NVIDIA H200", "H200", "measured on NVIDIA H200", True),
        ("NVIDIA H100 80GB HBM3", "H100", "measured on NVIDIA H100 80GB HBM3", True),
        ("NVIDIA L40S", "L40", "measured on NVIDIA L40S, not on L40, where their order may differ", False),
        ("NVIDIA H200", "T4", "measured on NVIDIA H200, not on T4, where their order may differ", False),
        ("NVIDIA H200", "20GB", "measured on NVIDIA H200; on another card, of 20GB, their order may differ", False),
    ],
)
def test_it_says_where_the_speeds_were_measured(tmp_path, gpu, fits, told, is_card):
    known = {**H100, "gpu_name": gpu}
    cells = [
        runs(name, parameters=FP16, environment=known, measures=predicted(5), tokens_per_s=speed)
        for name, speed in (("base", 50.0), ("fast", 100.0))
    ]
    found = of_records(tmp_path, *cells, card=read_limit(fits) if fits else None)
    assert [line.text for line in describe(found)][1] == f"speeds: {told}"
    assert f"Speeds: {told}." in next(line.text for line in describe(found) if line.style == "dim")
    read = json.loads(to_json(found))
    assert (read["speeds_from"], read["speeds_from_card"]) == ([gpu], is_card)


def test_cells_that_are_too_large_are_told_together(tmp_path):
    large = [runs(f"large-cell-{size}", measures=predicted(size)) for size in range(20, 40)]
    found = of_records(tmp_path, runs("base", measures=predicted(5)), *large, card=read_limit("12GB"))
    (told,) = [line.text for line in describe(found) if "do not fit" in line.text]
    assert told.endswith("and 14 more: do not fit: need 20.00 to 39.00 GB (predicted), and the card has 12.00 GB")


def test_a_card_without_bfloat16_takes_none_of_its_cells_and_says_how_to_change_that(tmp_path):
    half = runs("half", parameters=FP16, measures=predicted(5), tokens_per_s=10.0)
    found = of_records(tmp_path, runs("base", measures=predicted(5)), half, card=CARDS["T4"])
    assert found.winner.id == "half"
    assert next(one.reason for one in found.others) == "no bfloat16"
    assert "base: no bfloat16 on T4" in text(found)
    assert "set compute_dtype" in text(found)
    assert {change.winner for change in found.changes if change.where == "no limit"} == {"base"}


def test_where_nothing_fits_the_least_need_is_told(tmp_path):
    cells = [runs("base", measures=predicted(10)), runs("b", measures=predicted(9))]
    found = of_records(tmp_path, *cells, card=read_limit("8GB"))
    assert not found.answered
    assert found.winner is None
    assert "b needs the least: 9.00 GB" in text(found)


def test_the_margins_at_which_the_answer_changes_are_those_at_which_it_does():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3, accuracy=0.83), cell("mid", 2, log_speed=0.1, accuracy=0.845))
    gathered = evidence(cells, seeds=range(6), examples=2000, noise=QUIET)

    def answer(margin):
        found = recommend(gathered, margin=round(margin, 2))
        return found, (found.winner.id, found.answered)

    told = set()
    for margin in (0.05, 1.5, 4.0):
        found, asked = answer(margin)
        for change in found.changes:
            at = (change.winner, change.answered)
            told.add(change.where)
            if change.where == "larger margin":
                assert at == answer(change.margin_points)[1] != asked
                assert change.answered
                assert answer(change.margin_points - 0.01)[1] == asked or not answer(change.margin_points - 0.01)[1][1]
            if change.where == "smaller margin":
                assert at == answer(change.margin_points)[1] != asked
                assert answer(change.margin_points + 0.01)[1] == asked
    assert {"larger margin", "smaller margin"} <= told
    assert answer(4.0)[1] == ("fast", True)


@pytest.mark.parametrize(
    ("written", "points"),
    [("0.5pt", 0.5), ("0.5", 0.5), ("2 points", 2.0), ("1point", 1.0), ("1PTS", 1.0), ("0", 0.0), (" 3pt ", 3.0)],
)
def test_margins_are_points_of_accuracy(written, points):
    assert read_margin(written) == points


@pytest.mark.parametrize(
    ("written", "fix"),
    [("0.5%", "write 0.5pt"), ("0,5", "write 0.5pt"), ("-1", "write 0.5pt"), ("", "write 0.5pt"),
     ("nan", "write 0.5pt"), ("101", "write 0.5pt"), ("2 percent", "write 2pt"), ("1e-1", "write 1pt")],
)  # fmt: skip
def test_what_is_no_margin_is_refused_with_what_to_write(written, fix):
    with pytest.raises(BenchError, match=f"--quality-within: .* is no margin; {fix}"):
        read_margin(written)


def test_no_line_is_wider_than_the_console():
    cells = (BASELINE, *(cell(f"a-rather-long-name-of-a-cell-{number}", number) for number in range(1, 6)))
    for margin in (0.5, 5.0):
        found = recommend(evidence(cells, seeds=range(3), examples=300), card=CARDS["A10"], margin=margin)
        for width in (80, 100, 160):
            assert max(map(len, text(found, width).splitlines())) <= width


def test_as_json_it_holds_everything():
    cells = (BASELINE, cell("fast", 1, log_speed=0.3))
    found = recommend(evidence(cells, seeds=range(3), examples=300, random_seed=4), margin=0.5)
    read = json.loads(to_json(found))
    assert read["answered"] is False
    assert read["winner"]["id"] == found.winner.id
    assert [doubt["id"] for doubt in read["doubts"]] == [doubt.id for doubt in found.doubts]
    assert {"margin_points", "seeds_needed", "changes", "others", "second", "best"} <= set(read)


def test_the_command_exits_with_0_for_an_answer_with_3_without_and_with_2_for_a_wrong_request(tmp_path):
    cells = (BASELINE, cell("fast", 1, log_speed=0.3, accuracy=0.7))
    folder = simulated(tmp_path / "one", cells, seeds=range(3), examples=200, noise=QUIET)
    noisy = simulated(tmp_path / "two", (BASELINE, cell("fast", 1, log_speed=0.3)), seeds=[0], examples=200)

    def exit_of(*arguments):
        return CliRunner().invoke(cli, ["recommend", *map(str, arguments)])

    answered = exit_of(folder, "--quality-within", "1pt")
    assert answered.exit_code == 0
    assert answered.output.startswith("lora-bf16: the fastest cell")
    assert json.loads(exit_of(folder, "--quality-within", "1pt", "--json").output)["answered"] is True
    assert exit_of(noisy).exit_code == 3
    assert exit_of(noisy, "--json").exit_code == 3
    for wrong, words in (
        ((tmp_path,), "holds 2 results"),
        ((folder, "--fits", "T44"), "--fits: 'T44' is neither a card nor a size"),
        ((folder, "--quality-within", "1%"), "--quality-within: '1%' is no margin"),
        ((tmp_path / "none",), "does not exist"),
    ):
        with pytest.raises(BenchError, match=words):
            CliRunner().invoke(cli, ["recommend", *map(str, wrong)], standalone_mode=False, catch_exceptions=False)
