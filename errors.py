"""Every error Trimtab raises on purpose, as one tree.

    TrimtabError                    what was wrong, where, and what to do
    ├── NotFound                    an unknown profile, tool, model, suite or run (HTTP 404)
    ├── BadInput                    a file, argument or request that does not hold together (HTTP 400)
    ├── Forbidden                   something that the caller may not do (HTTP 403)
    ├── Conflict                    something that cannot be beside what is under way, or what is (HTTP 409)
    ├── EngineError                 an engine that could not answer (HTTP 502)
    │   ├── EngineUnavailable       it is not there, or went away: the request may be tried again
    │   └── EngineRefused           it answered with a 4xx: trying again will not help
    ├── LimitExceeded               a budget of steps, tokens, seconds or money is spent (HTTP 429)
    ├── Unknown                     a number that was asked for and is not known, such as a price (HTTP 422)
    ├── FailedRun                   a training run that comes to nothing; another seed may do better (HTTP 422)
    └── ToolFailure                 a tool that could not do what was asked; the model reads the text (HTTP 422)

The command line prints `what`, `where` and `fix`, as `printable` leaves them, and exits with `exit_code`; HTTP answers
with `status`.
"""

from __future__ import annotations


def printable(text: str) -> str:
    """Text for a terminal: what a model, a tool or a server wrote must not be able to steer it."""
    return "".join(c if c.isprintable() or c in "\n\t" else "·" for c in text)


class TrimtabError(Exception):
    """The base of the tree.

    Args:
        what: what is wrong, one sentence without a full stop.
        where: the file, field, line, tool or request it is about, or None.
        fix: what the reader can do about it, or None.
    """

    status: int = 500
    exit_code: int = 1

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        super().__init__(str(self))

    def __str__(self) -> str:
        text = self.what if self.where is None else f"{self.where}: {self.what}"
        return text if self.fix is None else f"{text}. {self.fix}"

    def as_dict(self) -> dict[str, str | None]:
        """The error as JSON-ready fields, for `--json` and HTTP bodies."""
        return {"type": type(self).__name__, "what": self.what, "where": self.where, "fix": self.fix}


class NotFound(TrimtabError):
    """A name that nothing answers to."""

    status, exit_code = 404, 2


class BadInput(TrimtabError):
    """A file, argument or request that does not hold together."""

    status, exit_code = 400, 2


class Forbidden(TrimtabError):
    """Something that the caller may not do."""

    status, exit_code = 403, 2


class Conflict(TrimtabError):
    """Something that cannot be beside what is under way, or is claimed and is not so."""

    status = 409


class EngineError(TrimtabError):
    """An engine that could not answer."""

    status, exit_code = 502, 3


class EngineUnavailable(EngineError):
    """The engine is not there or went away; the same request may be tried again."""

    status = 503


class EngineRefused(EngineError):
    """The engine answered with a 4xx; trying again will not help."""

    status = 400


class LimitExceeded(TrimtabError):
    """A budget of steps, tokens, seconds or money is spent.

    Args:
        kind, value, limit: which budget, what was spent and what was allowed, where the error is about a number.
    """

    status, exit_code = 429, 4

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        fix: str | None = None,
        kind: str | None = None,
        value: float | None = None,
        limit: float | None = None,
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.kind, self.value, self.limit = kind, value, limit


class Unknown(TrimtabError):
    """A number that was asked for is not known; it is never replaced by zero."""

    status, exit_code = 422, 5


class FailedRun(TrimtabError):
    """A training run comes to nothing: it diverged, or its gradients vanished. Another seed may do better."""

    status, exit_code = 422, 7


class ToolFailure(TrimtabError):
    """A tool could not do what was asked. `what` is written for the model that made the call."""

    status, exit_code = 422, 6
