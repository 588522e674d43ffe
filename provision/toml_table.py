"""Tables of TOML files that are part of Slipway: every key known, every value of its kind."""

from __future__ import annotations

import re
from typing import Any, NoReturn, TypeVar

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import InvalidVersion, Version

from provision.errors import InternalError

_T = TypeVar("_T")


class Table:
    """A table of the file, which tells what it is asked for and does not have, or has too much."""

    def __init__(self, content: Any, where: str) -> None:
        if not isinstance(content, dict):
            wrong(where, "is not a table")
        self._content: dict[str, Any] = dict(content)
        self.where = where

    def __iter__(self) -> Any:
        return iter(tuple(self._content))

    def take(self, key: str, kind: type[_T], default: _T | None = None) -> _T:
        """A value of a kind; without a default it has to be there."""
        value = self._content.pop(key, default)
        if value is None:
            wrong(self.where, f"lacks {key}")
        if type(value) is not kind:
            wrong(f"{self.where}.{key}", f"is not a {kind.__name__}: {value!r}")
        return value

    def table(self, key: str) -> Table:
        """A table in it, empty where it is not there."""
        return Table(self._content.pop(key, {}), f"{self.where}.{key}")

    def tables(self) -> dict[str, Table]:
        """Everything in it, each of which has to be a table."""
        return {key: self.table(key) for key in self}

    def rows(self, key: str) -> list[Table]:
        """An array of tables."""
        rows = self.take(key, list)
        return [Table(row, f"{self.where}.{key}[{n}]") for n, row in enumerate(rows)]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of strings, empty where it is not there."""
        values: list[Any] = self.take(key, list, [])
        if not all(isinstance(value, str) for value in values):
            wrong(f"{self.where}.{key}", "is not a list of strings")
        return tuple(values)

    def matching(self, key: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        """A string that matches a pattern as a whole, or is the default."""
        value = self.take(key, str, default)
        if value != default and not pattern.fullmatch(value):
            wrong(f"{self.where}.{key}", f"is {value!r}")
        return value

    def version(self, key: str, default: str | None = None) -> str:
        """A version, as PEP 440 has it, or the default."""
        value = self.take(key, str, default)
        try:
            if value != default:
                Version(value)
        except InvalidVersion:
            wrong(f"{self.where}.{key}", f"is not a version: {value!r}")
        return value

    def versions(self, key: str) -> SpecifierSet | None:
        """A range of versions; None where it is not there."""
        if key not in self._content:
            return None
        value = self.take(key, str)
        try:
            return SpecifierSet(value)
        except InvalidSpecifier:
            wrong(f"{self.where}.{key}", f"is not a range of versions: {value!r}")

    def end(self) -> None:
        """Nothing may be left: a misspelt key would be a fact that nobody heeds."""
        if self._content:
            wrong(self.where, f"has what nothing reads: {', '.join(self._content)}")


def wrong(where: str, problem: str) -> NoReturn:
    """Say what is wrong with a file of Slipway's own.

    Raises:
        InternalError: Always.
    """
    raise InternalError(f"{where} {problem}", fix="correct it there")
