"""The jobs of the uploads: the sweeper, which also keeps the clock of the records, and the orphan cleaner."""

from __future__ import annotations

import logging

from tusd_py.contracts.storage import SupportsIdentity, SupportsOrphanCleanup
from tusd_py.jobs.scheduler import Job, Scheduler
from tusd_py.uploads.service import UploadService
from tusd_py.uploads.sweeping import PATIENCE, OrphanCleaner, Sweeper

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
    sweeper, cleaner = Sweeper(service), OrphanCleaner(service)
    identified = service.storage if isinstance(service.storage, SupportsIdentity) else None

    async def clean_orphans() -> str:
        orphans = await cleaner.clean()
        for orphan in orphans:
            logger.info("removed the orphaned %s %s", orphan.kind, orphan.name)
        if identified is not None:
            await identified.renew_identity()
        return f"removed {len(orphans)} orphans" if orphans else ""

    async def sweep_once() -> str:
        summary = await sweeper.sweep(patience=PATIENCE)
        return str(summary) if summary.total else ""

    jobs = [Job("sweeper", sweep_interval, sweep_once, at_start=True)]
    if identified is not None or isinstance(service.storage, SupportsOrphanCleanup):
        jobs.append(Job("orphan-cleaner", CLEAN_INTERVAL, clean_orphans, first_delay=FIRST_CLEAN))
    return Scheduler(jobs, service.state, service.locker, service.clock, service.events)
