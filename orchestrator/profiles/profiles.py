"""The profiles that are offered, read again when their files change, and every version that a run
has begun with, kept in the object store so that it ends with that one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path

from common.config import ConfigError
from common.errors import InvalidFieldError, NotFoundError
from orchestrator.blobs import BlobStore
from orchestrator.profiles.profile import NO_PROFILE, Profile
from orchestrator.profiles.profile_files import read_profiles
from orchestrator.resource_names import read_name

SHIPPED = Path(__file__).parent / "shipped"
"""The profiles that come with fathom."""
_KEPT_BYTES_MAX = 64 << 20
_log = logging.getLogger(__name__)


class Profiles:
    """The profiles of one orchestrator."""

    def __init__(self, blobs: BlobStore, folder: Path | None = None) -> None:
        """Read the profiles of a folder, those that are shipped where None; raises ConfigError."""
        self._blobs = blobs
        self._folder = folder or SHIPPED
        self._offered: Mapping[str, Profile] = read_profiles(self._folder)
        self._kept: dict[str, Profile] = {}

    def visible(self, tenant: str) -> list[Profile]:
        """Return the profiles that a tenant may use, by name."""
        return [p for _, p in sorted(self._offered.items()) if p.is_for(tenant)]

    def get(self, tenant: str, name: str) -> Profile:
        """Return one that a tenant may use; raises NotFoundError."""
        profile = self._offered.get(name)
        if profile is None or not profile.is_for(tenant):
            raise NotFoundError(f"profiles/{name}")
        return profile

    def asked(self, tenant: str, resource_name: str) -> Profile:
        """Return the profile that a spec names, NO_PROFILE where it names none; raises
        InvalidFieldError, which says which there are."""
        if not resource_name:
            return NO_PROFILE
        name = read_name("spec.profile", resource_name, collection="profiles")
        profile = self._offered.get(name)
        if profile is None or not profile.is_for(tenant):
            names = ", ".join(each.resource_name for each in self.visible(tenant)) or "none"
            raise InvalidFieldError(
                "spec.profile", f"there is no {resource_name}; those that are offered: {names}"
            )
        return profile

    async def keep(self, profile: Profile) -> None:
        """See to it that this version can be found for as long as there are runs of it."""
        if profile is not NO_PROFILE and profile.version not in self._kept:
            await self._blobs.put(_key(profile.version), profile.to_json())
            self._kept[profile.version] = profile

    async def kept(self, version: str) -> Profile:
        """Return a version that was kept, whether it is offered or not; NO_PROFILE for an empty
        one."""
        if not version:
            return NO_PROFILE
        profile = self._kept.get(version)
        if profile is None:
            pieces = self._blobs.read(_key(version), offset=0, size=_KEPT_BYTES_MAX)
            profile = Profile.from_json(b"".join([piece async for piece in pieces]))
            self._kept[version] = profile
        return profile

    async def watch(self, check_s: float) -> None:
        """Read the files again every so often, for ever. Those that cannot be used are told in the
        log, and the profiles stay as they were."""
        told = ""
        while True:
            await asyncio.sleep(check_s)
            try:
                offered = await asyncio.to_thread(read_profiles, self._folder)
            except (ConfigError, OSError) as error:
                if str(error) != told:
                    _log.error("the profiles stay as they were: %s", error)
                told = str(error)
                continue
            told = ""
            if offered != self._offered:
                self._offered = offered
                _log.info("the profiles were read again", extra={"profiles": len(offered)})


def _key(version: str) -> str:
    return f"profiles/{version.rpartition('+')[2]}.json"
