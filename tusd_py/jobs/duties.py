"""The periodic duties of the uploads: sweeping, and the cleanup of orphans."""

from __future__ import annotations

import logging

from tusd_py.contracts.storage import SupportsIdentity, SupportsOrphanCleanup
from tusd_py.jobs.scheduler import Job, Scheduler
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import clean, sweep

logger = logging.getLogger("tusd_py.sweeper")

CLEAN_INTERVAL = 3600.0  # seconds
FIRST_CLEAN = (30.0, 90.0)  # seconds after the start of a process, range of a random delay


def scheduler_of(service: UploadService, sweep_interval: float) -> Scheduler:
    """Build the scheduler of a service. A process sweeps when it starts: an earlier one may have died in the middle."""

    async def clean_orphans() -> str:
        orphans = await clean(service)
        for orphan in orphans:
            logger.info("removed the orphaned %s %s", orphan.kind, orphan.name)
        if isinstance(service.storage, SupportsIdentity):
            await service.storage.renew_identity()
        return f"removed {len(orphans)} orphans" if orphans else ""

    async def sweep_once() -> str:
        swept = await sweep(service)
        return f"removed or finished {swept} uploads" if swept else ""

    jobs = [Job("sweeper", sweep_interval, sweep_once, at_start=True)]
    if isinstance(service.storage, SupportsOrphanCleanup | SupportsIdentity):
        jobs.append(Job("orphan-cleaner", CLEAN_INTERVAL, clean_orphans, first_delay=FIRST_CLEAN))
    return Scheduler(jobs, service.state, service.locker, service.clock, service.events)
