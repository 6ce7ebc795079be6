"""Scores → ranks within a budget: worked examples, and what must hold for any scores and sizes."""

import math
import random

import pytest

from heterolora.choosing.allocation import Mode, Scored, tie_generator
from heterolora.choosing.ranks import Assignment, Budget, Greedy, Policy, Proportional, TopK, assign, choose
from heterolora.common.errors import UserError
from tests.scoring import scored


def _sites(scores: list[float], widths: list[int] | None = None, kind: str = "lora", rank: int = 4) -> list[Scored]:
    """One element a block; its parameters are rank · 2 · width."""
    name = "q_proj" if kind == "lora" else "shortcut1"
    widths = widths or [8] * len(scores)
    return [
        scored(layer, name, score, rank, (width, width))
        for layer, (score, width) in enumerate(zip(scores, widths, strict=True))
    ]


def _assign(sites: list[Scored], policy: Policy, limit: Budget, mode: Mode = "off", seed: int = 0) -> Assignment:
    return assign(sites, policy, limit, mode, tie_generator(seed, 0))


def _by_block(assignment: Assignment, blocks: int, name: str = "q_proj") -> list[int]:
    return [assignment.ranks.get(f"layer_{block}.{name}", 0) for block in range(blocks)]


def test_topk_by_share_counts_elements() -> None:
    assignment = _assign(_sites([3, 1, 4, 2]), TopK(8), Budget("share", 0.5))
    assert _by_block(assignment, 4) == [8, 0, 8, 0]
    (spending,) = assignment.spending
    assert (spending.unit, spending.whole, spending.budget, spending.spent) == ("elements", 4, 2, 2)


def test_topk_without_a_rank_keeps_each_ones_own() -> None:
    assert _by_block(_assign(_sites([3, 1, 4, 2], rank=5), TopK(), Budget("share", 0.25)), 4) == [0, 0, 5, 0]


def test_topk_by_total_rank() -> None:
    assert _by_block(_assign(_sites([3, 1, 4, 2]), TopK(8), Budget("rank", 23)), 4) == [8, 0, 8, 0]


def test_topk_by_parameters_goes_on_with_what_still_fits() -> None:
    # At rank 2 they cost 40, 4, 20, 8, best first: 40 fits; 20 does not fit into the 10 left, 8 does, then 4 does not.
    sites = _sites([9, 1, 5, 3], widths=[10, 1, 5, 2])
    assignment = _assign(sites, TopK(2), Budget("parameters", 50))
    assert _by_block(assignment, 4) == [2, 0, 0, 2]
    assert (assignment.spending[0].budget, assignment.spending[0].spent) == (50, 48)


def test_topk_to_the_last_spends_the_rest_on_lower_ranks() -> None:
    # The 2 left of the case above buy one rank of the narrowest element.
    sites = _sites([9, 1, 5, 3], widths=[10, 1, 5, 2])
    assignment = _assign(sites, TopK(2, to_the_last=True), Budget("parameters", 50))
    assert _by_block(assignment, 4) == [2, 1, 0, 2]
    assert assignment.spending[0].spent == 50


class TestGreedy:
    """Every rank has its own score; q and w1 have widths for which a rank costs 20 and 2 parameters."""

    SITES = (
        Scored(scored(0, "q_proj", 0, widths=(10, 10)).element, 9.0, (5.0, 3.0, 1.0)),
        Scored(scored(0, "w1", 0, widths=(1, 1)).element, 6.0, (4.0, 2.0)),
    )

    @pytest.mark.parametrize(
        ("limit", "ranks"),
        [
            (Budget("rank", 1), {"layer_0.q_proj": 1}),
            (Budget("rank", 3), {"layer_0.q_proj": 2, "layer_0.w1": 1}),
            (Budget("rank", 4), {"layer_0.q_proj": 2, "layer_0.w1": 2}),
            (Budget("share", 1), {"layer_0.q_proj": 3, "layer_0.w1": 2}),
            (Budget("parameters", 22), {"layer_0.q_proj": 1, "layer_0.w1": 1}),
            (Budget("parameters", 41), {"layer_0.q_proj": 1, "layer_0.w1": 2}),  # no room for a second rank of q
            (Budget("parameters", 3), {"layer_0.w1": 1}),
        ],
    )
    def test_ranks_in_the_order_of_their_scores(self, limit: Budget, ranks: dict[str, int]) -> None:
        assert _assign([*self.SITES], Greedy(), limit).ranks == ranks

    def test_scores_without_ranks(self) -> None:
        with pytest.raises(UserError, match=r"layer_0\.q_proj do not tell its ranks apart; expected by_rank"):
            _assign(_sites([1.0]), Greedy(), Budget("rank", 1))


@pytest.mark.parametrize(
    ("scores", "lowest", "highest", "total", "ranks"),
    [
        ([4, 3, 2, 1], 0, 8, 10, [4, 3, 2, 1]),
        ([4, 3, 2, 1], 0, 8, 12, [5, 4, 2, 1]),  # 4.8, 3.6, 2.4, 1.2: the two largest fractions are rounded up
        ([0.3, 0.2, 0.1, 0.4], 0, 8, 10, [3, 2, 1, 4]),  # floats whose shares must not fall just below
        ([1e-9, 3e-9, 2e-9], 0, 8, 6, [1, 3, 2]),  # the scale does not matter
        ([1e30, 3e30, 2e30], 0, 8, 6, [1, 3, 2]),
        ([100, 3, 2, 1], 0, 8, 14, [8, 3, 2, 1]),  # what the highest rank cuts off goes to the others
        ([100, 3, 2, 1], 2, 8, 14, [8, 2, 2, 2]),  # and what the lowest rank adds is taken from them
        ([100, 3, 2, 1], 2, 8, 5, [3, 2, 0, 0]),  # no room for all at the lowest rank: the best take part
        ([5, 0, 5], 0, 4, 10, [4, 2, 4]),  # all that have a score are full
        ([0, 0, 0], 0, 4, 6, [2, 2, 2]),
        ([1, 2, 3], 0, 4, 12, [4, 4, 4]),
    ],
)
def test_proportional_by_total_rank(
    scores: list[float], lowest: int, highest: int, total: int, ranks: list[int]
) -> None:
    assignment = _assign(_sites(scores), Proportional(lowest, highest), Budget("rank", total))
    assert _by_block(assignment, len(scores)) == ranks
    assert assignment.spending[0].spent == total


def test_proportional_by_parameters() -> None:
    # A rank costs 80 and 8. In proportion 2 : 1, 256 parameters buy λ·2·80 + λ·8 = 256, λ = 1.52…: 3.05 and 1.52. That
    # is 3 · 80 + 1 · 8, and with the 8 left the second is rounded up.
    assignment = _assign(_sites([2, 1], widths=[40, 4]), Proportional(0, 8), Budget("parameters", 256))
    assert _by_block(assignment, 2) == [3, 2]


def test_no_proportional_rank_is_above_the_width() -> None:
    # The second is at most of rank 2, so the first gets what is left: 2 + 10 instead of 6 + 6.
    assignment = _assign(_sites([1, 1], widths=[20, 2]), Proportional(0, 16), Budget("rank", 12))
    assert _by_block(assignment, 2) == [10, 2]
    assert assignment.spending[0].whole == 18


def test_proportional_share_is_one_of_the_whole_space_of_ranks() -> None:
    assignment = _assign(_sites([4, 3, 2, 1]), Proportional(0, 8), Budget("share", 0.5))
    assert _by_block(assignment, 4) == [6, 5, 3, 2]  # of 16: 6.4, 4.8, 3.2, 1.6
    assert assignment.spending[0].whole == 32


def test_a_share_that_buys_nothing_buys_one_element() -> None:
    assert _by_block(_assign(_sites([1, 2]), Proportional(3, 8), Budget("share", 0.01)), 2) == [0, 3]
    assert _by_block(_assign(_sites([1, 2]), TopK(8), Budget("share", 0.01)), 2) == [0, 8]


def _both(lora: list[float], shortcuts: list[float]) -> list[Scored]:
    return [*_sites(lora), *_sites(shortcuts, kind="shortcut", rank=3)]


def test_mode_off_leaves_shortcuts_at_the_ranks_that_they_have() -> None:
    assignment = _assign(_both([1, 2], [8, 9]), TopK(4), Budget("share", 0.5), "off")
    assert assignment.ranks == {"layer_1.q_proj": 4, "layer_0.shortcut1": 3, "layer_1.shortcut1": 3}
    assert [spending.title for spending in assignment.spending] == ["LoRA"]


def test_mode_separated_splits_a_total_as_the_space_is() -> None:
    sites = _both([1, 2, 3, 4], [8, 9])
    assignment = _assign(sites, TopK(4), Budget("rank", 13), "separated")
    assert [(s.title, s.budget, s.spent) for s in assignment.spending] == [("LoRA", 8, 8), ("shortcuts", 5, 4)]
    assert assignment.ranks == {"layer_2.q_proj": 4, "layer_3.q_proj": 4, "layer_1.shortcut1": 4}


def test_mode_combined_ranks_all() -> None:
    assignment = _assign(_both([1, 2, 3, 4], [8, 9]), TopK(4), Budget("share", 0.5), "combined")
    assert assignment.ranks == {"layer_3.q_proj": 4, "layer_0.shortcut1": 4, "layer_1.shortcut1": 4}


def test_equal_scores_are_drawn() -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return tuple(_by_block(_assign(_sites([1, 1, 1]), TopK(4), Budget("rank", 4), seed=seed), 3))

    assert {draw(seed) for seed in range(30)} == {(4, 0, 0), (0, 4, 0), (0, 0, 4)}
    assert draw(5) == draw(5)


def test_equal_fractions_are_drawn() -> None:
    def draw(seed: int) -> tuple[int, ...]:
        return tuple(_by_block(_assign(_sites([5, 0, 5]), Proportional(0, 4), Budget("rank", 7), seed=seed), 3))

    assert {draw(seed) for seed in range(30)} == {(4, 0, 3), (3, 0, 4)}


@pytest.mark.parametrize("mode", ["off", "separated", "combined"])
def test_ties_are_broken_as_in_the_choice_of_imp_test(mode: Mode) -> None:
    sites = [*_sites([1.0] * 6), *_sites([1.0] * 6, kind="shortcut")]
    choices = set()
    for seed in range(5):
        chosen = choose(sites, Budget("share", 0.5), mode, tie_generator(seed, 0))
        assert chosen == set(_assign(sites, TopK(), Budget("share", 0.5), mode, seed).ranks)
        choices.add(chosen)
    assert len(choices) > 1


@pytest.mark.parametrize("policy", [TopK(4), TopK(), Proportional(0, 6), Proportional(2, 6)])
@pytest.mark.parametrize("mode", ["off", "separated", "combined"])
def test_any_budget_is_used_up_and_never_exceeded(policy: Policy, mode: Mode) -> None:
    generator = random.Random(0)
    for trial in range(60):
        lora, shortcuts = generator.randint(1, 12), generator.randint(1, 6)
        score = generator.choice([generator.random, lambda: generator.lognormvariate(0, 6), lambda: 1.0, lambda: 0.0])
        sites = [
            *_sites([score() for _ in range(lora)], [generator.randint(1, 30) for _ in range(lora)]),
            *_sites([score() for _ in range(shortcuts)], [7] * shortcuts, kind="shortcut", rank=3),
        ]
        parameters = generator.random() < 0.5
        prices = {s.element.key: 2 * s.element.in_features if parameters else 1 for s in sites}
        of_mode = [site for site in sites if mode != "off" or site.element.kind == "lora"]
        whole = sum(prices[site.element.key] * policy.bounds(site)[1] for site in of_mode)
        amount = generator.randint(max(prices[site.element.key] * policy.bounds(site)[0] for site in sites) * 3, 2000)
        if amount > whole:
            continue
        assignment = _assign(sites, policy, Budget("parameters" if parameters else "rank", amount), mode, seed=trial)

        ranks = {site.element.key: assignment.ranks.get(site.element.key, 0) for site in sites}
        spent = sum(ranks[site.element.key] * prices[site.element.key] for site in of_mode)
        assert spent == sum(part.spent for part in assignment.spending)
        assert all(part.spent <= part.budget <= part.whole for part in assignment.spending)
        assert sum(part.budget for part in assignment.spending) == amount
        pools = {"off": (["lora"],), "separated": (["lora"], ["shortcut"]), "combined": (["lora", "shortcut"],)}[mode]
        for pool, part in zip(pools, assignment.spending, strict=True):
            for site in (site for site in sites if site.element.kind in pool):
                rank = ranks[site.element.key]
                assert rank == 0 or policy.bounds(site)[0] <= rank <= policy.bounds(site)[1]
                if rank < policy.bounds(site)[1]:
                    more = policy.bounds(site)[0] if rank == 0 else 1
                    assert part.spent + more * prices[site.element.key] > part.budget, (
                        "an addition would still have fitted"
                    )


def test_better_scores_never_get_lower_ranks_and_shares_are_off_by_less_than_one() -> None:
    generator = random.Random(1)
    for _ in range(100):
        scores = [generator.random() + 0.1 for _ in range(10)]
        total = generator.randint(5, 60)
        ranks = _by_block(_assign(_sites(scores, [60] * 10), Proportional(0, 60), Budget("rank", total)), 10)
        for score, rank in zip(scores, ranks, strict=True):
            assert abs(rank - total * score / math.fsum(scores)) < 1
        by_score = [rank for _, rank in sorted(zip(scores, ranks, strict=True))]
        assert by_score == sorted(by_score)


@pytest.mark.parametrize(
    ("policy", "limit", "message"),
    [
        (TopK(4), Budget("parameters", 7), "a budget of 7 .parameters. pays for no element; expected at least 8"),
        (TopK(4), Budget("rank", 0), "pays for no element; expected at least 4"),
        (Proportional(2, 8), Budget("rank", -3), "pays for no element; expected at least 2"),
        (TopK(4), Budget("rank", 13), "above the whole space; expected at most 12"),
        (Proportional(0, 8), Budget("parameters", 341), "above the whole space; expected at most 340"),
        (TopK(4), Budget("share", 1.5), "at most 1"),
    ],
)
def test_budgets_that_make_no_sense(policy: Policy, limit: Budget, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _assign(_sites([1, 2, 3], widths=[1, 3, 20]), policy, limit)


def test_a_split_that_buys_nothing_says_so() -> None:
    with pytest.raises(UserError, match="or mode 'combined'"):
        _assign(_both([1, 2], [3, 4]), TopK(4), Budget("rank", 5), "separated")


@pytest.mark.parametrize(
    "make", [lambda: TopK(0), lambda: Proportional(3, 2), lambda: Proportional(0, 0), lambda: Proportional(-1, 2)]
)
def test_ranks_that_make_no_sense(make) -> None:
    with pytest.raises(UserError, match="expected"):
        make()


class TestChoose:
    """Which elements are on, at the ranks at which they were scored."""

    SITES = _sites([9, 1, 5, 3], widths=[10, 1, 5, 2], rank=2)  # they cost 40, 4, 20 and 8 parameters

    @pytest.mark.parametrize(
        ("limit", "on"),
        [
            (Budget("share", 0.5), {0, 2}),
            (Budget("parameters", 72), {0, 1, 2, 3}),
            (Budget("parameters", 60), {0, 2}),
            (Budget("parameters", 59), {0, 1, 3}),  # 40 fits; 20 does not fit into the 19 left, 8 and 4 do
            (Budget("parameters", 39), {1, 2, 3}),
            (Budget("parameters", 4), {1}),
        ],
    )
    def test_the_best_that_fit(self, limit: Budget, on: set[int]) -> None:
        assert choose(self.SITES, limit, "off", tie_generator(0, 0)) == {f"layer_{layer}.q_proj" for layer in on}

    @pytest.mark.parametrize(
        ("mode", "on"),
        [
            ("off", {"layer_0.q_proj", "layer_1.q_proj", "layer_0.shortcut1", "layer_1.shortcut1"}),
            ("separated", {"layer_0.q_proj", "layer_1.shortcut1"}),
            ("combined", {"layer_0.shortcut1", "layer_1.shortcut1"}),
        ],
    )
    def test_modes(self, mode: Mode, on: set[str]) -> None:
        """Each costs 64 parameters. With mode `off`, the shortcuts cost nothing of the budget."""
        sites = [*_sites([2, 1]), *_sites([3, 4], kind="shortcut")]
        assert choose(sites, Budget("parameters", 128), mode, tie_generator(0, 0)) == on

    def test_never_more_than_the_budget(self) -> None:
        draw = random.Random(0)
        for seed in range(200):
            count = draw.randint(1, 12)
            sites = _sites([draw.random() for _ in range(count)], [draw.randint(1, 9) for _ in range(count)])
            costs = {item.element.key: item.element.parameters for item in sites}
            budget = draw.randint(min(costs.values()), sum(costs.values()))
            on = choose(sites, Budget("parameters", budget), "off", tie_generator(seed, 0))
            left = budget - sum(costs[key] for key in on)
            assert left >= 0
            assert all(cost > left for key, cost in costs.items() if key not in on)

    @pytest.mark.parametrize(
        ("parameters", "complaint"), [(3, "pays for no element; expected at least 4"), (73, "expected at most 72")]
    )
    def test_a_budget_that_does_not_fit(self, parameters: int, complaint: str) -> None:
        with pytest.raises(UserError, match=complaint):
            choose(self.SITES, Budget("parameters", parameters), "off", tie_generator(0, 0))
