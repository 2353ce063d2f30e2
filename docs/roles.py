"""Turn the Sphinx roles of pymtg's docstrings (``:class:`pymtg.DataMap```) into links of the site.

A griffe extension, which mkdocstrings loads. A name that nothing documents stays what it is: code.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")


class Roles(griffe.Extension):
    """Rewrite every docstring of a package once it is loaded."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite a package's docstrings; griffe calls this when it has read all of it."""
        _rewrite(pkg)


def _rewrite(owner: griffe.Module | griffe.Class) -> None:
    for member in [owner, *owner.members.values()]:
        if not member.is_alias and member.docstring is not None:
            member.docstring.value = _ROLE.sub(lambda role, at=member: _link(role[1], at), member.docstring.value)
    for member in owner.members.values():
        if not member.is_alias and (member.is_module or member.is_class):
            _rewrite(member)


def _link(name: str, at: griffe.Object) -> str:
    target = _path_of(name, at)
    # optional: what has no place in the reference stays code, without a warning
    return f"`{name}`" if target is None else f'<autoref identifier="{target}" optional>`{name}`</autoref>'


def _path_of(name: str, at: griffe.Object) -> str | None:
    """Return where that is defined which the docstring of `at` calls `name`; None if it is not in the package."""
    package = at.package
    for scope in _scopes(at):
        path = f"{scope}.{name}" if scope else name
        if not path.startswith(f"{package.path}."):
            continue
        try:
            found = package[path.removeprefix(f"{package.path}.")]
            found = found.final_target if found.is_alias else found
        except (KeyError, griffe.AliasResolutionError):
            continue
        # A module of the name of its function: the package shows the function under that name.
        own = found.members.get(found.name) if found.is_module else None
        return str(found.path if own is None else own.path)
    return None


def _scopes(at: griffe.Object) -> list[str]:
    """Return where a name may be at home: the object itself, what it lies in, then nowhere."""
    scopes, scope = [], at
    while scope is not None:
        scopes.append(str(scope.path))
        scope = scope.parent
    return [*scopes, ""]
