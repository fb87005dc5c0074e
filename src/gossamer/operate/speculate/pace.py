"""How many tokens to draft: as many as give the most tokens a second, by what drafts and passes have cost here."""

from collections import defaultdict, deque
from statistics import median

LONGEST = 16
"""No more tokens than that are drafted at once."""

_FIRST = (0, 0, 4, 1, 0, 4, 1, 0, 4, 1)
"""The lengths of the first rounds: two points of the cost of drafting, and plain decoding. Short answers end before
anything is drafted."""
_REMEMBERED = 9
"""Rounds of one length whose median time counts."""
_FADING = 0.97
"""What the acceptance of earlier rounds still counts after another one."""
_CHECK = 24
"""After so many rounds with drafts, one without: is plain decoding still as slow as it was?"""
_RETRIAL = 3
_REST, _LONGEST_REST = 16, 256


class Pace:
    """Chooses a length for each round, and learns from what came of it.

    A round of length L gives (1 − α^(L+1))/(1 − α) tokens on average, with α the measured share of drafted tokens that
    are accepted (Leviathan et al. 2023). Its time, draft and verification together, is the median of the last rounds of
    that length, and on the line through the nearest lengths measured for others. Length 0 is plain decoding: where that
    is fastest, drafting stops for a while, and is tried again after ever longer rests, as texts change.
    """

    def __init__(self) -> None:
        self._times: dict[int, deque[float]] = defaultdict(lambda: deque(maxlen=_REMEMBERED))
        self._ahead = [*_FIRST]
        self._hits, self._trials = 0.0, 0.0
        self._rest, self._drafted = _REST, 0
        self.why_off = ""

    def length(self) -> int:
        """The number of tokens to draft next."""
        if not self._ahead:
            best = max(range(LONGEST + 1), key=self.speed)
            self.why_off = ""
            if best == 0:
                likeliest = max(range(1, LONGEST + 1), key=self.speed)
                self.why_off = (
                    f"plain decoding is faster: {self.speed(0):.0f} tokens a second, "
                    f"with {likeliest} drafted ones {self.speed(likeliest):.0f}"
                )
                self._ahead = [0] * self._rest + [likeliest] * _RETRIAL
                self._rest = min(2 * self._rest, _LONGEST_REST)
            else:
                self._rest, self._drafted = _REST, (self._drafted + 1) % _CHECK
                self._ahead = [best] if self._drafted else [best, 0]
        return self._ahead.pop(0)

    def record(self, length: int, accepted: int, seconds: float) -> None:
        """A round drafted `length` tokens, of which the first `accepted` were taken, in so many seconds."""
        self._times[length].append(seconds)
        if length:
            self._hits = _FADING * self._hits + accepted
            self._trials = _FADING * self._trials + min(accepted + 1, length)

    @property
    def acceptance(self) -> float:
        """α: the probability that a drafted token is taken, if those before it were. One half before any was."""
        return (self._hits + 0.5) / (self._trials + 1)

    def time(self, length: int) -> float:
        """Seconds of a round. Needs one that was recorded."""
        known = sorted(self._times)
        if length in self._times or len(known) == 1:
            return median(self._times[length if length in self._times else known[0]])
        drafted = [each for each in known if each > 0] if length > 0 else known
        drafted = drafted if len(drafted) > 1 else known
        below = max((each for each in drafted[:-1] if each < length), default=drafted[0])
        above = drafted[drafted.index(below) + 1]
        low, high = median(self._times[below]), median(self._times[above])
        return low + max(0.0, high - low) * (length - below) / (above - below)

    def speed(self, length: int) -> float:
        """Expected tokens a second."""
        alpha = self.acceptance
        return sum(alpha**tokens for tokens in range(length + 1)) / self.time(length)
