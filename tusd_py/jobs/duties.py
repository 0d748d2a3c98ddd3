"""The jobs of the uploads: the sweeper, which also keeps the clock of the records, and the orphan cleaner."""

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
    """Return the scheduler of the sweeper and the orphan cleaner of a service.

    Args:
        service: the uploads, with their storage, state store and locker.
        sweep_interval: seconds between two sweeps. Every process also sweeps at its start, since an earlier process may
            have died during a completion or a removal.
    """

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
