"""Many calls in one request (contract section 4)."""

from __future__ import annotations

from prefactor_trace.http.endpoints._endpoint import Endpoint
from prefactor_trace.http.models.bulk import BulkRequest, BulkResponse

__all__ = ["BulkClient"]


class BulkClient(Endpoint):
    """Many calls in one request.

    Each item is done in a transaction of its own, in order. The first that fails ends it: its error is among the
    outputs, what was done before stays done, and later items are missing from the outputs.
    """

    async def execute(self, request: BulkRequest) -> BulkResponse:
        """Do the calls.

        POST /api/v1/bulk

        Raises:
            PrefactorValidationError: The request as a whole is wrong; nothing was done.
        """
        body = request.model_dump(by_alias=True)
        response = await self._client.request("POST", "/api/v1/bulk", json_data=body)
        return self._parsed(BulkResponse, response, "bulk.execute")
