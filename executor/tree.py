"""The one order in which a job's gradients are summed: a balanced binary tree over virtual ranks.

The tree is that of ``models.train.step.reduced`` and ``models.sparse.gradients``: level by level
the nodes 2 j and 2 j + 1 become node j, and a node without a sibling moves up as it is. A node is
written as the *block* of ranks below it, ``low <= rank < high``; with n ranks the blocks of a level
of width w are [0, w), [w, 2 w), ..., the last one cut at n.

A device that holds ranks low..high-1 adds up the blocks that lie wholly inside, and nothing else
(DESIGN, "Reduction that does not depend on placement"). What it is left with are its *whole
subtrees*, at most 2 log2 n of them and one if its ranks are aligned. Pushing the whole subtrees of
all devices in rank order through the same fold ends in the same parenthesisation as one device that
pushes all ranks.

Leaves out: ranks that contribute nothing. Every rank of a step has samples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar

from executor.errors import ExecutorError

Value = TypeVar("Value")


class Block(NamedTuple):
    """A node of the tree: ranks ``low`` to ``high - 1``."""

    low: int
    high: int


def siblings(left: Block, right: Block, num_ranks: int) -> bool:
    """Whether two blocks are the two children of one node of the tree over ``num_ranks`` ranks."""
    width = left.high - left.low
    return (
        left.high == right.low
        and width & (width - 1) == 0
        and left.low % (2 * width) == 0
        and right.high == min(left.low + 2 * width, num_ranks)
    )


def whole_subtrees(low: int, high: int, num_ranks: int) -> tuple[Block, ...]:
    """Return the largest blocks inside ranks low..high-1, in rank order.

    Raises ExecutorError unless 0 <= low < high <= num_ranks.
    """
    if not 0 <= low < high <= num_ranks:
        raise ExecutorError(
            "no such ranks", value=f"{low}..{high - 1}", expected=f"some of 0..{num_ranks - 1}"
        )
    found = []
    while low < high:
        width = 1
        while low % (2 * width) == 0 and min(low + 2 * width, num_ranks) <= high:
            if low + width >= num_ranks:
                break
            width *= 2
        found.append(Block(low, min(low + width, num_ranks)))
        low = found[-1].high
    return tuple(found)


def carries(low: int, high: int, num_ranks: int) -> tuple[int, ...]:
    """Return, for each of ranks low..high-1 in turn, to how many partial sums it is added.

    That is what ``Fold.push`` does on a device that holds these ranks.
    """
    held: list[Block] = []
    found = []
    for rank in range(low, high):
        block, before = Block(rank, rank + 1), len(held)
        while held and siblings(held[-1], block, num_ranks):
            block = Block(held.pop().low, block.high)
        found.append(before - len(held))
        held.append(block)
    return tuple(found)


def additions(blocks: Sequence[Block], num_ranks: int) -> tuple[tuple[int, int], ...]:
    """Return which values to add to which, in turn, when ``blocks`` cover all ranks in order.

    (left, right) are indices into them; the sum takes the left one's place, at last the first's.
    Raises ExecutorError if they are not whole subtrees of all ranks.
    """
    held: list[tuple[Block, int]] = []
    found = []
    for index, block in enumerate(blocks):
        here, at = block, index
        while held and siblings(held[-1][0], here, num_ranks):
            left, of_left = held.pop()
            found.append((of_left, at))
            here, at = Block(left.low, here.high), of_left
        held.append((here, at))
    if [block for block, _ in held] != [(0, num_ranks)]:
        raise ExecutorError(
            "ranks are missing", value=[tuple(b) for b in blocks], expected=f"all {num_ranks}"
        )
    return tuple(found)


class Fold(Generic[Value]):
    """Adds values along the tree as they come in rank order, and holds O(log n) partial sums.

    ``add(left, right)`` returns the sum and may reuse either of them. A value that is pushed is
    owned by the fold from then on.
    """

    def __init__(self, num_ranks: int, add: Callable[[Value, Value], Value]) -> None:
        self._num_ranks = num_ranks
        self._add = add
        self._held: list[tuple[Block, Value]] = []

    def push(self, block: Block, value: Value) -> None:
        """Take the sum over a block that follows on those before."""
        if self._held and self._held[-1][0].high != block.low:
            raise ExecutorError(
                "ranks out of order", value=block, expected=f"from {self._held[-1][0].high} on"
            )
        while self._held and siblings(self._held[-1][0], block, self._num_ranks):
            left, sum_of_left = self._held.pop()
            value = self._add(sum_of_left, value)
            block = Block(left.low, block.high)
        self._held.append((block, value))

    @property
    def partials(self) -> tuple[tuple[Block, Value], ...]:
        """The whole subtrees of what was pushed, in rank order."""
        return tuple(self._held)

    def total(self) -> Value:
        """Return the sum over all ranks. Raises ExecutorError if some are missing."""
        if len(self._held) != 1 or self._held[0][0] != (0, self._num_ranks):
            have = [f"{b.low}..{b.high - 1}" for b, _ in self._held]
            raise ExecutorError("ranks are missing", value=have, expected=f"all {self._num_ranks}")
        return self._held[0][1]

    def take(self) -> tuple[tuple[Block, Value], ...]:
        """Give the partial sums away and be empty again."""
        held, self._held = tuple(self._held), []
        return held
