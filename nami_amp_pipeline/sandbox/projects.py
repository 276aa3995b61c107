"""The projects: which keys are known, what each is called, and where its events are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from threading import Lock

from .audit import Audit
from .settings import Options, Project, Region, key_digest, key_hint
from .store import ProjectStore

_FIRST_PROJECT_ID = 100_001
_NAMES_FOR_S = 5.0
"""How long what `names` said is believed."""


class Projects:
    """All projects, by API key. Not thread-safe but for `learn_names`: the sandbox holds a lock."""

    def __init__(
        self,
        known: Mapping[str, Project] | None,
        *,
        any_key: bool,
        refused_keys: Collection[str],
        names: Callable[[], Mapping[str, str]] | None,
    ) -> None:
        """Starts with no events.

        Args:
            known: the projects by API key.
            any_key: whether other keys make projects of their own.
            refused_keys: keys that are wrong in any case.
            names: gives the names of projects by the SHA-256 of their key; asked when one without a name is shown.
        """
        self._known = dict(known or {})
        self._any_key = any_key
        self._refused_keys = frozenset(refused_keys)
        self._names = names
        self._names_asked = float("-inf")
        self._asking = Lock()
        self._stores: dict[str, ProjectStore] = {}

    def __iter__(self) -> Iterator[ProjectStore]:
        """The projects that have taken events, in the order of their first one."""
        return (store for store in self._stores.values() if store.accepted)

    def is_known(self, api_key: str, region: Region | None) -> bool:
        """Whether a key is right at an address of a region (None: at one of no region)."""
        project = self._known.get(api_key)
        if api_key in self._refused_keys or (project is None and not self._any_key):
            return False
        return project is None or region is None or project.region in (None, region)

    def may_export(self, api_key: str, secret_key: str, region: Region | None) -> bool:
        """Whether the two keys of a project are right."""
        project = self._known.get(api_key)
        wanted = project.secret_key if project is not None else None
        return self.is_known(api_key, region) and bool(secret_key) and wanted in (None, secret_key)

    def find(self, digest: str) -> ProjectStore | None:
        """The project of a key's SHA-256, if it ever took an event."""
        return self._stores.get(digest)

    def of_key(self, api_key: str, options: Options, audit: Audit) -> ProjectStore:
        """The project of a key, made if there is none yet."""
        digest = key_digest(api_key)
        store = self._stores.get(digest)
        if store is None:
            project = self._known.get(api_key) or Project()
            number = project.id or project_id(digest)
            store = ProjectStore(number, project.name, key_hint(api_key), digest, options, audit)
            self._stores[digest] = store
        return store

    def of_journal(self, digest: str, hint: str, number: int, options: Options, audit: Audit) -> ProjectStore:
        """The project that a journal tells of, made if there is none yet."""
        store = self._stores.get(digest)
        if store is None:
            names = {key_digest(key): project.name for key, project in self._known.items()}
            store = ProjectStore(number, names.get(digest, ""), hint, digest, options, audit)
            self._stores[digest] = store
        return store

    def empty(self) -> Iterator[tuple[int, Project, str]]:
        """The known projects that have taken no event: number, project, and what of its key may be shown."""
        for api_key, project in self._known.items():
            digest = key_digest(api_key)
            store = self._stores.get(digest)
            if api_key not in self._refused_keys and (store is None or not store.accepted):
                yield project.id or project_id(digest), project, key_hint(api_key)

    def learn_names(self, now: float) -> None:
        """Asks for the names of the projects that have none, unless it was asked just now.

        Call it without the sandbox's lock: names may come from a database.
        """
        if self._names is None or all(store.name for store in list(self._stores.values())):
            return
        with self._asking:
            if 0 <= now - self._names_asked < _NAMES_FOR_S:
                return
            self._names_asked = now
            found = self._names()
        for store in list(self._stores.values()):
            store.name = store.name or found.get(store.digest, "")

    def clear(self) -> None:
        """Forgets all events."""
        self._stores.clear()


def project_id(digest: str) -> int:
    """The number of a project that was given none: always the same for a key."""
    return _FIRST_PROJECT_ID + int(digest[:8], 16) % 800_000
