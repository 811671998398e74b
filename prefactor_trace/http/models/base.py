"""What all answers have in common: the base of the models, envelopes, pages and errors (contract 1.5 and 5.1)."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

__all__ = [
    "ApiError",
    "ApiModel",
    "ApiResponse",
    "DetailedApiError",
    "ListResponse",
    "Page",
    "PaginationOutput",
    "Sorting",
]

T = TypeVar("T")


class ApiModel(BaseModel):
    """Base of all models. Fields that a newer platform adds are kept: they can be read like any other."""

    # Built with the first use: the exporter needs one of these models, and must not wait for the others.
    model_config = ConfigDict(extra="allow", populate_by_name=True, defer_build=True)


class ApiResponse(ApiModel, Generic[T]):
    """An answer about one thing.

    Attributes:
        status: Always `success`.
        details: The thing.
    """

    status: str
    details: T


class ApiError(ApiModel):
    """An answer that refuses.

    Attributes:
        status: Always `error`.
        code: Why, for programs.
        message: Why, for people.
    """

    status: str = "error"
    code: str
    message: str


class DetailedApiError(ApiError):
    """An answer that refuses, field by field.

    Attributes:
        errors: Field → messages, or objects of messages.
    """

    errors: dict[str, Any]


class PaginationOutput(ApiModel):
    """Where a page of a list stands.

    Attributes:
        item_count: Items in the whole list.
        item_end: Number of the last item on the page, from one.
        item_start: Number of the first item on the page, from one.
        next_page_offset: Offset of the next page, None on the last one.
        page_count: Pages in the whole list.
        page_index: Number of the page, from one.
        page_offset: Offset of the page, from zero.
        page_size: Items on a page, 1 to 100.
        previous_page_offset: Offset of the page before, None on the first one.
    """

    item_count: int
    item_end: int
    item_start: int
    next_page_offset: int | None
    page_count: int
    page_index: int
    page_offset: int
    page_size: int
    previous_page_offset: int | None


class Sorting(ApiModel):
    """How a list is sorted.

    Attributes:
        field: By what.
        direction: `asc` or `desc`.
    """

    field: str
    direction: str


class ListResponse(ApiModel, Generic[T]):
    """An answer with a page of a list.

    Attributes:
        status: Always `success`.
        summaries: The items.
        pagination: Where the page stands; None if the platform did not say.
        sorting: How the list is sorted; None if it is not.
    """

    status: str
    summaries: list[T]
    pagination: PaginationOutput | None
    sorting: Sorting | None


class Page(list[T]):
    """The items of one page: a list, which also knows where it stands.

    Attributes:
        pagination: Where the page stands; `pagination.next_page_offset` is the next one's, None on the last.
        sorting: How the list is sorted; None if it is not.
    """

    def __init__(self, response: ListResponse[T]) -> None:
        super().__init__(response.summaries)
        self.pagination = response.pagination
        self.sorting = response.sorting
