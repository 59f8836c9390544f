"""Which share of a phase's tokens each language gets, and how many rows that is in each period. Pure functions.

A phase is a table of groups, each with a fixed share of the tokens. Within a group the share of language i is
p_i = n_i^tau / sum_j n_j^tau, n_i the tokens that it has (arXiv:2509.06888, section 3.2): tau = 1 is proportional
to size, tau = 0 is uniform, and a falling tau moves tokens from large languages to small ones.
"""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10

import numpy as np
from numpy.typing import NDArray

from mmbert.schedules import Schedule

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Group:
    """One row of the mixture table.

    Attributes:
        members: indices into the phase's streams.
        floor: least share of the group's tokens that each member gets.
        languages: what a refusal calls the members; their numbers where it is empty.
    """

    name: str
    share: float
    tau: Schedule
    max_repeats: float | None
    members: Integers
    floor: float | None = None
    languages: Sequence[str] = ()


def main_group(groups: Sequence[Group]) -> Group:
    """The one whose tau stands for the phase's, as in the paper: the largest share, of those with several languages."""
    return max(groups, key=lambda group: (len(group.members) > 1, group.share))


@dataclass(frozen=True)
class Mixture:
    """What a period is to hold.

    Attributes:
        start_tokens: tokens planned before it; what tau's schedule is read at.
        tokens: planned in it.
        token_shares: (S,) planned share of each stream in them, sum 1.
        rows: (S,) of each stream, fractions and all.
    """

    start_tokens: float
    tokens: float
    taus: tuple[float, ...]
    token_shares: Floats
    rows: Floats


@dataclass(frozen=True)
class Walk:
    """What a phase reads by its plan up to some moment, fractions of rows and all.

    Attributes:
        rows: of all streams.
        stream_rows, stream_tokens: (S,).
        last: the mixture that it ends in.
    """

    rows: float
    stream_rows: Floats
    stream_tokens: Floats
    last: Mixture

    def up_to(self, rows: float) -> "Walk":
        """The same with the few rows more that fill the last step."""
        part = (rows - self.rows) / self.last.rows.sum()
        tokens = (part * self.last.tokens) * self.last.token_shares
        return Walk(rows, self.stream_rows + part * self.last.rows, self.stream_tokens + tokens, self.last)


@dataclass(frozen=True)
class Period:
    """A stretch of `period_rows` rows with one constant mixture.

    Attributes:
        start_tokens: tokens planned before it; what tau's schedule is read at.
        token_shares: (S,) planned share of each stream in the period's tokens, sum 1.
        first, last: (S,) the period takes rows [first, last) of each stream's endless walk.
    """

    index: int
    start_tokens: int
    taus: tuple[float, ...]
    token_shares: Floats
    first: Integers
    last: Integers


def temperature_shares(sizes: Floats, tau: float) -> Floats:
    """p_i = n_i^tau / sum_j n_j^tau for sizes n (S,), all positive."""
    weights = np.exp(tau * (np.log(sizes) - np.log(sizes.max())))
    return weights / weights.sum()


def bounded_shares(shares: Floats, floors: Floats, caps: Floats) -> Floats:
    """Water-filling: clip(x * shares, floors, caps) with the one x for which they sum to 1.

    What the caps cut off goes to the others in proportion to their shares, and what the floors need comes from them.
    When the floors need more than the caps cut off, x must fall: who is below its floor now stays at it for good. When
    the caps cut off more, x must rise, and who is above its cap stays at that.

    Args:
        shares: (S,) sum 1.
        floors, caps: (S,) lowest and highest share allowed to each, floors <= caps; those sum to 1 at most, these at
            least.

    Source:
        The loop of CSS Flexible Box Layout, section 9.7, "Resolving flexible lengths".
    """
    assert floors.sum() <= 1.0 + 1e-9
    assert caps.sum() >= 1.0 - 1e-9
    settled = np.zeros(len(shares), dtype=bool)
    result = shares
    while (((result < floors) | (result > caps)) & ~settled).any():
        bounded = np.clip(result, floors, caps)
        broken = result < floors if (bounded - result).sum() > 0.0 else result > caps
        settled |= broken
        free = ~settled
        bounded = np.where(settled, bounded, 0.0)
        left = 1.0 - bounded[settled].sum()
        bounded[free] = shares[free] * (left / shares[free].sum()) if free.any() else 0.0
        result = bounded
    return result


def check_floor(group: Group, caps: Floats) -> None:
    """Refuse a floor that the group's languages cannot all have.

    Args:
        caps: (members,) the highest share that `max_repeats` allows to each.

    Raises:
        ValueError: gives the arithmetic, and the highest floor that would do.
    """
    assert group.floor is not None
    key, number = f"data.mixture.{group.name}: floor {group.floor:g}", len(caps)
    if group.floor * number > 1.0 + 1e-9:
        raise ValueError(
            f"{key} for each of {number:,} languages is {group.floor * number:.2f} of the group, and there is 1; lower "
            f"it to at most {rounded_down(1 / number)}"
        )
    if (caps < group.floor).any():
        least = int(caps.argmin())
        raise ValueError(
            f"{key} is more than max_repeats {group.max_repeats:g} allows to {int((caps < group.floor).sum()):,} of "
            f"{number:,} languages, {(group.languages or range(number))[least]} first: {caps[least]:.3g} of the group; "
            f"lower the floor to at most {rounded_down(caps[least])}, raise max_repeats, or leave them out"
        )


def rounded_down(value: float) -> str:
    """Three digits, of which the last is not rounded up: what is allowed stays allowed."""
    digits = 2 - floor(log10(value))
    return f"{floor(value * 10.0**digits) / 10.0**digits:.3g}"


def group_shares(group: Group, tokens: Integers, tau: float, duration: int) -> Floats:
    """Shares of the group's own tokens, (members,): by tau, no language below `floor` or above `max_repeats` passes.

    Args:
        tokens: (members,) tokens each language has.
        duration: tokens of the whole phase.

    Raises:
        ValueError: even at `max_repeats` all languages together cannot fill the group's share, or a floor is too high.
    """
    shares = temperature_shares(tokens.astype(np.float64), tau)
    if group.max_repeats is None and group.floor is None:
        return shares
    wanted = group.share * duration
    caps = np.full(len(tokens), np.inf) if group.max_repeats is None else tokens * (group.max_repeats / wanted)
    if group.max_repeats is not None and caps.sum() < 1.0 - 1e-9:  # whose tokens are just enough
        least = ceil(100 * wanted / tokens.sum()) / 100
        longest = floor(tokens.sum() * group.max_repeats / group.share)
        raise ValueError(
            f"data.mixture.{group.name}: share {group.share:g} of {duration:,} tokens is {wanted:,.0f}, but its "
            f"languages have {tokens.sum():,} tokens, {tokens.sum() * group.max_repeats:,.0f} at max_repeats "
            f"{group.max_repeats:g}; shorten duration to at most {longest:,}, or lower the share, or raise max_repeats "
            f"to at least {least:.2f}"
        )
    if group.floor is not None:
        check_floor(group, caps)
    return bounded_shares(shares, np.full(len(tokens), group.floor or 0.0), caps)


def smallest(values: Floats, number: int) -> Integers:
    """Indices of the `number` smallest values, of equal ones the first; a sort would take most of a resume's time."""
    if number == 0:
        return np.empty(0, dtype=np.int64)
    limit = np.partition(values, number - 1)[number - 1]
    below = np.flatnonzero(values < limit)
    return np.concatenate([below, np.flatnonzero(values == limit)[: number - len(below)]])


def diffuse(wanted: Floats, rates: Floats, total: int) -> Integers:
    """Round `wanted`, whose sum is `total`, to non-negative integers with that very sum.

    What rounding down leaves over goes to the streams that would be a whole row behind soonest. Giving it to the
    largest remainders instead lets one fall 1.08 rows behind its plan, where periods have fewer rows than streams.

    Args:
        wanted: (S,) rows, with what is owed from before.
        rates: (S,) rows of a period, positive.

    Source:
        Tijdeman 1980, The chairman assignment problem.
    """
    # A hair above: what is a whole number but for rounding must not be taken for one that is nearly due.
    rounded = np.maximum(np.floor(wanted + 1e-9), 0.0).astype(np.int64)
    remainder = wanted - rounded
    short = total - int(rounded.sum())
    if short >= 0:
        due = np.where(remainder > 1e-9, (1.0 - remainder) / rates, np.inf)  # periods until a whole row is owed
        rounded[smallest(due, short)] += 1
    else:  # some were negative and were raised to 0: the smallest remainders pay, where there is something to take
        rounded[smallest(np.where(rounded > 0, remainder, np.inf), -short)] -= 1
    return rounded


@dataclass(frozen=True)
class Plan:
    """The rows of every stream in every period of a phase: a pure function of these fields.

    Attributes:
        groups: the mixture table; together their members are every stream, once.
        rows, tokens: (S,) what each stream has.
        duration: tokens of the phase.
        period_rows: rows of a period.
    """

    groups: Sequence[Group]
    rows: Integers
    tokens: Integers
    duration: int
    period_rows: int

    def token_shares(self, taus: Sequence[float]) -> Floats:
        """(S,) share of each stream in the tokens, at one tau per group; sum 1."""
        shares = np.zeros(len(self.rows))
        for group, tau in zip(self.groups, taus, strict=True):
            shares[group.members] = group.share * group_shares(group, self.tokens[group.members], tau, self.duration)
        return shares

    def mixtures(self) -> Iterator[Mixture]:
        """The mixture of every period, without end."""
        row_tokens = self.tokens / self.rows  # (S,) the last row of a small language is seldom full
        taus: tuple[float, ...] = ()
        planned = 0.0
        while True:
            new_taus = tuple(group.tau.value(int(planned), self.duration) for group in self.groups)
            if new_taus != taus:
                taus = new_taus
                shares = self.token_shares(taus)
                row_shares = shares / row_tokens
                row_shares /= row_shares.sum()
                period_tokens = self.period_rows * float(row_shares @ row_tokens)
            yield Mixture(planned, period_tokens, taus, shares, self.period_rows * row_shares)
            planned += period_tokens

    def periods(self) -> Iterator[Period]:
        """The periods in order, without end.

        What rounding leaves over in one period is carried into the next (error diffusion), so a stream's rows stay
        within one row of the plan however many periods have passed.
        """
        carry = np.zeros(len(self.rows))
        first = np.zeros(len(self.rows), dtype=np.int64)
        for index, mixture in enumerate(self.mixtures()):
            wanted = mixture.rows + carry
            taken = diffuse(wanted, mixture.rows, self.period_rows)
            carry = wanted - taken
            yield Period(index, int(mixture.start_tokens), mixture.taus, mixture.token_shares, first, first + taken)
            first = first + taken

    def walk(self, tokens: float) -> Walk:
        """The rows and tokens of every stream until `tokens` are planned."""
        rows, stream_rows, stream_tokens = 0.0, np.zeros(len(self.rows)), np.zeros(len(self.rows))
        for mixture in self.mixtures():
            part = min(1.0, (tokens - mixture.start_tokens) / mixture.tokens)
            rows += part * self.period_rows
            stream_rows += part * mixture.rows
            stream_tokens += (part * mixture.tokens) * mixture.token_shares
            if tokens <= mixture.start_tokens + mixture.tokens:
                break
        return Walk(rows, stream_rows, stream_tokens, mixture)
