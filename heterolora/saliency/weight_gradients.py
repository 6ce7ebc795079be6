"""The gradient of the weight at every place, summed over batches, from one forward and backward pass per batch.

With x (tokens, in) the input of a place and δ (tokens, out) the gradient of its output, G = ∂L/∂W = Σ δᵀ x, of shape
(out, in). Only x and δ are needed and not W, so the base may be quantised. G does not depend on how A was drawn. A
shortcut has a G too: that of a matrix from its source to its target. The G of the experts of a layer are those of the
parameter with their weights, one below the other: (experts · out, in).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from heterolora.common.distributed import sum_over_ranks, this_rank, world_size
from heterolora.saliency.probe import Watch
from heterolora.saliency.problem import Batch, Problem

COMPLETE = 2**27  # the matrices of all places are kept completely up to this number of entries (0.5 GB)
WIDTH = 64  # k, the number of random directions onto which larger ones are projected
EXACT = 128  # a matrix with a side of at most this length is decomposed exactly


class ProductSum:
    """M = Σ leftᵀ right, of shape (rows, columns), kept completely or as two small random projections.

    The projections are M Ω (rows, k) and Ψᵀ M (2k + 1, columns), with Gaussian Ω and Ψ. They give Q X ≈ M, whose
    expected squared error is at most 4 times that of the best approximation of rank k / 2 - 1 (Tropp et al. 2017,
    arXiv:1609.00048, algorithm 4 and theorem 4.3).
    """

    def __init__(self, rows: int, columns: int, complete: bool, seed: int, device: torch.device) -> None:
        self.complete = complete or min(rows, columns) <= 3 * WIDTH
        shapes = [(rows, columns)] if self.complete else [(rows, WIDTH), (2 * WIDTH + 1, columns)]
        self.sums = [torch.zeros(shape, device=device) for shape in shapes]
        if not self.complete:
            self.omega = gaussian(columns, WIDTH, 2 * seed, device)
            self.psi = gaussian(rows, 2 * WIDTH + 1, 2 * seed + 1, device)

    def add(self, left: Tensor, right: Tensor) -> None:
        """left (tokens, rows), right (tokens, columns), of any floating dtype."""
        left, right = left.float(), right.float()
        with torch.autocast(left.device.type, enabled=False):
            if self.complete:
                self.sums[0].addmm_(left.t(), right)
            else:
                self.sums[0].addmm_(left.t(), right @ self.omega)
                self.sums[1].addmm_((left @ self.psi).t(), right)

    def add_matrix(self, M: Tensor) -> None:
        """M (rows, columns), of any floating dtype."""
        M = M.float()
        with torch.autocast(M.device.type, enabled=False):
            if self.complete:
                self.sums[0].add_(M)
            else:
                self.sums[0].addmm_(M, self.omega)
                self.sums[1].addmm_(self.psi.t(), M)

    def reduce(self) -> None:
        """Sum over all processes, in place."""
        self.sums = [sum_over_ranks(each) for each in self.sums]

    def divide(self, number: float) -> None:
        """Divide M by a number, in place."""
        for each in self.sums:
            each /= number

    def norm(self) -> float:
        """‖M‖₂ over all entries; for projections an estimate, because E ‖Ψᵀ M‖² = (2k + 1) ‖M‖²."""
        return float(self.sums[0].norm() if self.complete else self.sums[1].norm() / len(self.sums[1]) ** 0.5)

    def matrix(self) -> Tensor:
        """M (rows, columns); for projections its approximation Q X, or NaN if they are not finite."""
        if self.complete:
            return self.sums[0]
        left, right = self.sums
        if not bool(left.isfinite().all() and right.isfinite().all()):  # torch.linalg raises an error of its own
            return left.new_full((len(left), right.shape[1]), torch.nan)
        Q = torch.linalg.qr(left).Q
        product: Tensor = Q @ torch.linalg.lstsq(self.psi.t() @ Q, right).solution
        return product


def product_sums(problem: Problem, sizes: Sequence[tuple[int, int]], parts: int = 1) -> list[tuple[ProductSum, ...]]:
    """`parts` empty sums for each element of the problem, of the given (rows, columns)."""
    complete = parts * sum(rows * columns for rows, columns in sizes) <= COMPLETE
    places = enumerate(zip(problem.space, sizes, strict=True))
    return [
        tuple(ProductSum(*size, complete, seed, low_rank.A.device) for _ in range(parts))
        for seed, (low_rank, size) in places
    ]


class PlaceWatch(Watch):
    """Watches the place of one element, and sees gradients of the scaled loss. `number` is that of the current batch,
    among the batches of all processes.
    """

    number: int
    batch: Batch


def observe(problem: Problem, places: Sequence[PlaceWatch], backward: bool = True) -> None:
    """Run every batch, observed by one place for each element. `no_trace` must be active."""
    anchor = torch.zeros(0, device=problem.space.device, requires_grad=True)
    unobserved = _Unobserved()
    for place in (*places, unobserved):
        place.anchor = anchor
    for index, (batch, counts) in enumerate(problem.passes("scoring batches")):
        for low_rank, place in zip(problem.space, places, strict=True):
            low_rank.probe = place if counts else unobserved
            place.number, place.batch = index * world_size() + this_rank(), batch
        with torch.set_grad_enabled(backward):
            loss = problem.evaluate(batch).mean
        if backward:
            torch.autograd.grad(problem.scaled(loss), anchor, allow_unused=True)


class _Unobserved(PlaceWatch):
    """The place of every element during a filler, so that its backward pass is that of a batch."""

    def add(self, x: Tensor, G: Tensor) -> None: ...

    def add_weight(self, G: Tensor) -> None: ...


class _Gradient(PlaceWatch):
    def __init__(self, sums: Sequence[ProductSum]) -> None:
        self.sums = sums

    def add(self, x: Tensor, G: Tensor) -> None:
        self.sums[self.number % len(self.sums)].add(G, x)

    def add_weight(self, G: Tensor) -> None:
        self.sums[self.number % len(self.sums)].add_matrix(G.flatten(0, 1))


def weight_gradients(problem: Problem, parts: int = 1) -> list[tuple[ProductSum, ...]]:
    """G of each element's place, in `parts` sums; batch i of all processes belongs to the sum i mod `parts`.

    All processes get the same sums. `no_trace` must be active.
    """
    sizes = [(element.experts * element.out_features, element.in_features) for element in problem.space.elements]
    sums = product_sums(problem, sizes, parts)
    observe(problem, [_Gradient(of_place) for of_place in sums])
    for of_place in sums:
        for each in of_place:
            each.reduce()
            each.divide(problem.loss_scale)
    return sums


def leading_directions(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `rank` leading singular triplets of M (rows, columns), fewer if it is smaller: U (rows, k), S (k,), V
    (columns, k). A large matrix is decomposed by randomised subspace iteration (Halko et al. 2011, arXiv:0909.4061).
    """
    rank = min(rank, *matrix.shape)
    if not bool(matrix.isfinite().all()):  # torch.linalg raises an error of its own
        U, S, V = (
            matrix.new_full(shape, torch.nan) for shape in ((len(matrix), rank), (rank,), (matrix.shape[1], rank))
        )
        return U, S, V
    if min(matrix.shape) <= EXACT:
        U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    else:
        with torch.random.fork_rng([] if matrix.device.type == "cpu" else [matrix.device]):
            torch.manual_seed(0)  # of the random directions, which are the same on every process
            U, S, V = torch.svd_lowrank(matrix, min(rank + 16, *matrix.shape), niter=4)
        Vt = V.t()
    return U[:, :rank], S[:rank], Vt[:rank].t()


def gaussian(rows: int, columns: int, seed: int, device: torch.device) -> Tensor:
    """Normal random numbers (rows, columns) that depend on the seed alone, on every process and device."""
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), device="cpu").to(device)
