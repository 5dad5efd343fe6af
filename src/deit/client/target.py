"""Which server, model and patience a client has."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx2

from deit.client.answers import Reply
from deit.client.budget import Budget, check_budget
from deit.client.options import Options, count, server_address, token_header
from deit.core.scores.conformal import Coverage

BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Target:
    """The arguments of a client, checked. See `Client`.

    Raises:
        UserError: One cannot be used.
    """

    url: str
    token: str | None = field(repr=False)
    deadline: float
    retries: int
    model: str | None
    version: str | None
    batch_bytes: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", server_address(self.url))
        check_budget(self.deadline, self.retries)
        count(self.batch_bytes, "batch_bytes")
        token_header(self.token)

    def headers(self) -> dict[str, str]:
        """Returns the headers of every request."""
        return {"User-Agent": "deit-client", "Accept": "application/json", **token_header(self.token)}

    def budget(self) -> Budget:
        """Returns the budget of a request that begins now."""
        return Budget(self.deadline, self.retries)

    def reply(self, url: str, response: httpx2.Response, content: bytes) -> Reply:
        """Returns the answer to a request, whose body has been read."""
        return Reply(
            url=url,
            status=response.status_code,
            headers=response.headers,
            content=content,
            with_token=self.token is not None,
        )

    def options(
        self,
        *,
        top_k: int,
        coverage: float | Coverage | None,
        abstain: bool,
        heads: bool,
        embedding: bool,
        explain: str | None,
    ) -> Options:
        """Returns what is asked about each image.

        Raises:
            UserError: An argument cannot be used.
        """
        return Options(
            model=self.model,
            version=self.version,
            top_k=count(top_k, "top_k"),
            coverage=coverage if isinstance(coverage, Coverage | None) else Coverage(percent=coverage),
            abstain=abstain,
            heads=heads,
            embedding=embedding,
            explain=explain,
        )
